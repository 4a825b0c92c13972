"""The course of `prepare`: photographs, features, matches, poses, place. What an earlier call has
finished is not done again; what is written appears whole or not at all.

In the dataset's folder:

| file or folder            | content                                                             |
|---------------------------|---------------------------------------------------------------------|
| `images`                  | a link to the folder of photographs                                 |
| `sparse/0/`               | COLMAP's model in the dataset's frame, which `train` reads          |
| `geo.json`                | place, scale, residuals, and what was found (`formats.geo_json`)    |
| `.prepare/database.db`    | COLMAP's database: features and matches                             |
| `.prepare/features.json`  | what they were made from                                            |
| `.prepare/mapped/`        | the model in the mapper's frame                                     |
| `.prepare/mapped.json`    | what it was made from; written last                                 |
"""

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np

from cosurfgs_jax import files, locks
from cosurfgs_jax.settings import PrepareSettings
from cosurfgs_jax.sfm import database, mapping
from cosurfgs_jax.sfm.colmap_library import import_pycolmap
from cosurfgs_jax.sfm.dataset_folder import (
    DatasetFolder,
    check_folders,
    drop_carried_over,
    link_photographs,
    photographs_of,
    write_model_and_place,
)
from cosurfgs_jax.sfm.foreign_cameras import KnownPoses, read_known_poses, triangulated
from cosurfgs_jax.sfm.pairs import choose_pairs
from cosurfgs_jax.sfm.photos import PhotoFolder, read_folder
from cosurfgs_jax.sfm.placing import check_place, placed
from cosurfgs_jax.sfm.position_file import with_positions
from cosurfgs_jax.sfm.summary import ModelFacts, Summary, camera_facts, summarize

_METRES_PER_DEGREE = 111_320.0
_log = logging.getLogger(__name__)


def prepare(
    images: Path, out: Path, settings: PrepareSettings, progress: mapping.MakeProgress
) -> Summary:
    """Makes a dataset of a folder of photographs, or goes on where an earlier call stopped.

    Args:
        images: folder of the photographs; they stay where they are.
        out: folder of the dataset; made where it is missing.
        settings: how.
        progress: makes a bar.
    Returns:
        The summary, which is also in geo.json.
    Raises:
        InputError: what the user can mend: a wrong setting or folder, no photographs, none that
            overlap, no GPS where it is required, ground control points that make no sense, a
            missing package, another `prepare` at work.
    """
    settings.validate()
    import_pycolmap()
    dataset = DatasetFolder(out)
    check_folders(images, dataset)
    folder, settings, warnings = with_positions(read_folder(images, out), out, settings)
    num_known = sum(tags.has_position for tags in folder.tags.values())
    known = None
    if settings.cameras:
        known = read_known_poses(Path(settings.cameras), folder)
        folder = known.photographs(folder)
        warnings += known.warnings
    control = check_place(folder, num_known, settings)
    _log.info(
        "%s: %d photographs, %d with GPS, %d camera(s)",
        images,
        len(folder.photos),
        num_known,
        len(folder.cameras),
    )
    with locks.hold(dataset.lock, "a preparation", dataset.scratch):
        files.clear_unfinished(out)
        link_photographs(folder, dataset)
        drop_carried_over(dataset)
        names = [photo.name for photo in folder.photos]
        job = mapping.Job(
            database=dataset.database,
            root=folder.root,
            names=names,
            scratch=dataset.scratch,
            settings=settings,
            progress=progress,
        )
        key = _find_features(folder, dataset, job, known)
        model, saved = _find_model(dataset, job, key, known)
        placement = placed(
            mapping.reading_of(model),
            mapping.lenses_of(model),
            folder,
            settings,
            control=control,
            known=known,
        ).with_warnings(warnings)
        contents = database.read_contents(dataset.database, names)
        facts = _facts(model, contents, saved)
        summary = summarize(
            folder, contents, facts, placement, max_image_size=settings.max_image_size
        )
        write_model_and_place(dataset, model, placement=placement, facts=facts, summary=summary)
    return summary


