"""The streets of the generated town: a grid of two families of winding lines."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Streets:
    """A bent grid of streets: lines of equal `a` and of equal `b`, two coordinates that wind gently
    over the ground.

    | field             | shape  | unit                                             |
    |-------------------|--------|--------------------------------------------------|
    | `angle`           | float  | radians, direction of growing a                  |
    | `phases`          | f64[2] | radians, of the bends                            |
    | `lines_a, _b`     | f64[n] | m, positions of the centre lines                 |
    | `half_widths_a,_b`| f64[n] | m, of the carriageway                            |
    """

    angle: float
    phases: np.ndarray
    lines_a: np.ndarray
    lines_b: np.ndarray
    half_widths_a: np.ndarray
    half_widths_b: np.ndarray

    def coordinates(self, x, y):
        """Street coordinates (a, b) at local x, y, m."""
        cos = float(np.cos(self.angle))
        sin = float(np.sin(self.angle))
        s = cos * x + sin * y
        t = -sin * x + cos * y
        return s + 6 * np.sin(t / 42 + float(self.phases[0])), t + 4 * np.sin(
            s / 55 + float(self.phases[1])
        )

    def positions(self, a: float, b: float) -> np.ndarray:
        """Local position f64[2] of street coordinates."""
        s = a
        t = b
        for _ in range(12):  # a contraction by 0.01 per round
            s, t = a - 6 * np.sin(t / 42 + self.phases[0]), b - 4 * np.sin(s / 55 + self.phases[1])
        cos = np.cos(self.angle)
        sin = np.sin(self.angle)
        return np.array([cos * s - sin * t, sin * s + cos * t])

    def distances(self, x, y):
        """Distance to the kerb of the nearest street of either family, negative on it: two arrays,
        m.
        """
        return self.kerb_distances(*self.coordinates(x, y))

    def kerb_distances(self, a, b):
        """As `distances`, from street coordinates."""
        return _to_lines(a, self.lines_a, self.half_widths_a), _to_lines(
            b, self.lines_b, self.half_widths_b
        )


def _to_lines(coordinate, lines, half_widths):
    nearest = np.full_like(coordinate, np.inf)
    for line, half_width in zip(lines.tolist(), half_widths.tolist(), strict=True):
        nearest = np.minimum(nearest, np.abs(coordinate - line) - half_width)
    return nearest


def make_streets(size: float, rng) -> Streets:
    """Two families of streets, one across the other.

    Args:
        size: side of the town, metres.
        rng: NumPy generator.
    """

    def lines(spacing):
        start = -0.72 * size - rng.uniform(0, spacing)
        steps = rng.uniform(0.92, 1.08, int(1.5 * size / spacing) + 3) * spacing
        return start + np.cumsum(steps)

    lines_a = lines(43.0)
    lines_b = lines(78.0)
    half_a = rng.uniform(2.4, 3.0, len(lines_a))
    half_b = rng.uniform(2.6, 3.6, len(lines_b))
    return Streets(
        angle=rng.uniform(0.15, 0.5),
        phases=rng.uniform(0, 2 * np.pi, 2),
        lines_a=lines_a,
        lines_b=lines_b,
        half_widths_a=half_a,
        half_widths_b=half_b,
    )
