"""The mesh as the page shows it: in its colours, or coloured by its confidence, with a legend.

The confidence is drawn on the mesh and not on the model: it counts the photographs that the mesh is
fused from, and a model has no such number.
"""

import numpy as np
from jaxtyping import Integer, UInt8

from cosurfgs_jax import pictures
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.metrics import confidence_range, confidence_ranges, photographs_of
from cosurfgs_jax.surface import Mesh
from cosurfgs_jax.surface.mesh_files import import_trimesh, linear_colors, matte

MESH = "mesh"
CONFIDENCE = "confidence"
KINDS = (MESH, CONFIDENCE)
# A surface needs three photographs: what is from fewer stands out. From three on a range is
# brighter than the one before it.
_FEW = np.array([[70, 70, 75], [214, 39, 40], [255, 140, 0]], np.uint8)  # from 0, 1 and 2
_ENOUGH = (0.25, 0.9)  # of `pictures.ramp`: from three, and from the most
_UNLIT = "KHR_materials_unlit"


def range_colors() -> UInt8[np.ndarray, "r 3"]:
    """The colour of each range of `confidence_ranges`."""
    num_more = len(confidence_ranges()) - len(_FEW)
    return np.concatenate([_FEW, pictures.ramp(np.linspace(*_ENOUGH, num_more))])


def glb_of(mesh: Mesh, kind: str) -> bytes:
    """A mesh as binary glTF.

    Args:
        mesh: world frame.
        kind: one of `KINDS`; confidence is drawn without light, in the colours of the legend.
    Raises:
        InputError: trimesh is missing, or the mesh has no confidence.
    """
    trimesh = import_trimesh()
    colors = mesh.vertex_colors
    material = matte
    if kind == CONFIDENCE:
        colors = range_colors()[_ranges(mesh)]
        material = _without_light
    shape = trimesh.Trimesh(
        mesh.vertices,
        mesh.triangles,
        vertex_colors=linear_colors(colors),
        process=False,
        validate=False,
    )
    return trimesh.exchange.gltf.export_glb(trimesh.Scene(shape), tree_postprocessor=material)


def legend(mesh: Mesh) -> str:
    """What the colours of a mesh's confidence mean, as HTML: a line for each range that some of its
    vertices have, with their fraction.

    Raises:
        InputError: the mesh has no confidence.
    """
    counts = np.bincount(_ranges(mesh), minlength=len(confidence_ranges()))
    lines = [
        f'<div><span style="display:inline-block;width:1em;height:1em;margin-right:0.5em;'
        f'background:rgb({red},{green},{blue})"></span>'
        f"{photographs_of(row)}: {count / len(mesh.vertices):.1%}</div>"
        for row, (red, green, blue), count in zip(
            confidence_ranges(), range_colors().tolist(), counts, strict=True
        )
        if count
    ]
    title = "Photographs that confirm the surface, and fractions of the mesh's vertices"
    return f'<div style="padding:0 1em;font-size:0.85em">{title}{"".join(lines)}</div>'


def _ranges(mesh: Mesh) -> Integer[np.ndarray, " m"]:
    if mesh.vertex_confidence is None:
        raise InputError(
            "mesh: expected the confidence of its vertices, got a file without it; "
            "cosurfgs extract_mesh writes one that has it"
        )
    return confidence_range(mesh.vertex_confidence)


def _without_light(tree: dict) -> None:
    """Makes the colours of a glTF file's meshes those that are seen."""
    tree["extensionsUsed"] = [_UNLIT]
    tree["materials"] = [{"extensions": {_UNLIT: {}}}]
    for mesh in tree["meshes"]:
        for primitive in mesh["primitives"]:
            primitive["material"] = 0
