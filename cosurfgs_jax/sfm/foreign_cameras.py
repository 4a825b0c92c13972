"""Poses that another program has found: its file, matched to the photographs of a folder, and a
model whose points are triangulated in them.
"""

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cosurfgs_jax.errors import InputError
from cosurfgs_jax.formats import metashape, pix4d, realityscan
from cosurfgs_jax.formats.posed_photos import PoseFile
from cosurfgs_jax.geometry.cameras import camera_center
from cosurfgs_jax.geometry.distortion import Lens
from cosurfgs_jax.sfm import lens_conversion
from cosurfgs_jax.sfm.colmap_library import import_pycolmap
from cosurfgs_jax.sfm.database import opened
from cosurfgs_jax.sfm.known_poses import ground_places
from cosurfgs_jax.sfm.mapping import SEED, Job, Poses
from cosurfgs_jax.sfm.photos import MIN_PHOTOS, PhotoFolder
from cosurfgs_jax.sfm.summary import counted, some_of


class _Format(NamedTuple):
    """A file of poses: how it is recognised, and what reads it."""

    expects: str
    detects: Callable[[Path], Path | None]  # what `read` takes; None: of another format
    read: Callable[[Path], PoseFile]


def _with_ending(ending: str) -> Callable[[Path], Path | None]:
    def detects(path: Path) -> Path | None:
        return path if path.is_file() and path.suffix.lower() == ending else None

    return detects


def _xmp_folder(path: Path) -> Path | None:
    folder = path if path.is_dir() else path.parent
    is_meant = path.is_dir() or path.suffix.lower() == ".xmp"
    return folder if is_meant and next(folder.rglob("*.xmp"), None) else None


# Asked in this order.
_FORMATS = (
    _Format("cameras of Metashape (.xml)", _with_ending(".xml"), metashape.read_metashape),
    _Format("camera parameters of RealityScan (.csv)", _with_ending(".csv"), realityscan.read_list),
    _Format(
        f"the params folder of Pix4D (*{pix4d.ENDING})", pix4d.find_parameters, pix4d.read_pix4d
    ),
    _Format("a folder with XMP files of RealityScan", _xmp_folder, realityscan.read_xmp_folder),
)


@dataclasses.dataclass(frozen=True)
class KnownPoses:
    """Poses of photographs that are here.

    | field               | content                                                           |
    |---------------------|-------------------------------------------------------------------|
    | `file`              | what was read                                                     |
    | `camera_from_local` | name to f64[4,4], rigid                                           |
    | `lenses`            | name to the lens of the photograph as it is here                  |
    | `warnings`          | sentences                                                         |
    """

    file: PoseFile
    camera_from_local: dict[str, np.ndarray]
    lenses: dict[str, Lens]
    warnings: list[str]

    @property
    def key(self) -> str:
        """The same for the same poses and lenses."""
        content = hashlib.sha256()
        for name, pose in self.camera_from_local.items():
            content.update(f"{name}{self.lenses[name]}".encode())
            content.update(pose.tobytes())
        return content.hexdigest()

    def photographs(self, folder: PhotoFolder) -> PhotoFolder:
        """The photographs of a folder that have a pose."""
        photos = [photo for photo in folder.photos if photo.name in self.lenses]
        return dataclasses.replace(folder, photos=photos)

    def places(self, names: list[str]) -> np.ndarray:
        """Where photographs were taken, f64[n,2], in the plane that fits them best, from their
        middle; local lengths.
        """
        return ground_places(np.array([self.camera_from_local[name] for name in names]))


