"""Meshes, and tiles with their index, read by others."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cosurfgs_jax.surface.tileset import tileset_axes
from foreign.comparison import Box, Check, Comparison, NotThere
from foreign.expected import Expected
from foreign.readers import NpmFolder, package

_SINGLE = 2.0**-22
_DECIMATED = 12  # voxels that the bounds of a mesh with a tenth of the triangles may be off
_MESH = "cosurfgs extract_mesh --format="
_TEXTURED = "cosurfgs export --format=textured"
_TILES = f"{_TEXTURED} --config.texture.tile_size=SIDE"
# To the axes of a tileset, z up, from those of GLB files.
_Z_UP = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])


class Seen(NamedTuple):
    """A mesh as a reader has it.

    | field         | content                                       |
    |---------------|-----------------------------------------------|
    | `vertices`    | f64[M,3], placed by the nodes of the file     |
    | `num_triangles` |                                             |
    | `texture`     | its sides (width, height); None = none        |
    """

    vertices: np.ndarray
    num_triangles: int
    texture: tuple[int, int] | None


def by_trimesh(path: Path) -> Seen:
    """Reads a mesh with trimesh."""
    import trimesh

    loaded = trimesh.load_mesh(path, process=False)
    if isinstance(loaded, trimesh.Scene):
        loaded = loaded.to_mesh()
    material = getattr(loaded.visual, "material", None)
    picture = getattr(material, "baseColorTexture", None) or getattr(material, "image", None)
    size = None if picture is None else tuple(picture.size)
    return Seen(np.asarray(loaded.vertices, np.float64), len(loaded.faces), size)


def by_open3d(path: Path) -> Seen:
    """Reads a mesh with Open3D."""
    import open3d

    mesh = open3d.io.read_triangle_mesh(str(path), enable_post_processing=False)
    pictures = [np.asarray(picture) for picture in mesh.textures]
    sizes = [picture.shape[1::-1] for picture in pictures if picture.size]
    return Seen(np.asarray(mesh.vertices), len(mesh.triangles), sizes[0] if sizes else None)


def by_plyfile(path: Path) -> Seen:
    """Reads a mesh of PLY with plyfile."""
    import plyfile

    file = plyfile.PlyData.read(str(path))
    vertices = np.stack([np.asarray(file["vertex"][name], np.float64) for name in "xyz"], axis=1)
    return Seen(vertices, len(file["face"]["vertex_indices"]), None)


def compare_mesh(seen: Seen, wanted: Expected, path: Path, found: Comparison) -> None:
    """Compares the fused mesh in any format.

    Args:
        seen: by a reader.
        wanted: what the workdir has.
        path: of the file.
        found: gets the result.
    """
    mesh = wanted.mesh
    choices = json.loads(wanted.workdir.mesh_choices.read_text())
    found.equal("triangles", seen.num_triangles, choices["num_triangles"])
    found.equal("vertices", len(seen.vertices), mesh.num_vertices)
    place = wanted.place(path)
    found.equal("system", place.epsg, wanted.epsg)
    rounding = _SINGLE * mesh.largest_coordinate
    bounds = Box.of(place.to_map(seen.vertices))
    found.box("bounds", bounds, wanted.on_map(mesh.vertices), rounding)


def compare_textured(seen: Seen, wanted: Expected, path: Path, found: Comparison) -> None:
    """Compares the textured mesh: see `compare_mesh`."""
    note = wanted.note("textured.json")
    found.equal("triangles", seen.num_triangles, note["num_triangles"])
    place = wanted.place(path)
    found.equal("system", place.epsg, wanted.epsg)
    far = _DECIMATED * wanted.voxel_size
    bounds = Box.of(place.to_map(seen.vertices))
    found.box("bounds near the mesh's", bounds, wanted.on_map(wanted.mesh.vertices), far)
    found.equal("texture", seen.texture, (note["size"], note["size"]))


def mesh_checks(wanted: Expected, npm: NpmFolder) -> Iterator[Check]:
    """All checks of meshes of one file."""
    readers = {"trimesh": by_trimesh, "open3d": by_open3d, "plyfile": by_plyfile}
    plan = [("mesh/mesh.ply", name, compare_mesh) for name in readers]
    for form in ("obj", "glb"):
        plan += [(f"mesh/mesh.{form}", name, compare_mesh) for name in ("trimesh", "open3d")]
    if not (wanted.workdir.export / "textured").exists():  # one of them takes the other's place
        for form in ("obj", "glb"):
            file = f"export/textured.{form}"
            plan += [(file, name, compare_textured) for name in ("trimesh", "open3d")]
    for file, name, compare_seen in plan:

        def compare(path: Path, found: Comparison, name=name, compare_seen=compare_seen) -> None:
            compare_seen(readers[name](path), wanted, path, found)

        form = Path(file).suffix[1:]
        maker = _MESH + form if file.startswith("mesh/") else _TEXTURED
        yield Check(file, f"mesh {form.upper()}", package(name), compare, maker)
    yield from _validated(wanted, npm)


def compare_report(report: dict[str, Any], num_triangles: int, found: Comparison) -> None:
    """Compares the report of gltf-validator.

    Args:
        report: of the file.
        num_triangles: that it has to have.
        found: gets the result.
    """
    issues = report["issues"]
    said = [f"{row['code']} at {row.get('pointer')}" for row in issues.get("messages", [])[:3]]
    found.holds("0 errors", issues["numErrors"] == 0, "none", said)
    found.holds("0 warnings", issues["numWarnings"] == 0, "none", said)
    found.equal("triangles", report["info"]["totalTriangleCount"], num_triangles)


def _validated(wanted: Expected, npm: NpmFolder) -> Iterator[Check]:
    def fused(path: Path, found: Comparison) -> None:
        compare_report(npm.validate_gltf(path), wanted.mesh.num_triangles, found)

    def textured(path: Path, found: Comparison) -> None:
        expected = wanted.note("textured.json")["num_triangles"]
        report = npm.validate_gltf(path)
        compare_report(report, expected, found)
        kinds = [row.get("mimeType") for row in report["info"].get("resources", [])]
        found.holds("texture", "image/jpeg" in kinds, "image/jpeg", kinds)

    reader = npm.gltf_reader()
    yield Check("mesh/mesh.glb", "mesh GLB", reader, fused, _MESH + "glb")
    if not (wanted.workdir.export / "textured").exists():
        yield Check("export/textured.glb", "mesh GLB", reader, textured, _TEXTURED)


def _box_of(volume: dict[str, Any]) -> Box:
    """The corners of a bounding volume with axes along those of the tileset."""
    numbers = np.array(volume["box"], np.float64)
    if numbers.shape != (12,):
        raise ValueError(f"boundingVolume.box: expected 12 numbers, got {numbers.shape}")
    half = np.abs(numbers[3:].reshape(3, 3)).sum(axis=0)
    return Box(numbers[:3] - half, numbers[:3] + half)


def compare_index(index: dict[str, Any], found: Comparison) -> None:
    """Checks a tileset.json by the schema of 3D Tiles 1.1: what it has to have, and of which kind.

    Args:
        index: of the file.
        found: gets the result.
    """
    found.equal("version", index.get("asset", {}).get("version"), "1.1")
    known = {"asset", "geometricError", "root"}
    found.equal("names", set(index), known)
    root = index.get("root", {})
    refine = root.get("refine")
    found.holds("refine", refine in ("REPLACE", "ADD"), "REPLACE or ADD of the root", refine)
    transform = root.get("transform", np.eye(4).ravel().tolist())
    numbers = np.array(transform, np.float64)
    is_affine = numbers.shape == (16,) and np.array_equal(numbers[[3, 7, 11, 15]], [0, 0, 0, 1])
    found.holds("transform", is_affine, "16 numbers, by columns", transform)
    waiting = [(root, index.get("geometricError", np.nan))]
    while waiting:
        tile, limit = waiting.pop()
        error = tile.get("geometricError", np.nan)
        found.holds("geometricError", 0 <= error <= limit, f"from 0 to {limit:.4g}", error)
        outer = _box_of(tile["boundingVolume"])
        for child in tile.get("children", []):
            found.contains("nesting", outer, _box_of(child["boundingVolume"]), 1e-9 * outer.size)
            waiting.append((child, error))
        has_content = "content" in tile or bool(tile.get("children"))
        found.holds("contents", has_content, "a content or children", sorted(tile))


def compare_tile(seen: Seen, volume: dict[str, Any], found: Comparison) -> None:
    """Compares a tile of glTF with its bounding volume, turned to z up as viewers do.

    Args:
        seen: the tile, by a reader.
        volume: of the index.
        found: gets the result.
    """
    box = _box_of(volume)
    points = seen.vertices @ _Z_UP.T
    found.box("bounds of tiles", Box.of(points), box, _SINGLE * max(box.size, 1.0) * 4)
    found.holds("texture", seen.texture is not None, "one", seen.texture)


def _compare_tileset(wanted: Expected, path: Path, found: Comparison) -> None:
    index = json.loads(path.read_text())
    compare_index(index, found)
    root = index["root"]
    note = wanted.note("textured.json")
    tiles = root["children"]
    found.equal("number of tiles", len(tiles), note["tiles"]["number"])
    seen = [by_trimesh(path.parent / tile["content"]["uri"]) for tile in tiles]
    for tile, mesh in zip(tiles, seen, strict=True):
        compare_tile(mesh, tile["boundingVolume"], found)
    total = sum(mesh.num_triangles for mesh in seen)
    found.equal("triangles", total, note["num_triangles"])
    transform = np.array(root.get("transform", np.eye(4).ravel()), np.float64)
    matrix = transform.reshape(4, 4).T
    points = np.concatenate([mesh.vertices for mesh in seen]) @ _Z_UP.T
    points = points @ matrix[:3, :3].T + matrix[:3, 3]
    # The axes are the dataset's where z is up there.
    dataset = points @ tileset_axes(wanted.trained.partitioned.scene.up)
    far = _DECIMATED * wanted.voxel_size
    place = wanted.place(path)
    bounds = Box.of(place.to_map(dataset))
    found.box("bounds near the mesh's", bounds, wanted.on_map(wanted.mesh.vertices), far)
    found.equal("system", place.epsg, wanted.epsg)


def tile_checks(wanted: Expected, npm: NpmFolder) -> Iterator[Check]:
    """All checks of tiles; none where the textured mesh is one file."""
    folder = wanted.workdir.export / "textured"
    if not folder.exists():
        return

    def compare(path: Path, found: Comparison) -> None:
        _compare_tileset(wanted, path, found)

    def validate(path: Path, found: Comparison) -> None:
        for tile in sorted(path.parent.glob("*.glb")):
            compare_report(npm.validate_gltf(tile), by_trimesh(tile).num_triangles, found)
        if not list(path.parent.glob("*.glb")):
            raise NotThere(f"{path.parent} has no tiles; run `{_TILES}`")

    file = "export/textured/tileset.json"
    yield Check(file, "3D Tiles", package("trimesh"), compare, _TILES)
    yield Check(file, "GLB of 3D Tiles", npm.gltf_reader(), validate, _TILES)
