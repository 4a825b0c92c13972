"""Large and binary files that are whole or not there: written beside their place, moved into it when complete."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from cosurfgs_jax.errors import InputError


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
