"""report.html: what a run produced, in one file that opens anywhere."""

from pathlib import Path

from cosurfgs_jax import files
from cosurfgs_jax.geometry.scene_frame import SceneFrame
from cosurfgs_jax.report import page
from cosurfgs_jax.report.curves import NO_CURVES, Curves, curves_from_rows
from cosurfgs_jax.report.error_picture import drop_error_files, write_error_files
from cosurfgs_jax.report.section import ReportInput
from cosurfgs_jax.report.sections import SECTIONS
from cosurfgs_jax.workdir import Workdir

__all__ = ["curves_from_rows", "drop_error_files", "write_error_files", "write_report"]


def write_report(
    workdir: Workdir,
    *,
    title: str = "",
    curves: Curves | None = None,
    timings: dict[str, float] | None = None,
    frame: SceneFrame | None = None,
    num_views: int = 4,
) -> Path:
    """Writes the report of what lies in a workdir; what is not there is left out.

    Args:
        workdir: of the run.
        title: of the page; "" = the folder's name.
        curves: of training; `curves_from_rows` makes them from a log.
        timings: name -> seconds, of parts that are no stages in metrics.json (mesh, evaluation).
        frame: of the scene, for what is drawn on the ground and for what is up; None: z is up, and
            no flight map.
        num_views: test views shown.
    Returns:
        The path of the report.
    Raises:
        InputError: a file is damaged, or the disk is full.
    """
    with files.reading(
        workdir.root,
        "a run with whole JSON files (metrics.json, per_view.json, partition.json)",
        "run `cosurfgs evaluate` again, or restore them",
    ):
        metrics = files.read_json_object(workdir.metrics) if workdir.metrics.exists() else {}
        given = ReportInput(
            workdir=workdir,
            metrics=metrics,
            curves=curves or NO_CURVES,
            timings=timings or {},
            frame=frame,
            num_views=num_views,
        )
        parts = [
            page.section(section.title, section.content(given), section.note)
            for section in SECTIONS
        ]
    heading = title or workdir.root.resolve().name
    text = page.document(heading, "cosurfgs_jax report", parts)
    # JSON can hold what is no text.
    files.write_text(workdir.report, text.encode("utf-8", "replace").decode())
    return workdir.report
