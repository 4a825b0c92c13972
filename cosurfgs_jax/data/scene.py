"""A dataset, whatever its format: photographs with poses, points, and the split into training and test views."""

import collections
import dataclasses
import hashlib
import json
import logging
from pathlib import Path

import numpy as np

from cosurfgs_jax.data import colmap, images, split, transforms_json
from cosurfgs_jax.data.capture import Capture
from cosurfgs_jax.data.ground_truth import GroundTruth, load_ground_truth
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.geometry.distortion import Lens, is_pinhole, undistorted_pinhole
from cosurfgs_jax.geometry.scene_frame import estimate_up
from cosurfgs_jax.settings import DataSettings, GeneratedSettings

_ENDINGS = (".jpg", ".JPG", ".jpeg", ".JPEG", ".png", ".PNG", ".tif", ".TIF", ".tiff", ".webp")
_MIN_SIDE = 8  # pixels; smaller images are a downscale set by mistake
# Sides of undistorted images are cropped to whole multiples of this share of the photograph's, where lenses differ.
_SIDE_STEP = 0.02


@dataclasses.dataclass(frozen=True)
class Scene:
    """Views sorted by name, in the dataset's frame and unit, with the images that training sees.

    | field               | shape      | unit, frame                                                                 |
    |---------------------|------------|-----------------------------------------------------------------------------|
    | `name`, `path`      |            | of the dataset folder                                                       |
    | `image_names`       | V names    | relative, with sub-folders                                                  |
    | `image_paths`       | V paths    | of the files that are read; "" where another process of the run has it      |
    | `camera_from_world` | f64[V,4,4] | rigid, from the dataset frame                                               |
    | `intrinsics`        | f64[V,3,3] | pixels of the loaded image: shrunk and undistorted                          |
    | `image_sizes`       | i64[V,2]   | (H, W) of the loaded image                                                  |
    | `distortion`        | V          | the lens of the shrunk photograph, undone on loading; None: it is a pinhole |
    | `photo_sizes`       | i64[V,2]   | (H, W) of the file                                                          |
    | `shrink_factors`    | i64[V]     | by which the file is shrunk on loading                                      |
    | `mask_paths`        | V paths    | or None                                                                     |
    | `has_masks`         |            | whether any view has a mask file or an alpha channel                        |
    | `points`            | f64[P,3]   | dataset                                                                     |
    | `point_colors`      | u8[P,3]    | RGB                                                                         |
    | `track_offsets`     | i64[P+1]   | point p is seen by `track_views[track_offsets[p]:track_offsets[p+1]]`       |
    | `track_views`       | i32[T]     | ascending within a point; may be empty                                      |
    | `is_test`           | bool[V]    | kept for testing                                                            |
    | `up`                | f64[3]     | unit vector, dataset                                                        |
    | `ground_truth`      |            | or None                                                                     |
    """

    name: str
    path: str
    image_names: list[str]
    image_paths: list[str]
    camera_from_world: np.ndarray
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
        """The same scene, its photographs with or without a channel for masks: all processes of a run load them alike."""
        return dataclasses.replace(self, has_masks=has_masks)

    def pinhole(self, view: int | np.integer) -> Lens:
        """The camera of a loaded image."""
        height, width = map(int, self.image_sizes[view])
        matrix = self.intrinsics[view].tolist()
        return Lens("PINHOLE", height, width, (matrix[0][0], matrix[1][1]), (matrix[0][2], matrix[1][2]))


def _generated(settings: GeneratedSettings, cache_dir) -> Path:
    from cosurfgs_jax.data.generated import make_town

    settings.validate()
    text = json.dumps(dataclasses.asdict(settings), sort_keys=True)
    folder = Path(cache_dir) / f"generated-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    make_town(settings, folder)
    return folder


