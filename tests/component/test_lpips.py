"""LPIPS against an implementation in NumPy, with random weights of thin networks."""

import jax
import numpy as np
import pytest
import scene_layouts
from lpips_networks import ALEX, NETWORKS, states_of
from numpy.lib.stride_tricks import sliding_window_view

from cosurfgs_jax import metrics
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.outputs import commands

SIZE = (40, 36)


def _features(image, layers, trunk):
    value = np.moveaxis(image, -1, 0).astype(np.float64)
    for place, _, side, stride, padding, pool, is_compared in layers:
        if pool:
            windows = sliding_window_view(value, (pool, pool), axis=(1, 2))[:, ::2, ::2]
            value = windows.max(axis=(-1, -2))
        value = np.pad(value, [(0, 0), (padding, padding), (padding, padding)])
        windows = sliding_window_view(value, (side, side), axis=(1, 2))[:, ::stride, ::stride]
        value = np.einsum("chwij,ocij->ohw", windows, trunk[f"features.{place}.weight"])
        value = np.maximum(value + trunk[f"features.{place}.bias"][:, None, None], 0)
        if is_compared:
            yield value / (np.sqrt((value**2).sum(axis=0)) + 1e-10)


def _lpips(image, truth, layers, states, scale=2.0, shift=-1.0):
    trunk, heads = states
    mean = np.array([-0.030, -0.088, -0.188])
    spread = np.array([0.458, 0.448, 0.450])
    pair = [(scale * picture + shift - mean) / spread for picture in (image, truth)]
    layers_of_pair = zip(*(_features(picture, layers, trunk) for picture in pair), strict=True)
    total = 0.0
    for (ours, theirs), head in zip(layers_of_pair, heads.values(), strict=True):
        total += ((ours - theirs) ** 2 * head.reshape(-1, 1, 1)).sum(axis=0).mean()
    return total


def _pictures(seed=1):
    rng = np.random.default_rng(seed)
    return rng.uniform(size=(2, *SIZE, 3)).astype(np.float32)


@pytest.mark.parametrize("network", NETWORKS)
def test_it_is_that_of_the_definition(network):
    layers = NETWORKS[network]
    states = states_of(layers)
    weights = metrics.weights_of(list(states), "here")
    assert weights.network == network
    image, truth = _pictures()
    mask = np.ones(SIZE, bool)
    mask[:, :9] = False

    @jax.jit
    def found(image, truth):
        return [
            metrics.lpips(image, truth, weights),
            metrics.lpips(image, truth, weights, is_unscaled=True),
            metrics.lpips(image, truth, weights, mask),
            metrics.lpips(truth, truth, weights),
        ]

    kept = mask[..., None]
    expected = [
        _lpips(image, truth, layers, states),
        _lpips(image, truth, layers, states, 1.0, 0.0),
        _lpips(image * kept, truth * kept, layers, states),
        0.0,
    ]
    np.testing.assert_allclose(found(image, truth), expected, rtol=2e-4, atol=1e-9)
    assert min(expected[:3]) > 0.01 and abs(expected[1] / expected[0] - 1) > 0.01


def test_names_of_other_files_mean_the_same():
    trunk, heads = states_of(ALEX)
    slices = {0: 1, 3: 2, 6: 3, 8: 4, 10: 5}
    whole = {
        f"net.slice{slices[int(key.split('.')[1])]}.{key.split('.', 1)[1]}": value
        for key, value in trunk.items()
    }
    whole |= {key.replace(".model.1", ""): value for key, value in heads.items()}
    whole["scaling_layer.shift"] = np.zeros((1, 3, 1, 1), np.float32)
    expected = metrics.weights_of([trunk, heads], "here")
    got = metrics.weights_of([whole], "here")
    for part in ("kernels", "biases", "heads"):
        for ours, theirs in zip(getattr(got, part), getattr(expected, part), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_weights_come_from_files_of_torch(tmp_path):
    trunk, heads = states_of(ALEX)
    paths = [tmp_path / name for name in ("alexnet.pth", "alex.pth")]
    for path, state in zip(paths, (trunk, heads), strict=True):
        scene_layouts.write_torch(path, state)
    weights = commands.read_lpips_weights(paths)
    np.testing.assert_array_equal(weights.kernels[0], trunk["features.0.weight"])
    assert commands.read_lpips_weights([]) is None
    with pytest.raises(InputError, match=r"alex\.pth: expected .* got no trunk"):
        commands.read_lpips_weights(paths[1:2])
    scene_layouts.write_torch(paths[0], trunk["features.0.weight"])
    with pytest.raises(InputError, match="expected the state of a network, got ndarray"):
        commands.read_lpips_weights(paths[:1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lin0.model.1.weight": None}, "expected lin0 of AlexNet .*got none"),
        ({"features.8.bias": None}, "expected features.8.bias of AlexNet .*got none"),
        ({"features.3.weight": np.zeros((5, 7, 5, 5))}, r"features\.3\.weight .*got \(5, 7, 5, 5"),
        ({"lin2.model.1.weight": np.zeros((1, 3, 1, 1))}, r"expected lin2 .*\(7,\), got \(3,\)"),
        ({"features.0.weight": np.zeros((6, 3, 7, 7))}, "a first convolution of shape"),
        ({"features.0.bias": np.full(6, np.nan)}, "as finite numbers"),
    ],
)
def test_weights_that_do_not_fit_are_refused(change, message):
    trunk, heads = states_of(ALEX)
    table = {key: value for key, value in (trunk | heads | change).items() if value is not None}
    with pytest.raises(InputError, match=f"^here: .*{message}"):
        metrics.weights_of([table], "here")


def test_pictures_that_are_too_small_are_refused():
    weights = metrics.weights_of(list(states_of(ALEX)), "here")
    with pytest.raises(InputError, match="at least 32 pixels a side, got 40x31"):
        metrics.lpips(np.zeros((31, 40, 3)), np.zeros((31, 40, 3)), weights)
