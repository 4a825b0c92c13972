"""Finding the files that a dataset names: names that other programs, systems and machines wrote,
files as they lie here.

A name fits a file where one of their two paths ends in the other: `scene/images/a/1.jpg` fits
`a/1.jpg`, and the other way round. Parts are compared exactly first, then without regard to case
and Unicode form, then without regard to the ending. What is missing from a folder that is here is
not taken from another one. A folder that has another name here is found by what lies in it, if no
other folder is meant by that: two folders with equal file names (`cam1/1.jpg`, `cam2/1.jpg`) are
    never mixed up.
"""

import logging
import os
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from cosurfgs_jax.errors import InputError
from cosurfgs_jax.files import readable, safe_name

IMAGE_ENDINGS = (
    ".jpg",
    ".jpeg",
    ".jpe",
    ".jfif",
    ".mpo",
    ".png",
    ".tif",
    ".tiff",
    ".bmp",
    ".webp",
    ".ppm",
    ".pgm",
    ".pbm",
    ".jp2",
)
# As sensors see: what a camera writes beside or in place of its JPEG files.
RAW = (
    *(".dng", ".nef", ".nrw", ".cr2", ".cr3", ".arw", ".srw", ".orf", ".raf", ".rw2", ".pef"),
    *(".3fr", ".iiq", ".rwl", ".x3f", ".raw"),
)
# Of names whose photographs lie here in another format: the package opens none of these.
CONVERTED = (
    *(".heic", ".heif", ".avif", ".jxl", ".gif"),
    *RAW,
)
_log = logging.getLogger(__name__)
_NOT_OURS = ("__macosx", "@eadir", "$recycle.bin")  # of archivers and file servers


def folded(name: str) -> str:
    """A name without regard to case and Unicode form."""
    return unicodedata.normalize("NFC", readable(name)).casefold()


def without_ending(name: str, endings: tuple[str, ...] = IMAGE_ENDINGS) -> str:
    """A name without its ending, if that is one of `endings` (in any case): what follows another
    dot is part of the name.
    """
    stem, dot, ending = name.rpartition(".")
    if stem and dot and f".{ending}".lower() in endings:
        return stem
    return name


def subfolder(root: Path, name: str) -> Path | None:
    """The folder of this name, or of one that differs in case only; None where there is none."""
    if (root / name).is_dir():
        return root / name
    return next(
        (
            path
            for path in sorted(root.iterdir())
            if folded(path.name) == folded(name) and path.is_dir()
        ),
        None,
    )


def file_in(root: Path, name: str) -> Path | None:
    """The file of this name in a folder, or of one that differs in case only; None where there is
    none.
    """
    if (root / name).is_file():
        return root / name
    names = sorted(os.listdir(root)) if root.is_dir() else []
    wanted = folded(name)
    found = (root / each for each in names if len(each) == len(name) and folded(each) == wanted)
    return next((path for path in found if path.is_file()), None)


class Walked(NamedTuple):
    """A folder of a dataset and what lies in it, without hidden files and those of file servers."""

    place: str  # below which folder it is: "" for that folder itself, with forward slashes
    real: str  # without links
    folders: list[str]  # names, sorted; who takes one out does not get it
    files: list[str]  # names, sorted; what is no folder


def walk(folder: Path | str, on_error: Callable[[OSError], None] | None = None) -> Iterator[Walked]:
    """A folder and those below it; links to folders are followed once.

    Args:
        folder: the first.
        on_error: called with what the system says of a folder that cannot be looked at. None: it
            counts as empty.
    """
    seen = set()
    for path, folders, names in os.walk(folder, onerror=on_error, followlinks=True):
        real = os.path.realpath(path)
        if real in seen:
            folders[:] = []
            continue
        seen.add(real)
        folders[:] = sorted(
            name for name in folders if not name.startswith(".") and name.lower() not in _NOT_OURS
        )
        below = os.path.relpath(path, folder)
        place = "" if below == "." else below.replace(os.sep, "/")
        yield Walked(place, real, folders, sorted(n for n in names if not n.startswith(".")))


def is_walked(name: str) -> bool:
    """Whether a name is that of something which `walk` may find: it does not lead out of the folder
    that it is relative to, and nothing of it is hidden.
    """
    text = name.replace("\\", "/")
    parts = [part for part in text.split("/") if part not in ("", ".")]
    is_hidden = any(part.startswith(".") or part.lower() in _NOT_OURS for part in parts)
    return not is_hidden and not text.startswith("/") and ":" not in text


