"""From poses without points to a dataset: features of the photographs are found, compared and
triangulated, and the poses stay as they are.
"""

import dataclasses
import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from cosurfgs_jax import ended, files, locks
from cosurfgs_jax.data import checks, photo_files, photo_search, readers
from cosurfgs_jax.data.capture import Source
from cosurfgs_jax.errors import InputError, required
from cosurfgs_jax.formats import geo_json
from cosurfgs_jax.geometry.cameras import camera_center
from cosurfgs_jax.geometry.distortion import Lens
from cosurfgs_jax.settings import DataSettings, GeneratedSettings, PrepareSettings
from cosurfgs_jax.sfm import database as database_file
from cosurfgs_jax.sfm import mapping
from cosurfgs_jax.sfm.colmap_library import import_pycolmap
from cosurfgs_jax.sfm.dataset_folder import DatasetFolder, carry_over, carry_place, link_files
from cosurfgs_jax.sfm.pairs import choose_pairs
from cosurfgs_jax.sfm.summary import fitting_downscale

# Settings of `prepare` that say how poses are found: they are known already.
FINDING = ("matching", "neighbors", "mapper", "lens", "focal", "focal_px", "cameras")
FINDING += ("max_image_size", "max_features")
# Those that say how features are found and compared, which poses without points need.
_COMPARING = ("matching", "neighbors", "max_image_size", "max_features")
_PLACING = ("gps", "epsg", "gcp", "check_points")
_SAME_SHAPE = 0.01  # by which the sides of photographs and cameras may differ in their ratio
_log = logging.getLogger(__name__)


class Posed(NamedTuple):
    """Photographs with lenses and poses; lists of equal length, sorted by name."""

    names: list[str]
    paths: list[Path]
    lenses: list[Lens]  # of the photographs as they are on disk
    camera_from_dataset: np.ndarray  # f64[V,4,4]
    test_names: list[str]


@dataclasses.dataclass(frozen=True)
class Triangulated:
    """What `triangulate` found."""

    num_photographs: int
    num_points: int
    error_px: float
    track_length: float
    has_split: bool  # whether the dataset says which photographs are for testing
    downscale: int

    def lines(self) -> list[str]:
        """For the terminal."""
        return [
            f"triangulated {self.num_points} points of {self.num_photographs} photographs with "
            f"their given poses: mean reprojection error {self.error_px:.2f} px, "
            f"{self.track_length:.1f} photographs a point"
        ]


def lens_on_disk(lens: Lens, path: Path, may_be_turned: bool = False) -> Lens:
    """The lens of a photograph that may be of another size than its camera.

    Args:
        lens: of the camera.
        path: of the photograph.
        may_be_turned: whether the camera may be that of the photograph as its EXIF data turn it.
    Raises:
        InputError: it is of another shape.
    """
    header = photo_files.read_header(path)
    is_other = (header.height > header.width) != (lens.height > lens.width)
    if may_be_turned and is_other and header.swaps_sides:
        return lens
    factors = (header.height / lens.height, header.width / lens.width)
    if abs(factors[0] / factors[1] - 1) > _SAME_SHAPE:
        raise InputError(
            f"{path}: expected the shape of its camera, {lens.width}x{lens.height}, got "
            f"{header.width}x{header.height}; give the photographs that the poses were made for"
        )
    return lens.resized(header.height, header.width, *factors)


def _posed(root: Path, cache: Path) -> Posed:
    data = DataSettings(path=str(root))
    capture = readers.read_dataset(Source(root, data, GeneratedSettings(), cache))
    order = sorted(range(capture.num_views), key=capture.image_names.__getitem__)
    capture = checks.checked(capture.of_views(np.array(order)), needs_points=False)
    paths, folder, _ = photo_search.find_photographs(
        required(capture.root, "Capture.root"), capture, data
    )
    is_there = [path is not None for path in paths]
    checks.check_missing(capture.image_files, is_there, f"{folder}: {capture.source}")
    capture = capture.of_views(np.flatnonzero(is_there))
    found = [path for path in paths if path is not None]
    lenses = [lens_on_disk(lens, path) for lens, path in zip(capture.lenses, found, strict=True)]
    return Posed(
        names=capture.image_names,
        paths=found,
        lenses=lenses,
        camera_from_dataset=capture.camera_from_dataset,
        test_names=sorted(capture.test_names or []),
    )


