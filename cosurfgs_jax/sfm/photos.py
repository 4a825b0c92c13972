"""The photographs of a folder: what is in it, what can be read, which camera took what."""

import dataclasses
import logging
import os
import re
from pathlib import Path

from cosurfgs_jax.data import photo_files, photo_words
from cosurfgs_jax.data.lookup import FileIndex, folded, readable
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.sfm.exif import PhotoTags, tags_of

MIN_PHOTOS = 3
_UNKNOWN = (".webp", ".jp2", ".j2k", ".jpx")  # pycolmap's wheels read them as nothing
_VIDEOS = (".mp4", ".mov", ".avi", ".mkv", ".m4v", ".mts")
_RESULT_MARKS = (".locks", ".prepare")  # in each folder that the programs write
_log = logging.getLogger(__name__)
# Without a word on the focal length: a moderate wide angle, as COLMAP assumes.
_UNKNOWN_FOCAL = 1.2  # of the longer side


@dataclasses.dataclass(frozen=True)
class Photo:
    """A photograph that can be read."""

    name: str  # relative, with forward slashes
    path: Path
    height: int
    width: int
    tags: PhotoTags

    @property
    def camera_key(self) -> tuple:
        """The same for photographs of one camera with one lens setting."""
        return (self.tags.camera, self.width, self.height, self.tags.focal_mm, self._focal_px)

    @property
    def _focal_px(self) -> float | None:
        return self.tags.focal_px(self.height, self.width)

    @property
    def has_focal(self) -> bool:
        """Whether its EXIF data tell the focal length in pixels."""
        return self._focal_px is not None

    @property
    def longer_side(self) -> int:
        """In pixels."""
        return max(self.width, self.height)

    @property
    def focal_px(self) -> float:
        """The focal length in pixels to begin with."""
        return self._focal_px or _UNKNOWN_FOCAL * self.longer_side

    def calibrated_px(self, focal_px: float, usual: "Photo") -> float | None:
        """A calibrated focal length in this photograph's pixels; None if its EXIF data say that it
        is of another camera or lens setting than the calibrated one.

        Args:
            focal_px: in pixels of photographs of the usual size.
            usual: one of these.
        """
        own, other = ((each.tags.camera, each.tags.focal_mm) for each in (self, usual))
        if any(mine and its and mine != its for mine, its in zip(own, other, strict=True)):
            return None
        return focal_px * self.longer_side / usual.longer_side


@dataclasses.dataclass(frozen=True)
class PhotoFolder:
    """The photographs of a folder in the order in which they were taken, and what could not be
    read, name to reason.

    The order is that of the times in their EXIF data, where all have one, else that of their names
    with numbers as numbers: neighbours are compared. `left_out` are folders below it that are not
    meant.
    """

    root: Path
    photos: list[Photo]
    unreadable: dict[str, str]
    left_out: tuple[str, ...] = ()

    @property
    def tags(self) -> dict[str, PhotoTags]:
        """Name to EXIF data."""
        return {photo.name: photo.tags for photo in self.photos}

    @property
    def cameras(self) -> dict[tuple, list[Photo]]:
        """The photographs of each camera."""
        found: dict[tuple, list[Photo]] = {}
        for photo in self.photos:
            found.setdefault(photo.camera_key, []).append(photo)
        return found

    @property
    def usual(self) -> Photo:
        """One of the camera that took most photographs."""
        return max(self.cameras.values(), key=len)[0]

    def find(self, names: list[str], source: str) -> list[str | None]:
        """The photographs that a file's names mean, by their names here; None for what is not among
        them. Names without folders, as other programs have them, are found in any folder.

        Raises:
            InputError: several photographs fit a name equally well, or one several names.
        """
        index = FileIndex(self.root, leave_out=self.left_out)
        known = {photo.name for photo in self.photos}
        owners: dict[str, str] = {}
        found: list[str | None] = []
        for name in names:
            fitting = [name] if name in known else index.candidates(name)
            fitting = [file for file in fitting if file in known]
            if len(fitting) > 1:
                raise InputError(
                    f"{source}: expected one photograph for {name}, got {len(fitting)} in "
                    f"{self.root} that fit it: {fitting[0]}, {fitting[1]}; rename or remove one"
                )
            photo = next(iter(fitting), None)
            if photo is not None and owners.setdefault(photo, name) != name:
                raise InputError(
                    f"{source}: expected a photograph for each of {owners[photo]} and {name}, got "
                    f"{photo} for both; give the folders that they are in, too"
                )
            found.append(photo)
        return found


