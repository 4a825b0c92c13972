"""The merged model of the newest saved stage."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from cosurfgs_jax.collab.stage_spec import StageSpec
from cosurfgs_jax.collab.stages import stages_of
from cosurfgs_jax.errors import InputError, required
from cosurfgs_jax.model import exposure_model
from cosurfgs_jax.settings import Settings
from cosurfgs_jax.training import harmonize
from cosurfgs_jax.training.checkpoints import Checkpoints, Parts, Restored
from cosurfgs_jax.training.partitioned_scene import PartitionedScene
from cosurfgs_jax.training.saved_meta import check_identity
from cosurfgs_jax.training.schedule import progress_at
from cosurfgs_jax.training.state import (
    BlockModel,
    TrainState,
    abstract_state,
    from_saved,
    kept_of,
    to_saved,
)
from cosurfgs_jax.training.step import settle_step
from cosurfgs_jax.types import SurfelParams, Surfels
from cosurfgs_jax.workdir import Workdir


def load_merged(
    settings: Settings, workdir: Workdir, partitioned: PartitionedScene, stage: str = ""
) -> tuple[Surfels, int]:
    """The surfels of all cells of a stage, and the steps taken up to there.

    Blocks that are not distilled yet are cropped to their cells, and their colours are harmonized
    in brightness (`training.harmonize`).

    Args:
        settings, workdir, partitioned: of the run.
        stage: its name; "" = the newest that is saved.
    Returns:
        Surfels of NumPy arrays, world frame, all alive; and the steps of all stages up to them.
    Raises:
        InputError: nothing is saved, the checkpoints are of another dataset, or damaged.
    """
    saved = _newest(settings, workdir, partitioned, stage)
    newest = saved.spec
    restored = saved.restored
    state = BlockModel.of(restored.state)
    params = state.params
    num_steps = newest.num_steps(settings)
    if restored.meta.get("is_lazy", False) and 0 < restored.step < num_steps:
        # A run that was stopped saves surfels that wait for the next view which may show them.
        restored = _restore(
            settings, workdir, partitioned, spec=newest, parts=Parts(last_step=num_steps)
        )
        state = from_saved(restored.state)
        params = state.params
        if isinstance(state, TrainState):  # else the run has gone on to the end meanwhile
            progress = progress_at(restored.step, num_steps, newest.first_progress(settings))
            params = _settled(state, progress, settings)
    alive = np.asarray(state.alive)
    if not newest.is_merged:
        alive = alive & _is_in_own_cell(partitioned, np.asarray(params.means))
        if settings.appearance.enabled and len(alive) > 1:
            params = params.replace(sh=_harmonized(partitioned, params.sh, state.appearance))
    params = jax.tree.map(lambda value: np.asarray(value)[alive], params)
    surfels = Surfels.of(params, np.ones(int(alive.sum()), bool))
    return surfels, saved.steps_before + restored.step


def load_exposures(
    settings: Settings, workdir: Workdir, partitioned: PartitionedScene
) -> Float[np.ndarray, "v 3 4"]:
    """What each photograph shows of the colours of the merged model: matrix and offset; the mean
    over the blocks that were trained with it, the identity where none was.

    Args:
        settings, workdir, partitioned: of the run.
    Raises:
        InputError: see `load_merged`.
    """
    num_views = partitioned.scene.num_views
    if not settings.appearance.enabled:
        return np.tile(np.eye(3, 4), (num_views, 1, 1))
    saved = _newest(settings, workdir, partitioned)
    models = _by_block(saved.restored.state["appearance"], len(partitioned.blocks))
    if not saved.spec.is_merged and len(models) > 1:
        gains = harmonize.gains_of(partitioned, harmonize.gray_responses(partitioned, models))
        models = {
            block: exposure_model.apply_inverse_gain(model, jnp.asarray(gain, jnp.float32))
            for (block, model), gain in zip(models.items(), gains, strict=True)
        }
    sums = np.zeros((num_views, 3, 4))
    counts = np.zeros(num_views)
    for block, model in models.items():
        views = partitioned.blocks[block].views
        sums[views] += np.asarray(exposure_model.transforms(model))[: len(views)]
        counts[views] += 1
    means = sums / np.maximum(counts, 1)[:, None, None]
    return np.where(counts[:, None, None] > 0, means, np.eye(3, 4))


class _Saved(NamedTuple):
    """The newest saved stage."""

    spec: StageSpec
    restored: Restored
    steps_before: int


def _newest(
    settings: Settings, workdir: Workdir, partitioned: PartitionedScene, stage: str = ""
) -> _Saved:
    newest = None
    steps_before = 0
    num_steps = 0
    for spec in stages_of(settings, partitioned.partition):
        if workdir.has_begun(spec.name) and stage in ("", spec.name):
            newest = spec
            steps_before = num_steps
        num_steps += spec.num_steps(settings)
    if newest is None:
        raise InputError(
            f"{workdir}: expected a trained model, got no checkpoint; run `python -m "
            "cosurfgs_jax.train` first"
        )
    restored = _restore(settings, workdir, partitioned, spec=newest, parts=Parts(training=False))
    return _Saved(newest, restored, steps_before)


def _by_block(exposures: dict, num_blocks: int) -> dict[int, dict]:
    """The exposure models of all blocks, by number."""
    return {
        block: jax.tree.map(lambda leaf, block=block: jnp.asarray(leaf[block]), exposures)
        for block in range(num_blocks)
    }


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
    settings: Settings,
    workdir: Workdir,
    partitioned: PartitionedScene,
    spec: StageSpec,
    parts: Parts,
) -> Restored:
    """The newest checkpoint of a stage, all blocks on one device."""

    def make_abstract(meta: dict):
        check_identity(partitioned, meta)
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

    with Checkpoints(workdir.checkpoints(spec.name), is_read_only=True) as checkpoints:
        restored = checkpoints.restore_latest(make_abstract, parts)
        return required(restored, f"checkpoint of stage {spec.name}")


def _is_in_own_cell(
    partitioned: PartitionedScene, means: Float[np.ndarray, "b n 3"]
) -> Bool[np.ndarray, "b n"]:
    return partitioned.partition.cell_of(means) == np.arange(len(means))[:, None]


def _harmonized(partitioned: PartitionedScene, sh, exposures) -> Float[np.ndarray, "b n k 3"]:
    """The colours of all blocks in one brightness."""
    models = _by_block(exposures, len(sh))
    gains = harmonize.gains_of(partitioned, harmonize.gray_responses(partitioned, models))
    pairs = zip(map(jnp.asarray, sh), jnp.asarray(gains, jnp.float32), strict=True)
    return np.stack([harmonize.scale_harmonics(block_sh, gain) for block_sh, gain in pairs])
