"""Line charts and colour bars as inline SVG."""

import html
import math

import numpy as np

from cosurfgs_jax.pictures import ramp_on_white

_COLORS = ("#2b6cb0", "#c05621", "#2f855a", "#97266d", "#6b46c1", "#b7791f")
_MAX_NAMES = 32  # in a legend; curves of more blocks cannot be told apart by colour anyway
_LETTER = 6.2
_LINE = 15  # pixels: about the width of a letter of 11 pixels' height, and of a line
_WIDTH = 420
_HEIGHT = 230
_LEFT = 54
_RIGHT = 12
_TOP = 30
_BOTTOM = 30


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


def line_chart(
    title: str, series: dict[str, tuple[list[float], list[float]]], x_label: str = "step"
) -> str:
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
        x = np.asarray(x, np.float64)
        y = np.asarray(y, np.float64)
        finite = np.isfinite(x) & np.isfinite(y)
        if finite.any():
            cleaned[name] = _thin(x[finite], y[finite])
    if not cleaned:
        return ""
    x_low, x_high = _bounds([x for x, _ in cleaned.values()])
    y_low, y_high = _with_margin(*_bounds([y for _, y in cleaned.values()]))
    if x_high == x_low:
        x_high = x_low + 1

    def place_x(value):
        return _LEFT + (value - x_low) / (x_high - x_low) * (_WIDTH - _LEFT - _RIGHT)

    def place_y(value):
        return _HEIGHT - _BOTTOM - (value - y_low) / (y_high - y_low) * (_HEIGHT - _TOP - _BOTTOM)

    colors = [_color(number, len(cleaned)) for number in range(len(cleaned))]
    legend, height = _legend(list(cleaned), colors) if len(cleaned) > 1 else ([], 0)
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT + height}" role="img" class="chart">',
        f'<text x="{_LEFT}" y="18" class="title">{html.escape(title)}</text>',
    ]
    for tick in nice_ticks(y_low, y_high):
        parts.append(
            f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{place_y(tick):.1f}" '
            f'y2="{place_y(tick):.1f}" '
            f'class="grid"/><text x="{_LEFT - 6}" y="{place_y(tick) + 4:.1f}" class="tick" '
            'text-anchor="end">'
            f"{short_number(tick)}</text>"
        )
    for tick in nice_ticks(x_low, x_high):
        parts.append(
            f'<text x="{place_x(tick):.1f}" y="{_HEIGHT - _BOTTOM + 16}" class="tick" '
            'text-anchor="middle">'
            f"{short_number(tick)}</text>"
        )
    parts.append(
        f'<text x="{_WIDTH - _RIGHT}" y="18" class="tick" '
        f'text-anchor="end">{html.escape(x_label)}</text>'
    )
    for (x, y), color in zip(cleaned.values(), colors, strict=True):
        points = " ".join(f"{place_x(a):.1f},{place_y(b):.1f}" for a, b in zip(x, y, strict=True))
        if len(x) == 1:
            parts.append(
                f'<circle cx="{place_x(x[0]):.1f}" cy="{place_y(y[0]):.1f}" r="3" fill="{color}"/>'
            )
        else:
            parts.append(
                f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="1.6"/>'
            )
    return "".join(parts + legend) + "</svg>"


def _bounds(lines: list[np.ndarray]) -> tuple[float, float]:
    return min(line.min() for line in lines), max(line.max() for line in lines)


def _with_margin(low: float, high: float) -> tuple[float, float]:
    """A wider range; it does not pass below 0 where no value does."""
    margin = 0.06 * (high - low) or max(abs(low) * 0.1, 1e-9)
    if low >= 0 and low - margin < 0:
        return 0.0, high + margin
    return low - margin, high + margin


def _color(number: int, count: int) -> str:
    # Steps of the golden angle differ for any number of lines; the chosen six look better.
    if count <= len(_COLORS):
        return _COLORS[number]
    return f"hsl({137.508 * number % 360:.0f} 60% 45%)"


def _legend(names: list[str], colors: list[str]) -> tuple[list[str], int]:
    """Names in columns below the chart, and their height."""
    shown = [*zip(names, colors, strict=True)][:_MAX_NAMES]
    if len(names) > len(shown):
        shown[-1] = (f"and {len(names) - len(shown) + 1} more", "currentColor")
    widest = max(len(name) for name, _ in shown) * _LETTER + 24
    num_columns = max(1, min(len(shown), int((_WIDTH - 2 * _RIGHT) // widest)))
    num_rows = -(-len(shown) // num_columns)
    parts = []
    for number, (name, color) in enumerate(shown):
        column, row = divmod(number, num_rows)
        x = _RIGHT + column * (_WIDTH - 2 * _RIGHT) / num_columns
        y = _HEIGHT + 8 + _LINE * row
        max_letters = int((_WIDTH - 2 * _RIGHT) / num_columns / _LETTER) - 3
        label = name
        if len(name) > max_letters:
            label = name[: max_letters - 1] + "…"
        parts.append(
            f'<rect x="{x:.1f}" y="{y - 8:.1f}" width="12" height="8" fill="{color}" class="key"/>'
            f'<text x="{x + 17:.1f}" y="{y:.1f}" class="tick name">{html.escape(label)}</text>'
        )
    return parts, num_rows * _LINE + 8


def color_bar(title: str, largest: float, unit: str) -> str:
    """The colours of `pictures.ramp_on_white` with numbers from 0 to `largest`, as SVG.

    Args:
        title: what the colours mean.
        largest: the top of the scale; what is larger has its colour.
        unit: of the numbers, or "".
    """
    left = _RIGHT
    width = _WIDTH - 2 * _RIGHT
    count = 64
    steps = ramp_on_white((np.arange(count) + 0.5) / count)
    heading = f"{title}, {unit}" if unit else title
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} 62" role="img" class="chart bar">',
        f'<text x="{left}" y="17" class="title">{html.escape(heading)}</text>',
    ]
    for number, (red, green, blue) in enumerate(steps.tolist()):
        # Half a pixel wider than a step: no gaps between them.
        parts.append(
            f'<rect x="{left + number * width / count:.2f}" y="24" '
            f'width="{width / count + 0.5:.2f}" height="14" '
            f'fill="rgb({red},{green},{blue})"/>'
        )
    ticks = [tick for tick in nice_ticks(0, largest) if tick < 0.7 * largest]
    for tick, text, anchor in [
        *((tick, short_number(tick), "middle" if tick else "start") for tick in ticks),
        (largest, f"{short_number(largest)} or more", "end"),
    ]:
        parts.append(
            f'<text x="{left + tick / largest * width:.1f}" y="53" class="tick" '
            f'text-anchor="{anchor}">{text}</text>'
        )
    return "".join(parts) + "</svg>"
