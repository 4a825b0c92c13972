"""What stands in for a trained model while steps are timed: surfels as many and as small as growth
leaves them, and a few photographs of every block."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from cosurfgs_jax.geometry.rotations import matrix_from_quat
from cosurfgs_jax.training.partitioned_scene import PartitionedScene
from cosurfgs_jax.training.state import TrainState
from cosurfgs_jax.types import SurfelParams

# Median opacity: 0.35 after 300 steps of caliterra, 0.74 after 1,000 of the town.
_LOGIT_OPACITY = 0.0
_NUM_PAIRS = 4  # of photographs of a block: each with its nearest neighbour, for MV-Reg


def grown(state: TrainState, num_surfels: int, seed: int) -> TrainState:
    """A state with more surfels, each a part of one that it had, and as opaque as trained ones.

    A surfel is cut into parts: they lie in its plane, within its standard deviation, and together
    have its area.

    Args:
        state: of a block before its first step.
        num_surfels: that shall live; at most its slots.
        seed: of the places of the parts.
    """
    (living,) = np.nonzero(np.asarray(state.alive))
    if not len(living):
        return state
    source = living[np.arange(num_surfels) % len(living)]
    fields = {name: np.array(value) for name, value in state.params.by_name().items()}
    random = np.random.default_rng([seed, len(living)])
    planes = np.asarray(matrix_from_quat(jnp.asarray(fields["quats"][source])))[..., :2]
    parts = {name: value[source] for name, value in fields.items()}
    if num_surfels > len(living):
        shifts = random.normal(size=(num_surfels, 2)) * np.exp(parts["log_scales"])
        parts["means"] = parts["means"] + np.einsum("nij,nj->ni", planes, shifts)
        parts["log_scales"] = parts["log_scales"] - 0.5 * np.log(num_surfels / len(living))
    parts["logit_opacities"] = np.full_like(parts["logit_opacities"], _LOGIT_OPACITY)
    for name, value in parts.items():
        fields[name][:num_surfels] = value
    alive = np.arange(len(state.alive)) < num_surfels
    params: dict[str, Any] = fields  # of NumPy, as the state goes to its device later
    return dataclasses.replace(state, params=SurfelParams(**params), alive=alive)


def thinned(state: TrainState, prune_ratio: float, seed: int) -> TrainState:
    """A state without a random part of its surfels, as compression leaves it."""
    is_kept = np.random.default_rng([seed, 1]).random(len(state.alive)) >= prune_ratio
    return dataclasses.replace(state, alive=np.asarray(state.alive) & is_kept)


def with_few_views(partitioned: PartitionedScene) -> PartitionedScene:
    """The same place, of whose photographs each block has a few: pairs that are neighbours, spread
    evenly over its own.
    """
    centers = partitioned.views.centers()
    blocks = [
        block._replace(views=_pairs(centers, _largest(partitioned, block.views)))
        for block in partitioned.blocks
    ]
    return partitioned._replace(blocks=blocks)


def with_few_test_views(partitioned: PartitionedScene, num: int) -> PartitionedScene:
    """The same place with at most `num` test views in each cell."""
    scene = partitioned.scene
    home = partitioned.partition.home
    is_test = np.zeros(scene.num_views, bool)
    for block in partitioned.blocks:
        own = scene.test_views[home[scene.test_views] == block.number]
        is_test[own[:num]] = True
    return partitioned._replace(scene=dataclasses.replace(scene, is_test=is_test))


def _largest(partitioned: PartitionedScene, views: Int[np.ndarray, " n"]) -> Int[np.ndarray, " m"]:
    """Those of the largest size: a compiled step takes photographs of one size, unless all are
    padded to it.
    """
    if partitioned.photo_size is not None:
        return views
    sizes = partitioned.scene.views.image_sizes[views]
    largest = sizes[sizes.prod(axis=1).argmax()]
    return views[(sizes == largest[None]).all(axis=1)]


def _pairs(
    centers: Float[np.ndarray, "v 3"], views: Int[np.ndarray, " n"]
) -> Int[np.ndarray, " m"]:
    chosen = set()
    seeds = np.linspace(0, len(views) - 1, min(len(views), _NUM_PAIRS)).round().astype(int)
    for seed in views[seeds]:
        distances = np.linalg.norm(centers[views] - centers[seed], axis=1)
        chosen |= {int(view) for view in views[np.argsort(distances, kind="stable")[:2]]}
    return np.array(sorted(chosen), np.int64)
