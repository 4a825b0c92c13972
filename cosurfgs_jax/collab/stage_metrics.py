"""The scores of a stage: its object in metrics.json, and its lines in the log."""

import logging

import numpy as np
from jaxtyping import Int

from cosurfgs_jax.collab import compress
from cosurfgs_jax.collab.composite import PARTIAL_IMAGE_BYTES
from cosurfgs_jax.collab.plans import Plans
from cosurfgs_jax.collab.seam_metrics import (
    SeamDepth,
    score_seam_depth,
    summarize_seam_depth,
    wall_roughness,
)
from cosurfgs_jax.collab.stage_bytes import measure_bytes, summarize_bytes, surfel_bytes
from cosurfgs_jax.collab.stage_scores import Scores, SeamMasks, score_cells
from cosurfgs_jax.collab.stage_spec import StageSpec
from cosurfgs_jax.distributed import processes
from cosurfgs_jax.training.loop import StageState, count_alive
from cosurfgs_jax.training.run import Run
from cosurfgs_jax.training.run_log import peak_bytes_per_device
from cosurfgs_jax.training.state import model_of

_log = logging.getLogger(__name__)


class StageMetrics:
    """Scores the stages of a run, one after the other."""

    def __init__(self, run: Run, plans: Plans):
        """
        Args:
            run: of the run.
            plans: its groupings.
        """
        self._run = run
        self._plans = plans
        self._seams = SeamMasks(run.partitioned, run.settings)
        self._roughness = wall_roughness(self._written())

    def _written(self) -> list[dict]:
        return self._run.workdir.read_metrics()["stages"]

    def has(self, name: str) -> bool:
        """Whether the scores of a stage are in metrics.json."""
        return any(row["name"] == name for row in self._written())

    def write(self, spec: StageSpec, stage: StageState, handed_over: int = 0) -> None:
        """Scores the merged model that a stage gives, and writes its object of metrics.json.

        Args:
            spec: of the stage.
            stage: at its last step.
            handed_over: bytes that the run took from blocks of their own jobs.
        """
        run = self._run
        exchange = self._plans.whole_cloud.exchange
        cells = stage.states
        local_models = None
        if not spec.is_merged:
            local_models = stage.states
            models = [model_of(state) for state in stage.states]
            cells = compress.crop_to_cells(run.partitioned.partition, run.layout, models)
        scores = score_cells(run, cells, exchange, self._seams)
        depth = score_seam_depth(run, cells, exchange, self._seams, local_models, self._roughness)
        self._roughness = wall_roughness([depth._asdict()]) or self._roughness
        num_surfels = _count_surfels(run, stage.states)
        num_merged = int(_count_surfels(run, cells).sum())
        sizes = measure_bytes(run, spec, stage, handed_over)
        bytes_sent = self._bytes_sent(spec)
        peak_bytes = int(processes.gather(np.int64(peak_bytes_per_device())).max())
        if processes.is_first():
            run.workdir.write_stage(
                spec.name,
                steps=stage.step,
                seconds=stage.seconds,
                num_surfels=num_surfels.tolist(),
                psnr_test=scores.psnr,
                ssim_test=scores.ssim,
                psnr_seam=scores.psnr_seam,
                peak_bytes_per_device=peak_bytes,
                psnr_test_fitted=scores.psnr_fitted,
                psnr_seam_fitted=scores.psnr_seam_fitted,
                num_surfels_merged=num_merged,
                num_without_room=stage.num_without_room,
                num_slots=stage.states[0].alive.shape[1],
                bytes_sent_per_step=bytes_sent,
                bytes_sent=bytes_sent * stage.step,
                bytes_model=num_merged * surfel_bytes(stage.states[0]),
                **sizes._asdict(),
                **depth._asdict(),
            )
        _log_scores(spec.name, num_surfels, num_merged, scores=scores, depth=depth)
        _log.info("%s: %s", spec.name, summarize_bytes(sizes, bytes_sent * stage.step))

    def _bytes_sent(self, spec: StageSpec) -> int:
        """Bytes that leave the busiest device in a step: partial images of others' views, and the
        gradients of those that it received.
        """
        run = self._run
        num_images = spec.grouping(self._plans).exchange.num_sent * run.layout.blocks_per_device**2
        height, width = run.partitioned.photo_size or (0, 0)
        return 2 * num_images * height * width * PARTIAL_IMAGE_BYTES


def _count_surfels(run: Run, states: list) -> Int[np.ndarray, " b"]:
    """Living surfels of every block, the same in all processes."""
    counts = np.zeros(len(run.partitioned.blocks), np.int64)
    for block, count in count_alive(run.layout, states).items():
        counts[block] = count
    return processes.gather(counts).sum(axis=0)


def _log_scores(
    name: str,
    num_surfels: Int[np.ndarray, " b"],
    num_merged: int,
    scores: Scores,
    depth: SeamDepth,
) -> None:
    _log.info(
        "%s: %d surfels in %d blocks, %d merged; %s",
        name,
        num_surfels.sum(),
        len(num_surfels),
        num_merged,
        summarize_scores(scores),
    )
    summary = summarize_seam_depth(depth)
    if summary:
        _log.info("%s: %s", name, summary)


def summarize_scores(scores: Scores) -> str:
    """The scores in words."""
    if scores.psnr is None:
        return "no test views"
    seam = ""
    if scores.psnr_seam is not None:
        seam = f", at the seams {scores.psnr_seam:.2f} ({scores.psnr_seam_fitted:.2f})"
    return (
        f"test PSNR {scores.psnr:.2f} dB ({scores.psnr_fitted:.2f} fitted){seam}, "
        f"SSIM {scores.ssim:.4f}"
    )
