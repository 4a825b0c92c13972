"""Which blocks a job of its own trains: what --blocks says."""

import re
from typing import NamedTuple

from cosurfgs_jax.errors import InputError
from cosurfgs_jax.part import Part

_EXAMPLES = "numbers of blocks, such as 0,3, or a part of all, such as 0/4 (the first of four)"
_MAX_DIGITS = 9  # more are no number of a block


class BlockChoice(NamedTuple):
    """Some blocks of a run: those of these numbers, or those of a part of all."""

    text: str  # as the user gave it
    numbers: tuple[int, ...] = ()
    part: Part | None = None  # None: `numbers` count

    @classmethod
    def parse(cls, text: str) -> "BlockChoice":
        """The choice that a text makes.

        Args:
            text: "0,3": these blocks; "i/n": the blocks i, i + n, i + 2 n and so on.
        Raises:
            InputError: another text.
        """
        digits = rf"\d{{1,{_MAX_DIGITS}}}"
        if not re.fullmatch(rf"{digits}/{digits}|{digits}(,{digits})*", text, re.ASCII):
            raise InputError(f"--blocks: expected {_EXAMPLES}, got {text!r}")
        if "/" in text:
            return cls(text, part=Part.parse(text, "--blocks"))
        numbers = [int(number) for number in text.split(",")]
        if len(set(numbers)) < len(numbers):
            raise InputError(f"--blocks: expected each block once, got {text!r}")
        return cls(text, tuple(sorted(numbers)))

    def of(self, num_blocks: int) -> list[int]:
        """The numbers of the chosen blocks, ascending; of a part that has none, an empty list.

        Args:
            num_blocks: of the run.
        Raises:
            InputError: there is no block of a number.
        """
        if self.part is not None:
            return list(range(self.part.number, num_blocks, self.part.count))
        if self.numbers[-1] >= num_blocks:
            raise InputError(
                f"--blocks: expected numbers from 0 to {num_blocks - 1}, as the run has "
                f"{num_blocks} block(s) (config.partition.num_blocks, less those merged with their "
                f"neighbours), got {self.text!r}; a part, such as 0/{num_blocks}, always fits"
            )
        return list(self.numbers)
