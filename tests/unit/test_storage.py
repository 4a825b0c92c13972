"""What a file system refused, found through the errors of libraries."""

import errno

import pytest

from cosurfgs_jax.storage import storage_problem


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
