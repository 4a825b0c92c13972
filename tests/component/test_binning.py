"""The lists of surfels per tile, window by window, against loops over surfels and tiles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cosurfgs_jax.raster import binning
from cosurfgs_jax.raster.options import Maps, Static
from cosurfgs_jax.raster.projection import NUM_FEATURES, Projected

STATIC = Static(
    height=40,
    width=70,
    near=0.1,
    sh_degree=0,
    maps=Maps.COLOR,
    with_contributions=False,
    orthographic=False,
)
GRID = binning.make_grid(STATIC, 16)
COUNT = 60


def _projected(seed=0, drawn=0.8) -> Projected:
    rng = np.random.default_rng(seed)
    x, y = (
        np.sort(rng.integers(0, size, (COUNT, 2)), axis=1) for size in (STATIC.width, STATIC.height)
    )
    depth = rng.choice([1.0, 2.0, 3.5, 4.0], COUNT).astype(np.float32)  # with ties
    return Projected(
        jnp.zeros((COUNT, NUM_FEATURES)),
        jnp.asarray(depth),
        jnp.asarray(np.concatenate([x, y], 1), jnp.int32),
        jnp.asarray(rng.uniform(size=COUNT) < drawn),
        jnp.int32(0),
    )


def _lists(projected) -> list[tuple[int, int]]:
    """(surfel, tile) in order of depth, then of id, then of tile."""
    found = []
    box = np.asarray(projected.box) // 16
    for surfel in np.argsort(np.asarray(projected.depth), kind="stable"):
        x0, x1, y0, y1 = box[surfel]
        tiles = [(y, x) for y in range(y0, y1 + 1) for x in range(x0, x1 + 1)]
        found += [(surfel, y * GRID.columns + x) for y, x in tiles if projected.is_drawn[surfel]]
    return found


@pytest.mark.parametrize("size", [16, 100, 4096])
@pytest.mark.parametrize("drawn", [0.8, 0.0])
def test_windows_hold_all_pairs_in_order(size, drawn):
    projected = _projected(drawn=drawn)
    want = _lists(projected)
    assert GRID.num_tiles == 15 and (drawn == 0 or len(want) > 200)
    ordered = binning.order(projected, GRID)
    assert int(ordered.num_pairs) == len(want) and int(binning.num_windows(ordered, size)) == -(
        -len(want) // size
    )
    make = jax.jit(binning.make_window, static_argnums=(2, 3))
    ids = np.asarray(ordered.ids)
    for index in range(-(-len(want) // size)):
        window = jax.tree.map(np.asarray, make(ordered, jnp.int32(index), size, GRID))
        expected = want[index * size : (index + 1) * size]
        assert window.count.sum() == len(expected)
        for tile in range(GRID.num_tiles):
            got = ids[window.ranks[window.begin[tile] : window.begin[tile] + window.count[tile]]]
            np.testing.assert_array_equal(
                got, [surfel for surfel, where in expected if where == tile]
            )


def test_two_keys_sort_as_one(monkeypatch):
    """Where tile and rank do not fit into one number."""
    ordered = binning.order(_projected(), GRID)
    one = binning.make_window(ordered, jnp.int32(1), 64, GRID)
    monkeypatch.setattr(binning, "_MAX_KEY", 0)
    two = binning.make_window(ordered, jnp.int32(1), 64, GRID)
    jax.tree.map(np.testing.assert_array_equal, one, two)


def test_pairs_beyond_the_count_are_skipped_and_counted(monkeypatch):
    projected = _projected()
    monkeypatch.setattr(binning, "MAX_PAIRS", 100)
    ordered = binning.order(projected, GRID)
    kept = {surfel for surfel, _ in _lists(projected)[: int(ordered.num_pairs)]}
    assert 80 < int(ordered.num_pairs) < 100
    assert int(ordered.num_skipped) == int(projected.is_drawn.sum()) - len(kept)


def test_windows_grow_with_the_model():
    sizes = [binning.window_size(num, GRID) for num in (0, 10_000, 100_000, 10_000_000)]
    assert (
        sizes == sorted(sizes) and sizes[0] < sizes[2] < sizes[3] == 2**21 and sizes[2] >= 300_000
    )
