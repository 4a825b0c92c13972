"""Line charts of the report, and the figures that its charts and maps are drawn in: Matplotlib's,
as pictures within the page.
"""

import base64
import contextlib
import io
from collections.abc import Iterator
from typing import Any

import numpy as np

from cosurfgs_jax.report import page
from cosurfgs_jax.report.curves import Curves, Line

WITHOUT_MATPLOTLIB = (
    "Charts, the flight map and the map of the blocks are left out, for Matplotlib is not "
    'installed: pip install "cosurfgs_jax[report]", then `cosurfgs evaluate` again.'
)
_SIZE = (5.84, 3.2)  # inches, of 72 pixels: the width of a phone
_MAX_POINTS = 300  # of a line: no more can be seen
_MAX_CHART_POINTS = 4000  # of all lines: 160 KB
_MAX_BLOCKS = 10  # with colours of their own
_LETTER_FRACTION = 0.014  # of the axis: the width of a letter of a stage's name


def has_matplotlib() -> bool:
    """Whether charts can be drawn."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        return False
    return True


@contextlib.contextmanager
def drawing(size: tuple[float, float]) -> Iterator[Any]:
    """A figure in the style of the page, for `svg_url` or `jpeg_url` within the block. Settings of
    the user's own Matplotlib have no part in it.

    Args:
        size: width and height, inches.
    Yields:
        A `matplotlib.figure.Figure`.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(
            {
                "svg.fonttype": "none",  # text stays text, in the reader's fonts
                "svg.hashsalt": "cosurfgs_jax",  # the same bytes for the same chart
                "text.parse_math": False,  # names are no formulas
                "axes.spines.top": False,
                "axes.spines.right": False,
                "axes.edgecolor": "#98a4b3",
                "xtick.color": "#5f6b7a",
                "ytick.color": "#5f6b7a",
                "grid.color": "#e1e6ec",
            }
        )
        yield Figure(figsize=size)


def svg_url(figure: Any) -> str:
    """A figure of `drawing` as a data URL of SVG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return _data_url("svg+xml", buffer)


def jpeg_url(figure: Any, dpi: float = 150) -> str:
    """A figure of `drawing` as a data URL of JPEG, for one that holds a photograph or very many
    points.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="jpeg", dpi=dpi, pil_kwargs={"quality": 85})
    return _data_url("jpeg", buffer)


def _data_url(kind: str, buffer: io.BytesIO) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def short_number(value: float) -> str:
    """A number for a table: 1.2M, 35k, 0.013."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if letter == 'k' else size):.3g}{letter}"
    return f"{value:.4g}"


def thinned(line: Line, most: int = _MAX_POINTS) -> tuple[np.ndarray, np.ndarray]:
    """The finite points of a line, or means over equal groups of them, so that a long noisy curve
    stays readable and small.

    Args:
        line: x and y.
        most: points that are left.
    Returns:
        x f64[k] and y f64[k].
    """
    x, y = (np.asarray(values, np.float64) for values in line)
    is_finite = np.isfinite(x) & np.isfinite(y)
    x = x[is_finite]
    y = y[is_finite]
    if len(x) <= most:
        return x, y
    groups = np.array_split(np.arange(len(x)), most)
    return np.array([x[g].mean() for g in groups]), np.array([y[g].mean() for g in groups])


def charts(curves: Curves) -> str:
    """A chart of each number over the steps of all stages, as HTML; "" without any finite point.

    Args:
        curves: of a run.
    """
    cells = []
    for title, lines in curves.charts.items():
        with drawing(_SIZE) as figure:
            if draw_lines(figure, title, lines, curves.starts):
                cells.append(page.picture(svg_url(figure), title))
    return f'<div class="charts">{"".join(cells)}</div>' if cells else ""


def draw_lines(
    figure: Any, title: str, lines: dict[tuple[str, int | None], Line], starts: dict[str, float]
) -> bool:
    """Draws a chart into an empty figure.

    Lines of one name have one colour, for many blocks could not be told apart; where there is one
    name and few blocks, each block has its own.

    Args:
        figure: of `drawing`.
        title: above the chart.
        lines: (name, block or None) -> x and y; points that are not finite are left out.
        starts: stage -> where it begins on the x axis; marked where there are several.
    Returns:
        Whether there was anything to draw.
    """
    most = max(2, min(_MAX_POINTS, _MAX_CHART_POINTS // max(len(lines), 1)))
    drawn = {key: thinned(line, most) for key, line in lines.items()}
    drawn = {key: (x, y) for key, (x, y) in drawn.items() if len(x)}
    if not drawn:
        return False
    names = list(dict.fromkeys(name for name, _ in drawn))
    is_by_block = len(names) == 1 and 1 < len(drawn) <= _MAX_BLOCKS
    figure.set_layout_engine("constrained")
    axes = figure.add_subplot()
    labels = {}
    for (name, block), (x, y) in drawn.items():
        label = f"block {block}" if is_by_block else name.replace("_", " ")
        color = f"C{labels.setdefault(label, len(labels))}"
        style: dict[str, Any] = {"color": color, "linewidth": 1.3, "gid": f"{name} {block}"}
        if len(x) == 1:  # a line of one point would not be seen
            style |= {"marker": "o", "markersize": 4}
        axes.plot(x, y, **style)
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    axes.set_xlabel("step")
    axes.grid(axis="y")
    axes.margins(x=0)
    _mark_stages(axes, starts)
    if len(labels) > 1:
        handles = [axes.plot([], [], color=f"C{place}")[0] for place in labels.values()]
        figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    return True


def _mark_stages(axes: Any, starts: dict[str, float]) -> None:
    """A dotted line and a name where each of several stages begins."""
    if len(starts) < 2:
        return
    low, high = axes.get_xlim()
    free = -np.inf  # where the name before ends
    for name, start in starts.items():
        axes.axvline(start, color="#98a4b3", linewidth=0.8, linestyle=":")
        place = (start - low) / (high - low)
        if place >= free:
            free = place + _LETTER_FRACTION * (len(name) + 1)
            axes.annotate(
                name,
                (start, 1),
                xycoords=("data", "axes fraction"),
                xytext=(2, -2),
                textcoords="offset points",
                va="top",
                fontsize=7,
                color="#5f6b7a",
            )
