"""Mesh files of other programs: OBJ and GLB. PLY, which can be written part by part, is
in `mesh`.
"""

import dataclasses
import os

import numpy as np
from jaxtyping import UInt8

from cosurfgs_jax import pictures
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.files import atomic_path
from cosurfgs_jax.surface.mesh import CONFIDENCE, Mesh

FORMATS = ("ply", "obj", "glb")
BYTES_PER_TRIANGLE = {
    "ply": 0,
    "obj": 700,
    "glb": 250,
}  # at the peak, with the mesh; 580 and 125 beside it measured on 1 million


def import_trimesh():
    """The trimesh module. Open3D writes OBJ files too, but with six digits: map coordinates would
    lose their metres.

    Raises:
        InputError: it is not installed.
    """
    try:
        import trimesh
    except ImportError as error:
        raise InputError(
            'trimesh is needed for OBJ and GLB files: pip install "cosurfgs_jax[mesh]"'
        ) from error
    return trimesh


def check_format(form: str) -> None:
    """Refuses what could not be written, before the long work.

    Raises:
        InputError: an unknown format, or its library is missing.
    """
    if form not in FORMATS:
        raise InputError(f"--format: expected {', '.join(FORMATS)}, got {form!r}")
    if form != "ply":
        import_trimesh()


def upright(up: np.ndarray) -> np.ndarray:
    """Rotation f64[3,3] from the dataset's axes, whose vertical is `up`, to those with y up: z up
    becomes (x, z, -y).
    """
    y = np.asarray(up, np.float64) / np.linalg.norm(up)
    x = np.eye(3)[0] if abs(y[0]) < 0.9 else np.eye(3)[1]
    x = x - (x @ y) * y
    x /= np.linalg.norm(x)
    return np.stack([x, y, np.cross(x, y)])


def digits_of(mesh: Mesh) -> int:
    """Decimals of coordinates as text: a thousandth of an edge."""
    return max(6, int(np.ceil(3 - np.log10(max(mesh.typical_edge, 1e-300)))))


def write_obj(path: str | os.PathLike, mesh: Mesh) -> None:
    """Writes an OBJ file with normals and, behind each vertex, its colour, atomically; the
    dataset's frame. The format has no place for the confidence.
    """
    trimesh = import_trimesh()
    text = trimesh.exchange.obj.export_obj(
        _to_trimesh(trimesh, mesh, mesh.vertices),
        include_normals=True,
        include_color=True,
        digits=digits_of(mesh),
        header="cosurfgs_jax mesh",
    )
    with atomic_path(path) as temporary, open(temporary, "w", encoding="ascii") as file:
        file.write(text)


def linear_colors(colors: UInt8[np.ndarray, "m 3"]) -> UInt8[np.ndarray, "m 3"]:
    """Colours as glTF wants them at vertices: in proportion to light, not as a photograph has them.
    IEC 61966-2-1. Eight bits, so that the darkest tenth has 3 levels.
    """
    fraction = colors / 255
    light = np.where(fraction <= 0.04045, fraction / 12.92, ((fraction + 0.055) / 1.055) ** 2.4)
    return pictures.to_uint8(light)


def matte(tree: dict) -> None:
    """Gives the meshes of a glTF file a material: those without one are of bare metal, which is
    dark or a mirror.

    Args:
        tree: JSON of the file, changed in place.
    """
    tree["materials"] = [{"pbrMetallicRoughness": {"metallicFactor": 0, "roughnessFactor": 1}}]
    for mesh in tree["meshes"]:
        for primitive in mesh["primitives"]:
            primitive["material"] = 0


def write_glb(path: str | os.PathLike, mesh: Mesh, up: np.ndarray) -> None:
    """Writes a binary glTF file with normals, colours (`linear_colors`) and, where it is known, the
    confidence as the attribute `_CONFIDENCE`, atomically.

    glTF is y up and its vertices are float32: they are laid around the mesh's middle, and its node
    turns and moves them. Vertices of the file, placed by the node, are the dataset's, turned so
    that `up` is y.

    Args:
        path: the file.
        mesh: any mesh, dataset frame.
        up: f64[3], dataset frame.
    """
    trimesh = import_trimesh()
    center = mesh.middle
    transform = np.eye(4)
    transform[:3, :3] = upright(up)
    transform[:3, 3] = transform[:3, :3] @ center
    mesh = dataclasses.replace(mesh, vertex_colors=linear_colors(mesh.vertex_colors))
    shape = _to_trimesh(trimesh, mesh, mesh.vertices - center)
    if mesh.vertex_confidence is not None:
        shape.vertex_attributes[f"_{CONFIDENCE.upper()}"] = mesh.vertex_confidence
    scene = trimesh.Scene()
    scene.add_geometry(shape, node_name="mesh", transform=transform)
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        content = trimesh.exchange.gltf.export_glb(
            scene, include_normals=True, tree_postprocessor=matte
        )
        file.write(content)


def _to_trimesh(trimesh, mesh: Mesh, vertices: np.ndarray):
    return trimesh.Trimesh(
        vertices,
        mesh.triangles,
        vertex_normals=mesh.vertex_normals,
        vertex_colors=mesh.vertex_colors,
        process=False,
        validate=False,
    )


def write_mesh(path: str | os.PathLike, mesh: Mesh, form: str, up: np.ndarray) -> None:
    """Writes an OBJ or GLB file.

    Args:
        path: the file. mesh: dataset frame. form: one of FORMATS but ply. up: f64[3], dataset
            frame.
    Raises:
        InputError: the mesh is empty, trimesh is missing, or the disk is full.
    """
    if not mesh.num_triangles:
        raise InputError(f"{path}: the mesh has no triangle; nothing was written")
    if form == "obj":
        write_obj(path, mesh)
    else:
        write_glb(path, mesh, up)
