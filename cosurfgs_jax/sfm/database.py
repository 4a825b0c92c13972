"""COLMAP's database of cameras, photographs, features and matches; it is kept, so that what is in
it is not computed again.
"""

import contextlib
import dataclasses
import re
import urllib.parse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cosurfgs_jax.geometry.distortion import Lens
from cosurfgs_jax.geometry.lens_models import MODELS
from cosurfgs_jax.settings import PrepareSettings
from cosurfgs_jax.sfm.colmap_library import import_pycolmap
from cosurfgs_jax.sfm.photos import Photo, PhotoFolder

# Of the features of a photograph, that are found at the same places in another one.
_SAME_FEATURES = 0.6
_PLAIN = re.compile(r"[A-Za-z0-9_./-]+")
_QUOTED = "quoted:"  # how names begin that stand for others
_SAME_PLACE = 0.002  # of the diagonal: what moved less was taken from the same place


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Any]:
    """The database, open."""
    database = import_pycolmap().Database.open(path)
    try:
        yield database
    finally:
        database.close()


@contextlib.contextmanager
def quoted_names(path: Path) -> Iterator[None]:
    """Within, names are plain: in COLMAP's lists of pairs a space ends a name, and # a line."""
    with opened(path) as database:
        for image in database.read_all_images():
            if not _PLAIN.fullmatch(image.name):
                image.name = _QUOTED + urllib.parse.quote(image.name)
                database.update_image(image)
    try:
        yield
    finally:
        unquote_names(path)


def unquote_names(path: Path) -> None:
    """Gives photographs their names back, also after `quoted_names` was killed."""
    with opened(path) as database:
        for image in database.read_all_images():
            if image.name.startswith(_QUOTED):
                image.name = urllib.parse.unquote(image.name.removeprefix(_QUOTED))
                database.update_image(image)


def add_photographs(
    path: Path,
    folder: PhotoFolder,
    settings: PrepareSettings,
    lenses: dict[str, Lens] | None = None,
) -> None:
    """Adds photographs that the database does not have yet, with one camera for all photographs of
    one camera, lens setting and size. Cameras that it has get the lens of the settings.

    COLMAP itself would take one camera for each photograph without EXIF data, and refuse a second
    size of one camera model.

    Args:
        path: of the database; made where it is missing.
        folder: the photographs.
        settings: `lens` and `focal_px`.
        lenses: of all photographs, by name, where they are known: one camera for each of them.
    """
    unquote_names(path)
    groups = folder.cameras
    if lenses:
        groups = {}
        for photo in folder.photos:
            groups.setdefault((lenses[photo.name],), []).append(photo)
    # All or nothing: a photograph without its frame would stop every later call.
    with opened(path) as database, import_pycolmap().DatabaseTransaction(database):
        images = {image.name: image for image in database.read_all_images()}
        usual = folder.usual
        for photos in groups.values():
            present = [images[photo.name] for photo in photos if photo.name in images]
            calibrated_px = None
            if settings.focal_px:
                calibrated_px = photos[0].calibrated_px(settings.focal_px, usual)
            camera = _camera(photos[0], settings.lens, calibrated_px)
            if lenses:
                camera = camera_of(lenses[photos[0].name])
            if present:
                camera.camera_id = present[0].camera_id
                database.update_camera(camera)
            else:
                camera.camera_id = database.write_camera(camera)
                rig = import_pycolmap().Rig()
                rig.add_ref_sensor(camera.sensor_id)
                database.write_rig(rig)
            rig_id = database.read_rig_with_sensor(camera.sensor_id).rig_id
            for photo in photos:
                if photo.name not in images:
                    write_photograph(database, photo.name, camera, rig_id)


def camera_of(lens: Lens) -> Any:
    """A pycolmap.Camera, without a number, of a lens that is known."""
    focal_px = lens.focal_px[: MODELS[lens.model].num_focal]
    camera = import_pycolmap().Camera(
        model=lens.model,
        width=lens.width,
        height=lens.height,
        params=[*focal_px, *lens.principal_px, *lens.coefficients],
    )
    camera.has_prior_focal_length = True
    return camera


