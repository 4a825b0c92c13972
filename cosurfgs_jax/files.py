"""Files that are whole or not there, whatever kills the process; text and JSON on top of that."""

import contextlib
import json
import math
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cosurfgs_jax.errors import InputError


def available_memory() -> int | None:
    """Bytes that programs may still take without swapping, file caches included; None where the system does not say."""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return None


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Gives a temporary path in the folder of `path`; it is renamed to `path` on success and removed on any failure.

    Args:
        path: where the file shall be; missing folders are made.
    Yields:
        A path with the same suffix, so that writers which look at the suffix work.
    Raises:
        InputError: the file system refused (full disk, no permission), with its reason.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        # mkstemp makes files private; what we deliver follows the umask like any other file.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"{path}: could not be written ({error.strerror or error}); "
                         "make room or choose another folder, then run the same command again") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_text(path: Path | str, text: str) -> None:
    """Writes a file as a whole: readers see the old content or the new one, also after a kill or a power cut.

    Raises:
        InputError: the file system refused, with its reason.
    """
    with atomic_path(path) as partial, open(partial, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


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
    """JSON text that any reader takes: arrays become lists, NaN and infinity become null."""
    return json.dumps(_plain(value), indent=indent, allow_nan=False)


def write_json(path: Path | str, value: Any) -> None:
    """Writes a JSON file as a whole (see `write_text` and `to_json`)."""
    write_text(path, to_json(value, indent=2) + "\n")


def read_json(path: Path | str) -> Any:
    """The content of a JSON file.

    Raises:
        InputError: the file is missing, cannot be read or is no JSON.
    """
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: expected a JSON file that can be read, got {error.strerror or error}") from error
    except ValueError as error:
        raise InputError(f"{path}: expected JSON, got a damaged file ({error}); restore or delete it") from error
