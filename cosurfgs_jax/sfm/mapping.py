"""Features, matches and poses, by pycolmap. What is done already is skipped."""

import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from cosurfgs_jax import files
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.geometry.distortion import Lens, lens_from_params
from cosurfgs_jax.settings import PrepareSettings
from cosurfgs_jax.sfm import database as database_file
from cosurfgs_jax.sfm.colmap_library import import_pycolmap
from cosurfgs_jax.sfm.georeference import Reconstructed

_PHOTOS_AT_ONCE = 8  # between two lines of progress
_PAIRS_AT_ONCE = 64
SEED = 0
# Where all views are within this angle of one direction, and points and cameras within this
# fraction of the distance between them along it, a longer focal length and a greater height show
# the same: 18 photographs over a beach gave 1,393 pixels instead of 1,186.
_SAME_DIRECTION_DEG = 10.0
_FLAT = 0.25


class ShowsProgress(Protocol):
    """What is told how many steps are done."""

    def update(self, step: int) -> None:
        """Says that `step` steps are done."""


# Name and number of steps -> a context manager that shows how many are done.
MakeProgress = Callable[[str, int], AbstractContextManager[ShowsProgress]]


class Job(NamedTuple):
    """What all steps need.

    | field      | content                                   |
    |------------|-------------------------------------------|
    | `database` | path of COLMAP's database                 |
    | `root`     | folder of the photographs                 |
    | `names`    | of the photographs, sorted                |
    | `scratch`  | folder for temporary files                |
    | `settings` | how                                       |
    | `progress` | makes a bar                               |
    """

    database: Path
    root: Path
    names: list[str]
    scratch: Path
    settings: PrepareSettings
    progress: MakeProgress


def extract_features(job: Job) -> None:
    """Finds the features of photographs that have none in the database yet."""
    pycolmap = import_pycolmap()
    options = pycolmap.FeatureExtractionOptions()
    options.max_image_size = job.settings.max_image_size
    options.sift.max_num_features = job.settings.max_features
    with database_file.opened(job.database) as database:
        images = {image.name: image.image_id for image in database.read_all_images()}
        wanted = [name for name in job.names if not database.exists_keypoints(images[name])]
    if not wanted:
        return
    with job.progress("features", len(wanted)) as bar:
        for start in range(0, len(wanted), _PHOTOS_AT_ONCE):
            chosen = wanted[start : start + _PHOTOS_AT_ONCE]
            pycolmap.extract_features(
                job.database, job.root, image_names=chosen, extraction_options=options
            )
            bar.update(start + len(chosen))


def match_features(job: Job, pairs: Sequence[tuple[str, str]]) -> None:
    """Compares pairs of photographs, by name, that have not been compared yet."""
    with database_file.opened(job.database) as database:
        numbers = {image.name: image.image_id for image in database.read_all_images()}
        chosen = [(numbers[first], numbers[second]) for first, second in pairs]
        wanted = [pair for pair in chosen if not database.exists_two_view_geometry(*pair)]
    if not wanted:
        return
    with database_file.quoted_names(job.database):
        _match(job, wanted)


def _match(job: Job, wanted: Sequence[tuple[int, int]]) -> None:
    """Compares photographs by their numbers in the database."""
    pycolmap = import_pycolmap()
    with database_file.opened(job.database) as database:
        names = {image.image_id: image.name for image in database.read_all_images()}
    listing = job.scratch / "pairs.txt"
    options = pycolmap.ImportedPairingOptions()
    options.match_list_path = listing
    with job.progress("matches", len(wanted)) as bar:
        for start in range(0, len(wanted), _PAIRS_AT_ONCE):
            chosen = wanted[start : start + _PAIRS_AT_ONCE]
            lines = [f"{names[first]} {names[second]}\n" for first, second in chosen]
            listing.write_text("".join(lines), encoding="utf-8")
            pycolmap.match_image_pairs(job.database, pairing_options=options)
            bar.update(start + len(chosen))


class Poses(NamedTuple):
    """What a mapper found."""

    model: Any  # pycolmap.Reconstruction, the largest
    group_sizes: list[int]  # photographs in each model
    keeps_focal: bool  # whether focal lengths are not refined
    tells_focal: bool  # whether the photographs could tell them
    program: str = ""  # whose poses they are; "" = the mapper's


def find_poses(job: Job) -> Poses:
    """Finds the poses of photographs, whose features are matched.

    Raises:
        InputError: no two photographs show enough of the same.
    """
    settings = job.settings
    keeps_focal = settings.focal == "fix"
    models = _map(job, keeps_focal)
    is_told = bool(models) and tells_focal(reading_of(models[0]))
    # Of a photograph that is not of this flight nothing need be known.
    has_focal = bool(models) and _has_focal(job, models[0])
    if settings.focal == "auto" and has_focal and not is_told:
        again = _map(job, True, "poses again, focal length kept")
        if again and again[0].num_reg_images() >= 0.9 * models[0].num_reg_images():
            models = again
            keeps_focal = True
    if not models:
        raise InputError(
            f"--images: expected photographs that overlap, got {len(job.names)} in {job.root} of "
            "which no two show enough of the same; neighbouring photographs should share two "
            "thirds of what they show (or try a larger --max_image_size, or --matching=exhaustive "
            "if not all were compared with all)"
        )
    sizes = [model.num_reg_images() for model in models]
    return Poses(models[0], sizes, keeps_focal, is_told)


