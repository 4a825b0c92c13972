"""The merged model of the newest saved stage."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from cosurfgs_jax.collab.stages import stages_of
from cosurfgs_jax.errors import InputError, required
from cosurfgs_jax.settings import Settings
from cosurfgs_jax.training import harmonize, loop
from cosurfgs_jax.training.checkpoints import Checkpoints, Restored
from cosurfgs_jax.training.partitioned_scene import PartitionedScene
from cosurfgs_jax.training.schedule import progress_at
from cosurfgs_jax.training.state import TrainState, abstract_state, kept_of, to_saved
from cosurfgs_jax.training.step import settle_step
from cosurfgs_jax.types import SurfelParams, Surfels
from cosurfgs_jax.workdir import Workdir


def load_merged(
    settings: Settings, workdir: Workdir, partitioned: PartitionedScene
) -> tuple[Surfels, int]:
    """The surfels of all cells of the newest saved stage, and the steps taken up to there.

    Blocks that are not distilled yet are cropped to their cells, and their colours are harmonized
    in brightness (`training.harmonize`).

    Args:
        settings, workdir, partitioned: of the run.
    Returns:
        Surfels of NumPy arrays, world frame, all alive; and the steps of all stages up to them.
    Raises:
        InputError: nothing is saved, the checkpoints are of another dataset, or damaged.
    """
    newest = None
    steps_before = 0
    num_steps = 0
    for spec in stages_of(settings, partitioned.partition):
        if workdir.has_begun(spec.name):
            newest = spec
            steps_before = num_steps
        num_steps += spec.num_steps(settings)
    if newest is None:
        raise InputError(
            f"{workdir}: expected a trained model, got no checkpoint; run `python -m "
            "cosurfgs_jax.train` first"
        )
    restored = _restore(settings, workdir, partitioned, newest.name)
    state = TrainState(**restored.state)
    params = state.params
    if state.updated is not None and restored.step:
        # A run that was stopped saves surfels that wait for the next view which may show them.
        progress = progress_at(
            restored.step, newest.num_steps(settings), newest.first_progress(settings)
        )
        params = _settled(state, progress, settings)
    alive = np.asarray(state.alive)
    if not newest.is_merged:
        alive = alive & _is_in_own_cell(partitioned, np.asarray(params.means))
        if settings.appearance.enabled and len(alive) > 1:
            params = params.replace(sh=_harmonized(partitioned, params.sh, state.appearance))
    params = jax.tree.map(lambda value: np.asarray(value)[alive], params)
    surfels = Surfels.of(params, np.ones(int(alive.sum()), bool))
    return surfels, steps_before + restored.step


def _settled(state: TrainState, progress: float, settings: Settings) -> SurfelParams:
    """The parameters of all blocks [B, ...] with all surfels up to date."""
    state = dataclasses.replace(state, depths=None)
    blocks = [
        settle_step(
            jax.tree.map(lambda leaf, block=block: jnp.asarray(leaf[block]), state),
            jnp.float32(progress),
            settings,
        ).params
        for block in range(len(state.alive))
    ]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *blocks)


def _restore(
    settings: Settings, workdir: Workdir, partitioned: PartitionedScene, name: str
) -> Restored:
    """The newest checkpoint of a stage, all blocks on one device."""

    def make_abstract(meta: dict):
        loop.check_identity(partitioned, meta)
        one = abstract_state(
            meta["num_slots"],
            meta["max_views"],
            settings,
            kept_of(meta),
        )
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((meta["num_blocks"], *leaf.shape), leaf.dtype),
            to_saved(one),
        )

    with Checkpoints(workdir.checkpoints(name), is_read_only=True) as checkpoints:
        return required(checkpoints.restore_latest(make_abstract), f"checkpoint of stage {name}")


def _is_in_own_cell(
    partitioned: PartitionedScene, means: Float[np.ndarray, "b n 3"]
) -> Bool[np.ndarray, "b n"]:
    return partitioned.partition.cell_of(means) == np.arange(len(means))[:, None]


def _harmonized(partitioned: PartitionedScene, sh, exposures) -> Float[np.ndarray, "b n k 3"]:
    """The colours of all blocks in one brightness."""
    models = {
        block: jax.tree.map(lambda leaf, block=block: leaf[block], exposures)
        for block in range(len(sh))
    }
    gains = harmonize.gains_of(partitioned, harmonize.gray_responses(partitioned, models))
    pairs = zip(map(jnp.asarray, sh), jnp.asarray(gains, jnp.float32), strict=True)
    return np.stack([harmonize.scale_harmonics(block_sh, gain) for block_sh, gain in pairs])