def _camera(photo: Photo, lens: str, calibrated_px: float | None) -> Any:
    """The camera of a photograph before anything is refined.

    Args:
        photo: the photograph.
        lens: COLMAP's name of its model.
        calibrated_px: its focal length, if it is known better than from EXIF data.
    """
    pycolmap = import_pycolmap()
    camera = pycolmap.Camera.create_from_model_name(
        camera_id=0,
        model_name=lens,
        focal_length=calibrated_px or photo.focal_px,
        width=photo.width,
        height=photo.height,
    )
    camera.has_prior_focal_length = calibrated_px is not None or photo.has_focal
    if not camera.has_prior_focal_length:  # COLMAP knows the sensors of some models
        guess = pycolmap.infer_camera_from_image(photo.path)
        if guess.has_prior_focal_length:
            for place in camera.focal_length_idxs():
                camera.params[place] = guess.mean_focal_length()
            camera.has_prior_focal_length = True
    return camera


def write_photograph(database: Any, name: str, camera: Any, rig_id: int) -> None:
    """Adds a photograph and its frame to an open database, which has its camera and rig."""
    pycolmap = import_pycolmap()
    image_id = database.write_image(pycolmap.Image(name=name, camera_id=camera.camera_id))
    frame = pycolmap.Frame()
    frame.rig_id = rig_id
    frame.add_data_id(pycolmap.data_t(camera.sensor_id, image_id))
    database.write_frame(frame)


@dataclasses.dataclass(frozen=True)
class Contents:
    """What the database says of the photographs.

    | field          | content                                                                     |
    |----------------|-----------------------------------------------------------------------------|
    | `num_features` | name to number of features                                                  |
    | `num_partners` | name to number of photographs that verifiably show the same                 |
    | `doubles`      | pairs of names that show the same from the same place                       |
    | `focal_before` | camera number to focal length in pixels before it is refined, 0: unknown    |
    """

    num_features: dict[str, int]
    num_partners: dict[str, int]
    doubles: list[tuple[str, str]]
    focal_before: dict[int, float]

    @property
    def has_focal(self) -> bool:
        """Whether the focal lengths of all cameras are known before they are refined."""
        return 0.0 not in self.focal_before.values()


def read_contents(path: Path, names: Sequence[str]) -> Contents:
    """Reads what the database says of some photographs."""
    pycolmap = import_pycolmap()
    with opened(path) as database:
        wanted = set(names)
        images = {
            image.image_id: image for image in database.read_all_images() if image.name in wanted
        }
        num_features = {
            image.name: database.num_keypoints_for_image(image_id)
            for image_id, image in images.items()
        }
        num_partners = dict.fromkeys(num_features, 0)
        doubles = []
        for pair_id, count in zip(*database.read_two_view_geometry_num_inliers(), strict=True):
            first, second = pycolmap.pair_id_to_image_pair(pair_id)
            if not count or first not in images or second not in images:
                continue
            pair = (images[first].name, images[second].name)
            for name in pair:
                num_partners[name] += 1
            if count > _SAME_FEATURES * min(num_features[name] for name in pair):
                if _is_same_place(database, first, second):
                    doubles.append((min(pair), max(pair)))
        focal_before = {}
        for number in {image.camera_id for image in images.values()}:
            camera = database.read_camera(number)
            focal_before[number] = camera.mean_focal_length() * camera.has_prior_focal_length
    return Contents(num_features, num_partners, sorted(doubles), focal_before)


def _is_same_place(database: Any, first: int, second: int) -> bool:
    matches = database.read_two_view_geometry(first, second).inlier_matches
    places = [
        database.read_keypoints(image)[matches[:, column], :2]
        for column, image in enumerate((first, second))
    ]
    moved = np.linalg.norm(places[0] - places[1], axis=1)
    return bool(np.median(moved) < _SAME_PLACE * np.ptp(places[0], axis=0).max())
