"""Files of `torch.save`, read without PyTorch and without running anything that they name: the
archives of version 1.6 and later, and the older form before them.
"""

import io
import math
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cosurfgs_jax.files import reading
from cosurfgs_jax.formats.pickle_values import Names, read_pickle, skip_pickle

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_VERSION = 1001
_DTYPES = {
    "torch.FloatStorage": "<f4",
    "torch.DoubleStorage": "<f8",
    "torch.HalfStorage": "<f2",
    "torch.LongStorage": "<i8",
    "torch.IntStorage": "<i4",
    "torch.ShortStorage": "<i2",
    "torch.CharStorage": "i1",
    "torch.ByteStorage": "u1",
}


class _StorageType(NamedTuple):
    dtype: np.dtype


def _tensor(storage, offset, size, stride, *_) -> np.ndarray:
    """A tensor as a view of its storage, which is checked to lie within it."""
    if not isinstance(storage, np.ndarray) or len(size) != len(stride):
        raise ValueError("a tensor without storage")
    if not all(isinstance(number, int) and number >= 0 for number in (offset, *size, *stride)):
        raise ValueError("a tensor of impossible shape")
    count = math.prod(size)
    last = offset + sum((side - 1) * step for side, step in zip(size, stride, strict=True))
    if count > len(storage) or (count and last >= len(storage)):
        raise ValueError("a tensor larger than its storage")
    if not count:
        return np.empty(size, storage.dtype)
    steps = [step * storage.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(storage[offset:], size, steps, writeable=False)


def _names(storage_of: Callable[[str], bytes]) -> Names:
    known: dict[str, np.ndarray] = {}

    def outside(key) -> np.ndarray:
        what, kind, name, _, count, *view = key
        if what != "storage" or not isinstance(kind, _StorageType) or any(view):
            raise ValueError("something else than a storage lies outside of the pickle")
        if name not in known:
            known[name] = np.frombuffer(storage_of(name), kind.dtype)
        if len(known[name]) != count or known[name].dtype != kind.dtype:
            raise ValueError(f"storage {name} has not the size that it should have")
        return known[name]

    return Names(
        functions={
            "collections.OrderedDict": lambda *items: dict(*items),
            "torch._utils._rebuild_tensor_v2": _tensor,
            "torch._utils._rebuild_tensor": _tensor,
            "torch._utils._rebuild_parameter": lambda data, *_: data,
            "torch.Size": tuple,
        },
        constants={name: _StorageType(np.dtype(code)) for name, code in _DTYPES.items()},
        outside=outside,
    )


def _read_archive(file: io.BufferedIOBase, source: str) -> Any:
    with zipfile.ZipFile(file) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}

        def content(name: str) -> bytes:
            entry = entries[name]
            if entry.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"{name} is compressed")
            return archive.read(entry)

        (head,) = [name for name in entries if name.split("/")[1:] == ["data.pkl"]]
        folder = head.removesuffix("data.pkl")
        if f"{folder}byteorder" in entries and content(f"{folder}byteorder") != b"little":
            raise ValueError("its numbers are big endian")
        names = _names(lambda key: content(f"{folder}data/{key}"))
        return read_pickle(io.BytesIO(content(head)), names, source)


def _no_storage(key: str) -> bytes:
    raise ValueError(f"storage {key} is not there")


def _read_legacy(file: io.BufferedIOBase, source: str) -> Any:
    plain = _names(_no_storage)
    if read_pickle(file, plain, source) != _LEGACY_MAGIC:
        raise ValueError("it does not begin like a file of torch.save")
    if read_pickle(file, plain, source) != _LEGACY_VERSION:
        raise ValueError("its version is unknown")
    if not read_pickle(file, plain, source)["little_endian"]:
        raise ValueError("its numbers are big endian")
    start = file.tell()
    skip_pickle(file)
    keys = read_pickle(file, plain, source)
    rest = memoryview(file.read())
    # Each storage is its number of elements and the elements, whose size the pickle before says.
    places = {}

    def outside(key) -> np.ndarray:
        _, kind, name, _, count, *_ = key
        places[name] = kind.dtype.itemsize * count
        return np.empty(0, kind.dtype)

    file.seek(start)
    functions = dict.fromkeys(plain.functions, lambda *_: {})
    read_pickle(file, plain._replace(functions=functions, outside=outside), source)
    parts = {}
    for key in keys:
        parts[key] = rest[8 : 8 + places[key]]
        rest = rest[8 + places[key] :]
    file.seek(start)
    return read_pickle(file, _names(lambda key: bytes(parts[key])), source)


def read_torch(path: Path) -> Any:
    """What `torch.save` has written: dictionaries, lists, numbers and texts, and tensors as arrays.

    Args:
        path: of the file.
    Returns:
        The value; arrays are read-only, of the tensors' own types. Classes of Python become
        nothing: an OrderedDict is a dict.
    Raises:
        InputError: damaged, or with anything else in it; the message names that. It is not run.
    Source: the description of the format in PyTorch's notes on serialization.
    """
    advice = "restore it, or save it again with torch.save"
    with reading(path, "a file of torch.save", advice), open(path, "rb") as file:
        is_archive = file.read(4) == b"PK\x03\x04"
        file.seek(0)
        read = _read_archive if is_archive else _read_legacy
        return read(file, str(path))
