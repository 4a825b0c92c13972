"""Whether photographs show the colours of the points where poses and cameras put them.

Nothing else tells of points without tracks that a camera stands elsewhere, and nothing else at all
that photographs were turned, or were given other names, after their poses were found.
"""

import dataclasses
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from cosurfgs_jax.data import photo_files
from cosurfgs_jax.data.checks import some_of
from cosurfgs_jax.data.scene import Scene
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.geometry.distortion import Lens, normalised_from_pixels, pixels_from_normalised
from cosurfgs_jax.geometry.views import PointCloud

_SIDE = 256  # of the small picture that is compared, pixels
_MAX_PIXELS = 2**22  # that are decoded for it; a JPEG is decoded smaller
_CELLS = 43  # along the longer side: of the points in a cell the nearest one counts
_NUM_TRIED = 2**16  # points
_NUM_COMPARED = 600  # of a photograph
_MIN_COUNT = 16
_MIN_VIEWS = 4
_MAX_VIEWS = 1000  # of more, so many are compared, evenly chosen
# Tracks tell which camera stands elsewhere; what happened to all photographs, a few show.
_MAX_TRACKED_VIEWS = 32
_MAX_SUSPECTS = 16  # that are tried in other ways, evenly chosen
_MIN_WAY_GAIN = 0.2  # of the correlation (median) that another way has to bring
# The colours of points over water, snow or a plain field are noise, which fits nowhere: a view
# whose points spread less than this part of the median of all views is not compared.
_MIN_SPREAD = 0.25
_MAX_RADIUS = 2**0.5  # of points, times that of the farthest corner: far outside lenses fold back
# The correlation of colours that photographs have (median), else the cloud's say nothing.
_MIN_TYPICAL = 0.4
_MAX_STRANGE = 0.2  # below, points and photographs hardly have anything in common
_MAX_OF_TYPICAL = 0.7  # a photograph below this part of it is looked at
_STEPS = 8  # to each side that its points are moved by, each of a cell's half
_MIN_STEPS = 2  # they have to fit better at least so far away
_MIN_GAIN = 0.1  # by at least this correlation
# Where they fit nowhere: this part of what is typical, and so many standard deviations of the
# correlations around. Right poses have three or more, wrong ones two at most.
_MAX_OF_LOST = 0.35
_LOST_SPREADS = 2
_log = logging.getLogger(__name__)


class _Glance(NamedTuple):
    """What is kept of how a photograph shows the points."""

    count: int  # of points
    correlation: float
    spread: float  # standard deviation of the points' colours, mean over channels


class _Look(NamedTuple):
    """What a photograph shows of the points."""

    picture: np.ndarray  # u8[H,W,3]
    pixels: np.ndarray  # i64[N,2], in the small picture
    colors: np.ndarray  # f64[N,3], of the points


def _correlation(look: _Look, shift: np.ndarray) -> float:
    """Of the points' colours with those of the picture a shift (x, y) away, each colour about its
    mean.
    """
    last = np.array(look.picture.shape[1::-1]) - 1
    columns, rows = np.clip(look.pixels + shift, 0, last).T
    shown = look.picture[rows, columns]
    shown = shown - shown.mean(axis=0)
    colors = look.colors - look.colors.mean(axis=0)
    scale = np.linalg.norm(shown) * np.linalg.norm(colors)
    return float((shown * colors).sum() / scale) if scale > 0 else 0.0


def _step(look: _Look) -> float:
    return max(1.0, max(look.picture.shape[:2]) / (2 * _CELLS))


class _Way(NamedTuple):
    """How photographs may have been exchanged after their poses were found."""

    words: str
    step: int = 0  # the photograph of the view so many numbers farther, in the order of names
    quarters: int = 0  # that the picture is turned by, counterclockwise


_WAYS = (
    _Way("turned by 180 degrees", quarters=2),
    _Way("turned by 90 degrees to the left", quarters=1),
    _Way("turned by 90 degrees to the right", quarters=3),
    _Way("taken for the one before it in the order of names", step=1),
    _Way("taken for the one after it in the order of names", step=-1),
)


