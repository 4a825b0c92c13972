"""A part of some work, as the command line names it: i/n, the part i of n."""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cosurfgs_jax.errors import InputError

_MAX_DIGITS = 9  # more are no number of anything


class Part(NamedTuple):
    """The part `number` of `count`."""

    number: int
    count: int

    @classmethod
    def parse(cls, text: str, flag: str) -> "Part":
        """The part that a text names.

        Args:
            text: "i/n", i from 0 to n - 1.
            flag: that it was given with, for messages, e.g. "--shard".
        Raises:
            InputError: another text.
        """
        digits = rf"\d{{1,{_MAX_DIGITS}}}"
        if not re.fullmatch(rf"{digits}/{digits}", text, re.ASCII):
            raise InputError(
                f"{flag}: expected a part i/n, such as 0/4 (the first of four), got {text!r}"
            )
        number, count = map(int, text.split("/"))
        if number >= count:
            raise InputError(
                f"{flag}: expected a part i/n with i from 0 to n - 1, got {text!r}; the first of "
                f"{max(count, 1)} is 0/{max(count, 1)}"
            )
        return cls(number, count)

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def run_of(self, total: int) -> slice:
        """Which of `total` things that stand in a row are this part's: a run of them, of nearly the
        same length for all parts.
        """
        bounds = np.arange(self.number, self.number + 2) * total // self.count
        return slice(int(bounds[0]), int(bounds[1]))

    def share_of(self, weights: Sequence[float]) -> slice:
        """Which of the things in a row with these weights are this part's: a run of them, of nearly
        the same weight for all parts.
        """
        ends = np.cumsum(weights)
        if not len(ends):
            return slice(0, 0)
        middles = ends - np.asarray(weights) / 2
        parts = np.minimum(middles * self.count // max(ends[-1], 1e-300), self.count - 1)
        bounds = np.searchsorted(parts, [self.number, self.number + 1])
        return slice(int(bounds[0]), int(bounds[1]))


WHOLE = Part(0, 1)