def _has_focal(job: Job, model: Any) -> bool:
    """Whether the focal lengths of the registered photographs are known before."""
    names = [image.name for image in model.images.values() if image.has_pose]
    return database_file.read_contents(job.database, names).has_focal


def _map(job: Job, keeps_focal: bool, name: str = "poses") -> list[Any]:
    """The models that the mapper finds, the largest first."""
    pycolmap = import_pycolmap()
    out = job.scratch / "models"
    out.mkdir(parents=True, exist_ok=True)
    with job.progress(name, len(job.names)) as bar:
        if job.settings.mapper == "global":
            options = _global_options(pycolmap, job.names, keeps_focal)
            found = pycolmap.global_mapping(job.database, job.root, out, options)
        else:
            options = pycolmap.IncrementalPipelineOptions()
            options.random_seed = SEED
            options.image_names = job.names
            options.ba_refine_focal_length = not keeps_focal
            counter = _Counter(bar, len(job.names))
            found = pycolmap.incremental_mapping(
                job.database,
                job.root,
                output_path=out,
                options=options,
                initial_image_pair_callback=counter.begin,
                next_image_callback=counter.advance,
            )
        models = sorted(found.values(), key=lambda model: -model.num_reg_images())
        if models:
            bar.update(models[0].num_reg_images())
    return [model for model in models if model.num_reg_images() > 1 and model.num_points3D()]


class _Counter:
    """Counts the photographs of the largest model so far."""

    def __init__(self, bar: ShowsProgress, total: int):
        self._bar = bar
        self._total = total
        self._count = 0
        self._most = 0

    def begin(self) -> None:
        """A model begins with two photographs."""
        self._count = 2

    def advance(self) -> None:
        """Another photograph was added."""
        self._count += 1
        self._most = min(max(self._most, self._count), self._total)
        self._bar.update(self._most)


def _global_options(pycolmap: Any, names: Sequence[str], keeps_focal: bool) -> Any:
    options = pycolmap.GlobalPipelineOptions()
    options.random_seed = SEED
    options.image_names = list(names)
    mapper = options.mapper
    mapper.bundle_adjustment.refine_focal_length = not keeps_focal
    mapper.global_positioning.use_gpu = pycolmap.has_cuda
    mapper.bundle_adjustment.ceres.use_gpu = pycolmap.has_cuda
    return options


def write_model(model: Any, scratch: Path, target: Path) -> None:
    """Writes a model, and puts it where an older one may be."""
    with files.writing(target):
        scratch.mkdir(parents=True)
        model.write_binary(scratch)
        target.parent.mkdir(parents=True, exist_ok=True)
        old = scratch.with_name(f"{scratch.name}-old")
        if target.exists():
            os.replace(target, old)
        os.replace(scratch, target)
        shutil.rmtree(old, ignore_errors=True)


def reading_of(model: Any) -> Reconstructed:
    """A pycolmap.Reconstruction as arrays."""
    images = sorted(
        (image for image in model.images.values() if image.has_pose), key=lambda image: image.name
    )
    poses = np.tile(np.eye(4), (len(images), 1, 1))
    for pose, image in zip(poses, images, strict=True):
        pose[:3] = image.cam_from_world().matrix()
    points = np.array([point.xyz for point in model.points3D.values()], np.float64)
    return Reconstructed([image.name for image in images], poses, points.reshape(-1, 3))


def lenses_of(model: Any) -> dict[str, Lens]:
    """The lenses of the registered photographs of a pycolmap.Reconstruction, by name."""
    lenses = {
        number: lens_from_params(camera.model_name, camera.height, camera.width, camera.params)
        for number, camera in model.cameras.items()
    }
    return {
        image.name: lenses[image.camera_id] for image in model.images.values() if image.has_pose
    }


def tells_focal(model: Reconstructed) -> bool:
    """Whether the photographs can tell the focal length from the height: not where all look in one
    direction, at a plane across it, from one distance.
    """
    forward = model.camera_from_mapper[:, 2, :3]
    axis = forward.mean(axis=0)
    axis = axis / max(np.linalg.norm(axis), 1e-300)
    angles = np.rad2deg(np.arccos(np.clip(forward @ axis, -1, 1)))
    if np.percentile(angles, 90) > _SAME_DIRECTION_DEG:
        return True
    points = model.points @ axis
    cameras = model.centers @ axis
    distance = np.median(points) - np.median(cameras)
    spreads = [np.ptp(np.percentile(along, [5, 95])) for along in (points, cameras)]
    return bool(distance <= 0 or max(spreads) > _FLAT * distance)
