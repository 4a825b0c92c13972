"""Basic blocks, loops and ways through the machine code of a GPU kernel, as nvdisasm prints it, for
scripts/count_gpu_instructions.py.
"""

import collections
import functools
import re

LINE = re.compile(
    r"\s*(?:/\*(?P<address>[0-9a-f]{4,})\*/\s+)?(?:@(?P<guard>!?U?P\w+)\s+)?(?P<code>\S.*?)\s*;"
)
COUNTED = ("MUFU", "LDS", "SHFL")


class Block:
    """Instructions that are run one after the other, and where they can go on."""

    def __init__(self):
        self.operations: list[str] = []
        self.next: list[int] = []


def split_blocks(lines: list[str]) -> list[Block]:
    """The basic blocks of one kernel's disassembly, by number; block 0 is the entry."""
    blocks = [Block()]
    labels = {}
    jumps = []
    is_open = True
    for line in lines:
        if label := re.match(r"(\.L_x_\d+):", line):
            blocks.append(Block())
            if is_open:
                blocks[-2].next.append(len(blocks) - 1)
            labels[label[1]] = len(blocks) - 1
            is_open = True
        elif match := LINE.match(line):
            if not is_open:
                blocks.append(Block())
                is_open = True
            operation = match["code"].split()[0]
            blocks[-1].operations.append(operation)
            if operation.startswith(("BRA", "EXIT", "RET")):
                target = re.search(r"\.L_x_\d+", match["code"])
                is_conditional = bool(match["guard"]) or re.match(
                    r"BRA\S*\s+!?U?P\d", match["code"]
                )
                if operation.startswith("BRA") and target:
                    jumps.append((len(blocks) - 1, target[0]))
                is_open = bool(is_conditional)
                if is_open:
                    blocks.append(Block())
                    blocks[-2].next.append(len(blocks) - 1)
    for source, label in jumps:
        blocks[source].next.append(labels[label])
    return blocks


def find_loops(blocks: list[Block]) -> list[tuple[int, set[int]]]:
    """(header, blocks) of every loop, by the edges that go back to a block on the way to them."""
    state = {}
    backward = []

    def walk(start: int) -> None:
        stack = [(start, iter(blocks[start].next))]
        state[start] = "open"
        while stack:
            block, following = stack[-1]
            for other in following:
                if state.get(other) == "open":
                    backward.append((block, other))
                elif other not in state:
                    state[other] = "open"
                    stack.append((other, iter(blocks[other].next)))
                    break
            else:
                state[block] = "done"
                stack.pop()

    walk(0)
    before = collections.defaultdict(set)
    for number, block in enumerate(blocks):
        for other in block.next:
            before[other].add(number)
    loops: dict[int, set[int]] = {}
    for last, header in backward:
        body = loops.setdefault(header, {header})
        waiting = [last]
        while waiting:
            block = waiting.pop()
            if block not in body:
                body.add(block)
                waiting.extend(before[block])
    return list(loops.items())


def way_round(
    blocks: list[Block],
    header: int,
    body: set[int],
    choose,
    skip: frozenset[int] = frozenset(),
    via: frozenset[int] = frozenset(),
) -> list[str]:
    """The operations on a way from a loop's header back to it, each block once.

    Args:
        header, body: of the loop.
        choose: min or max, by the number of operations.
        skip: blocks whose operations do not count.
        via: blocks that the shortest way must go through, where there is one.
    """
    on_way: set[int] = set()  # so that loops within are gone through once

    @functools.cache
    def from_block(number: int) -> tuple[int, tuple[int, ...]] | None:
        block = blocks[number]
        if "CALL.REL.NOINC" in block.operations:
            return None
        on_way.add(number)
        ways = []
        if header in block.next:
            ways.append((0, ()))
        ways += [
            way
            for other in block.next
            if other in body - {header} - on_way
            if (way := from_block(other)) is not None
        ]
        on_way.discard(number)
        if not ways:
            return None
        length, way = choose(ways, key=lambda way: way[0])
        own = 0
        if number not in skip:
            own = len(block.operations) - (number in via) * 10**6
        return length + own, (number, *way)

    found = from_block(header)
    if found is None:
        return []
    numbers = [number for number in found[1] if number not in skip]
    return [operation for number in numbers for operation in blocks[number].operations]


def holding(blocks: list[Block], body: set[int], what: str) -> frozenset[int]:
    """The blocks of a loop with an operation that begins like this."""
    return frozenset(
        number
        for number in body
        if any(operation.startswith(what) for operation in blocks[number].operations)
    )


def count_kernel(lines: list[str]) -> dict[str, int] | None:
    """Instructions of a visit by what is hit, of a ballot over 32 surfels, and of the rest of a
    batch; None without visits.
    """
    blocks = split_blocks(lines)
    loops = sorted(find_loops(blocks), key=lambda loop: len(loop[1]))
    around = [loop for loop in loops if holding(blocks, loop[1], "MUFU.EX2")]
    if not around:
        return None
    header, body = around[0]
    hit = way_round(blocks, header, body, max)
    adding = holding(blocks, body, "SHFL")
    half = hit
    if adding:
        half = way_round(blocks, header, body, min, via=adding)
    counts = {
        "no_hit": len(way_round(blocks, header, body, min)),
        "half": len(half),
        "hit": len(hit),
    }
    counts |= {name: sum(operation.startswith(name) for operation in hit) for name in COUNTED}
    outer_header, outer = around[-1]
    counts["rest"] = len(way_round(blocks, outer_header, outer, max, frozenset(body)))
    counts["ballot"] = 0
    if len(around) > 2:
        chunk_header, chunk = around[1]
        counts["ballot"] = len(way_round(blocks, chunk_header, chunk, max, frozenset(body)))
    return counts