def _read_capture(root: Path, data: DataSettings) -> Capture:
    model = colmap.find_model(root, data.model)
    if model is None and (root / transforms_json.FILE_NAME).is_file():
        return transforms_json.read_transforms(root, _size_of)
    if model is None and (root / "colmap").is_dir():
        model = colmap.find_model(root / "colmap")
    if model is None:
        content = sorted(path.name for path in root.iterdir())
        got = ", ".join(content[:8]) + (", ..." if len(content) > 8 else "") if content else "an empty folder"
        raise InputError(
            f"config.data.path: expected a dataset in {root}, that is a COLMAP model (cameras and images files, .bin "
            f"or .txt, in sparse/0, sparse/<n>, sparse, colmap/sparse/0 or the folder itself) or "
            f"{transforms_json.FILE_NAME}, got {got}"
        )
    return colmap.read_model(model)


def _size_of(path) -> tuple[int, int]:
    header = images.read_header(path)
    return header.height, header.width


def _sorted_by_name(capture: Capture) -> Capture:
    order = sorted(range(len(capture.image_names)), key=capture.image_names.__getitem__)
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    points = np.repeat(np.arange(len(capture.points)), np.diff(capture.track_offsets))
    views = rank[capture.track_views]

    def pick(values):
        return [values[view] for view in order]

    return dataclasses.replace(
        capture,
        image_names=pick(capture.image_names),
        image_paths=pick(capture.image_paths),
        lenses=pick(capture.lenses),
        mask_paths=pick(capture.mask_paths),
        camera_from_world=capture.camera_from_world[order],
        track_views=views[np.lexsort((views, points))].astype(np.int32),
    )


def _check(capture: Capture) -> None:
    names, source = capture.image_names, capture.source
    if len(names) < 2:
        raise InputError(f"{source}: expected at least 2 images with poses, got {len(names)}; check the reconstruction")
    twice = next((name for name, following in zip(names, names[1:], strict=False) if name == following), None)
    if twice:
        raise InputError(f"{source}: expected every image once, got {twice} twice; remove one of them")
    broken = np.flatnonzero(~np.isfinite(capture.camera_from_world).all(axis=(1, 2)))
    if broken.size:
        raise InputError(
            f"{source}: expected finite poses, got NaN or infinity in {broken.size} of {len(names)}, the first is that "
            f"of {names[broken[0]]}; remove these images from the model"
        )
    if not len(capture.points):
        raise InputError(f"{source}: expected points to start from, got an empty point cloud; triangulate points first")
    broken = np.flatnonzero(~np.isfinite(capture.points).all(axis=1))
    if broken.size:
        raise InputError(
            f"{source}: expected finite points, got NaN or infinity in {broken.size} of {len(capture.points)}, the "
            f"first is point {broken[0]} of the file; remove them"
        )


def _image_folder(root: Path, data: DataSettings) -> tuple[Path, bool]:
    """The folder that is read, and whether its images must have the cameras' own size."""
    if data.images:
        folder, is_full = root / data.images, data.images.strip("/") == "images"
        if not folder.is_dir():
            raise InputError(f"config.data.images: expected a folder inside the dataset, got {folder}, which is none")
        return folder, is_full
    if data.downscale > 1 and (root / f"images_{data.downscale}").is_dir():
        return root / f"images_{data.downscale}", False
    if not (root / "images").is_dir():
        raise InputError(
            f"{root / 'images'}: expected the photographs there, got no such folder; copy them or give their folder, "
            "relative to the dataset, as config.data.images"
        )
    return root / "images", True


