"""Photographs that have poses already, put on the map: the model of a dataset keeps its poses, its
lenses, its tracks and its points, and is scaled, turned and moved as a whole.
"""

import collections
import dataclasses
import logging
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cosurfgs_jax import files, locks
from cosurfgs_jax.data import checks, colmap, masks, readers, transforms_json
from cosurfgs_jax.data.capture import Capture, Source
from cosurfgs_jax.errors import InputError, required
from cosurfgs_jax.geometry.distortion import Lens
from cosurfgs_jax.settings import DataSettings, GeneratedSettings, PrepareSettings
from cosurfgs_jax.sfm import database
from cosurfgs_jax.sfm.colmap_library import import_pycolmap
from cosurfgs_jax.sfm.dataset_folder import (
    DatasetFolder,
    carry_over,
    check_folders,
    link_photographs,
    write_model_and_place,
)
from cosurfgs_jax.sfm.georeference import Placement, Reconstructed
from cosurfgs_jax.sfm.known_poses import (
    FINDING,
    lens_on_disk,
    reconstruction_of,
    refuse_decided,
)
from cosurfgs_jax.sfm.photos import MIN_PHOTOS, PhotoFolder, read_folder
from cosurfgs_jax.sfm.placing import check_place, placed
from cosurfgs_jax.sfm.position_file import with_positions
from cosurfgs_jax.sfm.similarity import tilt_deg
from cosurfgs_jax.sfm.summary import (
    ModelFacts,
    Summary,
    camera_facts,
    counted,
    some_of,
    summarize,
)

_log = logging.getLogger(__name__)


class _PosedSet(NamedTuple):
    """A dataset with poses, and which photographs are its."""

    capture: Capture  # views with a photograph
    photos: list[str]  # of each view, the name in the folder
    warnings: list[str]

    @property
    def is_colmap(self) -> bool:
        """Whether it is a COLMAP model, and no other file of poses."""
        source = Path(self.capture.source)
        return source.is_dir() and colmap.find_model(source) == source

    @property
    def program(self) -> str:
        """Whose poses they are, for words."""
        return "the COLMAP model" if self.is_colmap else Path(self.capture.source).name

    def photographs(self, folder: PhotoFolder) -> PhotoFolder:
        """The photographs of a folder that have a pose."""
        chosen = set(self.photos)
        photos = [photo for photo in folder.photos if photo.name in chosen]
        return dataclasses.replace(folder, photos=photos)


def place_posed(images: Path, poses: Path, out: Path, settings: PrepareSettings) -> Summary:
    """Makes a dataset in metres on the map of one that has poses and points, by the GPS of its
    photographs or by ground control points; without them z is up, and the scale is unknown.

    Args:
        images: folder of the photographs that the poses are of.
        poses: a dataset's folder in any format that `train` reads, that of a COLMAP model, or a
            file as transforms.json.
        out: folder of the dataset; made where it is missing.
        settings: `gps`, `epsg`, `gcp` and `check_points`.
    Returns:
        The summary, which is also in geo.json.
    Raises:
        InputError: what the user can mend: a wrong setting or folder, what the reader of the poses
            says, names that do not match, photographs of another shape, poses without points, no
            GPS where it is required, ground control points that make no sense, a missing package,
            another `prepare` at work.
    """
    settings.validate()
    refuse_decided(settings, FINDING)
    import_pycolmap()
    dataset = DatasetFolder(out)
    if out.resolve() in (poses.resolve(), *poses.resolve().parents):
        raise InputError(f"--out: expected another folder than that of --poses, got {out} for both")
    check_folders(images, dataset)
    every = read_folder(images, out)
    posed = _read(poses, every, dataset.state)
    model = _model(posed)
    folder, settings, warnings = with_positions(posed.photographs(every), out, settings)
    num_known = sum(tags.has_position for tags in folder.tags.values())
    control = check_place(folder, num_known, settings)
    _log.info(
        "%s: %d photographs with poses, %d of them with GPS", poses, len(folder.photos), num_known
    )
    lenses = _lenses_here(posed, folder, may_be_turned=control is None)
    reading = Reconstructed(
        posed.photos, posed.capture.camera_from_dataset, posed.capture.cloud.points
    )
    with locks.hold(dataset.lock, "a preparation", dataset.scratch):
        files.clear_unfinished(out)
        dataset.state.mkdir(parents=True, exist_ok=True)
        link_photographs(folder, dataset)
        placement = placed(reading, lenses, folder, settings, control=control)
        placement = placement.with_warnings([*posed.warnings, *warnings])
        facts = _facts(posed, model)
        nothing = database.Contents({}, {}, [], {})
        summary = summarize(
            folder, nothing, facts, placement, max_image_size=settings.max_image_size
        )
        summary.found.append(_frame_words(placement))
        has_split = _link_masks_and_split(posed, dataset)
        write_model_and_place(dataset, model, placement=placement, facts=facts, summary=summary)
    return dataclasses.replace(summary, has_split=has_split)


