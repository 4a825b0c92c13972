"""Files of a textured mesh: binary glTF, and OBJ with a material and a picture. Written here, as
trimesh would store the picture as PNG or with JPEG's quality of 75, and cannot say that the light
is in the picture already.
"""

import io
import json
import os
import struct
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np
from PIL import Image

from cosurfgs_jax import files
from cosurfgs_jax.surface.atlas import TexturedMesh
from cosurfgs_jax.surface.mesh_files import digits_of, upright

_QUALITY = 92  # of the JPEG: 3 bits a pixel
_MAGIC = 0x46546C67  # "glTF"
_JSON = 0x4E4F534A
_BINARY = 0x004E4942
_FLOAT = 5126
_UNSIGNED_INT = 5125
_VERTICES = 34962  # what a part of the buffer holds
_INDICES = 34963
_LINEAR = 9729
_LINEAR_MIPMAPS = 9987
_TO_EDGE = 33071


def _jpeg(textured: TexturedMesh) -> bytes:
    content = io.BytesIO()
    picture = Image.fromarray(textured.picture)
    picture.save(content, "JPEG", quality=_QUALITY, subsampling=0, optimize=True)
    return content.getvalue()


class _Buffer:
    """The binary part of a glTF file."""

    def __init__(self) -> None:
        self.content = bytearray()
        self.views: list[dict[str, Any]] = []
        self.accessors: list[dict[str, Any]] = []

    def add(self, content: bytes, target: int = 0) -> int:
        """Appends bytes; the number of their view."""
        view: dict[str, Any] = {"buffer": 0, "byteOffset": len(self.content)}
        view["byteLength"] = len(content)
        if target:
            view["target"] = target
        self.views.append(view)
        self.content += content + b"\0" * (-len(content) % 4)
        return len(self.views) - 1

    def add_array(self, array: np.ndarray, target: int, has_limits: bool = False) -> int:
        """Appends vectors or numbers; the number of their accessor."""
        kinds = {1: "SCALAR", 2: "VEC2", 3: "VEC3"}
        component = _UNSIGNED_INT if target == _INDICES else _FLOAT
        accessor: dict[str, Any] = {
            "bufferView": self.add(array.tobytes(), target),
            "componentType": component,
            "count": len(array),
            "type": kinds[array.shape[1] if array.ndim > 1 else 1],
        }
        if has_limits:
            accessor["min"] = array.min(axis=0).tolist()
            accessor["max"] = array.max(axis=0).tolist()
        self.accessors.append(accessor)
        return len(self.accessors) - 1


class Around(NamedTuple):
    """Where coordinates of a GLB file count from, dataset frame.

    | field    | shape  | content                                                         |
    |----------|--------|-----------------------------------------------------------------|
    | `middle` | f64[3] | of the vertices in the file                                     |
    | `origin` | f64[3] | of what its node places; several files have the same one        |
    """

    middle: np.ndarray
    origin: np.ndarray


