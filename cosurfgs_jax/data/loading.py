"""From a dataset's files to a `Scene`: everything is checked, and what is of no use is left out."""

import dataclasses
import logging
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cosurfgs_jax.data import (
    checks,
    color_checks,
    images,
    lookup,
    masks,
    photo_files,
    photo_search,
    photo_words,
    readers,
    sizes,
    split,
)
from cosurfgs_jax.data.capture import Capture, Source
from cosurfgs_jax.data.ground_truth import ground_truth_of
from cosurfgs_jax.data.scene import Scene
from cosurfgs_jax.errors import InputError, required
from cosurfgs_jax.geometry.scene_frame import estimate_up
from cosurfgs_jax.geometry.views import Views
from cosurfgs_jax.settings import DataSettings, GeneratedSettings

_log = logging.getLogger(__name__)


def _sorted_by_name(capture: Capture) -> Capture:
    order = sorted(range(capture.num_views), key=capture.image_names.__getitem__)
    return capture.of_views(np.array(order, np.int64))


def _photographs(capture: Capture, paths: list[Path | None]) -> list[sizes.Photo]:
    headers = [None if path is None else photo_files.read_header(path) for path in paths]
    return [
        sizes.Photo(name, str(path or ""), header, lens)
        for name, path, header, lens in zip(
            capture.image_names, paths, headers, capture.lenses, strict=True
        )
    ]


def _check_whole(photos: list[sizes.Photo]) -> None:
    """Decodes the photographs whose end does not say that they are whole. Their sizes were compared
    before.
    """
    for photo in photos:
        if photo.header is not None and not photo.header.seems_whole:
            photo_files.decode(photo.path)


def _load_masks(root: Path, capture: Capture) -> list[str | None]:
    # Where the dataset's files name masks, those in masks/ need not be called after photographs.
    found = masks.find_masks(root, capture.image_names, must_fit=not any(capture.mask_paths))
    paths = [named or path for named, path in zip(capture.mask_paths, found, strict=True)]
    for path in filter(None, paths):
        photo_files.read_header(path)
    num_without = paths.count(None)
    if 0 < num_without < len(paths):
        _log.warning("%s: %d of %d images have no mask", root, num_without, len(paths))
    return paths


def _kept_fractions(
    scene: Scene, photos: list[sizes.Photo], data: DataSettings, notes_path: Path
) -> np.ndarray:
    """What fraction of each photograph counts, f64[V]; decodes masks and photographs with an alpha
    channel.
    """

    def load(view: int) -> np.ndarray:
        header = required(photos[view].header, "Photo.header")
        alpha = None
        if header.has_alpha:
            alpha = photo_files.read_alpha(
                photos[view].path, (header.height, header.width), scene.path
            )
        return images.photo_mask(scene, view, alpha)

    states: dict[int, str] = {}
    for view, photo in enumerate(photos):
        if photo.header is not None and (scene.mask_paths[view] or photo.header.has_alpha):
            paths = [photo.path if photo.header.has_alpha else None, scene.mask_paths[view]]
            state = [masks.state_of(path) for path in paths if path]
            states[view] = " ".join(
                [*state, *map(str, scene.photo_sizes[view]), str(scene.orientation(view))]
            )
    num_threads = images.num_threads(scene, data.host_memory_mb * 2**20)
    kept = masks.kept_fractions(load, states, notes_path, num_threads)
    if kept:
        _log.info(
            "%s: masks keep %.1f %% of the pixels of %d photographs",
            scene.path,
            100 * np.mean(list(kept.values())),
            len(kept),
        )
    return np.array([kept.get(view, 1.0) for view in range(len(photos))])


def _seen_views(
    scene: Scene, photos: list[sizes.Photo], data: DataSettings, notes_path: Path
) -> np.ndarray | None:
    """The views that masks leave something of; None: all.

    Raises:
        InputError: nothing is left of any photograph, or of all but one.
    """
    is_empty = _kept_fractions(scene, photos, data, notes_path) == 0
    if not is_empty.any():
        return None
    empty = [scene.image_names[view] for view in np.flatnonzero(is_empty)]
    if len(empty) > scene.num_views - 2:
        raise InputError(
            f"{scene.path}: expected masks in which white is what counts, got masks that leave "
            "nothing "
            f"of {len(empty)} of {scene.num_views} photographs, {empty[0]} for example; invert the "
            "masks or "
            "move them away"
        )
    _log.warning(
        "%s: masks leave nothing of %d photographs, which are left out: %s",
        scene.path,
        len(empty),
        checks.some_of(empty),
    )
    return np.flatnonzero(~is_empty)


class _Found(NamedTuple):
    """A capture, its photographs as they were found, and the split."""

    capture: Capture
    paths: list[Path | None]
    folder: Path
    is_full: bool
    is_test: np.ndarray

    def of_views(self, views: np.ndarray) -> "_Found":
        """Some of the views, in this order."""
        source = self.capture.source
        if len(views) < 2:
            raise InputError(
                f"{source}: expected at least 2 photographs, got {len(views)}; copy the others "
                "there"
            )
        if self.is_test[views].all():
            raise InputError(
                f"{source}: expected a photograph for training, got none among the {len(views)} "
                "that are left; "
                "choose another config.data.split"
            )
        if self.is_test.any() and not self.is_test[views].any():
            _log.warning(
                "%s: all %d photographs for testing are left out", source, self.is_test.sum()
            )
        return self._replace(
            capture=self.capture.of_views(views),
            paths=[self.paths[view] for view in views],
            is_test=self.is_test[views],
        )


