"""Files written atomically, whatever kills the process; text, JSON and arrays of any program."""

import codecs
import contextlib
import fcntl
import json
import logging
import math
import os
import re
import tempfile
import unicodedata
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cosurfgs_jax import ended
from cosurfgs_jax.errors import InputError

_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)  # UTF-32 begins like UTF-16
_HEAD_BYTES = 4096  # from which the encoding of a file is detected
_MAX_PART_BYTES = 200  # of a name between slashes; file systems take 255, and endings come on top
_MAX_NAME_BYTES = 1000
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*")
_UNFINISHED = ".unfinished-"  # how files begin that are being written
NO_JSON = (ValueError, RecursionError)  # raised of a text that is none, or nested without end
_log = logging.getLogger(__name__)


@contextlib.contextmanager
def reading(path: str | os.PathLike, expected: str, advice: str) -> Iterator[None]:
    """The boundary of a file format: whatever goes wrong while a foreign file is read becomes an
    InputError.

    Args:
        path: of the file.
        expected: what it should be, after "expected".
        advice: what to do.
    Raises:
        InputError: anything was raised inside; one that is an InputError already passes unchanged.
    """
    try:
        yield
    except InputError:
        raise
    except (Exception, MemoryError) as error:
        # Libraries raise OSError without a number, for other reasons.
        if isinstance(error, OSError) and error.errno is not None:
            raise InputError(f"{path}: cannot be read ({error.strerror})") from error
        text = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise InputError(
            f"{path}: expected {expected}, got one that is cut off or damaged ({text}); {advice}"
        ) from error


@contextlib.contextmanager
def writing(path: str | os.PathLike) -> Iterator[None]:
    """What the system refuses becomes an InputError with its reason."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{path}: could not be written ({error.strerror or error}); "
            "make room or choose another folder, then run the same command again"
        ) from error


def state_of(path: str | os.PathLike) -> str:
    """Size and time of change of a file: a text that is another one when the file is.

    Raises:
        OSError: it cannot be looked at.
    """
    status = os.stat(path)
    return f"{status.st_size} {status.st_mtime_ns}"


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Gives a temporary path in the folder of `path`; it is renamed to `path` on success and
    removed on any failure. What a killed process leaves is for `clear_unfinished`.

    Args:
        path: where the file shall be; missing folders are made.
    Yields:
        A path with the same suffix, so that writers which look at the suffix work.
    Raises:
        InputError: the file system refused (full disk, no permission), with its reason.
    """
    path = Path(path)
    temporary = None
    handle = None
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            prefix = f"{_UNFINISHED}{ended.own_name()}-"
            handle, name = tempfile.mkstemp(dir=path.parent, prefix=prefix, suffix=path.suffix)
            temporary = Path(name)
            with contextlib.suppress(OSError):  # says that its writer lives; some have no locks
                fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            yield temporary
            # mkstemp makes files private; the result follows the umask like any other file.
            umask = os.umask(0)
            os.umask(umask)
            temporary.chmod(0o666 & ~umask)
            os.replace(temporary, path)
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        if handle is not None:
            os.close(handle)


def clear_unfinished(folder: Path) -> None:
    """Deletes what writers that were killed have left of `atomic_path` in a folder and below. Files
    whose writer lives, or may live on another machine, stay.
    """
    for place, _, names in os.walk(folder):
        for name in names:
            if name.startswith(_UNFINISHED):
                _delete_if_abandoned(os.path.join(place, name))


