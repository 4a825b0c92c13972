"""report.html: what a run produced, in one file that opens anywhere."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cosurfgs_jax import files
from cosurfgs_jax.report import page
from cosurfgs_jax.report.curves import Curves, curves_from_rows
from cosurfgs_jax.report.error_picture import drop_error_files, write_error_files
from cosurfgs_jax.report.section import ReportInput
from cosurfgs_jax.report.sections import SECTIONS
from cosurfgs_jax.report.tables import key_numbers
from cosurfgs_jax.workdir import Workdir

__all__ = ["curves_from_rows", "drop_error_files", "write_error_files", "write_report"]


def write_report(
    workdir: Workdir,
    *,
    title: str = "",
    curves: Curves | None = None,
    timings: dict[str, float] | None = None,
    up: Sequence[float] | np.ndarray = (0.0, 0.0, 1.0),
    num_views: int = 4,
) -> Path:
    """Writes the report of what lies in a workdir; what is not there is left out.

    Args:
        workdir: of the run.
        title: of the page; "" = the folder's name.
        curves: chart -> line -> (steps, values); `curves_from_rows` makes them from a log.
        timings: name -> seconds, of parts that are no stages in metrics.json (mesh, evaluation).
        up: f64[3], which way is up in the dataset's frame, for the pictures of the mesh.
        num_views: test views shown.
    Returns:
        The path of the report.
    Raises:
        InputError: a file is damaged, or the disk is full.
    """
    with files.reading(
        workdir.root,
        "a run with whole JSON files (metrics.json, per_view.json, partition.json)",
        "run `python -m cosurfgs_jax.evaluate` again, or restore them",
    ):
        metrics = files.read_json_object(workdir.metrics) if workdir.metrics.exists() else {}
        given = ReportInput(
            workdir=workdir,
            metrics=metrics,
            curves=curves or {},
            timings=timings or {},
            up=np.asarray(up, np.float64),
            num_views=num_views,
        )
        parts = [key_numbers(given)]
        parts += [
            page.section(section.title, section.content(given), section.note)
            for section in SECTIONS
        ]
    heading = title or workdir.root.resolve().name
    text = page.document(heading, "cosurfgs_jax report", parts)
    # JSON can hold what is no text.
    files.write_text(workdir.report, text.encode("utf-8", "replace").decode())
    return workdir.report
