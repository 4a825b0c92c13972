"""What saved blocks were made with, and whether that is what there is now."""

import logging
from collections.abc import Sequence
from typing import Any

from cosurfgs_jax.distributed import processes
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.losses.term import LossTerm
from cosurfgs_jax.training.partitioned_scene import PartitionedScene
from cosurfgs_jax.training.run import Run

_log = logging.getLogger(__name__)


def made_with(run: Run) -> dict[str, Any]:
    """What blocks are made with, besides the settings, as JSON data."""
    return {
        "blocks": list(run.layout.blocks),
        "has_masked_photos": run.partitioned.has_masked_photos,
        "versions": processes.versions(),
        "own_loss_terms": [term.name for term in run.own_terms],
        **run.partitioned.identity(),
    }


def check_meta(run: Run, meta: dict) -> None:
    """Raises InputError if what was saved was made with something else than there is now
    (`made_with`). Another version of the code is a warning.
    """
    check_identity(run.partitioned, meta)
    check_own_terms(run.own_terms, meta)
    _check_blocks(run, meta)


def check_identity(partitioned: PartitionedScene, meta: dict) -> None:
    """Raises InputError if a checkpoint is of another dataset or another partition than the run."""
    for key, value in partitioned.identity().items():
        if meta[key] != value:
            what = "partition"
            difference = "its cells, or the photographs and points of its blocks, differ"
            if key == "fingerprint":
                what = "dataset"
                difference = "names, cameras, sizes, points or split differ"
            raise InputError(
                f"config.data.path: the checkpoints in the workdir were made with another {what} "
                f"than {partitioned.scene.path} gives now ({difference}); give the old one, or use "
                "another --workdir"
            )


def check_own_terms(own_terms: Sequence[LossTerm], meta: dict) -> None:
    """Raises InputError if a stage began with other terms of the loss than the user gives now."""
    before = meta.get("own_loss_terms", [])
    now = [term.name for term in own_terms]
    if sorted(now) != sorted(before):
        raise InputError(
            f"losses: expected the terms of your own that the run began with "
            f"({', '.join(before) or 'none'}), got {', '.join(now) or 'none'}; give the same ones "
            "to cosurfgs_jax.train_model, or use another --workdir"
        )


def _check_blocks(run: Run, meta: dict) -> None:
    """Raises InputError if a checkpoint is of other blocks, or of blocks whose photographs had
    masks where now none has, or the other way round.
    """
    blocks = list(run.layout.blocks)
    saved = meta.get("blocks", blocks)
    if saved != blocks:
        raise InputError(
            f"{run.workdir}: expected checkpoints of the blocks {blocks}, got those of {saved}; "
            "each block has a folder of its own: give them their names back"
        )
    had_masks = meta.get("has_masked_photos", run.partitioned.has_masked_photos)
    if had_masks != run.partitioned.has_masked_photos:
        words = {True: "with masks", False: "without masks"}
        raise InputError(
            f"config.data.path: expected photographs {words[had_masks]}, as the checkpoints in "
            f"{run.workdir} were made from, got some {words[not had_masks]}; give the same files, "
            "or use another --workdir"
        )
    by = meta.get("versions", processes.versions())
    is_alone = len(blocks) < len(run.partitioned.blocks)
    if is_alone and by != processes.versions():
        _log.warning(
            "block %d was trained by %s, and here is %s: its last bits may differ from those of a "
            "run on one kind of machine",
            *blocks,
            by,
            processes.versions(),
        )