def write_textured_glb(
    path: str | os.PathLike, textured: TexturedMesh, up: np.ndarray, around: Around | None = None
) -> None:
    """Writes a binary glTF file with its picture inside, atomically. Its material is unlit: the
    light is that of the photographs.

    glTF is y up and its vertices are float32: they are laid around the mesh's middle, and its node
    turns and moves them. Vertices of the file, placed by the node, are the dataset's, turned so
    that `up` is y.

    Args:
        path: the file.
        textured: dataset frame.
        up: f64[3], dataset frame.
        around: None = the mesh's middle, and the origin of the dataset.
    """
    mesh = textured.mesh
    middle, origin = around or Around(mesh.middle, np.zeros(3))
    # A vertex of the file is one of the mesh at one place of the picture.
    corners = mesh.triangles.ravel()
    keyed = np.empty(len(corners), [("vertex", np.int32), ("uv", np.float32, 2)])
    keyed["vertex"] = corners
    keyed["uv"] = textured.uvs.reshape(-1, 2)
    bits = np.ascontiguousarray(keyed).view(np.dtype((np.void, keyed.itemsize)))
    _, first, numbers = np.unique(bits, return_index=True, return_inverse=True)
    normals = mesh.vertex_normals[corners[first]]
    normals = np.where(np.linalg.norm(normals, axis=1, keepdims=True) > 0.5, normals, up)
    normals = normals / np.linalg.norm(normals, axis=1, keepdims=True)
    buffer = _Buffer()
    attributes = {
        "POSITION": buffer.add_array(
            (mesh.vertices[corners[first]] - middle).astype("<f4"), _VERTICES, has_limits=True
        ),
        "NORMAL": buffer.add_array(normals.astype("<f4"), _VERTICES),
        "TEXCOORD_0": buffer.add_array(keyed["uv"][first].astype("<f4"), _VERTICES),
    }
    indices = buffer.add_array(numbers.ravel().astype("<u4"), _INDICES)
    matrix = np.eye(4)
    matrix[:3, :3] = upright(up)
    matrix[:3, 3] = matrix[:3, :3] @ (middle - origin)
    content = {
        "asset": {"version": "2.0", "generator": "cosurfgs_jax"},
        "extensionsUsed": ["KHR_materials_unlit"],
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"name": "mesh", "mesh": 0, "matrix": matrix.T.ravel().tolist()}],
        "meshes": [{"primitives": [{"attributes": attributes, "indices": indices, "material": 0}]}],
        "materials": [_MATERIAL],
        "textures": [{"source": 0, "sampler": 0}],
        "samplers": [_SAMPLER],
        "images": [{"mimeType": "image/jpeg", "bufferView": buffer.add(_jpeg(textured))}],
        "accessors": buffer.accessors,
        "bufferViews": buffer.views,
        "buffers": [{"byteLength": len(buffer.content)}],
    }
    text = json.dumps(content, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    length = 12 + 8 + len(text) + 8 + len(buffer.content)
    with files.atomic_path(path) as temporary, open(temporary, "wb") as file:
        file.write(struct.pack("<III", _MAGIC, 2, length))
        file.write(struct.pack("<II", len(text), _JSON) + text)
        file.write(struct.pack("<II", len(buffer.content), _BINARY))
        file.write(buffer.content)


_MATERIAL = {
    "name": "photographs",
    "pbrMetallicRoughness": {
        "baseColorTexture": {"index": 0},
        "metallicFactor": 0,
        "roughnessFactor": 1,
    },
    "extensions": {"KHR_materials_unlit": {}},
}
_SAMPLER = {
    "magFilter": _LINEAR,
    "minFilter": _LINEAR_MIPMAPS,
    "wrapS": _TO_EDGE,
    "wrapT": _TO_EDGE,
}


def write_textured_obj(path: str | os.PathLike, textured: TexturedMesh) -> None:
    """Writes an OBJ file with normals, and beside it the material (.mtl) and the picture (.jpg) of
    the same name; the dataset's frame. All three are written before the first takes the place of
    an earlier one, for the charts of each call lie elsewhere in the picture.
    """
    path = Path(path)
    with (
        files.atomic_path(path) as obj,
        files.atomic_path(path.with_suffix(".mtl")) as material,
        files.atomic_path(path.with_suffix(".jpg")) as picture,
    ):
        picture.write_bytes(_jpeg(textured))
        text = f"newmtl photographs\nKd 1 1 1\nKs 0 0 0\nillum 1\nmap_Kd {path.stem}.jpg\n"
        material.write_text(text, encoding="ascii")
        with open(obj, "w", encoding="ascii") as file:
            _write_obj(file, textured, path.stem)


def _write_obj(file: TextIO, textured: TexturedMesh, stem: str) -> None:
    mesh = textured.mesh
    uvs = textured.uvs.reshape(-1, 2).astype(np.float64)
    places, numbers = np.unique(uvs, axis=0, return_inverse=True)
    places[:, 1] = 1 - places[:, 1]  # OBJ counts upwards
    corners = np.stack([mesh.triangles, numbers.reshape(-1, 3), mesh.triangles], axis=2)
    digits = digits_of(mesh)
    file.write(f"# cosurfgs_jax textured mesh\nmtllib {stem}.mtl\n")
    np.savetxt(file, mesh.vertices, fmt=f"v %.{digits}f %.{digits}f %.{digits}f")
    np.savetxt(file, places, fmt="vt %.6f %.6f")
    np.savetxt(file, mesh.vertex_normals, fmt="vn %.4f %.4f %.4f")
    file.write("usemtl photographs\n")
    np.savetxt(file, corners.reshape(-1, 9) + 1, fmt="f %d/%d/%d %d/%d/%d %d/%d/%d")