def _read(poses: Path, folder: PhotoFolder, cache: Path) -> _PosedSet:
    """The dataset with the poses, without views whose photograph is not in the folder."""
    if not poses.exists():
        raise InputError(
            "--poses: expected the folder of a dataset or of a COLMAP model, or a transforms.json, "
            f"got {poses}, which is not there"
        )
    capture = _capture(poses, folder.root, cache)
    order = sorted(range(capture.num_views), key=capture.image_names.__getitem__)
    capture = checks.checked(capture.of_views(np.array(order)))
    found = folder.find(capture.image_files, capture.source)
    missing = [
        *capture.left_out,
        *(file for file, photo in zip(capture.image_files, found, strict=True) if photo is None),
    ]
    views = [view for view, photo in enumerate(found) if photo is not None]
    if len(views) < MIN_PHOTOS:
        first = f" (the first that is missing: {missing[0]})" if missing else ""
        raise InputError(
            f"{capture.source}: expected at least {MIN_PHOTOS} of its {len(found)} photographs in "
            f"{folder.root}, got {len(views)}{first}; give their folder as --images"
        )
    warnings = []
    bare = [photo.name for photo in folder.photos if photo.name not in set(found)]
    if bare:
        warnings.append(
            f"{counted(len(bare), 'photograph')} of the folder have no pose in {poses.name}, and "
            f"are not used: {some_of(bare)}"
        )
    if missing:
        warnings.append(
            f"{counted(len(missing), 'photograph')} of {poses.name} are not in the folder, and are "
            f"left out: {some_of(missing)}"
        )
    photos = [photo for photo in found if photo is not None]
    return _PosedSet(capture.of_views(np.array(views)), photos, warnings)


def _capture(poses: Path, images: Path, cache: Path) -> Capture:
    """What the files of poses say, for photographs that are in a folder of their own."""
    if poses.is_file():
        capture = transforms_json.read_file(poses, images)
        return dataclasses.replace(capture, root=poses.parent)
    source = Source(poses, DataSettings(path=str(poses)), GeneratedSettings(), cache)
    if readers.reader_of(source) == transforms_json.FORMAT:
        capture = transforms_json.read_transforms(poses, images)
        return dataclasses.replace(capture, root=poses)
    return readers.read_dataset(source)


def _lenses_here(posed: _PosedSet, folder: PhotoFolder, *, may_be_turned: bool) -> dict[str, Lens]:
    """The lenses of the photographs as they are on disk, by name; marks of ground control points
    are in pixels of photographs as they are stored.
    """
    paths = {photo.name: photo.path for photo in folder.photos}
    return {
        name: lens_on_disk(lens, paths[name], may_be_turned)
        for name, lens in zip(posed.photos, posed.capture.lenses, strict=True)
    }


def _model(posed: _PosedSet) -> Any:
    """The model as a pycolmap.Reconstruction with the names of the photographs that are here: the
    COLMAP model itself, with its features and tracks, or poses and points alone.
    """
    capture = posed.capture
    if posed.is_colmap:
        model = _colmap_model(posed)
        if model is not None:
            return model
    model = reconstruction_of(posed.photos, capture.lenses, capture.camera_from_dataset)
    track = import_pycolmap().Track()
    for point, color in zip(capture.cloud.points, capture.cloud.colors, strict=True):
        model.add_point3D(point, track, color)
    if capture.cloud.has_tracks:
        posed.warnings.append(
            f"which photographs see the points of {posed.program} is not carried over, as COLMAP "
            "itself does not read it"
        )
    return model


def _colmap_model(posed: _PosedSet) -> Any:
    """The COLMAP model, without photographs that are not here; None where COLMAP itself does not
    read what the dataset's reader does: another encoding, points in a PLY file.
    """
    pycolmap = import_pycolmap()
    capture = posed.capture
    photo_of = dict(zip(capture.image_files, posed.photos, strict=True))
    try:
        model = pycolmap.Reconstruction(capture.source)
        names = {image.image_id: image.name for image in model.images.values() if image.has_pose}
    except (RuntimeError, ValueError, IndexError, OSError) as error:
        _log.info("%s: COLMAP does not read it: %s", capture.source, error)
        return None
    if not photo_of.keys() <= set(names.values()) or not model.num_points3D():
        return None
    for frame in list(model.frames.values()):
        of_frame = [data.id for data in frame.image_ids]
        if frame.has_pose and not any(names.get(image) in photo_of for image in of_frame):
            model.deregister_frame(frame.frame_id)
    for number, name in names.items():
        if name in photo_of:
            model.image(number).name = photo_of[name]
    model.update_point_3d_errors()
    return model


def _facts(posed: _PosedSet, model: Any) -> ModelFacts:
    capture = posed.capture
    has_tracks = model.compute_num_observations() > 0
    cameras = [
        camera_facts(database.camera_of(lens), focal_before=None, num_photographs=count)
        for lens, count in collections.Counter(capture.lenses).items()
    ]
    return ModelFacts(
        registered=posed.photos,
        group_sizes=[capture.num_views],
        error_px=model.compute_mean_reprojection_error() if has_tracks else None,
        num_points=model.num_points3D(),
        track_length=model.compute_mean_track_length(),
        cameras=cameras,
        keeps_focal=True,
        tells_focal=True,
        poses_of=posed.program,
    )


def _frame_words(placement: Placement) -> str:
    """What was done to the model as a whole."""
    similarity = placement.similarity
    text = f"frame of the model: its z was {tilt_deg(similarity):.2g} degrees from up"
    if placement.geo.has_scale:
        text += f", its unit {similarity.scale:.5g} m"
    return text


def _link_masks_and_split(posed: _PosedSet, dataset: DatasetFolder) -> bool:
    """Masks come along, and which photographs are for testing; whether the dataset says that."""
    capture = posed.capture
    root = required(capture.root, "Capture.root")
    found = capture.mask_paths
    if not any(found):
        found = masks.find_masks(root, capture.image_names, must_fit=False)
    links = {
        f"{photo}{Path(mask).suffix}": Path(mask)
        for photo, mask in zip(posed.photos, found, strict=True)
        if mask
    }
    photo_of = dict(zip(capture.image_names, posed.photos, strict=True))
    test_names = sorted(photo_of[name] for name in capture.test_names or [])
    carry_over(dataset, links, test_names)
    return bool(test_names)
