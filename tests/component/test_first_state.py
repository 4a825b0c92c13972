"""The state of a block before its first step."""

import numpy as np
from scenes import town_place

import cosurfgs_jax.training.first_state as module
from cosurfgs_jax.settings import Settings, SurfelSettings
from cosurfgs_jax.training.first_state import first_state


def test_first_surfels_lie_on_the_points_and_in_their_gaps(monkeypatch):
    partitioned = town_place()
    settings = Settings(surfels=SurfelSettings(sh_degree=1))
    block = partitioned.blocks[0]
    middle = partitioned.scene.cloud.points[block.points].mean(axis=0)
    asked = []

    def two_points(cloud, chosen, views, *, used, most):
        asked.append((len(cloud), chosen.tolist(), len(views), used.tolist(), most))
        return middle + np.array([[0.0, 0, 1], [0, 0, 2]]), np.full((2, 3), 200, np.uint8)

    monkeypatch.setattr(module, "gap_points", two_points)
    with_gaps = first_state(partitioned, block, settings, 4096)
    count = len(block.points)
    most = min(count // 4, block.capacity - count)
    scene = partitioned.scene
    assert asked == [
        (len(scene.cloud), block.points.tolist(), scene.num_views, block.views.tolist(), most)
    ]
    assert int(with_gaps.alive.sum()) == count + 2
    expected = partitioned.frame.to_world(middle + np.array([[0.0, 0, 1], [0, 0, 2]]))
    np.testing.assert_allclose(with_gaps.params.means[count : count + 2], expected, atol=1e-5)

    masked = partitioned._replace(scene=scene.with_masks(True))
    off = Settings(surfels=SurfelSettings(sh_degree=1, fill_gaps=False))
    for other, given in ((masked, settings), (partitioned, off)):
        assert int(first_state(other, block, given, 4096).alive.sum()) == count
    assert len(asked) == 1