def _with_any_ending(path: Path) -> Path | None:
    # Ready-made images_<n> folders often hold PNG copies of JPEG photographs.
    candidates = [path, *(path.with_suffix(ending) for ending in _ENDINGS)]
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def _find_photographs(root: Path, capture: Capture, data: DataSettings,
                      allow_missing: bool) -> tuple[list[Path | None], bool]:
    """Paths, None for files that may be missing and are, and whether the files must have the cameras' own size."""
    is_full = True
    if capture.image_paths[0] is None or data.images:
        folder, is_full = _image_folder(root, data)
        wanted = [folder / name for name in capture.image_names]
    else:
        wanted = [Path(path) for path in capture.image_paths]
        reduced = [path.parent.with_name(f"{path.parent.name}_{data.downscale}") / path.name for path in wanted]
        if data.downscale > 1 and reduced[0].parent.is_dir():
            wanted, is_full = reduced, False
    found = [_with_any_ending(path) for path in wanted]
    missing = [path for path, file in zip(wanted, found, strict=True) if file is None]
    if len(missing) > (len(found) - 1 if allow_missing else 0):
        raise InputError(
            f"{missing[0]}: expected this image, which {capture.source} lists, got no such file; {len(missing)} of "
            f"{len(found)} images are missing: copy them there, or give their folder as config.data.images"
        )
    return found, is_full


