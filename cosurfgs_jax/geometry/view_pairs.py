"""Which views look at the same place from another one, and how pixels go from one to the other and
back.
"""

from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float
from scipy.spatial import cKDTree

from cosurfgs_jax.geometry import cameras
from cosurfgs_jax.geometry.views import Views
from cosurfgs_jax.types import AnyArray

_BASELINE_RANGE = (
    0.05,
    1.0,
)  # of the depth: nearer views hardly see depth, farther ones see other sides of things
_MAX_COVERED = 1000  # points of a view, to tell which of it its neighbours show
_MIN_ADDED = 0.02  # of the points of a view that its neighbours do not show: worth another one
_MIN_POINTS = 5  # of them, where few are known
_MAX_ADDED = 4  # neighbours for what the nearest do not show
_SLACK = 1 + 1e-9  # of a radius: trees round, and who is on the rim is decided afterwards


def _shortest_baseline(centers: np.ndarray, min_baseline: float) -> float:
    """Length below which two of the cameras count as one place."""
    return min_baseline * np.median(cKDTree(centers).query(centers, k=2)[0][:, 1])


def choose_neighbors(
    views: Views,
    num_neighbors: int = 8,
    max_axis_angle_deg: float = 45.0,
    min_baseline: float = 0.05,
    depths: np.ndarray | None = None,
) -> list[np.ndarray]:
    """For each view the nearest others that look the same way from another place.

    Args:
        views: V; their poses are compared.
        num_neighbors: the most per view.
        max_axis_angle_deg: between the optical axes.
        min_baseline: as a fraction of the median distance between nearest cameras; nearer ones
            confirm anything.
        depths: f64[V], what each view looks at, in the unit of the poses. Where some candidates
            stand off by 5 to 100 % of it, only those are taken; None or NaN = no such choice.
    Returns:
        V arrays of view numbers, nearest first; empty where there is none.
    """
    return list(
        iter_neighbors(
            views, num_neighbors, max_axis_angle_deg, min_baseline=min_baseline, depths=depths
        )
    )


def iter_neighbors(
    views: Views,
    num_neighbors: int = 8,
    max_axis_angle_deg: float = 45.0,
    min_baseline: float = 0.05,
    depths: np.ndarray | None = None,
) -> Iterator[np.ndarray]:
    """`choose_neighbors` view by view, for who needs to know of some only."""
    centers = views.centers
    axes = views.camera_from_dataset[:, 2, :3]
    if len(centers) < 2:
        yield from (np.zeros(0, np.int64) for _ in centers)
        return
    shortest = _shortest_baseline(centers, min_baseline)
    for view in range(len(centers)):
        # Row by row: the full table of distances does not fit into memory for tens of thousands of
        # photographs.
        distances = np.linalg.norm(centers - centers[view], axis=1)
        is_candidate = (axes @ axes[view] > np.cos(np.radians(max_axis_angle_deg))) & (
            distances >= shortest
        )
        is_candidate[view] = False
        if depths is not None:
            low, high = np.multiply(_BASELINE_RANGE, depths[view])
            is_good = is_candidate & (distances >= low) & (distances <= high)
            is_candidate = is_good if is_good.any() else is_candidate
        order = np.flatnonzero(is_candidate)
        yield order[np.argsort(distances[order], kind="stable")][:num_neighbors]


def is_inside(views: Views, view: int, points: np.ndarray) -> np.ndarray:
    """Which points fall into a view's image.

    Args:
        views: V. view: number of one.
        points: f64[n,3], frame of the poses.
    Returns:
        bool[n].
    """
    pixels, z = cameras.project(points, views.camera_from_dataset[view], views.intrinsics[view])
    return (z > 0) & ((pixels >= 0) & (pixels < views.image_sizes[view][::-1])).all(axis=-1)


