"""The stages of a run, and the merged model that the newest of them gives."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from cosurfgs_jax.errors import InputError
from cosurfgs_jax.partition import Partition
from cosurfgs_jax.settings import Settings
from cosurfgs_jax.training import harmonize, loop
from cosurfgs_jax.training.checkpoints import Checkpoints
from cosurfgs_jax.training.partitioned_scene import PartitionedScene
from cosurfgs_jax.training.state import abstract_state
from cosurfgs_jax.types import Surfels


def stage_names(settings: Settings, partition: Partition) -> list[str]:
    """The stages with checkpoints, in order. Edges take part where they are neither all one nor
    each a single block.
    """
    if partition.num_blocks == 1:
        return ["device"]
    names = ["device", "lmc_device"] if settings.lmc.enabled else ["device"]
    if settings.mas.enabled:
        names += ["edge", "cloud"] if 1 < partition.num_edges < partition.num_blocks else ["cloud"]
    return names


def total_steps(settings: Settings, name: str) -> int:
    """Steps of a stage."""
    steps = settings.train.steps
    return {"device": steps, "lmc_device": round(settings.lmc.recovery * steps)}.get(
        name, settings.mas.steps or max(1, steps // 10)
    )


def model_path(workdir: Path, step: int) -> Path:
    """Where the merged model's splat file lies."""
    return workdir / "point_cloud" / f"iteration_{step}" / "point_cloud.ply"


def load_merged(
    settings: Settings, workdir: Path, partitioned: PartitionedScene
) -> tuple[Surfels, int]:
    """The surfels of all cells of the newest stage that was saved, and how many steps were taken to
    there.

    Blocks that are not distilled yet are cropped to their cells, and their colours made to agree in
    brightness (`exposure`).

    Args:
        settings: those of the run.
        workdir: of the run.
        partitioned: of the run.
    Returns:
        Surfels of NumPy arrays, world frame, all alive; and the number of steps of all stages up to
        it.
    Raises:
        InputError: nothing was saved yet, the checkpoints are of another dataset, or damaged.
    """
    steps_before = 0
    found = None
    for name in stage_names(settings, partitioned.partition):
        folder = loop.checkpoint_folder(workdir, name)
        if any(path.name.isdigit() for path in folder.glob("*")):
            found = name, folder, steps_before
        steps_before += total_steps(settings, name)
    if found is None:
        raise InputError(
            f"{workdir}: expected a trained model, got no checkpoint; run `python -m "
            "cosurfgs_jax.train` first"
        )
    name, folder, steps_before = found

    def make_abstract(meta: dict):
        loop.check_identity(partitioned, meta)
        one = abstract_state(meta["num_slots"], meta["max_views"], settings)
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((meta["num_blocks"], *leaf.shape), leaf.dtype), one
        )

    with Checkpoints(folder) as checkpoints:
        restored = checkpoints.restore_latest(make_abstract)
    state = restored.state
    alive = np.asarray(state.alive)
    means = np.asarray(state.params.means)
    params = state.params
    if name in ("device", "lmc_device"):
        alive = alive & (partitioned.partition.cell_of(means) == np.arange(len(alive))[:, None])
        if settings.appearance.enabled and len(alive) > 1:
            models = {
                block: jax.tree.map(lambda leaf, block=block: leaf[block], state.appearance)
                for block in range(len(alive))
            }
            gains = harmonize.gains_of(partitioned, harmonize.gray_responses(partitioned, models))
            harmonics = zip(
                map(jnp.asarray, params.sh), jnp.asarray(gains, jnp.float32), strict=True
            )
            scaled = [harmonize.scale_harmonics(sh, gain) for sh, gain in harmonics]
            params = params.replace(sh=np.stack(scaled))
    params = jax.tree.map(lambda value: np.asarray(value)[alive], params)
    surfels = Surfels.of(params, np.ones(int(alive.sum()), bool))
    return surfels, steps_before + restored.step
