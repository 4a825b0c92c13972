"""What a file system refused, found through the errors of libraries."""

import errno

import numpy as np
import pytest

from cosurfgs_jax.storage import is_disk_full, storage_problem


def _caused(error, cause):
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.EROFS, "x"), "Read-only file system"),
        (_caused(ValueError("async"), PermissionError(errno.EACCES, "x")), "Permission denied"),
        (RuntimeError("UNKNOWN: Error writing /a/b: No space left on device"), "No space left"),
        (_caused(KeyError(1), OSError(errno.EFBIG, "x")), "File too large"),
        (ValueError("a bug"), ""),
        (BrokenPipeError(errno.EPIPE, "x"), ""),
        (None, ""),
    ],
)
def test_what_the_storage_refused_is_found_through_wrappers(error, words):
    assert words in storage_problem(error) and bool(words) == bool(storage_problem(error))


def test_an_array_that_did_not_fit_is_a_full_disk():
    """NumPy gives no number of the system then."""
    with pytest.raises(OSError) as caught, open("/dev/full", "wb") as file:
        np.zeros(100_000).tofile(file)
    assert caught.value.errno is None
    assert is_disk_full(caught.value)