class _TooLarge(Exception):
    pass


def read_small(path: str) -> np.ndarray | None:
    """A photograph as it is stored with at most 256 pixels a side, RGB u8[H,W,3]; None where that
    would take more than a moment: no JPEG (whatever its name), and many pixels.

    Raises:
        InputError: as `photo_files.decode`.
    """

    def check_header(header: photo_files.PhotoHeader) -> None:
        if header.height * header.width > _MAX_PIXELS and not header.is_jpeg:
            raise _TooLarge

    try:
        small = photo_files.decode(path, check_header, side=_SIDE)
    except _TooLarge:
        return None
    small.thumbnail((_SIDE, _SIDE), Image.Resampling.BOX)
    return np.asarray(small)


def _farthest(lens: Lens) -> float:
    """Normalised radius beyond which no point can be in the picture; infinite where the lens does
    not say.
    """
    corners = np.array([[x, y] for x in (0.0, lens.width) for y in (0.0, lens.height)])
    radius = np.linalg.norm(normalised_from_pixels(lens, corners), axis=1).max()
    return float(np.nan_to_num(_MAX_RADIUS * radius, nan=np.inf))


def _look(path: str, lens: Lens, pose: np.ndarray, cloud: PointCloud) -> _Look | None:
    """None where the file is too large to be decoded for this, or is turned."""
    picture = read_small(path)
    if picture is None or (picture.shape[1] > picture.shape[0]) != (lens.width > lens.height):
        return None
    size = np.array(picture.shape[1::-1])
    points_camera = cloud.points @ pose[:3, :3].T + pose[:3, 3]
    depth = points_camera[:, 2]
    with np.errstate(all="ignore"):
        normalised = points_camera[:, :2] / depth[:, None]
        is_near = np.linalg.norm(normalised, axis=1) <= _farthest(lens)
        pixels = pixels_from_normalised(lens, normalised)
        pixels = pixels * size / [lens.width, lens.height]
        is_shown = is_near & (depth > 0) & (pixels >= 0).all(axis=1) & (pixels < size).all(axis=1)
    shown = np.flatnonzero(is_shown)
    cells = (pixels[shown] * _CELLS / size.max()).astype(np.int64)
    order = np.argsort(depth[shown], kind="stable")
    _, nearest = np.unique(cells[order] @ [1, _CELLS], return_index=True)
    chosen = shown[order[nearest]]
    if len(chosen) > _NUM_COMPARED:
        chosen = np.random.default_rng(0).choice(chosen, _NUM_COMPARED, replace=False)
    return _Look(picture, pixels[chosen].astype(np.int64), cloud.colors[chosen].astype(np.float64))


def _is_elsewhere(look: _Look, found: float, typical: float) -> bool:
    """Whether the points fit a part of the picture that is some steps away clearly better, or fit
    nowhere and here no better than on average.
    """
    steps = np.arange(-_STEPS, _STEPS + 1)
    shifts = np.stack(np.meshgrid(steps, steps), axis=-1).reshape(-1, 2)
    pixels = np.round(shifts * _step(look)).astype(np.int64)
    around = np.array([_correlation(look, shift) for shift in pixels])
    best = int(around.argmax())
    is_away = np.abs(shifts[best]).max() >= _MIN_STEPS
    if is_away and around[best] > found + _MIN_GAIN:
        return True
    limit = min(_MAX_OF_LOST * typical, around.mean() + _LOST_SPREADS * around.std())
    return bool(found < limit)


def _evenly(views: list[int], most: int) -> list[int]:
    """At most so many of them."""
    if len(views) <= most:
        return views
    return [views[i] for i in np.linspace(0, len(views) - 1, most).round().astype(int)]


