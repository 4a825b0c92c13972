"""What a compiled program moves between devices, read from its text."""

import re
from typing import NamedTuple

_KINDS = (
    "all-to-all",
    "collective-permute",
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "collective-broadcast",
    "ragged-all-to-all",
)
_BYTES = {
    "pred": 1,
    "u8": 1,
    "s8": 1,
    "bf16": 2,
    "f16": 2,
    "s16": 2,
    "u16": 2,
    "f32": 4,
    "s32": 4,
    "u32": 4,
    "f64": 8,
    "s64": 8,
    "u64": 8,
}
# Of an asynchronous pair the second counts: its type is the result alone, that of the first holds
# the operands too.
_LINE = re.compile(rf"= (?P<type>.+?) (?P<kind>{'|'.join(_KINDS)})(?:-done)?\(")
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")


class Collective(NamedTuple):
    """One collective of a program."""

    kind: str
    dtypes: tuple[str, ...]
    num_bytes: int  # of what a device gets, its own part included


def collectives(compiled_text: str) -> list[Collective]:
    """The collectives of a compiled program.

    Args:
        compiled_text: `jit(f).lower(...).compile().as_text()`.
    """
    found = []
    for line in compiled_text.splitlines():
        match = _LINE.search(line)
        if match:
            arrays = [
                (dtype, [int(n) for n in shape.split(",") if n])
                for dtype, shape in _ARRAY.findall(match["type"])
            ]
            sizes = []
            for dtype, shape in arrays:
                size = _BYTES[dtype]
                for number in shape:
                    size *= number
                sizes.append(size)
            found.append(Collective(match["kind"], tuple(dtype for dtype, _ in arrays), sum(sizes)))
    return found