def _delete_if_abandoned(path: str) -> None:
    writer = os.path.basename(path).removeprefix(_UNFINISHED)
    with contextlib.suppress(OSError), open(path, "r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # OSError: its writer has it
        # Some file systems have locks that other machines do not see.
        if ended.has_ended(writer) or ended.is_old(path):
            os.unlink(path)


def write_text(path: Path | str, text: str) -> None:
    """Writes a file atomically: readers see the old content or the new one, also after a kill or a
    power cut.

    Raises:
        InputError: the file system refused, with its reason.
    """
    with atomic_path(path) as partial, open(partial, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def append_line(path: Path | str, text: str) -> None:
    """Adds a line to a file. A kill may leave a part of it.

    Raises:
        InputError: the file system refused, with its reason.
    """
    with writing(path), open(path, "a", encoding="utf-8") as file:
        file.write(text + "\n")


def _plain(value: Any) -> Any:
    """Python numbers and lists only. JSON has no NaN and no infinity: they become null."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):  # NumPy and JAX arrays and scalars
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def to_json(value: Any, indent: int | None = None) -> str:
    """JSON text that any reader accepts: arrays become lists, NaN and infinity become null."""
    return json.dumps(_plain(value), indent=indent, allow_nan=False)


def write_json(path: Path | str, value: Any) -> None:
    """Writes a JSON file atomically (see `write_text` and `to_json`)."""
    write_text(path, to_json(value, indent=2) + "\n")


def readable(text: str) -> str:
    """Text as it was meant: bytes that were no UTF-8 and so became lone surrogates are read as
    Windows-1252.
    """
    if text.isascii():
        return text
    raw = text.encode("utf-8", "surrogateescape")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return _windows(raw)


def _windows(raw: bytes) -> str:
    try:
        return raw.decode("cp1252")
    except UnicodeDecodeError:  # five bytes are undefined there
        return raw.decode("latin-1")


def _encoding(head: bytes) -> tuple[str, int]:
    """The encoding detected from the first bytes of a file, or "", and the length of its mark."""
    for mark, encoding in _BOMS:
        if head.startswith(mark):
            return encoding, len(mark)
    for encoding, zeros in (("utf-16-le", head[1::2]), ("utf-16-be", head[::2])):
        if zeros and zeros.count(0) > 0.4 * len(zeros) and head.count(0) < 0.6 * len(head):
            return encoding, 0
    return "", 0


def _warn_of_code_page(path) -> None:
    _log.warning("%s: it is not all UTF-8; the rest is read as Windows-1252", path)


def decode(raw: bytes, path: str | os.PathLike) -> str:
    """Text of a file's bytes, whatever program wrote them.

    A byte order mark decides; else zero bytes mean UTF-16; else it is UTF-8, or Windows-1252 with a
    warning where it is not valid UTF-8.

    Args:
        raw: all bytes.
        path: for messages.
    """
    encoding, length = _encoding(raw[:_HEAD_BYTES])
    if encoding:
        return raw[length:].decode(encoding)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        _warn_of_code_page(path)
        return _windows(raw)


def iter_lines(path: Path | str) -> Iterator[str]:
    """The lines of a text file one by one, without their ends (of any system); see `decode`."""
    with open(path, "rb") as file:
        head = file.read(_HEAD_BYTES)
        encoding, length = _encoding(head)
        if encoding not in ("", "utf-8") or (b"\r" in head and b"\n" not in head):
            text = decode(head + file.read(), path)
            yield from text.replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n").split("\n")
            return
        file.seek(length)
        has_warned = False
        for raw in file:
            raw = raw.rstrip(b"\r\n")
            try:
                yield raw.decode("utf-8")
            except UnicodeDecodeError:
                if not has_warned:
                    _warn_of_code_page(path)
                has_warned = True
                yield _windows(raw)


def read_lines(path: Path | str) -> list[str]:
    """All lines of a text file; see `iter_lines`."""
    return list(iter_lines(path))


def number(word: str) -> float:
    """A number as files have it; unlike `float`, digits are those of ASCII, without underscores.

    Raises:
        ValueError: it is none.
    """
    if "_" in word or not word.isascii():
        raise ValueError(f"expected a number, got {word[:40]!r}")
    return float(word)


def whole_number(word: str) -> int:
    """A whole number, also where it is written as a real one (`1920.0`).

    Raises:
        ValueError: it is none.
    """
    if word.isascii() and word.lstrip("+-").isdigit():
        return int(word)
    value = float(number(word))
    if not value.is_integer() or abs(value) > 2**53:
        raise ValueError(f"expected a whole number, got {word[:40]!r}")
    return int(value)


def safe_name(name: str) -> str:
    """A name as a path below some folder: relative, forward slashes, no drives, `.` and `..`."""
    parts = readable(name).replace("\\", "/").split("/")
    if len(parts[0]) == 2 and parts[0][1] == ":" and parts[0][0].isalpha():
        parts = parts[1:]
    return "/".join(part for part in parts if part.strip() not in ("", ".", ".."))


def check_name(name: str, source: str) -> None:
    """Checks that a name can be that of a file in any folder.

    Args:
        name: of an image, for example.
        source: where it is from, for the message.
    Raises:
        InputError: it is empty, not relative, leads out of its folder, is too long, or has
            characters that no name has.
    """
    if len(name) <= _MAX_PART_BYTES and _PLAIN_NAME.fullmatch(name):
        return  # of most photographs, which may be hundreds of thousands
    wrong = ""
    lengths = [0]
    try:
        lengths = [len(part) for part in name.encode("utf-8").split(b"/")]
    except UnicodeEncodeError:
        wrong = "characters that are no text"
    if not name or name != safe_name(name):
        wrong = wrong or "one that leads out of its folder"
    elif any(unicodedata.category(character) in ("Cc", "Zl", "Zp") for character in name):
        wrong = "characters that control a terminal"
    elif max(lengths) > _MAX_PART_BYTES or sum(lengths) + len(lengths) > _MAX_NAME_BYTES:
        wrong = "a longer one"
    if wrong:
        raise InputError(
            f"{source}: expected relative image names of at most {_MAX_PART_BYTES} bytes, got "
            f"{name[:100]!r} ({wrong}); rename it there"
        )


def read_json(path: Path | str) -> Any:
    """The content of a JSON file.

    Raises:
        InputError: the file is missing, cannot be read or is no JSON.
    """
    path = Path(path)
    with reading(path, "JSON", "restore or delete it"):
        return json.loads(decode(path.read_bytes(), path))


def read_json_object(path: Path | str) -> dict:
    """The content of a JSON file that is an object.

    Raises:
        InputError: as `read_json`, or it is a list or a number, for example.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise InputError(
            f"{path}: expected a JSON object, got {str(content)[:60]!r}; restore or delete it"
        )
    return content


def is_finite(value: Any) -> bool:
    """Whether a value of a JSON file is a number that a real one can hold."""
    try:
        return type(value) in (int, float) and math.isfinite(value)
    except OverflowError:  # JSON has whole numbers of any length
        return False


def read_arrays(
    path: str | os.PathLike,
    names: tuple[str, ...],
    optional: tuple[str, ...] = (),
    advice: str = "restore it, or delete it",
) -> dict[str, np.ndarray]:
    """Arrays of an `.npz` file; nothing in it is executed.

    Args:
        path: of the file.
        names: of arrays that must be there.
        optional: of others that are taken if they are there.
        advice: what to do with a damaged file.
    Raises:
        InputError: missing, damaged, or without one of the arrays.
    """
    with reading(path, f"an .npz file with {', '.join(names)}", advice):
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as content:
            wanted = [*names, *(name for name in optional if name in content)]
            arrays = {name: content[name] for name in wanted}
            for name, array in arrays.items():
                if not isinstance(array, np.ndarray):  # NumPy gives the bytes of other members
                    raise ValueError(f"{name} is no array")
            return arrays


def checksum(path: str | os.PathLike) -> str:
    """The CRC-32 of a file's content, eight hexadecimal digits."""
    with open(path, "rb") as file:
        value = 0
        while block := file.read(1 << 20):
            value = zlib.crc32(block, value)
    return f"{value:08x}"
