"""Settings of many blocks: partition, devices, compression (LMC) and aggregation (MAS)."""

import dataclasses

from cosurfgs_jax.settings.declaration import (
    SettingsGroup,
    at_least,
    fraction,
    not_negative,
    number,
    proper_fraction,
    require,
    setting,
)


@dataclasses.dataclass
class PartitionSettings(SettingsGroup, name="partition"):
    """How a scene is cut into blocks, and which blocks form an edge. Both are logical: any number
    of devices carries them.
    """

    num_blocks: int = setting(
        1, "Number of blocks the scene is cut into.", at_least(1), largest=100_000, is_main=True
    )
    num_edges: int = setting(
        1, "Number of edges; an edge is a group of adjacent blocks.", is_main=True
    )
    expansion: float = setting(
        0.2,
        "What a block trains on beyond its cell, on each side, as a fraction of the cell's side.",
        fraction("a fraction of a cell's side, 0 to 1"),
    )
    backdrop: float = setting(
        0.25,
        "Surfels outside of its expanded cell that a block starts with, at most, as a fraction of "
        "those inside: what its photographs show there belongs to other blocks.",
        not_negative(),
    )
    grows_backdrop: bool = setting(
        False, "Whether density control adds surfels outside of a block's expanded cell."
    )
    min_coverage: float = setting(
        0.25,
        "Fraction of an image's area that a cell's airspace must cover to make the image one of "
        "the block's.",
        number("a number in (0, 1]", above=0, at_most=1),
    )
    min_views: int = setting(
        3, "A block with fewer training views is merged with its neighbour.", at_least(1)
    )
    min_points: int = setting(
        100, "A block with fewer points is merged with its neighbour.", at_least(1)
    )

    def check_together(self) -> None:
        """An edge has at least one block."""
        require(
            1 <= self.num_edges <= self.num_blocks,
            "partition.num_edges",
            f"1 to partition.num_blocks ({self.num_blocks}), as an edge is a group of blocks",
            self.num_edges,
        )


@dataclasses.dataclass
class MeshSettings(SettingsGroup, name="mesh"):
    """The devices that carry the blocks."""

    num_devices: int = setting(
        0,
        "Number of devices that carry the blocks; 0 means all that JAX sees.",
        not_negative("0 (all that JAX sees) or a positive number"),
        is_main=True,
    )


@dataclasses.dataclass
class LmcSettings(SettingsGroup, name="lmc"):
    """Local model compression (LMC): importance, pruning, and training to recover. Only where there
    are several blocks.
    """

    enabled: bool = setting(True, "Whether blocks are compressed before they are aggregated.")
    prune_ratio: float = setting(
        0.4,
        "Fraction of a block's surfels that its compression (LMC) prunes.",
        proper_fraction("a fraction in [0, 1)"),
        is_main=True,
    )
    importance_share: float = setting(
        0.0,
        "Instead of prune_ratio: keep the fewest surfels that carry this fraction of the "
        "importance; 0 means by prune_ratio.",
        proper_fraction("0 (by ratio) or a fraction below 1"),
    )
    camera_switch: bool = setting(
        True,
        "Whether importance counts only photographs that see enough of the block's cell "
        "(min_cell_share).",
    )
    min_cell_share: float = setting(
        0.25,
        "Fraction of a photograph's pixels, by rendered weight, that must come from the cell to "
        "make the photograph count.",
        fraction("a fraction, 0 to 1"),
    )
    score: str = setting(
        "removal",
        'What surfels are ranked by: "removal" (the change of the pictures without it) or "weight" '
        "(its rendered weight); or another in collab/importance_scores.py.",
    )
    area_exponent: float = setting(
        -0.3,
        'Exponent of the area in the score "weight"; below 0, of surfels of equal weight the large '
        "ones go first.",
    )
    rounds: int = setting(
        4,
        "Rounds of pruning, each followed by its part of the recovery and a new measurement.",
        at_least(1),
    )
    recovery: float = setting(
        0.15,
        "Steps of training after pruning, in all rounds together, as a fraction of train.steps.",
        fraction("a fraction of train.steps, 0 to 1"),
    )
    start_progress: float = setting(
        0.5,
        "Where on the schedule of the learning rates the recovery begins, from 0 to 1; it ends at "
        "1.",
        fraction("a fraction of the course, 0 to 1"),
    )
    compact: bool = setting(
        False,
        "Whether blocks that jobs of their own train (--blocks) hand over their models in the "
        "compact form, about a twentieth of the bytes, instead of their checkpoints. "
        "Distillation then begins with moments of zero.",
    )
    edge_prune_ratio: float = setting(
        0.1,
        "Fraction of an edge's surfels that is pruned between edge and cloud.",
        proper_fraction("a fraction in [0, 1)"),
    )


@dataclasses.dataclass
class MasSettings(SettingsGroup, name="mas"):
    """Model aggregation (MAS): the blocks distilled into one model."""

    enabled: bool = setting(True, "Whether blocks are distilled into one model.")
    steps: int = setting(
        0,
        "Steps of each distillation (MAS), with one photograph of every block a step; 0 means a "
        "tenth of train.steps.",
        not_negative("0 (a tenth of train.steps) or a positive number"),
        is_main=True,
    )
    teacher_weight: float = setting(
        0.0,
        "Weight of the colours of the frozen local models; the devices' own photographs have the "
        "rest. 1 is the paper's form, for photographs that are gone.",
        fraction("a fraction, 0 to 1"),
    )
    depth_weight: float = setting(
        0.2, "Weight of the difference to the teachers' depth, relative to depth.", not_negative()
    )
    normal_weight: float = setting(
        0.05, "Weight of the difference to the teachers' normals.", not_negative()
    )
    whole_teachers: bool = setting(
        True,
        "Whether teachers are the models from before compression, which stay on their devices.",
    )
    start_progress: float = setting(
        0.5,
        "Where on the schedule of the learning rates a stage begins, from 0 to 1; it ends at 1.",
        fraction("a fraction of the course, 0 to 1"),
    )
    max_partners: int = setting(
        8,
        "Maximum number of devices that are asked to draw parts of one device's view.",
        at_least(1),
    )