def _shrink_factor(folder, lens: Lens, header: images.PhotoHeader, data: DataSettings) -> tuple[int, int]:
    """By what the files of a folder other than images/ are reduced already, and by what they are to be on loading."""
    reduced = max(1, round(lens.width / header.width))
    if not data.images and reduced != data.downscale:
        raise InputError(
            f"{folder}: expected images of 1/{data.downscale} of the cameras' size, {lens.width // data.downscale}x"
            f"{lens.height // data.downscale} pixels, got {header.width}x{header.height}; make the folder again or "
            "remove it"
        )
    if data.downscale > reduced and data.downscale % reduced:
        raise InputError(
            f"config.data.downscale: expected a multiple of {reduced}, the reduction of the images in {folder}, "
            f"got {data.downscale}"
        )
    return reduced, max(1, data.downscale // reduced)


def _resized_lens(lens: Lens, header: images.PhotoHeader, factor: int) -> Lens:
    """The lens of a photograph as it is on disk and after it was shrunk by a whole factor."""
    on_disk = lens.resized(header.height, header.width, header.height / lens.height, header.width / lens.width)
    return on_disk.resized(header.height // factor, header.width // factor, 1 / factor, 1 / factor)


def _in_few_sizes(pinholes: list[Lens], lenses: list[Lens | None]) -> list[Lens]:
    """The pinhole cameras, cropped at the right and below where undistorted images of one camera differ a little in size.

    Each image size compiles the training step anew, a second or more. A camera that was calibrated for every photograph
    separately would give every photograph a size of its own.
    """
    sizes_of = collections.defaultdict(set)
    for pinhole, lens in zip(pinholes, lenses, strict=True):
        if lens is not None:
            sizes_of[lens.height, lens.width].add((pinhole.height, pinhole.width))

    def crop(pinhole: Lens, lens: Lens | None) -> Lens:
        if lens is None or len(sizes_of[lens.height, lens.width]) == 1:
            return pinhole
        step_y, step_x = (max(1, round(side * _SIDE_STEP)) for side in (lens.height, lens.width))
        return dataclasses.replace(pinhole, height=pinhole.height // step_y * step_y,
                                   width=pinhole.width // step_x * step_x)

    return [crop(pinhole, lens) for pinhole, lens in zip(pinholes, lenses, strict=True)]


def _load_cameras(capture: Capture, headers, paths, is_full: bool, data: DataSettings) -> dict:
    """The fields of the scene that say how photographs become the images that training sees."""
    reduced, factor = 1, data.downscale
    first = next(view for view, path in enumerate(paths) if path is not None)
    if not is_full:
        reduced, factor = _shrink_factor(paths[first].parent, capture.lenses[first], headers[first], data)
    lenses, pinholes, headers_used = [], [], []
    for name, path, lens, header in zip(capture.image_names, paths, capture.lenses, headers, strict=True):
        expected = (round(lens.height / reduced), round(lens.width / reduced))
        header = header or images.PhotoHeader(*expected, has_alpha=False)  # of a file that another process has
        headers_used.append(header)
        got = (header.height, header.width)
        # Other programs round reduced sizes up, down or to the nearest.
        slack = 0 if is_full else 1
        if max(abs(got[0] - lens.height / reduced), abs(got[1] - lens.width / reduced)) > slack:
            images.check_size(path, got, expected, capture.source)
        resized = _resized_lens(lens, header, factor)
        if min(resized.height, resized.width) < _MIN_SIDE:
            raise InputError(
                f"config.data.downscale: expected a factor that leaves at least {_MIN_SIDE} pixels a side, got "
                f"{data.downscale}, which leaves {resized.width}x{resized.height} of {name}"
            )
        lenses.append(None if is_pinhole(resized) else resized)
        try:
            pinholes.append(resized if lenses[-1] is None else undistorted_pinhole(resized))
        except InputError as error:
            raise InputError(f"{capture.source}: image {name}: {error}") from None
    pinholes = _in_few_sizes(pinholes, lenses)
    return {
        "intrinsics": np.stack([pinhole.intrinsics for pinhole in pinholes]),
        "image_sizes": np.array([(pinhole.height, pinhole.width) for pinhole in pinholes], np.int64),
        "distortion": lenses,
        "photo_sizes": np.array([(header.height, header.width) for header in headers_used], np.int64),
        "shrink_factors": np.full(len(headers), factor, np.int64),
    }


def _load_masks(root: Path, capture: Capture) -> list[str | None]:
    masks = [
        named or found
        for named, found in zip(capture.mask_paths, images.find_masks(root, capture.image_names), strict=True)
    ]
    for path in filter(None, masks):
        images.read_header(path)
    num_without = masks.count(None)
    if 0 < num_without < len(masks):
        logging.getLogger(__name__).warning("%s: %d of %d images have no mask", root, num_without, len(masks))
    return masks


def load_scene(data: DataSettings, generated: GeneratedSettings, cache_dir, allow_missing: bool = False) -> Scene:
    """Reads a dataset and checks all that can be checked without decoding every photograph.

    Args:
        data: which dataset, size and split. The format is recognised by what is in the folder.
        generated: the built-in town, used if data.path is "generated"; it is made once and kept in `cache_dir`.
        cache_dir: a folder for what is made from settings.
        allow_missing: photographs may be missing, as long as there is one: other processes of the run have them. Their
            `image_paths` are "" and their sizes those that the camera model says.
    Returns:
        The scene. Photographs are not in memory; see `ImageStore`.
    Raises:
        InputError: no such folder or nothing known in it; images that are missing, damaged or of another size; a camera
            model that no pinhole can replace; no points; NaN; fewer than 2 views; a split that leaves no training view.
    """
    data.validate()
    is_generated = data.path == "generated"
    root = _generated(generated, cache_dir) if is_generated else Path(data.path).expanduser()
    if not root.is_dir():
        raise InputError(f"config.data.path: expected a dataset folder, got {root}, which is not there")
    capture = _sorted_by_name(_read_capture(root, data))
    _check(capture)
    paths, is_full = _find_photographs(root, capture, data, allow_missing)
    is_test = split.views_for_testing(data.split, capture.image_names, root, capture.test_names)
    headers = [None if path is None else images.read_header(path) for path in paths]
    masks = _load_masks(root, capture)
    return Scene(
        name="generated" if is_generated else root.resolve().name,
        path=str(root),
        image_names=capture.image_names,
        image_paths=[str(path or "") for path in paths],
        camera_from_world=capture.camera_from_world,
        mask_paths=masks,
        has_masks=any(masks) or any(header.has_alpha for header in headers if header),
        points=capture.points,
        point_colors=capture.point_colors,
        track_offsets=capture.track_offsets,
        track_views=capture.track_views,
        is_test=is_test,
        up=estimate_up(capture.camera_from_world, capture.points),
        ground_truth=load_ground_truth(root),
        **_load_cameras(capture, headers, paths, is_full, data),
    )