def _scene(found: _Found, data: DataSettings) -> tuple[Scene, list[sizes.Photo]]:
    capture = found.capture
    folder = found.folder
    root = required(capture.root, "Capture.root")
    photos = _photographs(capture, found.paths)
    cameras = sizes.load_cameras(photos, folder, found.is_full, data, capture.source)
    _check_whole(photos)
    mask_paths = _load_masks(root, capture)
    has_alpha = any(photo.header.has_alpha for photo in photos if photo.header)
    return Scene(
        name=capture.name,
        path=str(root),
        image_names=capture.image_names,
        image_paths=[photo.path for photo in photos],
        views=Views(capture.camera_from_dataset, cameras.intrinsics, cameras.image_sizes),
        mask_paths=mask_paths,
        has_masks=any(mask_paths) or has_alpha,
        cloud=capture.cloud,
        is_test=found.is_test,
        up=estimate_up(capture.camera_from_dataset, capture.cloud.points),
        ground_truth=ground_truth_of(root, capture.image_names),
        distortion=cameras.distortion,
        photo_sizes=cameras.photo_sizes,
        shrink_factors=cameras.shrink_factors,
        orientations=cameras.orientations,
        outside=_outside(capture),
    ), photos


def _outside(capture: Capture) -> tuple[str, ...] | None:
    if capture.outside is None:
        return None
    return (*capture.outside, *(n for n in capture.image_files if not lookup.is_walked(n)))


def load_scene(
    data: DataSettings,
    generated: GeneratedSettings,
    cache_dir,
    allow_missing: bool = False,
    left_out: Collection[str] | None = None,
    compares_colors: bool = True,
) -> Scene:
    """Reads a dataset and checks all that can be checked without decoding whole photographs.

    Photographs that are not there, or of which their masks leave nothing, are left out with a word
    in the log.

    Args:
        data: which dataset, size and split. The format is recognised by what is in the folder.
        generated: the built-in town, used if data.path is "generated"; it is made once and kept in
            `cache_dir`.
        cache_dir: a folder for what is made from settings, and for what was found out of masks.
        allow_missing: photographs may be missing, as long as there is one: other processes of the
            run have them. Their `image_paths` are "" and their sizes those that the camera model
            says. Nothing is left out then.
        left_out: names of the photographs that are left out, and no others: what another job of the
            run has found. None: as they are found here.
        compares_colors: whether photographs are decoded small (1,000 at most; 32 where points have
            tracks) and compared with the points' colours (`color_checks`), which only says
            something in the log: once for a dataset is enough.
    Returns:
        The scene. Photographs are not in memory; see `ImageStore`.
    Raises:
        InputError: no such folder or nothing known in it; most images are missing; images that are
            damaged or of another shape; a camera model that no pinhole can replace; no points; NaN;
            fewer than 2 views; masks that leave nothing; a split that leaves no training view.
    """
    data.validate()
    source = Source(Path(data.path).expanduser(), data, generated, Path(cache_dir))
    capture = checks.checked(_sorted_by_name(readers.read_dataset(source)))
    root = required(capture.root, "Capture.root")
    # Before anything is left out: lists may name all photographs, and every eighth stays the same
    # one.
    is_test = split.views_for_testing(
        data.split, capture.image_names, root, capture.test_names, capture.left_out
    )
    found = _Found(capture, *photo_search.find_photographs(root, capture, data), is_test)
    scene = _scene_of(found, data, Path(cache_dir), allow_missing=allow_missing, left_out=left_out)
    if compares_colors:
        of_name = dict(zip(capture.image_names, capture.lenses, strict=True))
        color_checks.check(
            scene,
            [of_name[name] for name in scene.image_names],
            capture.source,
            images.num_threads(scene, data.host_memory_mb * 2**20),
        )
    gone = set(capture.image_names) - set(scene.image_names)
    return dataclasses.replace(scene, left_out=tuple(sorted(gone)))


def _scene_of(
    found: _Found,
    data: DataSettings,
    cache_dir: Path,
    allow_missing: bool,
    left_out: Collection[str] | None,
) -> Scene:
    """`load_scene` of what was found."""
    if left_out:
        names = found.capture.image_names
        found = found.of_views(np.flatnonzero([name not in left_out for name in names]))
    capture = found.capture
    is_there = np.array([path is not None for path in found.paths])
    if allow_missing and is_there.any() and (left_out is not None or not is_there.all()):
        return _scene(found, data)[0]
    checks.check_missing(
        capture.image_files, is_there.tolist(), f"{found.folder}: {capture.source}"
    )
    if not is_there.all():
        found = found.of_views(np.flatnonzero(is_there))
    scene, photos = _scene(found, data)
    if left_out is None:
        headers = {photo.name: photo.header for photo in photos if photo.header is not None}
        photo_words.say_pages(headers, capture.source)
        deep = [photo.path for photo in photos if photo.header and photo.header.is_deep]
        photo_words.say_dark(deep, capture.source)
    if not scene.has_masks or left_out is not None:
        return scene
    seen = _seen_views(scene, photos, data, cache_dir / "masks.json")
    return scene if seen is None else _scene(found.of_views(seen), data)[0]
