"""Where the photographs were taken: cameras over the orthophoto, or over the points of the ground,
with a scale bar, and north where that is known.
"""

from typing import Any, NamedTuple

import numpy as np

from cosurfgs_jax import files
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.formats.geo_json import read_geo
from cosurfgs_jax.geometry.scene_frame import SceneFrame
from cosurfgs_jax.report import page
from cosurfgs_jax.report.charts import drawing, has_matplotlib, jpeg_url
from cosurfgs_jax.report.map_pictures import orthophoto
from cosurfgs_jax.report.section import ReportInput
from cosurfgs_jax.report.text import DATASET_UNITS
from cosurfgs_jax.surface.ground import choose_frame, is_map

_WIDTH = 7.0  # inches
_MARGIN = 0.04  # of the larger side, around what is drawn
_MAX_ASPECT = 1.4  # height to width
_MIN_ASPECT = 0.4
_TRAINING = "#ffd400"
_TEST = "#ff2d78"
_NUM_BARS = 5  # at most so many scale bars are as wide as the map
_FONT = 13.0


class Flight(NamedTuple):
    """What the map shows; east and north on the ground, without the offset to a map.

    | field        | shape     | unit, frame                                                    |
    |--------------|-----------|----------------------------------------------------------------|
    | `cameras`    | f64[V,2]  | ground                                                         |
    | `is_test`    | bool[V]   |                                                                |
    | `points`     | f64[P,2]  | some of the SfM points, ground                                 |
    | `photo`      | u8[h,w,3] | the orthophoto; None without one                               |
    | `extent`     |           | of it, left, right, bottom and top, ground                     |
    | `has_north`  |           | whether up in the picture is north, and not some axis          |
    | `unit`       |           | of the ground's lengths                                        |
    """

    cameras: np.ndarray
    is_test: np.ndarray
    points: np.ndarray
    photo: np.ndarray | None = None
    extent: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    has_north: bool = False
    unit: str = DATASET_UNITS

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """The lower left and the upper right end f64[2] of the map."""
        content = [self.cameras]
        if self.photo is not None:
            left, right, bottom, top = self.extent
            content.append(np.array([[left, bottom], [right, top]]))
        elif len(self.points):  # a few far ones must not make the rest tiny
            content.append(np.percentile(self.points, [5, 95], axis=0))
        ends = np.concatenate(content)
        low = ends.min(axis=0)
        high = ends.max(axis=0)
        side = max((high - low).max(), 1e-9)
        needed = side * np.array([1 / _MAX_ASPECT, _MIN_ASPECT])
        grow = 0.5 * np.maximum(needed - (high - low), 0) + _MARGIN * side
        return low - grow, high + grow


def flight_map(given: ReportInput) -> str:
    """The map with its legend, as HTML; "" where the cameras or their frame are not known, or there
    is no Matplotlib.
    """
    path = given.workdir.partition
    if given.frame is None or not path.exists() or not has_matplotlib():
        return ""
    flight = _flight(given, given.frame, files.read_json_object(path))
    if not len(flight.cameras):
        return ""
    low, high = flight.bounds()
    width, height = high - low
    with drawing((_WIDTH, _WIDTH * height / width)) as figure:
        draw_flight(figure, flight)
        url = jpeg_url(figure)
    num_test = int(flight.is_test.sum())
    words = f"{len(flight.is_test) - num_test} photographs for training (yellow)"
    if num_test:
        words += f", {num_test} for testing (pink)"
    words += ", over the SfM points" if flight.photo is None else ", over the orthophoto"
    if not flight.has_north:
        words += "; the dataset has no place on the map, so that up need not be north"
    return f'<div class="map">{page.figure(url, words)}</div>'


def _flight(given: ReportInput, frame: SceneFrame, table: dict[str, Any]) -> Flight:
    """What there is to draw.

    Args:
        given: of the report.
        frame: of the scene.
        table: content of partition.json (`partition_table`).
    """
    up = given.up
    axes = choose_frame(up, frame)
    cameras, points = (_on_ground(table[name], frame, axes) for name in ("cameras", "points"))
    flight = Flight(cameras, np.array(table["is_test"], bool), points)
    geo = read_geo(given.workdir.geo)
    unit = given.geometry.get("unit") or DATASET_UNITS
    if geo is not None and geo.has_scale:
        unit = "m"
    has_north = is_map(up) and geo is not None and geo.is_map
    flight = flight._replace(unit=unit, has_north=has_north)
    try:
        photo = orthophoto(given.workdir)
    except InputError:  # the map's own section says so
        return flight
    if photo is None:
        return flight
    image, extent, epsg = photo
    return flight._replace(photo=image, extent=extent, has_north=has_north or epsg > 0)


def _on_ground(places: list, frame: SceneFrame, axes: Any) -> np.ndarray:
    """World x and y [[x, y], ...] on the ground, f64[n,2]."""
    world = np.array(places, np.float64).reshape(-1, 2)
    return axes.from_dataset(frame.to_dataset(np.pad(world, ((0, 0), (0, 1)))))[:, :2]


def draw_flight(figure: Any, flight: Flight) -> None:
    """Draws the map into an empty figure.

    Args:
        figure: of `charts.drawing`, in the form of the flight's bounds.
        flight: what it shows.
    """
    low, high = flight.bounds()
    axes = figure.add_axes((0, 0, 1, 1), xlim=(low[0], high[0]), ylim=(low[1], high[1]))
    axes.set(xticks=[], yticks=[], facecolor="#f5f7fa")
    axes.spines[:].set_visible(False)
    if flight.photo is None:
        axes.scatter(*flight.points.T, s=3, color="#98a4b3", linewidths=0)
    else:
        axes.imshow(flight.photo, extent=flight.extent, aspect="auto")
        axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
    for is_shown, color in ((~flight.is_test, _TRAINING), (flight.is_test, _TEST)):
        places = flight.cameras[is_shown].T
        axes.scatter(*places, s=26, color=color, edgecolors="black", linewidths=0.7)
    _add_scale_bar(axes, high[0] - low[0], flight.unit)
    if flight.has_north:
        _add_north(axes)


def _add_scale_bar(axes: Any, width: float, unit: str) -> None:
    from matplotlib.font_manager import FontProperties
    from matplotlib.ticker import MaxNLocator
    from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar

    length = float(np.diff(MaxNLocator(_NUM_BARS, steps=[1, 2, 5, 10]).tick_values(0, width))[0])
    bar = AnchoredSizeBar(
        axes.transData,
        length,
        f"{length:g} {unit}",
        "lower left",
        pad=0.4,
        sep=4,
        size_vertical=0.008 * width,
        fontproperties=FontProperties(size=_FONT),
    )
    axes.add_artist(bar)


def _add_north(axes: Any) -> None:
    axes.annotate(
        "N",
        (0.95, 0.97),
        xytext=(0.95, 0.87),
        xycoords="axes fraction",
        ha="center",
        va="center",
        fontsize=_FONT,
        bbox={"boxstyle": "round", "facecolor": "white", "edgecolor": "none"},
        arrowprops={"facecolor": "white", "edgecolor": "black", "width": 4, "headwidth": 12},
    )
