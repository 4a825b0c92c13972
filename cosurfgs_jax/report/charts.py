"""Line charts as inline SVG."""

import html
import math

import numpy as np

_COLORS = ("#2b6cb0", "#c05621", "#2f855a", "#97266d", "#6b46c1", "#b7791f")
_WIDTH, _HEIGHT = 420, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 54, 12, 30, 30


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers (1, 2, 2.5 or 5 times a power of ten) inside [low, high]."""
    span = high - low
    if not span > 0:
        return [low]
    rough = span / max(count - 1, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def short_number(value: float) -> str:
    """A number for an axis or a table: 1.2M, 35k, 0.013."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if letter == 'k' else size):.3g}{letter}"
    return f"{value:.4g}"


def _thin(steps: np.ndarray, values: np.ndarray, most: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """Means over equal groups of points, so that a long noisy curve stays readable and small."""
    if len(steps) <= most:
        return steps, values
    groups = np.array_split(np.arange(len(steps)), most)
    return np.array([steps[g].mean() for g in groups]), np.array([values[g].mean() for g in groups])


def line_chart(title: str, series: dict[str, tuple[list[float], list[float]]], x_label: str = "step") -> str:
    """An SVG line chart.

    Args:
        title: above the chart.
        series: name -> (x, y); points that are not finite are left out.
        x_label: below the chart.
    Returns:
        SVG text; "" if there is no point at all.
    """
    cleaned = {}
    for name, (x, y) in series.items():
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        finite = np.isfinite(x) & np.isfinite(y)
        if finite.any():
            cleaned[name] = _thin(x[finite], y[finite])
    if not cleaned:
        return ""
    all_x, all_y = (np.concatenate([points[i] for points in cleaned.values()]) for i in (0, 1))
    (x_low, x_high), (y_low, y_high) = ((a.min(), a.max()) for a in (all_x, all_y))
    margin = 0.06 * (y_high - y_low) or max(abs(y_low) * 0.1, 1e-9)
    y_low, y_high = (0.0 if y_low >= 0 and y_low - margin < 0 else y_low - margin), y_high + margin
    x_high = x_high if x_high > x_low else x_low + 1

    def place_x(value):
        return _LEFT + (value - x_low) / (x_high - x_low) * (_WIDTH - _LEFT - _RIGHT)

    def place_y(value):
        return _HEIGHT - _BOTTOM - (value - y_low) / (y_high - y_low) * (_HEIGHT - _TOP - _BOTTOM)

    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" class="chart">',
             f'<text x="{_LEFT}" y="18" class="title">{html.escape(title)}</text>']
    for tick in nice_ticks(y_low, y_high):
        parts.append(f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{place_y(tick):.1f}" y2="{place_y(tick):.1f}" '
                     f'class="grid"/><text x="{_LEFT - 6}" y="{place_y(tick) + 4:.1f}" class="tick" text-anchor="end">'
                     f'{short_number(tick)}</text>')
    for tick in nice_ticks(x_low, x_high):
        parts.append(f'<text x="{place_x(tick):.1f}" y="{_HEIGHT - _BOTTOM + 16}" class="tick" text-anchor="middle">'
                     f'{short_number(tick)}</text>')
    parts.append(f'<text x="{_WIDTH - _RIGHT}" y="18" class="tick" text-anchor="end">{html.escape(x_label)}</text>')
    for number, (name, (x, y)) in enumerate(cleaned.items()):
        color = _COLORS[number % len(_COLORS)]
        points = " ".join(f"{place_x(a):.1f},{place_y(b):.1f}" for a, b in zip(x, y, strict=True))
        if len(x) == 1:
            parts.append(f'<circle cx="{place_x(x[0]):.1f}" cy="{place_y(y[0]):.1f}" r="3" fill="{color}"/>')
        else:
            parts.append(f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="1.6"/>')
        if len(cleaned) > 1:
            parts.append(f'<text x="{_LEFT + 8}" y="{_TOP + 12 + 14 * number}" class="tick" fill="{color}" '
                         f'style="fill:{color}">{html.escape(name)}</text>')
    return "".join(parts) + "</svg>"
