"""The folder of a dataset that `prepare` makes: its paths, the photographs in it, and its model
with its place.
"""

import contextlib
import datetime
import errno
import importlib.metadata
import logging
import os
import shutil
from pathlib import Path
from typing import Any

from cosurfgs_jax import ended, files
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.formats import geo_json
from cosurfgs_jax.sfm import mapping
from cosurfgs_jax.sfm.colmap_library import import_pycolmap
from cosurfgs_jax.sfm.georeference import Placement
from cosurfgs_jax.sfm.photos import PhotoFolder
from cosurfgs_jax.sfm.summary import ModelFacts, Summary
from cosurfgs_jax.workdir import Workdir

TEST_LIST = "test.txt"
_SFM = "sfm"  # in geo.json: what `prepare` found
_PACKAGES = ("cosurfgs_jax", "pycolmap", "pyproj")
_log = logging.getLogger(__name__)


class DatasetFolder:
    """The paths of a dataset that is being made."""

    def __init__(self, root: Path):
        self.root = root
        self.images = root / "images"
        self.model = root / "sparse" / "0"
        self.geo = root / geo_json.NAME
        self.state = root / ".prepare"
        self.database = self.state / "database.db"
        self.features_key = self.state / "features.json"
        self.mapped = self.state / "mapped"
        self.mapped_key = self.state / "mapped.json"
        self.carried_list = self.state / TEST_LIST  # as `carry_over` wrote it
        self.lock = root / ".locks" / "prepare"
        self.scratch = root / ".scratch" / "prepare" / ended.own_name()


def check_folders(images: Path, dataset: DatasetFolder) -> None:
    """Checks that a dataset of photographs can be made in its folder.

    Raises:
        InputError: it is a file, the folder of the photographs or of a run, or has a model of
            another program.
    """
    out = dataset.root
    if out.exists() and not out.is_dir():
        raise InputError(f"--out: expected a folder, got {out}, which is a file")
    if images.is_dir() and out.exists() and images.resolve() == out.resolve():
        raise InputError(f"--out: expected another folder than --images, got {out} for both")
    if Workdir(out).config.exists() and not dataset.state.exists():
        raise InputError(
            f"--out: expected a new folder or one that prepare made, got {out}, which is the "
            "folder of a run; give another folder"
        )
    if dataset.model.parent.exists() and not dataset.state.exists():
        raise InputError(
            f"--out: expected a new folder or one that prepare made, got {out}, which has a COLMAP "
            "model already; give another folder (or train on this one)"
        )


def link_photographs(folder: PhotoFolder, dataset: DatasetFolder) -> None:
    """Makes the photographs part of the dataset: by a link, as copies of thousands of them would
    fill the disk; the reader undoes the distortion of lenses when it loads them.
    """
    target = folder.root.resolve()
    link = dataset.images
    if link.exists() or link.is_symlink():
        if link.is_symlink() and link.resolve() != target and _has_moved(folder, dataset):
            _log.info("the photographs have moved from %s to %s", link.readlink(), target)
            link.unlink()
            link.symlink_to(target, target_is_directory=True)
        elif link.resolve() != target and not _is_copy(folder, link):
            raise InputError(
                f"--out: expected {link} to be the photographs of {target}, got {link.resolve()}; "
                "give another --out"
            )
        return
    try:
        link.symlink_to(target, target_is_directory=True)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
            raise
        _log.info("%s: this file system has no links; copying the photographs", dataset.root)
        _copy(folder, dataset)


def _has_moved(folder: PhotoFolder, dataset: DatasetFolder) -> bool:
    """Whether the photographs that features were made from are no longer where they were, and this
    folder has some of them, by name and size, and no other ones of their names. Some may have been
    taken out, for good or to come back. Where no features were made, nothing depends on what they
    were.
    """
    if dataset.images.exists() or not dataset.features_key.exists():
        return not dataset.images.exists()
    before = photographs_of(dataset.features_key)
    known = [photo for photo in folder.photos if photo.name in before]
    is_same = all(photo.path.stat().st_size == before[photo.name][0] for photo in known)
    return bool(known) and is_same


def carry_over(dataset: DatasetFolder, masks: dict[str, Path], test_names: list[str]) -> None:
    """Takes masks, as links, and the list of the photographs for testing into a dataset. Those that
    an earlier call took there go; a list that was changed since stays where there is no new one.

    Args:
        dataset: of the photographs.
        masks: name of a mask in the dataset -> its file.
        test_names: of the photographs for testing; none: the poses do not say.
    """
    link_files(masks, dataset.root / "masks")
    path = dataset.root / TEST_LIST
    text = "".join(f"{name}\n" for name in test_names)
    if text:
        files.write_text(path, text)
    elif _is_same(path, dataset.carried_list):
        path.unlink()
    files.write_text(dataset.carried_list, text)


