"""What the columns of a file depend on in all of its surfels, gathered part by part."""

import dataclasses
from typing import Any

import numpy as np


@dataclasses.dataclass
class Extent:
    """Of surfels that are added part by part. The same parts in the same order give the same bits.

    | field            | shape  | unit, frame                                              |
    |------------------|--------|----------------------------------------------------------|
    | `count`          |        | surfels                                                  |
    | `low`, `high`    | f64[3] | box of the centres                                       |
    | `is_exact`       |        | the centres came in float64                              |
    | `log_scales_sum` |        | of both log scales of all                                |
    | `mean`           | f64[3] | of the centres                                           |
    | `squares`        | f64[3] | sum of the squared distances of the centres from `mean`  |
    """

    count: int = 0
    low: np.ndarray = dataclasses.field(default_factory=lambda: np.full(3, np.inf))
    high: np.ndarray = dataclasses.field(default_factory=lambda: np.full(3, -np.inf))
    is_exact: bool = False
    log_scales_sum: float = 0.0
    mean: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(3))
    squares: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(3))

    def add(self, means: np.ndarray, log_scales: np.ndarray) -> None:
        """Adds a part.

        Args:
            means: f64[n,3] or f32[n,3], in the frame of the file.
            log_scales: [n,2], natural log of lengths of that frame.
        """
        if not len(means):
            return
        self.is_exact |= means.dtype == np.float64
        means = np.asarray(means, np.float64)
        self.low = np.minimum(self.low, means.min(axis=0))
        self.high = np.maximum(self.high, means.max(axis=0))
        self.log_scales_sum += float(np.asarray(log_scales, np.float64).sum())
        # Chan, Golub and LeVeque 1983: means and squares of two sets give those of both.
        total = self.count + len(means)
        mean = means.mean(axis=0)
        step = mean - self.mean
        self.squares = (
            self.squares
            + ((means - mean) ** 2).sum(axis=0)
            + step**2 * (self.count * len(means) / total)
        )
        self.mean = self.mean + step * (len(means) / total)
        self.count = total

    @classmethod
    def of_points(cls, count: int, low: np.ndarray, high: np.ndarray, spacing: float) -> "Extent":
        """Of points in float64 that are `spacing` apart, in a box from `low` to `high` f64[3]."""
        lengths = 2 * count * float(np.log(spacing))
        return cls(count, low, high, is_exact=True, log_scales_sum=lengths)

    def to_dict(self) -> dict[str, Any]:
        """For a JSON file; Python writes and reads float64 exactly."""
        return {
            name: value.tolist() if isinstance(value, np.ndarray) else value
            for name, value in vars(self).items()
        }

    @classmethod
    def from_dict(cls, table: dict[str, Any]) -> "Extent":
        """The extent that `to_dict` gave."""
        extent = cls()
        for name, value in table.items():
            setattr(extent, name, np.array(value) if isinstance(value, list) else value)
        return extent

    @property
    def largest_coordinate(self) -> float:
        """The largest absolute value of any coordinate."""
        return float(np.abs([self.low, self.high]).max())

    def around(self, origin: np.ndarray) -> "Extent":
        """The same with coordinates from `origin` f64[3] on, in single precision."""
        moved = {name: getattr(self, name) - origin for name in ("low", "high", "mean")}
        return dataclasses.replace(self, **moved, is_exact=False)

    @property
    def typical(self) -> float:
        """The geometric mean of both standard deviations of all surfels."""
        return float(np.exp(self.log_scales_sum / (2 * self.count)))

    @property
    def needs_double(self) -> bool:
        """Whether centres in float64 would be off by more than a tenth of a typical surfel in
        float32.
        """
        if not self.is_exact:
            return False
        return self.largest_coordinate * 2.0**-24 > 0.1 * self.typical

    @property
    def spread(self) -> float:
        """Root mean square distance of the centres from their mean."""
        return float(np.sqrt((self.squares / self.count).sum()))