class FileIndex:
    """The files of some kinds below a folder, to be found by names that need not be
    quite theirs.
    """

    def __init__(
        self,
        folder: Path,
        endings: tuple[str, ...] = IMAGE_ENDINGS,
        prefer: str = "",
        leave_out: tuple[str, ...] = (),
    ):
        """
        Args:
            folder: what lies below it can be found; one that is not there is empty.
            endings: of the files, lower case.
            prefer: of files that fit equally well, those below the folder of this name are meant.
            leave_out: folders below it, by name, whose files are not meant.
        """
        self.folder = folder
        self._endings = endings
        self._prefer = f"{prefer}/" if prefer else ""
        self._leave_out = tuple(f"{name}/" for name in leave_out)
        self._by_last: dict[str, list[tuple[str, ...]]] = {}
        self._files: list[str] | None = None

    def _scan(self) -> list[str]:
        if self._files is None:  # a dataset whose names are all exact never needs it
            self._files = [
                name
                for place, _, _, files in walk(self.folder)
                for name in (f"{place}/{file}" if place else file for file in files)
                if os.path.splitext(name)[1].lower() in self._endings
                and not folded(name).startswith(self._leave_out)
            ]
            for name in self._files:
                last = without_ending(folded(name.rpartition("/")[2]), self._endings)
                self._by_last.setdefault(last, []).append(tuple(name.split("/")))
        return self._files

    def names(self) -> list[str]:
        """All files, relative, with forward slashes."""
        return self._scan()

    def _stem(self, wanted: str) -> str:
        """A name that is looked for, without its ending."""
        return without_ending(
            wanted, self._endings + (CONVERTED if self._endings == IMAGE_ENDINGS else ())
        )

    def _level(self, wanted: list[str], have: tuple[str, ...]) -> int | None:
        """0, 1, 2: alike exactly, but for case, but for the ending; None: the paths do not end
        alike.
        """
        shared = min(len(wanted), len(have))
        ours = wanted[len(wanted) - shared :]
        theirs = list(have[len(have) - shared :])
        if ours == theirs:
            return 0
        ours = [folded(part) for part in ours]
        theirs = [folded(part) for part in theirs]
        if ours == theirs:
            return 1
        ours[-1] = self._stem(ours[-1])
        theirs[-1] = without_ending(theirs[-1], self._endings)
        if ours == theirs:
            return 2
        return None

    def candidates(self, name: str, place: str | None = None) -> list[str]:
        """The files that fit a name best, relative: those that share the longest end of the path,
        then those that are in no further folder, then the most alike.

        Args:
            name: of a file.
            place: the folder that it must be in; None: any.
        """
        wanted = safe_name(name).split("/")
        self._scan()
        last = self._stem(folded(wanted[-1]))
        found = {}
        for have in self._by_last.get(last, ()):
            level = self._level(wanted, have)
            if level is not None:
                file = "/".join(have)
                if place is not None and os.path.normpath((self.folder / file).parent) != place:
                    continue
                is_other = not folded(file).startswith(self._prefer)
                shared = min(len(wanted), len(have))
                found[file] = (
                    -shared,
                    len(have) > shared,
                    level,
                    is_other,
                    abs(len(have) - len(wanted)),
                )
        best = min(found.values(), default=None)
        return [file for file, rank in found.items() if rank == best]

    def _of_renamed_folders(self, names: list[str], paths: list[Path | None]) -> dict[int, Path]:
        """Files for names that fit none, by their last parts, where every folder of the names then
        has one of its own.
        """
        folder_of: dict[str, str] = {}  # of the files -> of the names
        for name, path in zip(names, paths, strict=True):
            if path is not None:
                folder_of[os.path.normpath(path.parent)] = _parent(name)
        is_found = set(folder_of.values())
        taken = {os.path.normpath(path) for path in paths if path is not None}
        found: dict[int, Path] = {}
        is_shared: set[str] = set()
        for number, name in enumerate(names):
            if paths[number] is not None or _parent(name) in is_found:
                continue
            files = [
                self.folder / file for file in self.candidates(safe_name(name).rpartition("/")[2])
            ]
            if len(files) != 1 or os.path.normpath(files[0]) in taken:
                continue
            place = os.path.normpath(files[0].parent)
            if folder_of.setdefault(place, _parent(name)) != _parent(name):
                is_shared.add(place)
            found[number] = files[0]
        return {
            number: path
            for number, path in found.items()
            if os.path.normpath(path.parent) not in is_shared
        }

    def find(self, name: str, source: str) -> Path | None:
        """The file that a name means, or None.

        Args:
            name: as some file has it.
            source: that file, for messages.
        Raises:
            InputError: several files fit equally well.
        """
        return self.find_all([name], source)[0]

    def find_all(self, names: list[str], source: str) -> list[Path | None]:
        """The files that names mean, None for those that are not there; no file is given to two
        names.

        A name that leads to a file as it stands is taken at its word, also outside the folder.

        Raises:
            InputError: several files fit a name equally well, or one file several names.
        """
        paths: list[Path | None] = [_literal(self.folder, name, self._endings) for name in names]
        owners: dict[str, str] = {}
        for name, path in zip(names, paths, strict=True):
            if path is not None:
                _own(owners, path, name, source)
        taken = set(owners)
        # What is missing from a folder that is there as it is called is not in another one.
        place_of = {
            _parent(name): os.path.normpath(path.parent)
            for name, path in zip(names, paths, strict=True)
            if path is not None
        }
        in_case = []
        for number, name in enumerate(names):
            if paths[number] is not None:
                continue
            files = [
                self.folder / file for file in self.candidates(name, place_of.get(_parent(name)))
            ]
            files = [file for file in files if os.path.normpath(file) not in taken]
            if len(files) > 1:
                raise InputError(
                    f"{source}: expected one file for {name}, got {len(files)} in {self.folder} "
                    "that fit it: "
                    f"{files[0].relative_to(self.folder)}, {files[1].relative_to(self.folder)}; "
                    "rename or "
                    "remove one"
                )
            if files:
                _own(owners, files[0], name, source)
                paths[number] = files[0]
                of_file = files[0].relative_to(self.folder).parts
                if self._level(safe_name(name).split("/"), of_file) == 1:
                    in_case.append(number)
        if in_case:
            _log.info(
                "%s: %d names differ from those of their files in case or Unicode form, the first "
                "is %s, of %s",
                source,
                len(in_case),
                names[in_case[0]],
                paths[in_case[0]],
            )
        if None in paths:
            renamed = self._of_renamed_folders(names, paths)
            if renamed:
                first = next(iter(renamed))
                _log.warning(
                    "%s: %d files are in folders of another name here, the first is %s, taken for "
                    "%s",
                    source,
                    len(renamed),
                    renamed[first],
                    names[first],
                )
            for number, path in renamed.items():
                paths[number] = path
        return paths


