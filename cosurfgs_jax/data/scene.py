"""A dataset, whatever its format: photographs with poses, points, and the split into training and
test views.
"""

import dataclasses
import hashlib
import json
import logging
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cosurfgs_jax.data import (
    checks,
    colmap,
    images,
    masks,
    photo_files,
    sizes,
    split,
    transforms_json,
)
from cosurfgs_jax.data.capture import Capture
from cosurfgs_jax.data.ground_truth import GroundTruth, load_ground_truth
from cosurfgs_jax.data.lookup import FileIndex, say_outside, subfolder
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.files import check_name
from cosurfgs_jax.geometry.distortion import Lens
from cosurfgs_jax.geometry.scene_frame import estimate_up
from cosurfgs_jax.settings import DataSettings, GeneratedSettings

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Scene:
    """Views sorted by name, in the dataset's frame and unit, with the images that training sees.

    | field                 | shape      | unit, frame                                             |
    |-----------------------|------------|---------------------------------------------------------|
    | `name`, `path`        |            | of the dataset folder                                   |
    | `image_names`         | V names    | relative, with sub-folders; safe to name files after    |
    | `image_paths`         | V paths    | of the files that are read; "" where another process of |
    |                       |            | the run has it                                          |
    | `camera_from_dataset` | f64[V,4,4] | rigid, from the dataset frame                           |
    | `intrinsics`          | f64[V,3,3] | pixels of the loaded image: shrunk and undistorted      |
    | `image_sizes`         | i64[V,2]   | (H, W) of the loaded image                              |
    | `distortion`          | V          | the lens of the shrunk photograph, undone on loading;   |
    |                       |            | None: it is a pinhole                                   |
    | `photo_sizes`         | i64[V,2]   | (H, W) of the photograph, after it was turned           |
    | `shrink_factors`      | i64[V]     | by which the file is shrunk on loading                  |
    | `mask_paths`          | V paths    | or None                                                 |
    | `has_masks`           |            | whether any view has a mask file or an alpha channel    |
    | `points`              | f64[P,3]   | dataset                                                 |
    | `point_colors`        | u8[P,3]    | RGB                                                     |
    | `track_offsets`       | i64[P+1]   | point p is seen by                                      |
    |                       |            | `track_views[track_offsets[p]:track_offsets[p+1]]`      |
    | `track_views`         | i32[T]     | ascending within a point; may be empty                  |
    | `is_test`             | bool[V]    | kept for testing                                        |
    | `up`                  | f64[3]     | unit vector, dataset                                    |
    | `ground_truth`        |            | or None                                                 |
    | `orientations`        | V          | of EXIF, 1 to 8, by which files are turned on loading;  |
    |                       |            | empty: none is                                          |
    """

    name: str
    path: str
    image_names: list[str]
    image_paths: list[str]
    camera_from_dataset: np.ndarray
    intrinsics: np.ndarray
    image_sizes: np.ndarray
    distortion: list[Lens | None]
    photo_sizes: np.ndarray
    shrink_factors: np.ndarray
    mask_paths: list[str | None]
    has_masks: bool
    points: np.ndarray
    point_colors: np.ndarray
    track_offsets: np.ndarray
    track_views: np.ndarray
    is_test: np.ndarray
    up: np.ndarray
    ground_truth: GroundTruth | None = None
    orientations: tuple[int, ...] = ()

    def __post_init__(self):
        for name in self.image_names:  # whatever reader they are from: files are named after them
            check_name(name, self.path)

    @property
    def num_views(self) -> int:
        """Training and test views together."""
        return len(self.image_names)

    @property
    def train_views(self) -> np.ndarray:
        """i64, ascending."""
        return np.flatnonzero(~self.is_test)

    @property
    def test_views(self) -> np.ndarray:
        """i64, ascending."""
        return np.flatnonzero(self.is_test)

    def with_masks(self, has_masks: bool) -> "Scene":
        """The same scene, its photographs with or without a channel for masks: all processes of a
        run load them alike.
        """
        return dataclasses.replace(self, has_masks=has_masks)

    def orientation(self, view: int | np.integer) -> int:
        """By which the file of a view is turned on loading, 1 to 8 as in EXIF; 1 = not at all."""
        return self.orientations[view] if self.orientations else 1

    def pinhole(self, view: int | np.integer) -> Lens:
        """The camera of a loaded image."""
        height, width = map(int, self.image_sizes[view])
        matrix = self.intrinsics[view].tolist()
        return Lens(
            "PINHOLE", height, width, (matrix[0][0], matrix[1][1]), (matrix[0][2], matrix[1][2])
        )


def _generated(settings: GeneratedSettings, cache_dir) -> Path:
    from cosurfgs_jax.data.town.dataset import make_town

    settings.validate()
    text = json.dumps(dataclasses.asdict(settings), sort_keys=True)
    folder = Path(cache_dir) / f"generated-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    make_town(settings, folder)
    return folder


def _read_capture(root: Path, data: DataSettings) -> Capture:
    model = colmap.find_model(root, data.model)
    if model is None and transforms_json.find_files(root):
        return transforms_json.read_transforms(root, _size_of)
    below = subfolder(root, "colmap") if model is None else None
    if below is not None:
        model = colmap.find_model(below)
    if model is None:
        content = sorted(path.name for path in root.iterdir())
        got = (
            ", ".join(content[:8]) + (", ..." if len(content) > 8 else "")
            if content
            else "an empty folder"
        )
        raise InputError(
            f"config.data.path: expected a dataset in {root}, that is a COLMAP model (cameras and "
            "images files, .bin "
            f"or .txt, in sparse/0, sparse/<n>, sparse, colmap/sparse/0 or the folder itself) or "
            f"{transforms_json.FILE_NAME}, got {got}"
        )
    return colmap.read_model(model)