def _camera(lens: Lens, number: int) -> Any:
    camera = database_file.camera_of(lens)
    camera.camera_id = number
    return camera


def _cameras(lenses: list[Lens]) -> tuple[list[Any], list[int]]:
    """Cameras, numbered from 1, and the number of each photograph's."""
    numbers: dict[Lens, int] = {}
    of_views = [numbers.setdefault(lens, len(numbers) + 1) for lens in lenses]
    return [_camera(lens, number) for lens, number in numbers.items()], of_views


def _fill_database(posed: Posed, path: Path) -> None:
    """Cameras, rigs, photographs and frames, each numbered from 1 as in `reconstruction_of`."""
    cameras, of_views = _cameras(posed.lenses)
    pycolmap = import_pycolmap()
    with database_file.opened(path) as database, pycolmap.DatabaseTransaction(database):
        for camera in cameras:
            database.write_camera(camera, use_camera_id=True)
            rig = pycolmap.Rig()
            rig.add_ref_sensor(camera.sensor_id)
            database.write_rig(rig)
        for name, number in zip(posed.names, of_views, strict=True):
            database_file.write_photograph(database, name, cameras[number - 1], number)


def reconstruction_of(
    names: list[str], lenses: list[Lens], camera_from_dataset: Float[np.ndarray, "V 4 4"]
) -> Any:
    """Poses as a pycolmap.Reconstruction, without points.

    Args:
        names: of the photographs.
        lenses: of each.
        camera_from_dataset: f64[V,4,4], rigid.
    """
    pycolmap = import_pycolmap()
    model = pycolmap.Reconstruction()
    cameras, of_views = _cameras(lenses)
    for camera in cameras:
        model.add_camera_with_trivial_rig(camera)
    rows = zip(names, of_views, camera_from_dataset, strict=True)
    for number, (name, camera_id, pose) in enumerate(rows, start=1):
        image = pycolmap.Image(name=name, camera_id=camera_id, image_id=number)
        model.add_image_with_trivial_frame(image, pycolmap.Rigid3d(pose[:3]))
    return model


def _state_of(posed: Posed, settings: PrepareSettings) -> dict[str, Any]:
    """What features and matches were made from."""
    stats = {name: path.stat() for name, path in zip(posed.names, posed.paths, strict=True)}
    state = {
        "max_image_size": settings.max_image_size,
        "max_features": settings.max_features,
        "lenses": [dataclasses.astuple(lens) for lens in posed.lenses],
        "photographs": {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()},
    }
    return json.loads(json.dumps(state))


def ground_places(camera_from_dataset: np.ndarray) -> np.ndarray:
    """Where cameras stand in the plane of their greatest extent, f64[V,2], from their middle.

    Args:
        camera_from_dataset: f64[V,4,4], rigid.
    """
    centers = camera_center(camera_from_dataset)
    offsets = centers - centers.mean(axis=0)
    _, _, axes = np.linalg.svd(offsets, full_matrices=False)
    return offsets @ axes[:2].T


def refuse_decided(settings: PrepareSettings, names: Iterable[str]) -> None:
    """Refuses settings that do nothing beside poses.

    Raises:
        InputError: one of these settings is given.
    """
    for name in names:
        if getattr(settings, name) != getattr(PrepareSettings(), name):
            raise InputError(
                f"--{name}, --poses: expected one of the two, got both; the poses have decided it"
            )