def _own(owners: dict[str, str], path: Path, name: str, source: str) -> None:
    """Notes which name a file belongs to; InputError where it is another one already."""
    other = owners.setdefault(os.path.normpath(path), name)
    if safe_name(other) != safe_name(name):  # the same name twice has words of its own
        raise InputError(
            f"{source}: expected a file for each of {other} and {name}, got {path} for both; give "
            "the folders that "
            "they are in, too"
        )


def _parent(name: str) -> str:
    return safe_name(name).rpartition("/")[0]


def _literal(folder: Path, name: str, endings: tuple[str, ...]) -> Path | None:
    """The file that a name leads to as it stands; outside of the folder also without its ending, as
    no index has it.
    """
    for text in dict.fromkeys((name, name.replace("\\", "/"))):
        is_outside = text.startswith(("/", "../")) or "/../" in text
        extra = []
        if is_outside:
            extra = [form for ending in endings for form in (ending, ending.upper())]
        for ending in ["", *extra]:
            path = folder / (text + ending)
            try:
                if path.is_file():
                    return path
            except (OSError, ValueError):  # too long, or no name of a file at all
                break
    return None


def say_outside(paths: Iterable[Path | str], root: Path, source: str) -> None:
    """Says in the log where files that are read lie outside of the dataset's folder."""
    inside = os.path.abspath(root) + os.sep
    outside = [path for path in paths if not os.path.abspath(path).startswith(inside)]
    if outside:
        _log.warning(
            "%s: %d files that it names lie outside of the dataset, the first is %s",
            source,
            len(outside),
            outside[0],
        )