def _size_of(path) -> tuple[int, int]:
    header = photo_files.read_header(path)
    return header.height, header.width


def _sorted_by_name(capture: Capture) -> Capture:
    order = sorted(range(capture.num_views), key=capture.image_names.__getitem__)
    return capture.of_views(np.array(order, np.int64))


def _image_folder(root: Path, data: DataSettings) -> tuple[Path, bool]:
    """The folder that is read, and whether its images must have the cameras' own size."""
    if data.images:
        folder = root / data.images
        is_full = data.images.strip("/") == "images"
        if not folder.is_dir():
            raise InputError(
                f"config.data.images: expected a folder inside the dataset, got {folder}, which is "
                "none"
            )
        return folder, is_full
    reduced = subfolder(root, f"images_{data.downscale}") if data.downscale > 1 else None
    if reduced is not None:
        return reduced, False
    folder = subfolder(root, "images")
    if folder is None:
        raise InputError(
            f"{root / 'images'}: expected the photographs there, got no such folder; copy them or "
            "give their folder, "
            "relative to the dataset, as config.data.images"
        )
    return folder, True


def _find_photographs(
    root: Path, capture: Capture, data: DataSettings
) -> tuple[list[Path | None], Path, bool]:
    """Paths (None where there is none), the folder that they are in, and whether the files are the
    cameras' own, not a reduction of them."""
    source = capture.source
    if capture.image_paths[0] is None or data.images:
        folder, is_full = _image_folder(root, data)
        found = FileIndex(folder).find_all(capture.image_files, source)
    else:
        found: list[Path | None] = [Path(path) for path in capture.image_paths]
        folder = found[0].parent
        is_full = True
        reduced = folder.with_name(f"{folder.name}_{data.downscale}")
        if data.downscale > 1 and reduced.is_dir():
            folder = reduced
            is_full = False
            names = [
                path.name if path.parent == found[0].parent else name
                for path, name in zip(found, capture.image_names, strict=True)
            ]
            found = FileIndex(folder).find_all(names, source)
    say_outside([path for path in found if path is not None], root, source)
    return found, folder, is_full


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
        header = photos[view].header
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


def load_scene(
    data: DataSettings, generated: GeneratedSettings, cache_dir, allow_missing: bool = False
) -> Scene:
    """Reads a dataset and checks all that can be checked without decoding every photograph.

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
    Returns:
        The scene. Photographs are not in memory; see `ImageStore`.
    Raises:
        InputError: no such folder or nothing known in it; most images are missing; images that are
            damaged or of another shape; a camera model that no pinhole can replace; no points; NaN;
            fewer than 2 views; masks that leave nothing; a split that leaves no training view.
    """
    data.validate()
    is_generated = data.path == "generated"
    root = _generated(generated, cache_dir) if is_generated else Path(data.path).expanduser()
    if not root.is_dir():
        raise InputError(
            f"config.data.path: expected a dataset folder, got {root}, which is not there"
        )
    capture = checks.checked(_sorted_by_name(_read_capture(root, data)))
    # Before anything is left out: lists may name all photographs, and every eighth stays the same
    # one.
    is_test = split.views_for_testing(
        data.split, capture.image_names, root, capture.test_names, capture.left_out
    )
    found = _Found(capture, *_find_photographs(root, capture, data), is_test)
    is_there = np.array([path is not None for path in found.paths])
    if allow_missing and is_there.any() and not is_there.all():
        return _scene(root, found, data)[0]
    checks.check_missing(
        capture.image_files, is_there.tolist(), f"{found.folder}: {capture.source}"
    )
    if not is_there.all():
        found = found.of_views(np.flatnonzero(is_there))
    scene, photos = _scene(root, found, data)
    if not scene.has_masks:
        return scene
    seen = _seen_views(scene, photos, data, Path(cache_dir) / "masks.json")
    return scene if seen is None else _scene(root, found.of_views(seen), data)[0]


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


def _ground_truth(root: Path, names: list[str]) -> GroundTruth | None:
    """The ground truth with the exact depth of these photographs, which have its names."""
    truth = load_ground_truth(root)
    if truth is None or not truth.depth_paths:
        return truth
    by_name = {Path(path).stem: path for path in truth.depth_paths}
    stems = [Path(name).stem for name in names]
    if len(set(stems)) == len(stems) and set(stems) <= set(by_name):
        return dataclasses.replace(truth, depth_paths=tuple(by_name[stem] for stem in stems))
    if len(truth.depth_paths) == len(names):  # counted by name
        return truth
    return dataclasses.replace(truth, depth_paths=())


def _scene(root: Path, found: _Found, data: DataSettings) -> tuple[Scene, list[sizes.Photo]]:
    capture = found.capture
    folder = found.folder
    photos = _photographs(capture, found.paths)
    cameras = sizes.load_cameras(photos, folder, found.is_full, data, capture.source)
    _check_whole(photos)
    mask_paths = _load_masks(root, capture)
    return Scene(
        name="generated" if data.path == "generated" else root.resolve().name,
        path=str(root),
        image_names=capture.image_names,
        image_paths=[photo.path for photo in photos],
        camera_from_dataset=capture.camera_from_dataset,
        mask_paths=mask_paths,
        has_masks=any(mask_paths)
        or any(photo.header.has_alpha for photo in photos if photo.header),
        points=capture.points,
        point_colors=capture.point_colors,
        track_offsets=capture.track_offsets,
        track_views=capture.track_views,
        is_test=found.is_test,
        up=estimate_up(capture.camera_from_dataset, capture.points),
        ground_truth=_ground_truth(root, capture.image_names),
        **cameras,
    ), photos