def drop_carried_over(dataset: DatasetFolder) -> None:
    """Removes the masks and the list of photographs for testing that an earlier call took over from
    poses, for one that has none.
    """
    if dataset.carried_list.exists():
        carry_over(dataset, {}, [])
        dataset.carried_list.unlink()


def carry_place(root: Path, dataset: DatasetFolder) -> None:
    """The place on the map of a dataset whose frame is that of another one: that of this one. What
    an earlier call found goes, as it is of another frame; what a user wrote stays.

    Args:
        root: folder of the other one.
        dataset: gets the place.
    Raises:
        InputError: a damaged geo.json.
    """
    before = geo_json.read_geo(dataset.geo)
    if before is not None and _SFM in before.details:
        dataset.geo.unlink()
    geo_json.carry_geo(root, dataset.geo)


def _is_same(path: Path, other: Path) -> bool:
    """Whether two files are there, with the same content."""
    return path.exists() and other.exists() and path.read_bytes() == other.read_bytes()


def link_files(paths: dict[str, Path], folder: Path) -> None:
    """Files below a folder by their names, as links where the file system has them; other links in
    it go.

    Args:
        paths: name below the folder -> file.
        folder: made where it is needed. Where it is a link to another folder, that one stays as it
            is, and the link is replaced.
    """
    with files.writing(folder):
        if folder.is_symlink() and paths:
            folder.unlink()
        if not folder.is_symlink():
            _unlink_others(paths, folder)
        for name, path in paths.items():
            link = folder / name
            target = path.resolve()
            if link.exists() and link.resolve() == target:
                continue
            link.parent.mkdir(parents=True, exist_ok=True)
            link.unlink(missing_ok=True)
            try:
                link.symlink_to(target)
            except OSError:
                shutil.copy2(target, link)


def _unlink_others(paths: dict[str, Path], folder: Path) -> None:
    """Removes links below a folder but for some names, and the folders that are empty then."""
    for place, folders, names in os.walk(folder, topdown=False):
        for path in [Path(place) / name for name in [*names, *folders]]:
            if path.is_symlink() and path.relative_to(folder).as_posix() not in paths:
                path.unlink()
        if not os.listdir(place):
            os.rmdir(place)


def _is_copy(folder: PhotoFolder, copy: Path) -> bool:
    """Whether a folder that is no link has photographs of these names and sizes."""
    if copy.is_symlink():
        return False
    copies = [copy / photo.name for photo in folder.photos]
    return all(
        path.is_file() and path.stat().st_size == photo.path.stat().st_size
        for path, photo in zip(copies, folder.photos, strict=True)
    )


def _copy(folder: PhotoFolder, dataset: DatasetFolder) -> None:
    scratch = dataset.scratch / "images"
    with files.writing(scratch):
        for photo in folder.photos:
            path = scratch / photo.name
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(photo.path, path)
        os.replace(scratch, dataset.images)


def photographs_of(path: Path) -> dict[str, list[int]]:
    """Size and time of change of the photographs that features were made from, by name.

    Raises:
        InputError: a damaged file.
    """
    found = files.read_json_object(path).get("photographs", {}) if path.exists() else {}
    if not isinstance(found, dict) or not all(map(_is_state, found.values())):
        raise InputError(
            f"{path}: expected size and time of change of each photograph, got {found!r:.80}; "
            "delete the file: features are found anew then"
        )
    return found


def _is_state(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(files.is_finite, value))


def write_model_and_place(
    dataset: DatasetFolder,
    model: Any,
    *,
    placement: Placement,
    facts: ModelFacts,
    summary: Summary,
) -> None:
    """The model in the dataset's frame, and geo.json."""
    pycolmap = import_pycolmap()
    similarity = placement.similarity
    model.transform(
        pycolmap.Sim3d(
            similarity.scale, pycolmap.Rotation3d(similarity.rotation), similarity.translation
        )
    )
    mapping.write_model(model, dataset.scratch / "placed", dataset.model)
    details = placement.geo.details | {
        _SFM: {
            "registered": len(facts.registered),
            "missing": summary.missing,
            "reprojection_error_px": facts.error_px,
            "num_points": facts.num_points,
            "track_length": facts.track_length,
            "cameras": facts.cameras,
            "keeps_focal_of_exif": facts.keeps_focal,
        },
        "summary": summary.found,
        "suspicious": summary.suspicious,
        "versions": _versions(),
        "made": datetime.datetime.now().astimezone().isoformat("T", "seconds"),
    }
    geo = placement.geo
    geo_json.write_geo(
        dataset.geo, geo_json.GeoReference(geo.epsg, geo.offset, geo.has_scale, details)
    )


def _versions() -> dict[str, str]:
    """The version of each package that is installed."""
    found = {}
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found