@dataclasses.dataclass(frozen=True)
class _Comparison:
    """What photographs are compared with."""

    scene: Scene
    lenses: list[Lens]
    cloud: PointCloud  # without tracks
    num_threads: int

    def look(self, view: int, shown: int | None = None) -> _Look | None:
        """What a photograph shows of the points, None where it is not compared.

        Args:
            view: whose camera it is.
            shown: the view whose photograph it is; None = its own.
        """
        shown = view if shown is None else shown
        path = self.scene.image_paths[shown]
        if not path or self.scene.orientation(shown) != 1:
            return None
        pose = self.scene.views.camera_from_dataset[view]
        try:
            return _look(path, self.lenses[view], pose, self.cloud)
        except InputError:  # who needs the photograph finds the damage
            return None

    def of_each(self, function: Callable[[int], Any], views: list[int]) -> list:
        """What a function of a view gives, with threads that decode."""
        with ThreadPoolExecutor(self.num_threads) as pool:
            return list(pool.map(function, views))

    def glance(self, view: int) -> _Glance | None:
        """What is kept of a view: pictures of all would take memory."""
        found = self.look(view)
        return None if found is None else _glance(found)

    def correlation_in(self, way: _Way, view: int) -> float:
        """That of a view whose photograph was exchanged in this way; NaN where it cannot be."""
        shown = view + way.step
        if not 0 <= shown < self.scene.num_views:
            return np.nan
        look = self.look(view, shown)
        if look is None:
            return np.nan
        height, width = look.picture.shape[:2]
        if way.quarters % 2 and height != width:  # it would have other sides, which others check
            return np.nan
        turned = look._replace(picture=np.rot90(look.picture, way.quarters))
        return _correlation(turned, np.zeros(2, np.int64))

    def way_of(self, views: list[int], as_they_are: float) -> _Way | None:
        """The way in which photographs were exchanged; None where none fits clearly better than
        their correlation as they are.
        """
        views = _evenly(views, _MAX_SUSPECTS)
        tried = self.of_each(lambda view: [self.correlation_in(way, view) for way in _WAYS], views)
        medians = []
        for values in zip(*tried, strict=True):
            known = np.array(values)[np.isfinite(values)]
            medians.append(np.median(known) if 2 * len(known) > len(views) else -1.0)
        best = int(np.argmax(medians))
        if medians[best] < max(_MIN_TYPICAL, as_they_are + _MIN_WAY_GAIN):
            return None
        return _WAYS[best]


def check(scene: Scene, lenses: list[Lens], source: str, num_threads: int) -> None:
    """Says which photographs show the colours of the points not where they should, but elsewhere,
    and how: turned, or in the place of their neighbour in the order of names.

    It decides nothing. Photographs that are turned on loading or damaged, large ones that cannot be
    decoded smaller, views of a plain area, and clouds without colours are left alone. Of more than
    1,000 photographs so many are compared; where points have tracks, 32.

    Args:
        scene: with the full set of views.
        lenses: V, of the full-sized photographs.
        source: the file of the poses, for the message.
        num_threads: that decode.
    """
    cloud = scene.cloud
    if scene.num_views < _MIN_VIEWS or not cloud.colors.std(axis=0).any():
        return
    tried = np.arange(len(cloud))
    if len(cloud) > _NUM_TRIED:
        tried = np.random.default_rng(0).choice(len(cloud), _NUM_TRIED, replace=False)
    bare = PointCloud.without_tracks(cloud.points[tried], cloud.colors[tried])
    comparison = _Comparison(scene, lenses, bare, num_threads)
    most = _MAX_TRACKED_VIEWS if cloud.has_tracks else _MAX_VIEWS
    views = _evenly(list(range(scene.num_views)), most)
    if len(views) < scene.num_views and not cloud.has_tracks:
        _log.info(
            "%s: %d of %d photographs are compared with the points' colours, the others are not",
            source,
            len(views),
            scene.num_views,
        )
    found = comparison.of_each(comparison.glance, views)
    glances = {view: it for view, it in zip(views, found, strict=True) if it is not None}
    if not cloud.has_tracks:  # which tell themselves what a view shows
        _say_blind(scene, glances, source)
    correlations = _comparable(glances)
    if len(correlations) < _MIN_VIEWS:
        return
    typical = float(np.median(list(correlations.values())))
    if typical < _MIN_TYPICAL:
        _say_of_all(comparison, list(correlations), typical, source)
    else:
        _say_odd(comparison, correlations, typical, num_compared=len(views), source=source)


