"""Reads the text of a compiled XLA program: which kernels it launches, and what must not be among
them.

A program is a list of computations. Those that run are the entry and what its loops, branches and
calls name; what a fusion, a sort or a reduction names is part of one kernel.
"""

import dataclasses
import functools
import math
import re

_BYTES = {
    "pred": 1,
    "s8": 1,
    "u8": 1,
    "s16": 2,
    "u16": 2,
    "f16": 2,
    "bf16": 2,
    "s32": 4,
    "u32": 4,
    "f32": 4,
    "s64": 8,
    "u64": 8,
    "f64": 8,
    "c64": 8,
    "c128": 16,
}
_HEADER = re.compile(r"^(ENTRY )?%?([\w.$-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.$-]+) = ")
_ARRAY = re.compile(rf"\b({'|'.join(_BYTES)})\[([\d,]*)\]")
_NAMED = re.compile(
    r"\b(body|condition|true_computation|false_computation|to_apply|calls)=%?([\w.$-]+)"
)
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")
_ALIAS = re.compile(r"\{(\d*)\}: \((\d+), \{\}")
_TARGET = re.compile(r'custom_call_target="([^"]*)"')
_METADATA = re.compile(r'op_name="([^"]*)"')
_HOST_MEMORY = re.compile(r"\{[^}]*S\(5\)\}")
# These name computations that run by themselves; what other instructions name is part of their
# kernel.
_FLOW = ("while", "conditional", "call", "async-start")
_FREE = (
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "after-all",
    "opt-barrier",
    "partition-id",
    "replica-id",
    *_FLOW,
)
_MOVES = ("bitcast", "copy", "reshape", "transpose", "get-tuple-element")
_COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "all-to-all",
    "reduce-scatter",
    "collective-permute",
    "collective-broadcast",
)
_TRANSFERS = ("infeed", "outfeed", "send", "recv")
_TRANSFER_TARGETS = re.compile(
    r"callback|MoveToHost|MoveToDevice|annotate_device_placement", re.IGNORECASE
)
_LIBRARY_TARGETS = re.compile(r"cublas|cusolver|cutlass|lapack|__onednn", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a program."""

    name: str
    type: str  # as written, with layouts
    opcode: str
    operands: tuple[str, ...]  # names
    attributes: str
    computation: str
    is_root: bool

    @functools.cached_property
    def arrays(self) -> list[tuple[str, tuple[int, ...]]]:
        """Element type and shape of each array of the result."""
        return [
            (kind, tuple(int(x) for x in dims.split(",") if x))
            for kind, dims in _ARRAY.findall(self.type)
        ]

    @property
    def num_bytes(self) -> int:
        """Of the result."""
        return sum(_BYTES[kind] * math.prod(shape) for kind, shape in self.arrays)

    @property
    def target(self) -> str:
        """What a custom call calls, or ""."""
        found = _TARGET.search(self.attributes)
        return found[1] if found else ""

    @property
    def source(self) -> str:
        """Where in the Python program it comes from, as far as XLA knows."""
        found = _METADATA.search(self.attributes)
        return found[1] if found else ""

    def __str__(self) -> str:
        shapes = " ".join(f"{kind}{list(shape)}" for kind, shape in self.arrays)
        what = f"{self.opcode} {self.target}" if self.target else self.opcode
        return f"{what} {self.name} {shapes} <- {self.source or '?'}"


@dataclasses.dataclass(frozen=True)
class Product:
    """A product of matrices."""

    instruction: Instruction
    contracted: int  # terms of each sum; 0 where the text does not say
    # multiply-adds inside a loop over the result, and no call of a library or kernel of its own
    is_fused_loop: bool


def _closing(text: str, start: int) -> int:
    """Behind the bracket that closes the one at `start`."""
    depth = 0
    for position in range(start, len(text)):
        depth += (text[position] in "([{") - (text[position] in ")]}")
        if depth == 0:
            return position + 1
    raise ValueError(f"no closing bracket: {text[start : start + 200]}")


def _parse_line(line: str, computation: str) -> Instruction | None:
    start = _INSTRUCTION.match(line)
    if not start:
        return None
    rest = line[start.end() :]
    end = _closing(rest, 0) if rest[0] == "(" else rest.index(" ")
    opening = rest.index("(", end)
    closing = _closing(rest, opening)
    operands = tuple(
        re.findall(r"%([\w.$-]+)", rest[opening:closing])
        or re.findall(r"([\w.$-]+)[,)]", rest[opening:closing])
    )
    return Instruction(
        start[2],
        rest[:end],
        rest[end:opening].strip(),
        operands,
        rest[closing:],
        computation,
        bool(start[1]),
    )


class Program:
    """A compiled program."""

    def __init__(self, text: str):
        """
        Args:
            text: what `as_text()` of a compiled function gives.
        Raises:
            ValueError: it holds no entry computation, so that nothing could be found in it.
        """
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.entry = ""
        current = ""
        header = ""
        for line in text.splitlines():
            if line.startswith("HloModule "):
                header = line
            opened = _HEADER.match(line)
            if opened:
                current = opened[2]
                self.computations[current] = {}
                self.entry = current if opened[1] else self.entry
            elif current and (instruction := _parse_line(line, current)):
                self.computations[current][instruction.name] = instruction
        if not self.entry:
            raise ValueError(
                "expected the text of a compiled XLA program, got one without an entry computation"
            )
        aliases = re.search(r"input_output_alias=\{(.*?\)) \}", header)
        # Of each result that takes the memory of a parameter: which one.
        self.aliases = (
            {int(out or 0): int(into) for out, into in _ALIAS.findall(aliases[1])}
            if aliases
            else {}
        )

    @property
    def instructions(self) -> list[Instruction]:
        """All of them, also inside kernels."""
        return [x for computation in self.computations.values() for x in computation.values()]

    def _named(self, instruction: Instruction) -> list[str]:
        names = [name for _, name in _NAMED.findall(instruction.attributes)]
        for branches in _BRANCHES.findall(instruction.attributes):
            names += [name.strip().lstrip("%") for name in branches.split(",")]
        return [name for name in names if name in self.computations]

    @functools.cached_property
    def running(self) -> list[Instruction]:
        """Those of the entry and of its loops, branches and calls."""
        found = []
        waiting = [self.entry]
        while waiting:
            name = waiting.pop()
            if name in found:
                continue
            found.append(name)
            waiting += [
                inner
                for x in self.computations[name].values()
                if x.opcode in _FLOW
                for inner in self._named(x)
            ]
        return [x for name in found for x in self.computations[name].values()]

    @property
    def kernels(self) -> list[Instruction]:
        """What takes time: at least one launch each."""
        return [x for x in self.running if x.opcode not in _FREE and not x.opcode.endswith("-done")]

    def num_bytes_moved(self, kernel: Instruction) -> int:
        """Size of what it reads and writes, each operand once and whole."""
        near = self.computations[kernel.computation]
        return kernel.num_bytes + sum(
            near[name].num_bytes for name in kernel.operands if name in near
        )

    def of_type(self, *kinds: str) -> list[Instruction]:
        """Instructions, also inside kernels, with an array of these element types."""
        return [x for x in self.instructions if any(kind in kinds for kind, _ in x.arrays)]

    def transfers(self) -> list[Instruction]:
        """What waits for the host, or moves data to or from it."""
        return [
            x
            for x in self.instructions
            if x.opcode.removesuffix("-start") in _TRANSFERS
            or (x.target and _TRANSFER_TARGETS.search(x.target))
            or _HOST_MEMORY.search(x.type)
        ]

    def collectives(self) -> list[Instruction]:
        """What devices exchange."""
        return [x for x in self.instructions if x.opcode.removesuffix("-start") in _COLLECTIVES]

    def sorts(self) -> list[Instruction]:
        """XLA's sorts and calls of a library's."""
        return [x for x in self.instructions if x.opcode == "sort" or "cub$" in x.target.lower()]

    def _moved_only(self, instruction: Instruction, computation: dict[str, Instruction]) -> bool:
        """Whether it is a parameter's data, moved."""
        has_copy = False
        while instruction.opcode in _MOVES:
            has_copy |= instruction.opcode in ("copy", "transpose")
            instruction = computation[instruction.operands[0]]
        return has_copy and instruction.opcode == "parameter"

    def _copied_by(self, kernel: Instruction) -> list[tuple[str, tuple[int, ...]]]:
        if kernel.opcode in ("copy", "copy-start", "transpose"):
            return kernel.arrays[:1]
        if kernel.opcode != "fusion":
            return []
        inner = self.computations[self._named(kernel)[0]]
        root = next(x for x in inner.values() if x.is_root)
        results = [inner[name] for name in root.operands] if root.opcode == "tuple" else [root]
        return [result.arrays[0] for result in results if self._moved_only(result, inner)]

    def copies(self) -> list[tuple[Instruction, tuple[int, ...]]]:
        """Kernels that write what they read, also as one of several results, with the shape of what
        they copy.
        """
        return [(kernel, shape) for kernel in self.kernels for _, shape in self._copied_by(kernel)]

    def products(self) -> list[Product]:
        """Products of matrices, also inside kernels, and calls of linear algebra libraries."""
        kernel_of = {
            name: x for x in self.running if x.opcode == "fusion" for name in self._named(x)
        }
        found = []
        for x in self.instructions:
            if x.opcode == "dot":
                sides = self.computations[x.computation]
                axes = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", x.attributes)
                shape = sides[x.operands[0]].arrays[0][1]
                contracted = math.prod(shape[int(axis)] for axis in axes[1].split(",") if axis)
                kernel = kernel_of.get(x.computation)
                found.append(
                    Product(
                        x,
                        contracted,
                        kernel is not None and "kind=kCustom" not in kernel.attributes,
                    )
                )
            elif x.target and _LIBRARY_TARGETS.search(x.target):
                found.append(Product(x, 0, False))
        return found


def listing(program: Program) -> str:
    """The program's kernels in the order in which the text has them, largest traffic marked by its
    size, and totals.
    """
    lines = [
        f"{program.num_bytes_moved(kernel) / 1e6:10.2f} MB  {kernel}" for kernel in program.kernels
    ]
    total = sum(program.num_bytes_moved(kernel) for kernel in program.kernels)
    calls = [x for x in program.kernels if x.target]
    own = sum(program.num_bytes_moved(x) for x in calls if x.target.startswith("cosurfgs_"))
    lines.append(
        f"{len(program.kernels)} kernels and calls ({len(calls)} calls), {len(program.sorts())} "
        "sorts, "
        f"{len(program.copies())} copies, {(total - own) / 1e6:.1f} MB read and written by XLA's "
        "kernels"
    )
    return "\n".join(lines)
