"""Files of torch.save: read without PyTorch, and nothing in them is run."""

import base64
import pickle
import zipfile
import zlib

import numpy as np
import pytest
from scene_layouts import write_torch

from cosurfgs_jax.errors import InputError
from cosurfgs_jax.formats.torch_file import read_torch

# As PyTorch 1.13 wrote them: {"H": 3, "c2w": torch.arange(12.0).reshape(3, 4).t(), "n": None,
# "b": [True, 2.5, 2**40], "i": torch.arange(6)[2:4]}, in the older form and as an archive.
OLDER = """
eNpdUMFu00AQXa8dhy4JBGiBcsrRXKLgpJY4tZVQqbRtoeHiS2WlzireyvJm7HURlSLlkijtN/TAkc/gU3rtJ1TqgbHjIsrI
b9/u7HjnvZnRKxbfX+/dtc9+fd3szOjhrYnrFIjjtwghk1RpFao4OBdpJlUCBhb4TbyJpdaxCEQyksME6NJnmNQ/JiLI5IXI
wJyC5fg1TGaRSjXUOPVNPMlEg80t3yreUMkY6tzK84eeBmb3weBmWRu634GGWqVh1AlyLeOMBak4zWU8CrRIMpUG5y4D03H8
etEIK4djAdbqF7YXq6H+tkoyqPlrWNP70P/Y97wtD+xVi0mOChpHGp4cc8Itbi5gjRvcWgC7DNF5LEKNxjP2JR2JVIw+yVAz
ePp+AA0NzQE8KzUn8Pyo3JxC6wReOMvPO4VBjCu7JEOU1xJeRig3epB4gBP4q/BVpdDbct2e24X1qM5tVLZxzCmnc3jNjTm8
uYyK5m81bA7gXTG4k2Jwj70Z/71ERadB/o3ZNi47+CFmiJ+I34gbBNklpIVoI7q7NnkcRsW0YrPiyi6pVfwH1emIxA==
"""
ARCHIVE = """
eNqFU8tu00AUHT/iBFMS0xe0EogdQYI0LXtoo8pUGgRuEFJAQpHrDLGFFffak5RNpWxa0X5EVXZ8Bhvaddkj8Q/8ANf2JLVd
HiMfX8tzz71nzrUtqqiEVCrkyjLILLFDx/VGbKVnc7ux+8E3W1XyNrfG8j6QekdCwhZIVOko+OSs7YHs8ADZje6Qe36kd0O2
M/T8XpezQRSE3dGaDkq93iljeoSZdp+BmlJ00w9s/ip9qUMpKd4ELS29O4QyneFQ2aaEqlQ5hGtUouoh6EeOE/g+c7gXDCL9
ZdhjIetteg7X4fqDNiDnRhuqSbUB1F4kDztgvIOb9U/P1tX01MdaEiSWbHsw66JKd6LseTDoT4XNJSmrMO+WqcZhYZvKVD6A
RSodwK0jN+55m8NSG5aHDYuWK2++/DDuIyWG9Vfbq+ROzvaVptlaKpieWSlp/BRv63ghxohTxFfETwTZwFki7iGaG7GQj/vv
nzRjT8m/hcznhayaLYP8uT8aJqIsoiKisJWURIz7z5yfff5//xqZm/YfsTDCqZqtWlHAYz2ueHHSfy2L7haVEhGTmlnbjStd
il94kZ31qppj7kmkMKgiN3vOPDcWmve2yM2eqJajjjNc4YtFNe2h2L6rPJqmqoX4S8Tv8mQYWvz/kW/K5RAtWtJSjprkp7m/
AVyCvts=
"""


@pytest.mark.parametrize("packed", [OLDER, ARCHIVE], ids=["older", "archive"])
def test_files_of_pytorch(tmp_path, packed):
    path = tmp_path / "a.pt"
    path.write_bytes(zlib.decompress(base64.b64decode(packed)))
    found = read_torch(path)
    assert (found["H"], found["n"], found["b"]) == (3, None, [True, 2.5, 2**40])
    np.testing.assert_array_equal(found["c2w"], np.arange(12.0).reshape(3, 4).T)
    np.testing.assert_array_equal(found["i"], [2, 3])
    assert found["c2w"].dtype == np.float32 and found["i"].dtype == np.int64
    assert not found["c2w"].flags.writeable


def test_files_of_our_writer(tmp_path):
    value = {"a": np.arange(6.0).reshape(2, 3), "b": {"c": 2.5, "d": "text"}, "e": 7}
    write_torch(tmp_path / "a.pt", value)
    found = read_torch(tmp_path / "a.pt")
    np.testing.assert_array_equal(found["a"], value["a"])
    assert found["b"] == value["b"] and found["e"] == 7


class Hostile:
    """Runs a command where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (exec, (f"open({str(self.path)!r}, 'w').close()",))


@pytest.mark.parametrize("is_archive", [True, False])
def test_what_a_file_names_is_refused_and_not_run(tmp_path, is_archive):
    path = tmp_path / "a.pt"
    content = pickle.dumps({"x": Hostile(tmp_path / "was_run")}, protocol=2)
    if is_archive:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a/data.pkl", content)
    else:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"a\.pt: expected tensors, .*got '__builtin__\.exec'"):
        read_torch(path)
    assert not (tmp_path / "was_run").exists()
    pickle.loads(content)  # so the file would have
    assert (tmp_path / "was_run").exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"_rebuild_tensor_v2", b"_rebuild_sparse_XX", "got 'torch._utils._rebuild_sparse_XX'"),
        (b"FloatStorage", b"BFloat16Stor", "got 'torch.BFloat16Stor'"),
        (b"J\x0c\x00\x00\x00", b"J\x0d\x00\x00\x00", "storage 0 has not the size"),
        (b"J\x04\x00\x00\x00", b"J\x05\x00\x00\x00", "larger than its storage"),
        (b"J\x01\x00\x00\x00", b"J\xff\xff\xff\xff", "impossible shape"),
        (b"}(", b"](", "something else than a dictionary is filled"),
        (b"u.", b"b.", "the stack of the pickle is empty|something else"),
        (b"\x80\x02", b"\x80\x02I9999\n0", "the pickle opcode INT"),
    ],
)
def test_spoilt_files_are_refused_by_name(tmp_path, old, new, message):
    path = tmp_path / "a.pt"
    write_torch(path, {"a": np.arange(12.0, dtype=np.float32).reshape(3, 4)})
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    assert old in parts["archive/data.pkl"]
    parts["archive/data.pkl"] = parts["archive/data.pkl"].replace(old, new)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    with pytest.raises(InputError, match=message):
        read_torch(path)


def test_packed_archives_and_other_files_are_refused(tmp_path):
    path = tmp_path / "a.pt"
    write_torch(path, {"a": np.zeros(12, np.float32)})
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    with pytest.raises(InputError, match="is compressed"):
        read_torch(path)
    for content in (b"", b"PK\x03\x04", b"\x80\x02K\x01.", b"ply\n"):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"expected a file of torch\.save|expected tensors"):
            read_torch(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_torch(tmp_path / "none.pt")


def test_a_memo_of_two_billion_costs_nothing(tmp_path):
    """The standard library's unpickler would make room for that many values."""
    content = b"\x80\x02}r\xff\xff\xff\x7f."
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("a/data.pkl", content)
    assert read_torch(tmp_path / "a.pt") == {}
