"""COLMAP's database of cameras, photographs, features and matches; it is kept, so that what is in
it is not computed again.
"""

import contextlib
import dataclasses
import urllib.parse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cosurfgs_jax.sfm.colmap_library import import_pycolmap
from cosurfgs_jax.sfm.photos import Photo, PhotoFolder

# Of the features of a photograph, that are found at the same places in another one.
_SAME_FEATURES = 0.6
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
    """Within, names with spaces have none: COLMAP's lists of pairs have one between two names."""
    with opened(path) as database:
        for image in database.read_all_images():
            if any(map(str.isspace, image.name)):
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


def add_photographs(path: Path, folder: PhotoFolder, lens: str) -> None:
    """Adds cameras and photographs that the database does not have yet, one camera for all
    photographs of one camera, lens setting and size.

    COLMAP itself would take one camera for each photograph without EXIF data, and refuse a second
    size of one camera model.

    Args:
        path: of the database; made where it is missing.
        folder: the photographs.
        lens: COLMAP's name of a camera model.
    """
    pycolmap = import_pycolmap()
    unquote_names(path)
    with opened(path) as database:
        images = {image.name: image for image in database.read_all_images()}
        for photos in folder.cameras.values():
            present = [images[photo.name] for photo in photos if photo.name in images]
            missing = [photo for photo in photos if photo.name not in images]
            if not missing:
                continue
            if present:
                camera = database.read_camera(present[0].camera_id)
            else:
                camera = _write_camera(pycolmap, database, photos[0], lens)
            rig = database.read_rig_with_sensor(camera.sensor_id)
            for photo in missing:
                _write_photograph(database, photo.name, camera, rig.rig_id)


def _write_camera(pycolmap: Any, database: Any, photo: Photo, lens: str) -> Any:
    camera = pycolmap.Camera.create_from_model_name(
        camera_id=0,
        model_name=lens,
        focal_length=photo.focal_px,
        width=photo.width,
        height=photo.height,
    )
    camera.has_prior_focal_length = photo.has_focal
    if not photo.has_focal:  # COLMAP knows the sensors of some models
        guess = pycolmap.infer_camera_from_image(photo.path)
        if guess.has_prior_focal_length:
            for place in camera.focal_length_idxs():
                camera.params[place] = guess.mean_focal_length()
            camera.has_prior_focal_length = True
    camera.camera_id = database.write_camera(camera)
    rig = pycolmap.Rig()
    rig.add_ref_sensor(camera.sensor_id)
    database.write_rig(rig)
    return camera


def _write_photograph(database: Any, name: str, camera: Any, rig_id: int) -> None:
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
    | `has_focal`    | whether the focal lengths of all cameras are known beforehand               |
    """

    num_features: dict[str, int]
    num_partners: dict[str, int]
    doubles: list[tuple[str, str]]
    has_focal: bool


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
        cameras = {image.camera_id for image in images.values()}
        has_focal = all(database.read_camera(camera).has_prior_focal_length for camera in cameras)
    return Contents(num_features, num_partners, sorted(doubles), has_focal)


def _is_same_place(database: Any, first: int, second: int) -> bool:
    matches = database.read_two_view_geometry(first, second).inlier_matches
    places = [
        database.read_keypoints(image)[matches[:, column], :2]
        for column, image in enumerate((first, second))
    ]
    moved = np.linalg.norm(places[0] - places[1], axis=1)
    return bool(np.median(moved) < _SAME_PLACE * np.ptp(places[0], axis=0).max())