def read_folder(root: Path, leave_out: Path, flag: str = "--images") -> PhotoFolder:
    """Finds the photographs of a folder and below, and reads their heads.

    Args:
        root: the folder.
        leave_out: a folder that may lie in it and whose files are not meant.
        flag: that names it, for messages.
    Raises:
        InputError: no such folder, fewer than `MIN_PHOTOS` photographs, or as many that cannot be
            read.
    """
    if not root.is_dir():
        what = "which is a file" if root.exists() else "which is not there"
        raise InputError(f"{flag}: expected a folder of photographs, got {root}, {what}")
    left_out = _below(root, leave_out)
    names = sorted(FileIndex(root, leave_out=left_out).names())
    names, results = _without_results(root, names)
    photos = []
    headers = {}
    unreadable = {}
    for name in names:
        path = root / name
        reason = _why_unusable(name)
        if reason:
            unreadable[readable(name)] = f"{readable(str(path))}: {reason}"
            continue
        try:
            header = photo_files.read_header(path)
            if not header.seems_whole:
                photo_files.decode(path)
            tags = tags_of(photo_files.read_exif(path))
        except InputError as error:
            unreadable[name] = str(error)
            continue
        headers[name] = header
        photos.append(Photo(name, path, height=header.height, width=header.width, tags=tags))
    if len(photos) < MIN_PHOTOS:
        raise InputError(f"{flag}: {_too_few(root, photos, unreadable, results)}")
    if results:
        _log.warning("%s: %s", flag, _results_words(results))
    photo_words.say_unopened(root, flag)
    photo_words.say_pages(headers, flag)
    photo_words.say_dark([str(root / name) for name in headers if headers[name].is_deep], flag)
    photos.sort(key=lambda photo: _number_key(photo.name))
    if all(photo.tags.time for photo in photos):
        photos.sort(key=lambda photo: photo.tags.time)
    return PhotoFolder(root, photos, unreadable, left_out)


def _why_unusable(name: str) -> str:
    """Why COLMAP could not use a file of this name; "" where it can."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return "its name is not UTF-8; rename it"
    ending = Path(name).suffix.lower()
    return f"COLMAP cannot read {ending} files; convert it to JPEG" if ending in _UNKNOWN else ""


def _number_key(name: str) -> list[tuple[int, int, str]]:
    """Sorts as the name with its numbers as numbers."""
    parts = re.split(r"([0-9]+)", name)
    return [(0, int(part), part) if part.isdecimal() else (1, 0, part) for part in parts]


def _without_results(root: Path, names: list[str]) -> tuple[list[str], list[str]]:
    """Names of photographs, and of the pictures in folders of runs and of datasets that were made
    here.
    """
    places = tuple(
        folded(Path(place).relative_to(root).as_posix()) + "/"
        for place, folders, _ in os.walk(root)
        if Path(place) != root and any(mark in folders for mark in _RESULT_MARKS)
    )
    results = [name for name in names if folded(name).startswith(places)]
    return [name for name in names if not folded(name).startswith(places)], results


def _results_words(results: list[str]) -> str:
    return (
        f"{len(results)} pictures are left out, as they lie in folders of runs or datasets of this "
        f"program, for example {readable(results[0])}; give the folder of photographs among them "
        "itself"
    )


def _below(root: Path, folder: Path) -> tuple[str, ...]:
    """The relative name of a folder that lies in another, as `FileIndex` leaves it out."""
    try:
        inside = folder.resolve().relative_to(root.resolve()).as_posix()
    except ValueError:
        return ()
    return () if inside == "." else (folded(inside),)


def _too_few(
    root: Path, photos: list[Photo], unreadable: dict[str, str], results: list[str]
) -> str:
    if unreadable:
        first = next(iter(unreadable))
        return (
            f"expected at least {MIN_PHOTOS} photographs in {root} that can be read, got "
            f"{len(photos)}, and {len(unreadable)} that cannot, the first is {unreadable[first]}"
        )
    others = photo_words.unopened_in(root)
    videos = [path for path in sorted(root.iterdir()) if path.suffix.lower() in _VIDEOS]
    hint = "give the folder that they are in"
    if videos:
        hint = (
            f"take pictures out of videos such as {readable(videos[0].name)} first (`ffmpeg -i "
            "VIDEO -vf fps=1 -q:v 2 FOLDER/%05d.jpg` takes one a second)"
        )
    if others:
        hint = photo_words.how_to_convert(others)
    elif results:
        hint = _results_words(results)
    return (
        f"expected at least {MIN_PHOTOS} photographs (JPEG, PNG, TIFF, ...) in {root} or "
        f"below, got {len(photos)}; {hint}"
    )
