"""What a reconstruction consists of: views with poses and intrinsics, and a cloud of points with
tracks. NumPy, in the dataset's frame.
"""

import dataclasses
import functools
from typing import NamedTuple

import numpy as np

from cosurfgs_jax.geometry.cameras import camera_center


@dataclasses.dataclass(frozen=True)
class Views:
    """V pinhole views.

    | field                 | shape      | unit, frame                                     |
    |-----------------------|------------|-------------------------------------------------|
    | `camera_from_dataset` | f64[V,4,4] | rigid; camera x right, y down, z forward        |
    | `intrinsics`          | f64[V,3,3] | pixels, no skew, x+0.5 is the centre of pixel x |
    | `image_sizes`         | i64[V,2]   | (H, W) in pixels                                |
    """

    camera_from_dataset: np.ndarray
    intrinsics: np.ndarray
    image_sizes: np.ndarray

    def __len__(self) -> int:
        return len(self.camera_from_dataset)

    @property
    def centers(self) -> np.ndarray:
        """Where the cameras stand, f64[V,3], dataset."""
        return camera_center(self.camera_from_dataset)

    def pick(self, indices: np.ndarray) -> "Views":
        """Some of the views, in this order."""
        return Views(
            self.camera_from_dataset[indices], self.intrinsics[indices], self.image_sizes[indices]
        )


class Sightings(NamedTuple):
    """Tracks turned round: view v sees the points `points[offsets[v]:offsets[v + 1]]`, ascending.
    Views beyond the last that sees anything have no row.
    """

    offsets: np.ndarray  # i64
    points: np.ndarray  # i32[T]

    @property
    def views(self) -> np.ndarray:
        """The view of each entry of `points`, i64[T], ascending."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))

    def of(self, view: int | np.integer) -> np.ndarray:
        """The points i32[n] that a view sees."""
        if view + 1 >= len(self.offsets):
            return self.points[:0]
        return self.points[self.offsets[view] : self.offsets[view + 1]]

    def of_all(self, views: np.ndarray) -> np.ndarray:
        """The points i32[n] of some views i64[m], one view after the other."""
        return np.concatenate([self.points[:0], *map(self.of, views)])


@dataclasses.dataclass(frozen=True)
class PointCloud:
    """P points of structure from motion, and the views that see them.

    | field           | shape    | unit, frame                                                     |
    |-----------------|----------|-----------------------------------------------------------------|
    | `points`        | f64[P,3] | dataset                                                         |
    | `colors`        | u8[P,3]  | RGB                                                             |
    | `track_offsets` | i64[P+1] | point p is seen by                                              |
    |                 |          | `track_views[track_offsets[p]:track_offsets[p+1]]`              |
    | `track_views`   | i32[T]   | indices of views, ascending within a point; T = 0: there are no |
    |                 |          | tracks                                                          |
    | `numbers`       | i64[P]   | the points in the order of the dataset; None: they are in it    |
    | `known_sightings` |        | `sightings`, where they are known; None: to be found            |
    """

    points: np.ndarray
    colors: np.ndarray
    track_offsets: np.ndarray
    track_views: np.ndarray
    numbers: np.ndarray | None = None
    known_sightings: Sightings | None = None

    def __len__(self) -> int:
        return len(self.points)

    @property
    def has_tracks(self) -> bool:
        """Whether it is known which views see a point."""
        return len(self.track_views) > 0

    @property
    def track_points(self) -> np.ndarray:
        """The point of each entry of `track_views`, i64[T]."""
        return np.repeat(np.arange(len(self.points)), np.diff(self.track_offsets))

    @functools.cached_property
    def sightings(self) -> Sightings:
        """What each view sees, found once: a pass over all tracks for every view or block would be
        the longest part of opening a large place.
        """
        if self.known_sightings is not None:
            return self.known_sightings
        by_view = self._tracks().tocsc()
        return Sightings(by_view.indptr.astype(np.int64), by_view.indices.astype(np.int32))

    def _tracks(self):
        """Which views see which points: a sparse bool[P,V'], V' up to the last that sees any."""
        from scipy.sparse import csr_array

        views = self.track_views
        shape = (len(self), int(views.max(initial=-1)) + 1)
        return csr_array((np.ones(len(views), bool), views, self.track_offsets), shape)

    @classmethod
    def without_tracks(cls, points: np.ndarray, colors: np.ndarray | None = None) -> "PointCloud":
        """Points f64[P,3] alone; colours u8[P,3], black where none are given."""
        if colors is None:
            colors = np.zeros((len(points), 3), np.uint8)
        return cls(points, colors, np.zeros(len(points) + 1, np.int64), np.empty(0, np.int32))

    @property
    def points_in_order(self) -> np.ndarray:
        """`points` f64[P,3] in the order of the dataset."""
        return self.points if self.numbers is None else self.points[self.numbers]

    def reordered(self, order: np.ndarray) -> "PointCloud":
        """The same with its points in another order, i64[P], from that of the dataset; what a view
        sees stays in that of the dataset.
        """
        ranks = np.empty(len(order), np.int64)
        ranks[order] = np.arange(len(order))
        tracks = self._tracks()[order]
        offsets, points = self.sightings
        return PointCloud(
            points=self.points[order],
            colors=self.colors[order],
            track_offsets=tracks.indptr.astype(np.int64),
            track_views=tracks.indices.astype(np.int32),
            numbers=ranks,
            known_sightings=Sightings(offsets, ranks[points].astype(np.int32)),
        )

    def of_points(self, is_kept: np.ndarray) -> "PointCloud":
        """Some of the points, bool[P]."""
        counts = np.diff(self.track_offsets)
        return PointCloud(
            points=self.points[is_kept],
            colors=self.colors[is_kept],
            track_offsets=np.concatenate([[0], np.cumsum(counts[is_kept])]).astype(np.int64),
            track_views=self.track_views[np.repeat(is_kept, counts)],
        )

    def of_views(self, indices: np.ndarray, num_views: int) -> "PointCloud":
        """The cloud for some of the views, in this order; points that none of them sees stay.

        Args:
            indices: i64[n], the views.
            num_views: V, before.
        """
        if np.array_equal(indices, np.arange(num_views)):
            return self
        rank = np.full(num_views, -1, np.int64)
        rank[indices] = np.arange(len(indices))
        owners = self.track_points
        seen_by = rank[self.track_views]
        is_kept = seen_by >= 0
        owners = owners[is_kept]
        seen_by = seen_by[is_kept]
        counts = np.bincount(owners, minlength=len(self.points))
        return dataclasses.replace(
            self,
            known_sightings=None,
            track_offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            track_views=(np.sort(owners * len(indices) + seen_by) % len(indices)).astype(np.int32),
        )