def thinned(points: np.ndarray) -> np.ndarray:
    """At most about a thousand of a view's points [n,3]: enough to tell what shows them."""
    return points[:: max(1, len(points) // _MAX_COVERED)]


def cover_pictures(
    neighbors: list[np.ndarray], points: list[np.ndarray], onlookers: "Onlookers"
) -> list[np.ndarray]:
    """Adds to the neighbours of each view some that show what none of them does.

    At the rim of a flight the only other photograph of a place may be the thirtieth by distance.

    Args:
        neighbors: V arrays of view numbers.
        points: V arrays f64[n,3] of what each view shows, e.g. SfM points; frame of the poses.
        onlookers: of the V views.
    Returns:
        V arrays: those given, then at most four more, that of the most points first. A view is
        added where it shows a fiftieth of the points, five at least, that none before it shows;
        none is added to a view that has no neighbour.
    """
    return [
        np.concatenate([near, _missing_views(view, near, seen, onlookers)])
        for view, (near, seen) in enumerate(zip(neighbors, points, strict=True))
    ]


def choice_probabilities(others: np.ndarray, views: Views, points: np.ndarray) -> np.ndarray:
    """How often each of the others is to be compared with a view, so that all that it shows is
    compared equally often.

    Args:
        others: i64[n], neighbours of a view.
        views: V.
        points: f64[m,3], what the view shows; frame of the poses.
    Returns:
        f64[n], sum 1: each point's share is parted among those that show it.
    """
    points = thinned(points)
    shown = np.array([is_inside(views, int(other), points) for other in others], float)
    shown = shown.reshape(len(others), len(points))
    parts = (shown / np.maximum(shown.sum(axis=0), 1)).sum(axis=1)
    # A neighbour that shows nothing that is known is not left out: points are few.
    parts = np.maximum(parts, 0.01 * max(parts.sum(), 1.0))
    return parts / parts.sum()


def _missing_views(
    view: int, near: np.ndarray, seen: np.ndarray, onlookers: "Onlookers"
) -> np.ndarray:
    """What `cover_pictures` adds to the neighbours of one view."""
    views = onlookers.views
    added: list[int] = []
    if not len(near):
        return np.array(added, np.int64)
    seen = thinned(seen)
    rest = seen
    for other in near:
        rest = rest[~is_inside(views, int(other), rest)]
    least = max(_MIN_ADDED * len(seen), _MIN_POINTS)
    if len(rest) < least:
        return np.array(added, np.int64)
    candidates = onlookers.of(view)
    shows = np.array([is_inside(views, int(other), rest) for other in candidates], bool)
    shows = shows.reshape(len(candidates), len(rest))
    while len(added) < _MAX_ADDED:
        gains = shows.sum(axis=1)
        if not len(gains) or gains.max() < least:
            break
        best = int(gains.argmax())  # the nearest of equal ones
        added.append(int(candidates[best]))
        shows &= ~shows[best]
    return np.array(added, np.int64)


class Onlookers:
    """Which other views may show what a view shows: the nearest first, as many as there are.

    The nearest few of a list do not show the rim of a picture: there the only other photograph of a
    place may be the thirtieth by distance.
    """

    def __init__(
        self,
        views: Views,
        farthest: np.ndarray,
        max_axis_angle_deg: float = 75.0,
        min_baseline: float = 0.05,
        depths: np.ndarray | None = None,
    ):
        """
        Args:
            views: V; their poses are compared.
            farthest: f64[V], the greatest depth (camera z) that a view shows, in the unit of the
                poses.
            max_axis_angle_deg, min_baseline, depths: see `choose_neighbors`.
        """
        self.views = views
        self._depths = depths
        self._centers = views.centers
        self._axes = views.camera_from_dataset[:, 2, :3]
        self._min_cosine = np.cos(np.radians(max_axis_angle_deg))
        self._shortest = 0.0
        if len(views) > 1:
            self._shortest = _shortest_baseline(self._centers, min_baseline)
        # How far from its camera a view shows anything: at the corner of the picture.
        corners = np.maximum(
            views.intrinsics[:, :2, 2], views.image_sizes[:, ::-1] - views.intrinsics[:, :2, 2]
        ) / np.stack([views.intrinsics[:, 0, 0], views.intrinsics[:, 1, 1]], axis=1)
        self._reach = farthest * np.sqrt(1 + (corners**2).sum(axis=1))
        self._groups = self._by_reach()

    def _by_reach(self) -> list[tuple[float, np.ndarray, cKDTree]]:
        """The views in groups of similar reach: the greatest of each, its views and a tree of where
        they stand. One view that looks at the horizon must not make all others ask everywhere.
        """
        exponents = np.frexp(self._reach)[1]  # 0 where the reach has no end
        exponents[~np.isfinite(self._reach)] = np.iinfo(exponents.dtype).max
        groups = []
        for exponent in np.unique(exponents):
            views = np.flatnonzero(exponents == exponent)
            tree = cKDTree(self._centers[views])
            groups.append((float(self._reach[views].max()), views, tree))
        return groups

    def _within_reach(self, view: int) -> np.ndarray:
        """i64[n], ascending: all views whose pictures may meet that of a view, and some more."""
        found = []
        for reach, views, tree in self._groups:
            radius = (reach + self._reach[view]) * _SLACK
            near = views
            if np.isfinite(radius):
                near = views[tree.query_ball_point(self._centers[view], radius)]
            found.append(near)
        return np.sort(np.concatenate(found))

    def of(self, view: int) -> np.ndarray:
        """i64[n], the views that may show something of a view's picture, nearest first."""
        near = self._within_reach(view)
        distances = np.linalg.norm(self._centers[near] - self._centers[view], axis=1)
        is_one = (
            (self._axes[near] @ self._axes[view] > self._min_cosine)
            & (distances >= self._shortest)
            & (distances <= self._reach[near] + self._reach[view])
            & (near != view)
        )
        if self._depths is not None and np.isfinite(self._depths[view]):
            low, high = np.multiply(_BASELINE_RANGE, self._depths[view])
            is_one &= (distances >= low) & (distances <= high)
        order = np.flatnonzero(is_one)
        return near[order[np.argsort(distances[order], kind="stable")]]


def sample_inverse_depth(
    depth: Float[Array, "h w"], pixels: Float[Array, "*batch 2"]
) -> tuple[Float[Array, "*batch"], Bool[Array, "*batch"]]:
    """Depth between pixel centres.

    Args:
        depth: [H,W], 0 = invalid. Takes gradient.
        pixels: [...,2] (x, y), centres at x+0.5. Take gradient.
    Returns:
        [...], interpolated as inverse depth, which is linear in the image on any plane (depth is
        not); and whether the four pixels around are inside the image and valid. 1 where they are
        not.
    """
    height, width = depth.shape
    x = pixels[..., 0] - 0.5
    y = pixels[..., 1] - 0.5
    is_inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    left = jnp.clip(jnp.floor(x), 0, width - 2).astype(jnp.int32)
    top = jnp.clip(jnp.floor(y), 0, height - 2).astype(jnp.int32)
    right = x - left.astype(x.dtype)
    down = y - top.astype(y.dtype)
    total = jnp.zeros_like(x)
    for i, j, weight in (
        (0, 0, (1 - right) * (1 - down)),
        (0, 1, right * (1 - down)),
        (1, 0, (1 - right) * down),
        (1, 1, right * down),
    ):
        corner = depth[top + i, left + j]
        is_inside &= corner > 0
        total += weight / jnp.where(corner > 0, corner, 1)
    return 1 / jnp.where(is_inside, total, 1), is_inside


def round_trip_reprojection(
    pixels: Float[Array, "*batch 2"],
    depth: Float[Array, "*batch"],
    intrinsics: Float[Array, "3 3"],
    neighbor_depth: Float[Array, "h w"],
    neighbor_intrinsics: Float[Array, "3 3"],
    neighbor_from_view: Float[Array, "4 4"],
) -> tuple[Float[Array, "*batch 2"], Float[Array, "*batch"], Bool[Array, "*batch"]]:
    """Where pixels land that go to a neighbouring view by their depth and come back by the
    neighbour's depth there.

    Args:
        pixels: [...,2] (x, y). depth: [...], camera z there, 0 = invalid. Takes gradient.
        intrinsics, neighbor_intrinsics: [3,3], pixels.
        neighbor_depth: [h,w], camera z, 0 = invalid. Takes gradient.
        neighbor_from_view: [4,4], rigid.
    Returns:
        Pixels [...,2] and camera z [...] after the round trip, and whether there was one: a depth
        here and there, in front of both cameras and inside the image.
    Source: forward-backward check of multi-view stereo; the geometric term of PGSR (Chen et al.
        2024).
    """
    is_valid = depth > 0
    points = cameras.back_project(pixels, jnp.where(is_valid, depth, 1), intrinsics)
    there, z = cameras.project(points, neighbor_from_view, neighbor_intrinsics)
    found, is_found = sample_inverse_depth(neighbor_depth, there)
    returned = cameras.back_project(there, found, neighbor_intrinsics)
    back, back_z = cameras.project(returned, cameras.invert_rigid(neighbor_from_view), intrinsics)
    return back, back_z, is_valid & is_found & (z > 0) & (back_z > 0)


def relative_pose(
    neighbor: Float[AnyArray, "4 4"], view: Float[AnyArray, "4 4"]
) -> Float[AnyArray, "4 4"]:
    """neighbor_from_view [4,4] of two poses [4,4], camera from one common frame."""
    return neighbor @ cameras.invert_rigid(view)
