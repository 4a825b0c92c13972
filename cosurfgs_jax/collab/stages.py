"""The pipeline: its stages in order. A new stage is a function of `StageWork` and an entry here.

Source: CoSurfGS: device-side training, local model compression (LMC), model aggregation (MAS) on
    edges and in the cloud.
"""

from cosurfgs_jax.collab.device_stage import train_blocks
from cosurfgs_jax.collab.lmc_stages import compress_blocks, compress_edges
from cosurfgs_jax.collab.mas_stages import distill_cloud, distill_edges
from cosurfgs_jax.collab.plans import has_edges
from cosurfgs_jax.collab.stage_spec import StageSpec
from cosurfgs_jax.partition import Partition
from cosurfgs_jax.run_status import PlannedStage, write_plan
from cosurfgs_jax.settings import Settings
from cosurfgs_jax.workdir import Workdir


def _has_lmc(settings: Settings, partition: Partition) -> bool:
    return settings.lmc.enabled and partition.num_blocks > 1


def _has_mas(settings: Settings, partition: Partition) -> bool:
    return settings.mas.enabled and partition.num_blocks > 1


def _has_edge_mas(settings: Settings, partition: Partition) -> bool:
    return settings.mas.enabled and has_edges(partition)


def _has_edge_lmc(settings: Settings, partition: Partition) -> bool:
    return settings.lmc.enabled and _has_edge_mas(settings, partition)


def _mas_steps(settings: Settings) -> int:
    return settings.mas.steps or max(1, settings.train.steps // 10)


STAGES = (
    StageSpec(
        "device",
        "trains the surfels of each block on its own photographs, from its SfM points",
        train_blocks,
        takes_part=lambda settings, partition: True,
        num_steps=lambda settings: settings.train.steps,
        grouping=lambda plans: plans.alone,
        is_merged=False,
        is_of_blocks=True,
    ),
    StageSpec(
        "lmc_device",
        "compresses each block (LMC): prunes the surfels that change its pictures least, and "
        "trains the others to recover",
        compress_blocks,
        takes_part=_has_lmc,
        num_steps=lambda settings: round(settings.lmc.recovery * settings.train.steps),
        grouping=lambda plans: plans.alone,
        is_merged=False,
        is_of_blocks=True,
        first_progress=lambda settings: settings.lmc.start_progress,
    ),
    StageSpec(
        "edge",
        "distils the blocks of each edge into one model (MAS), by their photographs and by the "
        "depth and normals of the blocks' own models",
        distill_edges,
        takes_part=_has_edge_mas,
        num_steps=_mas_steps,
        grouping=lambda plans: plans.edge,
        is_merged=True,
    ),
    StageSpec(
        "lmc_edge",
        "compresses the model of each edge (LMC): prunes the surfels that change its pictures "
        "least",
        compress_edges,
        takes_part=_has_edge_lmc,
        num_steps=lambda settings: 0,
        grouping=lambda plans: plans.alone,
        is_merged=True,
        has_checkpoints=False,
    ),
    StageSpec(
        "cloud",
        "distils all edges (all blocks, where there are none) into the model of the whole scene "
        "(MAS)",
        distill_cloud,
        takes_part=_has_mas,
        num_steps=_mas_steps,
        grouping=lambda plans: plans.cloud,
        is_merged=True,
    ),
)


def stages_of(settings: Settings, partition: Partition) -> list[StageSpec]:
    """The stages that a run has, in order."""
    return [spec for spec in STAGES if spec.takes_part(settings, partition)]


def total_steps(settings: Settings, partition: Partition) -> int:
    """Steps of all stages of a run."""
    return sum(spec.num_steps(settings) for spec in stages_of(settings, partition))


def note_plan(settings: Settings, workdir: Workdir, partition: Partition) -> None:
    """Writes which stages a run has, for who asks how far it is."""
    stages = [
        PlannedStage(spec.name, spec.num_steps(settings), spec.is_of_blocks, spec.has_checkpoints)
        for spec in stages_of(settings, partition)
    ]
    write_plan(workdir, partition.num_blocks, stages)
