"""Seeded ways to spoil files: bytes, text and JSON."""

import copy
import json
import struct

import numpy as np

_TOKENS = (
    b"",
    b"nan",
    b"inf",
    b"-inf",
    b"1e308",
    b"1e-308",
    b"-1",
    b"0",
    b"99999999999999999999",
    b"0x10",
    b"1_0",
    b"1,5",
    b"#",
    b"\0",
    b"\xff\xfe",
    b"\xe9",
    b"..",
    b"/",
    b"../../x",
    b"a" * 300,
    b"-nan",
    b"+1",
    b"1.",
    b".5",
    b"\xef\xbb\xbf",
)
_VALUES = (
    None,
    True,
    False,
    -1,
    0,
    1e308,
    float("nan"),
    float("inf"),
    10**400,
    "",
    "x",
    "..",
    "\0",
    "\udc80",
    [],
    {},
    [[]],
    [None],
    {"a": []},
    [[1, 2], [3]],
    "1",
    0.5,
    2**63,
)
_NUMBERS = (
    struct.pack("<d", float("nan")),
    struct.pack("<d", 1e300),
    struct.pack("<d", float("inf")),
    struct.pack("<d", -1e-300),
    struct.pack("<Q", 2**64 - 1),
    struct.pack("<Q", 2**62),
    struct.pack("<Q", 0),
    struct.pack("<I", 2**31),
    struct.pack("<I", 2**32 - 1),
    struct.pack("<f", float("nan")),
    b"\0" * 8,
    b"\xff" * 4,
)


def spoil_bytes(rng: np.random.Generator, data: bytes) -> bytes:
    """Bits turned, parts cut out, doubled, moved or filled, numbers replaced by extreme ones, the
    end cut off or lengthened.
    """
    for _ in range(1 + int(rng.integers(3))):
        raw = bytearray(data)
        place = int(rng.integers(len(raw) + 1))
        length = int(rng.integers(1, 1 + max(1, min(64, len(raw)))))
        match int(rng.integers(9)):
            case 0 if raw:
                raw[place % len(raw)] ^= 1 << int(rng.integers(8))
            case 1 if raw:
                raw[place % len(raw)] = int(rng.integers(256))
            case 2:
                del raw[place : place + length]
            case 3:
                raw[place:place] = raw[place : place + length]
            case 4:
                raw = raw[:place]
            case 5:
                raw += rng.bytes(length)
            case 6:
                number = _NUMBERS[int(rng.integers(len(_NUMBERS)))]
                raw[place : place + len(number)] = number
            case 7:
                raw[place : place + length] = b"\0" * length
            case _:
                raw[place:place] = rng.bytes(length)
        data = bytes(raw)
    return data


def spoil_text(rng: np.random.Generator, data: bytes) -> bytes:
    """Words replaced, doubled or left out, lines likewise, other ends of lines; now and then as
    `spoil_bytes`.
    """
    if rng.random() < 0.25:
        return spoil_bytes(rng, data)
    lines = data.split(b"\n")
    for _ in range(1 + int(rng.integers(2))):
        row = int(rng.integers(len(lines)))
        words = lines[row].split(b" ")
        word = int(rng.integers(len(words)))
        match int(rng.integers(7)):
            case 0 | 1:
                words[word] = _TOKENS[int(rng.integers(len(_TOKENS)))]
            case 2:
                del words[word]
            case 3:
                words.insert(word, words[word])
            case 4:
                lines.insert(row, lines[row])
            case 5:
                lines[row] = b""
            case _:
                lines[row] += (
                    b"\r" if rng.random() < 0.5 else b" " + lines[int(rng.integers(len(lines)))]
                )
        if words != lines[row].split(b" ") and row < len(lines) and words != [b""]:
            lines[row] = b" ".join(words)
    return b"\n".join(lines)


def _places(value, path=()):
    yield path
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, item in items:
        yield from _places(item, (*path, key))


def spoil_json(rng: np.random.Generator, data: bytes) -> bytes:
    """Values of other types and sizes, keys left out, lists lengthened; now and then as
    `spoil_text` or nested without end.
    """
    if rng.random() < 0.3:
        return spoil_text(rng, data)
    if rng.random() < 0.02:
        return b"[" * 100_000 + b"]" * 100_000
    content = json.loads(data)
    for _ in range(1 + int(rng.integers(2))):
        places = list(_places(content))
        path = places[int(rng.integers(len(places)))]
        value = copy.deepcopy(_VALUES[int(rng.integers(len(_VALUES)))])
        if not path:
            content = value
            continue
        holder = content
        for key in path[:-1]:
            holder = holder[key]
        match int(rng.integers(4)):
            case 0:
                del holder[path[-1]]
            case 1 if isinstance(holder, list):
                holder.append(copy.deepcopy(holder[path[-1]]))
            case _:
                holder[path[-1]] = value
    return json.dumps(content).encode("utf-8", "surrogatepass")