def _find_features(
    folder: PhotoFolder, dataset: DatasetFolder, job: mapping.Job, known: KnownPoses | None = None
) -> dict[str, Any]:
    """Features and matches; a description of them."""
    settings = job.settings
    names = job.names
    stats = {photo.name: photo.path.stat() for photo in folder.photos}
    key = {
        "max_image_size": settings.max_image_size,
        "max_features": settings.max_features,
        "photographs": {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()},
    }
    lenses = None
    places = _places(folder, settings)
    if known is not None:
        key["poses"] = known.key
        lenses = known.lenses
        places = known.places(names)
    dataset.state.mkdir(parents=True, exist_ok=True)
    if dataset.database.exists() and not _extends(key, dataset.features_key):
        _log.info("settings or photographs have changed: features are found anew")
        _delete(
            dataset.mapped_key,
            dataset.features_key,
            dataset.database,
            *dataset.state.glob("database.db-*"),
        )
    # The database keeps what is no longer in the folder: it may come back, and be another one then.
    kept = photographs_of(dataset.features_key) | key["photographs"]
    files.write_json(dataset.features_key, key | {"photographs": kept})
    database.add_photographs(dataset.database, folder, settings, lenses)
    mapping.extract_features(job)
    pairs = choose_pairs(places, settings)
    _log.info("%d pairs to compare: %s", len(pairs.numbers), pairs.words)
    chosen = [(names[first], names[second]) for first, second in pairs.numbers]
    mapping.match_features(job, chosen)
    return key | {"pairs": chosen}


def _extends(key: dict[str, Any], path: Path) -> bool:
    """Whether features that were made before are of use: photographs may have been added."""
    if not path.exists():
        return False
    before = files.read_json_object(path)
    before.pop("photographs", None)
    old = photographs_of(path)
    new = key["photographs"]
    is_same = all(new.get(name, value) == value for name, value in old.items())
    return is_same and before == {name: key[name] for name in key if name != "photographs"}


def _delete(*paths: Path) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _places(folder: PhotoFolder, settings: PrepareSettings) -> np.ndarray:
    """East and north of the photographs, f64[n,2], in metres about their middle; NaN where they
    are not known.
    """
    degrees = np.full((len(folder.photos), 2), np.nan)
    for row, photo in zip(degrees, folder.photos, strict=True):
        if photo.tags.has_position and settings.gps != "ignore":
            row[:] = (photo.tags.longitude, photo.tags.latitude)
    if np.isnan(degrees).all():
        return degrees
    middle = np.nanmedian(degrees, axis=0)
    return (degrees - middle) * _METRES_PER_DEGREE * [np.cos(np.deg2rad(middle[1])), 1]


def _find_model(
    dataset: DatasetFolder, job: mapping.Job, features: dict[str, Any], known: KnownPoses | None
) -> tuple[Any, dict[str, Any]]:
    """The model in the mapper's frame, and what the mapper said of it."""
    pycolmap = import_pycolmap()
    content = features | {
        "mapper": job.settings.mapper,
        "focal": job.settings.focal,
        "focal_px": job.settings.focal_px,
        "lens": job.settings.lens,
        "pycolmap": pycolmap.__version__,
    }
    key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    saved = files.read_json_object(dataset.mapped_key) if dataset.mapped_key.exists() else {}
    if saved.get("key") == key and _is_whole(saved):
        with files.reading(dataset.mapped, "the model that was found", f"delete {dataset.mapped}"):
            model = pycolmap.Reconstruction(dataset.mapped)
    else:
        poses = mapping.find_poses(job) if known is None else triangulated(job, known)
        model = poses.model
        saved = {
            "key": key,
            "group_sizes": poses.group_sizes,
            "keeps_focal": poses.keeps_focal,
            "tells_focal": poses.tells_focal,
            "poses_of": poses.program,
        }
        _delete(dataset.mapped_key)
        mapping.write_model(model, dataset.scratch / "mapped", dataset.mapped)
        files.write_json(dataset.mapped_key, saved)
    return model, saved


def _is_whole(saved: dict[str, Any]) -> bool:
    """Whether what the mapper said of its model is there as it was written."""
    sizes = saved.get("group_sizes")
    flags = (saved.get("keeps_focal"), saved.get("tells_focal"))
    has_sizes = isinstance(sizes, list) and all(type(size) is int for size in sizes)
    program = saved.get("poses_of", "")
    return has_sizes and all(type(flag) is bool for flag in flags) and isinstance(program, str)


def _facts(model: Any, contents: database.Contents, saved: dict[str, Any]) -> ModelFacts:
    registered = sorted(image.name for image in model.images.values() if image.has_pose)
    cameras = []
    numbers = [image.camera_id for image in model.images.values() if image.has_pose]
    for _, camera in sorted(model.cameras.items()):
        if camera.camera_id not in numbers:
            continue
        before = contents.focal_before.get(camera.camera_id)
        count = numbers.count(camera.camera_id)
        cameras.append(camera_facts(camera, focal_before=before, num_photographs=count))
    return ModelFacts(
        registered=registered,
        group_sizes=saved["group_sizes"],
        error_px=model.compute_mean_reprojection_error(),
        num_points=model.num_points3D(),
        track_length=model.compute_mean_track_length(),
        cameras=cameras,
        keeps_focal=saved["keeps_focal"],
        tells_focal=saved["tells_focal"],
        poses_of=saved.get("poses_of", ""),
    )
