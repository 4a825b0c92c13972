"""What a section of the report is, and what it is made from."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from cosurfgs_jax.geometry.scene_frame import SceneFrame
from cosurfgs_jax.report.curves import Curves
from cosurfgs_jax.workdir import Workdir


class ReportInput(NamedTuple):
    """What the sections of a report are made from."""

    workdir: Workdir
    metrics: dict[str, Any]  # metrics.json; {} where it is missing
    curves: Curves
    timings: dict[str, float]  # name -> seconds, of parts that are no stages
    frame: SceneFrame | None  # of the scene; None = not known
    num_views: int  # test views that are shown

    @property
    def up(self) -> np.ndarray:
        """Which way is up in the dataset's frame, f64[3]; z where the frame is not known."""
        return np.array([0.0, 0.0, 1.0]) if self.frame is None else self.frame.rotation[2]

    @property
    def final(self) -> dict[str, Any]:
        """Scores of the model; {} before evaluation."""
        return self.metrics.get("final") or {}

    @property
    def geometry(self) -> dict[str, Any]:
        """Scores of the mesh; {} without any."""
        return self.metrics.get("geometry") or {}

    @property
    def stages(self) -> list[dict[str, Any]]:
        """Scores of the stages."""
        return self.metrics.get("stages") or []


class Section(NamedTuple):
    """A headed part of the report."""

    title: str
    content: Callable[[ReportInput], str]  # HTML; "" leaves the section out
    note: str = ""  # below the title
