"""Points for poses that come without any: those of a COLMAP model that lies beside them."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cosurfgs_jax.data import colmap
from cosurfgs_jax.data.lookup import folded, without_ending
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.geometry.cameras import camera_center
from cosurfgs_jax.geometry.views import PointCloud

# Of the reach of the cameras, and of a rotation's entries: far above rounding, far below any change
# of frame.
_POSE_TOLERANCE = 1e-2
_log = logging.getLogger(__name__)


def _is_other(poses: np.ndarray, expected: np.ndarray, reach: float) -> bool:
    """Whether poses differ. Those that are not finite do not: they are refused later, by name."""
    with np.errstate(invalid="ignore"):
        distances = np.linalg.norm(camera_center(poses) - camera_center(expected), axis=1)
    turns = np.abs(poses[:, :3, :3] - expected[:, :3, :3])
    return bool((distances > _POSE_TOLERANCE * reach).any() or (turns > _POSE_TOLERANCE).any())


def _reach(poses: np.ndarray) -> float:
    centers = camera_center(poses)
    return float(np.linalg.norm(centers - centers.mean(axis=0), axis=1).max())


def _moved_as_a_whole(
    ours: np.ndarray, theirs: np.ndarray
) -> tuple[float, np.ndarray, np.ndarray] | None:
    """Scale, rotation and shift to the dataset from the model, of the same cameras in both; None
    where they are not the same up to such a move.
    """
    turns = np.swapaxes(ours[:, :3, :3], 1, 2) @ theirs[:, :3, :3]
    if not np.isfinite(turns).all():
        return None
    left, _, right = np.linalg.svd(turns.mean(axis=0))
    rotation = left @ right
    ours_middle, theirs_middle = (camera_center(poses).mean(axis=0) for poses in (ours, theirs))
    spreads = [
        np.linalg.norm(camera_center(poses) - middle)
        for poses, middle in ((ours, ours_middle), (theirs, theirs_middle))
    ]
    if not min(spreads) > 0 or np.linalg.det(rotation) < 0:
        return None
    scale = float(spreads[0] / spreads[1])
    shift = ours_middle - scale * rotation @ theirs_middle
    moved = theirs.copy()
    moved[:, :3, :3] = theirs[:, :3, :3] @ rotation.T
    moved[:, :3, 3] = scale * theirs[:, :3, 3] - moved[:, :3, :3] @ shift
    if not np.isfinite(moved).all() or _is_other(ours, moved, _reach(ours)):
        return None
    return scale, rotation, shift


def _same_photographs(
    names: Sequence[Sequence[str]], model_names: Sequence[str]
) -> tuple[list[int], list[int]]:
    """Views of both that have one name: ours, theirs. A name of ours may have more folders in
    front; one of theirs that several of ours fit is left out.
    """
    views = {without_ending(folded(name)): view for view, name in enumerate(model_names)}
    found: dict[int, list[int]] = {}
    for ours, known_as in enumerate(names):
        parts = [without_ending(folded(name)).split("/") for name in known_as]
        tails = ("/".join(part[first:]) for part in parts for first in range(len(part)))
        theirs = next((views[tail] for tail in tails if tail in views), None)
        if theirs is not None:
            found.setdefault(theirs, []).append(ours)
    pairs = sorted((ours[0], theirs) for theirs, ours in found.items() if len(ours) == 1)
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def points_of_model(
    folder: Path, names: Sequence[Sequence[str]], camera_from_dataset: np.ndarray, source: str
) -> PointCloud:
    """Points of a COLMAP model, in the frame of the dataset's poses.

    Whether the model has the frame of the poses is not said anywhere, so the poses of photographs
    that both name are compared: the model is moved, turned and scaled as a whole to them where it
    was another.

    Args:
        folder: of the model.
        names: of each view, one or several that the model may have for it.
        camera_from_dataset: f64[V,4,4].
        source: the file of the poses, for messages.
    Returns:
        Points without tracks.
    Raises:
        InputError: no photograph that both name, or poses that differ by more than such a move.
    """
    model = colmap.read_model(folder)
    ours, theirs = _same_photographs(names, model.image_names)
    what = "no photograph that both name"
    if ours:
        poses = camera_from_dataset[ours]
        expected = model.camera_from_dataset[theirs]
        if not _is_other(poses, expected, _reach(model.camera_from_dataset)):
            return PointCloud.without_tracks(model.cloud.points, model.cloud.colors)
        move = _moved_as_a_whole(poses, expected)
        if move is not None:
            scale, rotation, shift = move
            _log.info(
                "%s: the points of %s are moved into its frame by the poses of %d photographs",
                source,
                folder,
                len(ours),
            )
            points = scale * model.cloud.points @ rotation.T + shift
            return PointCloud.without_tracks(points, model.cloud.colors)
        what = "other poses there"
    raise InputError(
        f"{source}: expected its photographs with the same poses in the COLMAP model in {folder}, "
        f"whose points would be taken, got {what}; give the point cloud or the model that the "
        "poses were made from"
    )


def find_points(
    roots: Sequence[Path],
    names: Sequence[Sequence[str]],
    camera_from_dataset: np.ndarray,
    source: str,
) -> PointCloud:
    """The points of the first COLMAP model in some folders (`points_of_model`); without a model an
    empty cloud, which `checks.checked` refuses with what to do.
    """
    for root in roots:
        folder = colmap.find_model(root)
        if folder is not None:
            return points_of_model(folder, names, camera_from_dataset, source)
    return PointCloud.without_tracks(np.empty((0, 3)))
