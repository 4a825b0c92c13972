"""The scores of test views: in one process, or by shards that score some views each."""

import hashlib
import logging
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cosurfgs_jax.data.images import ImageStore
from cosurfgs_jax.errors import required
from cosurfgs_jax.outputs import evaluation
from cosurfgs_jax.outputs.shards import Shards
from cosurfgs_jax.outputs.trained import Trained
from cosurfgs_jax.outputs.view_scores import MoreScores
from cosurfgs_jax.part import WHOLE, Part
from cosurfgs_jax.training.run_log import Progress
from cosurfgs_jax.workdir import SCORES

_KEPT_PHOTOGRAPHS_MB = 0  # each test view is read once
_ABOUT = "draws each test view, and compares it with its photograph"
_log = logging.getLogger(__name__)


def _shards_of(trained: Trained, more: MoreScores) -> Shards:
    weights = ""
    if more.lpips_weights is not None:
        digest = hashlib.sha256()
        for leaf in jax.tree.leaves(tuple(more.lpips_weights)):
            digest.update(np.asarray(leaf).tobytes())
        weights = digest.hexdigest()[:16]
    asked = {
        "--lpips_weights": weights,
        "--with_nearest_exposure": more.transforms is not None,
    }
    return Shards(trained.workdir, SCORES, "evaluate", trained.made_with() | asked)


def make_shard(trained: Trained, part: Part, more: MoreScores) -> None:
    """Scores a part of the test views, and leaves it as a shard of the workdir.

    Raises:
        InputError: there is no test view, or see `Shards.making`.
    """
    started = time.monotonic()
    evaluation.pictures_of_views(trained.partitioned.scene.test_views)  # says if there is none
    with _shards_of(trained, more).making(part) as shard:
        if shard is not None:
            folder, note = shard
            note.update(score_part(trained, part, folder, more))
            note["seconds"] = time.monotonic() - started


def score_part(trained: Trained, part: Part, folder: Path, more: MoreScores) -> dict[str, Any]:
    """Scores a part of the test views, which lie near together: "rows" of
    `evaluation.score_views`, whose pictures are in the folder, and "num_surfels" of the model.
    """
    scene = trained.partitioned.scene
    named = list(evaluation.pictures_of_views(scene.test_views).items())
    order = trained.partitioned.views.in_space(scene.test_views)
    chosen = dict(named[number] for number in sorted(order[part.run_of(len(order))]))
    seen = trained.seen_by(np.fromiter(chosen.values(), np.int64))
    with (
        ImageStore(scene, _KEPT_PHOTOGRAPHS_MB) as images,
        Progress("evaluate", len(chosen), about=_ABOUT) as progress,
    ):
        rows = evaluation.score_views(
            trained.render_fn(seen.surfels),
            scene,
            images,
            pictures_of=chosen,
            folder=folder,
            progress=lambda done, total: progress.update(done),
            more=more,
        )
    return {"rows": rows, "num_surfels": seen.num_all}


def score(trained: Trained, more: MoreScores) -> float:
    """Scores the test views, or takes what shards have found, and writes it; for who holds the
    lock of scores.

    Returns:
        The seconds that shards took.
    Raises:
        InputError: see `Shards.collect` and `evaluation.summarize`.
    """
    workdir = trained.workdir
    folder = workdir.test(trained.step)
    shards = _shards_of(trained, more)
    collected = shards.collect()
    for shard in collected:
        evaluation.take_pictures(shard.folder, folder)
    notes = [shard.note for shard in collected] or [score_part(trained, WHOLE, folder, more)]
    rows = {name: row for note in notes for name, row in note["rows"].items()}
    scores = evaluation.summarize(rows, trained.partitioned.scene, workdir, trained.step)
    workdir.merge_metrics(final=evaluation.final_part(scores, notes[0]["num_surfels"]))
    shards.delete()
    _log_scores(scores, more)
    return sum(note.get("seconds", 0.0) for note in notes)


def _log_scores(scores: dict[str, Any], more: MoreScores) -> None:
    _log.info(
        "test views: PSNR %.2f dB (%.2f after colour correction), SSIM %.4f over %d views",
        scores["psnr"],
        scores["psnr_color_corrected"],
        scores["ssim"],
        scores["num_test_views"],
    )
    if "psnr_nearest_view" in scores:
        _log.info(
            "test views: PSNR %.2f dB, SSIM %.4f with the exposure of the nearest training view",
            scores["psnr_nearest_view"],
            scores["ssim_nearest_view"],
        )
    if "lpips" in scores:
        _log.info(
            "test views: LPIPS %.4f (%.4f after colour correction) by %s; %.4f with [0, 1] for "
            "[-1, 1]",
            scores["lpips"],
            scores["lpips_color_corrected"],
            required(more.lpips_weights, "MoreScores.lpips_weights").network,
            scores["lpips_unscaled"],
        )
    geometry_line = evaluation.summarize_geometry(scores)
    if geometry_line:
        _log.info("test views: %s", geometry_line)
