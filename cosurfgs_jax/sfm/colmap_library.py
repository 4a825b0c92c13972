"""pycolmap, which does the structure from motion."""

import re
from typing import Any

from cosurfgs_jax.errors import InputError

_OLDEST = (4, 0)


def import_pycolmap() -> Any:
    """The pycolmap module, with its own log off: what matters is in its results.

    Raises:
        InputError: it is not installed, or too old.
    """
    try:
        import pycolmap
    except ImportError as error:
        raise InputError(
            f"pycolmap is needed to find poses of photographs ({error}): "
            'pip install "cosurfgs_jax[sfm]"'
        ) from error
    version = pycolmap.__version__
    found = re.match(r"(\d+)\.(\d+)", version)
    if found and (int(found[1]), int(found[2])) < _OLDEST:
        raise InputError(
            f"pycolmap: expected version {'.'.join(map(str, _OLDEST))} or later, got {version}; "
            'pip install -U "cosurfgs_jax[sfm]"'
        )
    pycolmap.logging.minloglevel = pycolmap.logging.Level.FATAL.value
    return pycolmap