def _say_of_all(comparison: _Comparison, views: list[int], typical: float, source: str) -> None:
    """Says what may have happened to all photographs."""
    way = comparison.way_of(views, typical)
    if way is None:
        # Points of a scanner may have other colours; those with tracks come from photographs.
        say = _log.info
        if comparison.scene.cloud.has_tracks and typical < _MAX_STRANGE:
            say = _log.warning
        say(
            "%s: the points' colours are not those of the photographs where the poses put them "
            "(correlation %.2g; %.2g or more where they belong together): the photographs were cut "
            "or are others, poses are wrong, or the colours come from elsewhere",
            source,
            typical,
            _MIN_TYPICAL,
        )
        return
    _log.warning(
        "%s: the photographs show the points' colours where their poses put them only if each is "
        "%s (%d were compared): give the photographs the names and the turn that the poses were "
        "found with, or find poses again",
        source,
        way.words,
        len(views),
    )


def _say_odd(
    comparison: _Comparison,
    correlations: dict[int, float],
    typical: float,
    *,
    num_compared: int,
    source: str,
) -> None:
    """Says which photographs are unlike most."""

    def is_odd(view: int) -> bool:
        again = comparison.look(view)
        return again is not None and _is_elsewhere(again, correlations[view], typical)

    suspects = [view for view, value in correlations.items() if value < _MAX_OF_TYPICAL * typical]
    are_odd = comparison.of_each(is_odd, suspects)
    odd = [view for view, is_it in zip(suspects, are_odd, strict=True) if is_it]
    if not odd:
        return
    way = comparison.way_of(odd, float(np.median([correlations[view] for view in odd])))
    where = "elsewhere or nowhere"
    if way is not None:
        where = f"where each would be if it were {way.words}"
    _log.warning(
        "%s: %d of %d photographs do not show the points' colours where their poses put them "
        "(correlation %.2g or less, in most %.2g), but %s: %s: poses or cameras are wrong, or the "
        "photographs are others: remove them, or find poses again",
        source,
        len(odd),
        num_compared,
        max(correlations[view] for view in odd),
        typical,
        where,
        some_of([comparison.scene.image_names[view] for view in odd]),
    )


def _glance(look: _Look) -> _Glance:
    if len(look.pixels) < _MIN_COUNT:
        return _Glance(len(look.pixels), 0.0, 0.0)
    correlation = _correlation(look, np.zeros(2, np.int64))
    return _Glance(len(look.pixels), correlation, float(look.colors.std(axis=0).mean()))


def _comparable(glances: dict[int, _Glance]) -> dict[int, float]:
    """The correlations of the views that show enough points, and not of one colour all."""
    shown = {view: glance for view, glance in glances.items() if glance.count >= _MIN_COUNT}
    if not shown:
        return {}
    least = _MIN_SPREAD * np.median([glance.spread for glance in shown.values()])
    return {view: glance.correlation for view, glance in shown.items() if glance.spread >= least}


def _say_blind(scene: Scene, glances: dict[int, _Glance], source: str) -> None:
    """Says which photographs hardly show a point where most show many: right where the cloud does
    not cover the flight.
    """
    if not glances:
        return
    most = np.median([glance.count for glance in glances.values()])
    blind = [view for view, glance in glances.items() if glance.count < _MIN_COUNT]
    if blind and most >= _MIN_COUNT:
        _log.info(
            "%s: %d of %d photographs show fewer than %d of the points that were tried, most show "
            "%d: %s",
            source,
            len(blind),
            len(glances),
            _MIN_COUNT,
            most,
            some_of([scene.image_names[view] for view in blind]),
        )