def read_known_poses(path: Path, folder: PhotoFolder) -> KnownPoses:
    """Reads a file of poses, and finds its photographs in the folder.

    Args:
        path: of the file, or of a folder of files.
        folder: the photographs.
    Raises:
        InputError: no such file or none of a known format, what its reader says, fewer than
            `MIN_PHOTOS` of its photographs in the folder, or photographs of another shape.
    """
    file = _read(path)
    names = folder.find([photo.name for photo in file.photos], str(file.path))
    missing = [photo.name for photo, name in zip(file.photos, names, strict=True) if name is None]
    if len(names) - len(missing) < MIN_PHOTOS:
        first = f" (the first that is missing: {missing[0]})" if missing else ""
        raise InputError(
            f"{file.path}: expected at least {MIN_PHOTOS} of its {len(names)} photographs in "
            f"{folder.root}, got {len(names) - len(missing)}{first}; give their folder as --images"
        )
    sizes = {photo.name: (photo.height, photo.width) for photo in folder.photos}
    poses = {}
    lenses = {}
    errors = [0.0]
    for photo, name in zip(file.photos, names, strict=True):
        if name is not None:
            where = f"{file.path}: {photo.name}"
            lens, error = lens_conversion.to_lens(photo.lens, *sizes[name], where)
            before = poses.setdefault(name, photo.camera_from_local)
            if (
                not np.array_equal(before, photo.camera_from_local)
                or lenses.get(name, lens) != lens
            ):
                raise InputError(
                    f"{where}: expected one pose and lens of each photograph, got two that differ; "
                    "remove one, or export the cameras again"
                )
            lenses[name] = lens
            errors.append(error)
    warnings = []
    bare = [photo.name for photo in folder.photos if photo.name not in lenses]
    if bare:
        warnings.append(
            f"{counted(len(bare), 'photograph')} of the folder have no pose in {file.path.name}, "
            f"and are not used: {some_of(bare)}"
        )
    if missing:
        warnings.append(
            f"{counted(len(missing), 'photograph')} of {file.path.name} are not in the folder: "
            f"{some_of(missing)}"
        )
    if max(errors) > lens_conversion.SAID_ERROR_PX:
        warnings.append(
            f"the lens has a skew or a fourth radial coefficient that COLMAP's models follow to "
            f"{max(errors):.2g} px only"
        )
    return KnownPoses(file, poses, lenses, warnings)


def _read(path: Path) -> PoseFile:
    if not path.exists():
        raise InputError(f"--cameras: expected a file of poses, got {path}, which is not there")
    for kind in _FORMATS:
        found = kind.detects(path)
        if found is not None:
            return kind.read(found)
    expected = ", ".join(kind.expects for kind in _FORMATS)
    raise InputError(f"--cameras: expected one of {expected}, got {path}")


def triangulated(job: Job, known: KnownPoses) -> Poses:
    """The known poses, and points that are triangulated from the matches; poses and lenses stay as
    they are. The model's frame is the local one, moved to the middle of the cameras.

    Args:
        job: of a database that has the lenses as its cameras.
        known: the poses.
    Raises:
        InputError: no point is seen by two photographs where the poses say that it should be.
    """
    pycolmap = import_pycolmap()
    middle = middle_of(known)
    model = pycolmap.Reconstruction()
    with opened(job.database) as database:
        images = {image.image_id: image for image in database.read_all_images()}
        wanted = [image for image in images.values() if image.name in known.camera_from_local]
        used = {image.camera_id for image in wanted}
        for camera in database.read_all_cameras():
            if camera.camera_id in used:
                model.add_camera(camera)
        for rig in database.read_all_rigs():
            if rig.ref_sensor_id.id in used:
                model.add_rig(rig)
        for frame in database.read_all_frames():
            (data,) = frame.data_ids
            image = images[data.id]
            pose = known.camera_from_local.get(image.name)
            if pose is None:
                continue
            moved = np.column_stack([pose[:3, :3], pose[:3, 3] + pose[:3, :3] @ middle])
            frame.rig_from_world = pycolmap.Rigid3d(moved)
            model.add_frame(frame)
            image.frame_id = frame.frame_id
            model.add_image(image)
            model.register_frame(frame.frame_id)
    options = pycolmap.IncrementalPipelineOptions()
    options.random_seed = SEED
    out = job.scratch / "triangulated"
    out.mkdir(parents=True, exist_ok=True)
    with job.progress("points", 1) as bar:
        found = pycolmap.triangulate_points(model, job.database, job.root, out, options=options)
        bar.update(1)
    if not found.num_points3D():
        raise InputError(
            f"{known.file.path}: expected poses in which photographs show the same points, got "
            "none: they are not those of these photographs, or of another convention than that of "
            f"{known.file.program}; find the poses without --cameras"
        )
    return Poses(
        found,
        [found.num_reg_images()],
        keeps_focal=True,
        tells_focal=True,
        program=known.file.program,
    )


def middle_of(known: KnownPoses) -> np.ndarray:
    """Where the frame of `triangulated` has its origin, f64[3], local: what is far from 0
    loses digits.
    """
    centers = camera_center(np.array(list(known.camera_from_local.values())))
    return np.round(np.median(centers, axis=0))
