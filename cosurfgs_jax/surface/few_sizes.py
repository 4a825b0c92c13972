"""Work on arrays of any length by programs that are compiled for two lengths only."""

from collections.abc import Iterator
from typing import NamedTuple


class Part(NamedTuple):
    """Some of an array's entries, and for how many the program is compiled that takes them."""

    entries: slice
    size: int


def parts_of(count: int, large: int, small: int) -> Iterator[Part]:
    """Cuts an array into parts of two sizes; the last one may be short, and is to be filled up.

    Compiling takes longer than the work on a small place, and XLA compiles anew for each length.

    Args:
        count: entries of the array.
        large: of a part, where so many are left.
        small: of the parts after those.
    """
    start = 0
    while start < count:
        size = small
        if count - start >= large:
            size = large
        yield Part(slice(start, min(start + size, count)), size)
        start += size
