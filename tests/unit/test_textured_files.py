"""Files of textured meshes, byte by byte: what other readers are told."""

import io
import json
import struct

import numpy as np
import pytest
from PIL import Image

from cosurfgs_jax.surface.atlas import TexturedMesh
from cosurfgs_jax.surface.mesh import Mesh
from cosurfgs_jax.surface.textured_files import write_textured_glb, write_textured_obj

CORNERS = np.array([[0.0, 0, 0], [2, 0, 0], [2, 2, 0], [0, 2, 0]])
UVS = np.array([[[0.0, 0], [1, 0], [1, 1]], [[0, 0], [1, 1], [0, 0.5]]], np.float32)


@pytest.fixture(scope="module")
def textured():
    """Two triangles that share a side, with the same places in the picture there; one normal is
    missing.
    """
    normals = np.array([[0, 0, 1], [0, 0, 1], [0, 0, 0], [0, 0, 1]], np.float32)
    mesh = Mesh(
        CORNERS + [10.0, 20, 30],
        np.array([[0, 1, 2], [0, 2, 3]], np.int32),
        np.zeros((4, 3), np.uint8),
        normals,
    )
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    return TexturedMesh(mesh, UVS, noise)


def test_a_glb_file_to_the_byte(textured, tmp_path):
    write_textured_glb(tmp_path / "a.glb", textured, np.array([0, 0, 1.0]))
    data = (tmp_path / "a.glb").read_bytes()
    magic, version, length = struct.unpack_from("<4sII", data)
    assert (magic, version, length) == (b"glTF", 2, len(data))
    size, kind = struct.unpack_from("<I4s", data, 12)
    assert kind == b"JSON" and size % 4 == 0
    content = json.loads(data[20 : 20 + size])
    rest, kind = struct.unpack_from("<I4s", data, 20 + size)
    binary = data[28 + size :]
    assert kind == b"BIN\0" and rest == len(binary) and rest % 4 == 0
    # Numbers are those of glTF 2.0: 5126 float, 5125 unsigned int, 34962 and 34963 vertices and
    # indices, 9729 linear, 9987 linear between mipmaps, 33071 clamped to the edge.
    kinds = [
        {"bufferView": 0, "componentType": 5126, "count": 4, "type": "VEC3",
         "min": [-1, -1, 0], "max": [1, 1, 0]},
        {"bufferView": 1, "componentType": 5126, "count": 4, "type": "VEC3"},
        {"bufferView": 2, "componentType": 5126, "count": 4, "type": "VEC2"},
        {"bufferView": 3, "componentType": 5125, "count": 6, "type": "SCALAR"},
    ]  # fmt: skip
    assert content["accessors"] == kinds
    views = content["bufferViews"]
    assert [view.get("target") for view in views] == [34962, 34962, 34962, 34963, None]
    assert [view["byteLength"] for view in views[:4]] == [48, 48, 32, 24]
    assert [view["byteOffset"] for view in views] == [0, 48, 96, 128, 152]
    assert all(view["buffer"] == 0 for view in views)
    assert content["buffers"] == [{"byteLength": rest}]
    assert content["samplers"] == [
        {"magFilter": 9729, "minFilter": 9987, "wrapS": 33071, "wrapT": 33071}
    ]
    assert content["images"] == [{"mimeType": "image/jpeg", "bufferView": 4}]
    assert content["textures"] == [{"source": 0, "sampler": 0}]
    (material,) = content["materials"]
    assert material["pbrMetallicRoughness"] == {
        "baseColorTexture": {"index": 0}, "metallicFactor": 0, "roughnessFactor": 1
    }  # fmt: skip
    assert list(material["extensions"]) == content["extensionsUsed"] == ["KHR_materials_unlit"]
    assert content["meshes"] == [
        {
            "primitives": [
                {
                    "attributes": {"POSITION": 0, "NORMAL": 1, "TEXCOORD_0": 2},
                    "indices": 3,
                    "material": 0,
                }
            ]
        }
    ]
    (node,) = content["nodes"]
    assert node["mesh"] == 0 and content["scenes"] == [{"nodes": [0]}] and content["scene"] == 0
    # Columns of the matrix: (x, z, -y), and the middle of the mesh turned so.
    matrix = [[1, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [11, 30, -21, 1]]
    np.testing.assert_allclose(np.reshape(node["matrix"], (4, 4)), matrix, atol=1e-12)

    def array(number, kind, columns):
        view = views[number]
        part = binary[view["byteOffset"] : view["byteOffset"] + view["byteLength"]]
        return np.frombuffer(part, kind).reshape(-1, columns)

    indices = array(3, "<u4", 1)[:, 0]
    places = array(0, "<f4", 3)[indices].reshape(2, 3, 3)
    np.testing.assert_array_equal(places, CORNERS[textured.mesh.triangles] - [1, 1, 0])
    np.testing.assert_array_equal(array(1, "<f4", 3), [[0, 0, 1]] * 4)  # up, where there is none
    np.testing.assert_array_equal(array(2, "<f4", 2)[indices].reshape(2, 3, 2), UVS)
    view = views[4]
    picture = binary[view["byteOffset"] : view["byteOffset"] + view["byteLength"]]
    assert picture == _jpeg(textured.picture)


def _jpeg(picture: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(picture).save(content, "JPEG", quality=92, subsampling=0, optimize=True)
    return content.getvalue()


def test_an_obj_file_to_the_letter(textured, tmp_path):
    """Its places count upwards, and from 1; normals have the numbers of their vertices."""
    write_textured_obj(tmp_path / "b.obj", textured)
    lines = (tmp_path / "b.obj").read_text().splitlines()
    assert lines[1] == "mtllib b.mtl" and "usemtl photographs" in lines

    def numbers(name):
        return [line.split()[1:] for line in lines if line.split()[0] == name]

    np.testing.assert_allclose(np.array(numbers("v"), float), CORNERS + [10, 20, 30])
    assert numbers("vt") == [
        ["0.000000", "1.000000"],
        ["0.000000", "0.500000"],
        ["1.000000", "1.000000"],
        ["1.000000", "0.000000"],
    ]
    assert numbers("vn")[0] == ["0.0000", "0.0000", "1.0000"]
    assert numbers("f") == [["1/1/1", "2/3/2", "3/4/3"], ["1/1/1", "3/4/3", "4/2/4"]]
    assert (tmp_path / "b.mtl").read_text().splitlines() == [
        "newmtl photographs", "Kd 1 1 1", "Ks 0 0 0", "illum 1", "map_Kd b.jpg"
    ]  # fmt: skip
    assert (tmp_path / "b.jpg").read_bytes() == _jpeg(textured.picture)
