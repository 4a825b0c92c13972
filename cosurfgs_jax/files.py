"""Small text and JSON files that are never half written, whatever kills the process."""

import json
import math
import os
from pathlib import Path
from typing import Any

from cosurfgs_jax.atomic import atomic_path
from cosurfgs_jax.errors import InputError


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