def _check(root: Path, out: Path, state: Path, settings: PrepareSettings) -> None:
    settings.validate()
    refuse_decided(settings, [name for name in FINDING if name not in _COMPARING])
    for name in _PLACING:
        if getattr(settings, name) != getattr(PrepareSettings(), name):
            raise InputError(
                f"--{name}: expected --images=DIR beside --poses, got none; give the folder of the "
                "photographs to put poses that have points on the map"
            )
    for folder in (root, out):  # damaged, it is said now
        geo_json.read_geo(folder / geo_json.NAME)
    if out.exists() and not out.is_dir():
        raise InputError(f"--out: expected a folder, got {out}, which is a file")
    if root.resolve() == out.resolve():
        raise InputError(f"--out: expected another folder than --poses, got {out} for both")
    if (out / "sparse").exists() and not state.exists():
        raise InputError(
            f"--out: expected a new folder or one that prepare made, got {out}, which has a COLMAP "
            "model already; give another folder (or train on this one)"
        )


def triangulate(
    root: Path, out: Path, settings: PrepareSettings, progress: mapping.MakeProgress
) -> Triangulated:
    """Makes a COLMAP dataset of one that has poses, with points that its photographs give. The
    poses and lenses are not changed, and the frame is that of the dataset that was given.

    Args:
        root: the dataset with the poses, in any format that `train` reads; its points are not used.
        out: folder of the new one, made where it is missing; features and matches that are in it
            are not computed again. The photographs are links.
        settings: how photographs are chosen and compared.
        progress: makes a bar.
    Raises:
        InputError: what the user can mend: a wrong setting or folder, what the dataset's reader
            says, photographs that do not overlap, a missing package, another `prepare` at work.
    """
    pycolmap = import_pycolmap()
    state = out / ".prepare"
    database = state / "database.db"
    _check(root, out, state, settings)
    posed = _posed(root, state)
    _log.info("%s: %d photographs with poses", root, len(posed.names))
    scratch = out / ".scratch" / "prepare" / ended.own_name()
    with locks.hold(out / ".locks" / "prepare", "a preparation", scratch):
        files.clear_unfinished(out)
        link_files(dict(zip(posed.names, posed.paths, strict=True)), out / "images")
        state.mkdir(parents=True, exist_ok=True)
        made_from = _state_of(posed, settings)
        key = state / "features.json"
        if not key.exists() or files.read_json_object(key) != made_from:
            for old in (key, *state.glob("database.db*")):
                old.unlink(missing_ok=True)
            _fill_database(posed, database)
            files.write_json(key, made_from)
        job = mapping.Job(
            database=database,
            root=out / "images",
            names=posed.names,
            scratch=scratch,
            settings=settings,
            progress=progress,
        )
        mapping.extract_features(job)
        pairs = choose_pairs(ground_places(posed.camera_from_dataset), settings).numbers
        mapping.match_features(job, [(posed.names[a], posed.names[b]) for a, b in pairs])
        options = pycolmap.IncrementalPipelineOptions()
        options.random_seed = mapping.SEED
        (scratch / "points").mkdir(parents=True)
        model = pycolmap.triangulate_points(
            reconstruction_of(posed.names, posed.lenses, posed.camera_from_dataset),
            database,
            out / "images",
            scratch / "points",
            options=options,
        )
        if not model.num_points3D():
            raise InputError(
                f"--poses: expected photographs that overlap, got {len(posed.names)} of {root} of "
                "which no two show the same where their poses say; are these the poses of these "
                "photographs?"
            )
        carry_over(DatasetFolder(out), {}, posed.test_names)
        carry_place(root, DatasetFolder(out))
        mapping.write_model(model, scratch / "model", out / "sparse" / "0")
    return Triangulated(
        num_photographs=len(posed.names),
        num_points=model.num_points3D(),
        error_px=model.compute_mean_reprojection_error(),
        track_length=model.compute_mean_track_length(),
        has_split=bool(posed.test_names),
        downscale=fitting_downscale(max(max(lens.height, lens.width) for lens in posed.lenses)),
    )
