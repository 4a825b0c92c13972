"""The layout of Mega-NeRF, in which Mill 19 (Building, Rubble) and the poses of UrbanScene3D
(Residence, Sci-Art, Campus) are distributed: photographs and one torch file for each in train/ and
val/.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cosurfgs_jax.data.capture import Capture, Source
from cosurfgs_jax.data.checks import check_missing
from cosurfgs_jax.data.lookup import FileIndex
from cosurfgs_jax.data.opengl_poses import camera_from_opengl
from cosurfgs_jax.data.points_beside import find_points
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.files import read_lines, reading, safe_name
from cosurfgs_jax.formats.torch_file import read_torch
from cosurfgs_jax.geometry.distortion import Lens, lens_from_params

FILE_NAME = "coordinates.pt"
EXPECTED = f"Mega-NeRF's {FILE_NAME} and train/metadata"
_METADATA = "metadata"
_PHOTOGRAPHS = "rgbs"
_TRAIN = "train"
_VALIDATION = "val"


class _Normalisation(NamedTuple):
    """Metres from the numbers of the poses: metres = scale * number + origin."""

    origin: np.ndarray
    scale: float


class _View(NamedTuple):
    """A photograph, which need not be there."""

    part: str
    stem: str
    lens: Lens
    camera_from_dataset: np.ndarray


def _numbers(table: Any, key: str, shape: tuple[int, ...], where: Path) -> np.ndarray:
    """Finite numbers of a table, f64 of a shape."""
    value = table.get(key) if isinstance(table, dict) else None
    try:
        numbers = np.asarray(value, np.float64).reshape(shape)
    except (TypeError, ValueError):
        got = "none" if value is None else np.shape(value)
        raise InputError(
            f"{where}: expected {key} of shape {shape}, got {got}; is it a file of Mega-NeRF?"
        ) from None
    if not np.isfinite(numbers).all():
        raise InputError(f"{where}: expected finite numbers as {key}, got {numbers.tolist()}")
    return numbers


def _normalisation(path: Path) -> _Normalisation:
    table = read_torch(path)
    scale = float(_numbers(table, "pose_scale_factor", (), path))
    if not scale > 0:
        raise InputError(f"{path}: expected a positive pose_scale_factor, got {scale}")
    return _Normalisation(_numbers(table, "origin_drb", (3,), path), scale)


def _view(path: Path, part: str, normalisation: _Normalisation) -> _View:
    table = read_torch(path)
    height, width = (int(_numbers(table, key, (), path)) for key in ("H", "W"))
    try:
        lens = lens_from_params(
            "PINHOLE", height, width, _numbers(table, "intrinsics", (4,), path).tolist()
        )
    except (InputError, OverflowError) as error:
        raise InputError(f"{path}: {error}") from None
    pose = _numbers(table, "c2w", (3, 4), path)
    center = normalisation.scale * pose[:, 3] + normalisation.origin
    return _View(part, path.stem, lens, camera_from_opengl(pose[:, :3], center, str(path)))


def _original_names(path: Path) -> dict[str, str]:
    """Stems of this layout to the names that photographs had before, which COLMAP models have."""
    names = {}
    if path.is_file():
        with reading(path, "lines of a name, a comma and a file of metadata", "delete it"):
            for line in read_lines(path):
                name, comma, metadata = line.strip().rpartition(",")
                if comma:
                    names[Path(metadata).stem] = name
    return names


def detects(source: Source) -> Path | None:
    """The dataset's folder, if it has this layout."""
    root = source.root
    if (root / FILE_NAME).is_file() and (root / _TRAIN / _METADATA).is_dir():
        return root
    return None


def read_mega_nerf(root: Path) -> Capture:
    """Reads a dataset in the layout of Mega-NeRF.

    Output is in metres and in the axes of the files, x down, y right, z back: what
    `coordinates.pt` says of origin and scale is undone. The photographs have been undistorted by
    who made the layout, and the files' `distortion` says what was removed: it is not applied again.
    Points come from a COLMAP model in sparse/, train/sparse/ or colmap/sparse/, of any frame
    (`points_beside`), which knows the photographs by these names or by those of mappings.txt; the
    layout itself has none.

    Args:
        root: the dataset's folder.
    Returns:
        A capture without tracks; `test_names` are the photographs of val/. Photographs that are not
        there are left out, with a count in the log.
    Raises:
        InputError: a file that is damaged, has anything but numbers in it, or lacks some; most
            photographs are missing; a COLMAP model of other poses.
    Source: "Custom Data" in the documentation of Mega-NeRF; the camera looks along -z with y up.
    """
    normalisation = _normalisation(root / FILE_NAME)
    views = [
        _view(path, part, normalisation)
        for part in (_TRAIN, _VALIDATION)
        for path in sorted((root / part / _METADATA).glob("*.pt"))
    ]
    if not views:
        raise InputError(f"{root / _TRAIN / _METADATA}: expected .pt files, got none")
    paths: list[Path | None] = []
    for part in (_TRAIN, _VALIDATION):
        folder = root / part / _PHOTOGRAPHS
        stems = [view.stem for view in views if view.part == part]
        paths += FileIndex(folder).find_all(stems, str(root / part / _METADATA))
    is_there = [path is not None for path in paths]
    wanted = [f"{view.part}/{_PHOTOGRAPHS}/{view.stem}" for view in views]
    check_missing(wanted, is_there, str(root))
    found = [(view, path) for view, path in zip(views, paths, strict=True) if path is not None]
    names = [f"{view.part}/{path.name}" for view, path in found]
    originals = _original_names(root / "mappings.txt")
    known_as = [
        [name, *([originals[view.stem]] if view.stem in originals else [])]
        for name, (view, _) in zip(names, found, strict=True)
    ]
    camera_from_dataset = np.stack([view.camera_from_dataset for view, _ in found])
    roots = (root, root / _TRAIN, root / "colmap")
    test_names = [name for name in names if name.startswith(f"{_VALIDATION}/")]
    return Capture(
        source=str(root),
        image_names=names,
        image_files=names,
        image_paths=[str(path) for _, path in found],
        lenses=[view.lens for view, _ in found],
        camera_from_dataset=camera_from_dataset,
        cloud=find_points(roots, known_as, camera_from_dataset, str(root)),
        mask_paths=[None] * len(found),
        left_out=tuple(
            safe_name(name) for name, there in zip(wanted, is_there, strict=True) if not there
        ),
        test_names=test_names or None,
        outside=(),
    )
