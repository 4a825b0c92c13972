"""Tiles of a mesh on disk, joined without ever being in memory together.

Why so: a mesh larger than memory could also be one file per tile, but whoever opens it would have
to join them; or one file to which tiles are appended as they come, but which pieces are too small
to keep is known only after the last tile. So tiles wait in a scratch folder, and the joined mesh is
read from them twice: once for its vertices, once for its triangles, as PLY wants them."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.sparse
from scipy.sparse import csgraph

from cosurfgs_jax.errors import InputError
from cosurfgs_jax.surface.mesh import (
    Mesh,
    MeshParts,
    VertexPart,
    triangle_components,
    unit_normals,
    vertex_normal_sums,
)

_FIELDS = (
    "vertices",
    "colors",
    "confidence",
    "normal_sums",
    "components",
    "triangles",
    "seam_places",
)
_LAST = _FIELDS[-1]  # is written last: a tile that has it is whole


@contextlib.contextmanager
def writing_scratch(folder: Path) -> Iterator[None]:
    """Turns what a full disk raises into an InputError that says what to do."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{folder}: a part of the mesh could not be written ({error.strerror or error}); make "
            "room there, or set a larger config.surface.voxel_size"
        ) from error


class _Tile(NamedTuple):
    """The files of a tile, as arrays that are read when touched."""

    vertices: np.ndarray  # f32[M,3], relative to the origin
    colors: np.ndarray  # u8[M,3]
    confidence: np.ndarray  # f32[M]
    normal_sums: np.ndarray  # f32[M,3]
    components: np.ndarray  # i32[M], the connected piece of each vertex
    triangles: np.ndarray  # i32[F,3]
    seam_places: np.ndarray  # i64[S], vertex numbers on seams, ascending


class _Seam(NamedTuple):
    """Vertices on the common faces of tiles, each once; those of tile t are
    `places[bounds[t]:bounds[t+1]]` of `numbers`.
    """

    numbers: np.ndarray  # i64[S], of the occurrence in the list of unique vertices
    first: np.ndarray  # i64[U], an occurrence of each unique vertex
    bounds: np.ndarray  # i64[T+1]


class _SeamVertices(NamedTuple):
    """The unique vertices on seams."""

    vertices: np.ndarray  # f32[U,3], relative to the origin
    normal_sums: np.ndarray  # f32[U,3], over all tiles
    is_kept: np.ndarray  # bool[U]
    colors: np.ndarray  # u8[U,3]
    confidence: np.ndarray  # f32[U]


class TileStore:
    """Meshes of tiles in a folder. Memory holds the vertices on seams and a number per connected
    piece, nothing else.
    """

    def __init__(self, folder: str | Path):
        """
        Args:
            folder: an empty one, for scratch files; the caller removes it.
        """
        self.folder = Path(folder)
        self.origin = np.zeros(3)  # of the vertices, f64, dataset; set by `fusion.fuse_into`
        self._places: list[Path] = []  # of the files of each tile, without their endings
        self._seam_vertices: list[np.ndarray] = []
        self._seam_sums: list[np.ndarray] = []
        self._seam_components: list[np.ndarray] = []
        self._sizes: list[np.ndarray] = []  # triangles per component
        self._interior: list[np.ndarray] = []  # vertices per component that are on no seam
        self._first_component = [0]  # of each tile, as they count over all tiles; and their number
        self._low = np.full(3, np.inf)
        self._high = np.full(3, -np.inf)
        self._edge_of_most = (0, 0.0)  # triangles of the largest tile, and its typical edge

    @property
    def num_tiles(self) -> int:
        """How many tiles have a surface."""
        return len(self._places)

    def add(self, mesh: Mesh, is_on_seam: np.ndarray, name: str = "") -> None:
        """Stores the mesh of one tile.

        Args:
            mesh: vertices f32, relative to the origin, with their confidence; normals are not
                looked at.
            is_on_seam: bool[M], the vertices that other tiles may have too, with the same bits.
            name: of its files, by which `take` orders tiles; "" = its number.
        """
        if not len(mesh.triangles):
            return
        components, _ = triangle_components(mesh.triangles, len(mesh.vertices))
        vertices = np.asarray(mesh.vertices, np.float32) + np.float32(0)  # -0 and 0 are one place
        sums = vertex_normal_sums(vertices.astype(np.float64), mesh.triangles).astype(np.float32)
        tile = _Tile(
            vertices=vertices,
            colors=mesh.vertex_colors,
            confidence=np.asarray(mesh.vertex_confidence, np.float32),
            normal_sums=sums,
            components=components.astype(np.int32),
            triangles=mesh.triangles,
            seam_places=np.flatnonzero(is_on_seam),
        )
        place = self.folder / (name or f"{self.num_tiles:06d}")
        for field, values in tile._asdict().items():
            with writing_scratch(self.folder):
                np.save(f"{place}_{field}.npy", values)
        self._know(place, tile)

    def take(self, folders: Sequence[Path]) -> None:
        """Takes the tiles that other stores with the same origin have left in their folders, all
        together in the order of their names. They are read where they are.
        """
        ending = f"_{_LAST}.npy"
        found = [path for folder in folders for path in folder.glob(f"*{ending}")]
        for path in sorted(found, key=lambda path: path.name):
            place = path.with_name(path.name.removesuffix(ending))
            self._know(place, _read_tile(place))

    def _know(self, place: Path, tile: _Tile) -> None:
        """Notes what `join` has to know of a tile."""
        num = int(tile.components.max()) + 1
        is_inside = np.ones(len(tile.vertices), bool)
        is_inside[tile.seam_places] = False
        first = self._first_component[-1]
        self._places.append(place)
        self._seam_vertices.append(np.array(tile.vertices[tile.seam_places]))
        self._seam_sums.append(np.array(tile.normal_sums[tile.seam_places]))
        self._seam_components.append(tile.components[tile.seam_places].astype(np.int64) + first)
        self._sizes.append(np.bincount(tile.components[tile.triangles[:, 0]], minlength=num))
        self._interior.append(np.bincount(tile.components[is_inside], minlength=num))
        self._first_component.append(first + num)
        self._low = np.minimum(self._low, tile.vertices.min(axis=0))
        self._high = np.maximum(self._high, tile.vertices.max(axis=0))
        edge = Mesh(tile.vertices, tile.triangles, tile.colors, tile.normal_sums).typical_edge
        self._edge_of_most = max(self._edge_of_most, (len(tile.triangles), edge))

    @property
    def largest_coordinate(self) -> float:
        """The largest absolute value of any coordinate."""
        return (
            float(np.abs([self._low + self.origin, self._high + self.origin]).max())
            if self.num_tiles
            else 0.0
        )

    @property
    def typical_edge(self) -> float:
        """The median length of an edge in the largest tile."""
        return self._edge_of_most[1]

    def tile(self, number: int) -> _Tile:
        """The arrays of a tile, mapped from its files; its components count over all tiles."""
        tile = _read_tile(self._places[number])
        return tile._replace(components=tile.components + self._first_component[number])

    def _seam(self) -> _Seam:
        vertices = np.concatenate(self._seam_vertices or [np.zeros((0, 3), np.float32)])
        bounds = np.cumsum([0] + [len(part) for part in self._seam_vertices])
        rows = (
            np.ascontiguousarray(vertices).view([("", np.uint32)] * 3).reshape(-1)
        )  # equal to the last bit, or two places
        _, first, numbers = np.unique(rows, return_index=True, return_inverse=True)
        return _Seam(numbers.reshape(-1), first, bounds)

    def join(self, min_cluster_share: float = 0.0) -> "JoinedMesh":
        """The mesh of all tiles.

        Args:
            min_cluster_share: connected pieces with fewer triangles than this fraction of the
                largest are left out, as by `mesh.drop_small_clusters`; pieces are connected
                through seams.
        """
        seam = self._seam()
        occurrences = np.concatenate(self._seam_components or [np.zeros(0, np.int64)])
        links = (occurrences, occurrences[seam.first[seam.numbers]])
        graph = scipy.sparse.coo_matrix(
            (np.ones(len(occurrences), np.int8), links), shape=(self._first_component[-1],) * 2
        )
        labels = (
            csgraph.connected_components(graph, directed=False)[1]
            if self._first_component[-1]
            else np.zeros(0, np.int64)
        )
        per_component = np.concatenate(self._sizes or [np.zeros(0, np.int64)])
        sizes = np.bincount(labels, weights=per_component) if len(labels) else np.zeros(0)
        is_kept = sizes[labels] >= min_cluster_share * sizes.max(initial=0)
        return JoinedMesh(
            self,
            seam,
            is_kept,
            int(per_component.sum()),
            int(per_component[is_kept].sum()),
            int(np.concatenate(self._interior or [np.zeros(0, np.int64)])[is_kept].sum()),
        )

    def seam_vertices(self, seam: _Seam, is_kept: np.ndarray) -> _SeamVertices:
        """The unique vertices on a seam.

        Args:
            is_kept: bool per connected piece of all tiles.
        """
        if not self.num_tiles:
            nothing = np.zeros((0, 3), np.float32)
            return _SeamVertices(
                nothing,
                normal_sums=nothing,
                is_kept=np.zeros(0, bool),
                colors=nothing.astype(np.uint8),
                confidence=nothing[:, 0],
            )
        vertices = np.concatenate(self._seam_vertices)
        sums = np.concatenate(self._seam_sums)
        total = np.stack(
            [
                np.bincount(seam.numbers, weights=sums[:, axis], minlength=len(seam.first))
                for axis in range(3)
            ],
            1,
        )
        kept = is_kept[np.concatenate(self._seam_components)[seam.first]]
        colors = np.zeros((len(seam.first), 3), np.uint8)
        confidence = np.zeros(len(seam.first), np.float32)
        for number, place in enumerate(self._places):
            tile = _read_tile(place)
            rows = slice(seam.bounds[number], seam.bounds[number + 1])
            colors[seam.numbers[rows]] = tile.colors[tile.seam_places]
            confidence[seam.numbers[rows]] = tile.confidence[tile.seam_places]
        return _SeamVertices(
            vertices[seam.first],
            normal_sums=total.astype(np.float32),
            is_kept=kept,
            colors=colors,
            confidence=confidence,
        )


def _read_tile(place: Path) -> _Tile:
    """The arrays of a tile, mapped from its files."""
    return _Tile(*(np.load(f"{place}_{name}.npy", mmap_mode="r") for name in _FIELDS))


class JoinedMesh(MeshParts):
    """What `TileStore.join` gives: the vertices on seams first, then those of tile after tile; as
    long as the store is there.

    Attributes:
        num_triangles_before: of all pieces.
    """

    def __init__(
        self,
        store: TileStore,
        seam: _Seam,
        is_kept: np.ndarray,
        num_before: int,
        num_triangles: int,
        num_interior: int,
    ):
        self._store = store
        self._seam = seam
        self._is_kept = is_kept
        self._seam_vertices = store.seam_vertices(seam, is_kept)
        self._num_seam = int(self._seam_vertices.is_kept.sum())
        self.num_triangles_before = num_before
        self._num_triangles = num_triangles
        self._num_interior = num_interior

    @property
    def num_vertices(self) -> int:
        """Of the pieces that are kept."""
        return self._num_seam + self._num_interior

    @property
    def num_triangles(self) -> int:
        """Of the pieces that are kept."""
        return self._num_triangles

    @property
    def largest_coordinate(self) -> float:
        """See `MeshParts`."""
        return self._store.largest_coordinate

    @property
    def typical_edge(self) -> float:
        """See `MeshParts`."""
        return self._store.typical_edge

    def _interior(self, tile: _Tile) -> np.ndarray:
        """bool[M]: the kept vertices of a tile that are on no seam."""
        is_interior = self._is_kept[tile.components]
        is_interior[tile.seam_places] = False
        return is_interior

    def vertex_parts(self) -> Iterator[VertexPart]:
        """See `MeshParts`."""
        shared = self._seam_vertices
        kept = shared.is_kept
        yield VertexPart(
            shared.vertices[kept] + self._store.origin,
            unit_normals(shared.normal_sums[kept]),
            shared.colors[kept],
            shared.confidence[kept],
        )
        for number in range(self._store.num_tiles):
            tile = self._store.tile(number)
            chosen = self._interior(tile)
            yield VertexPart(
                tile.vertices[chosen] + self._store.origin,
                unit_normals(tile.normal_sums[chosen]),
                tile.colors[chosen],
                tile.confidence[chosen],
            )

    def triangle_parts(self) -> Iterator[np.ndarray]:
        """See `MeshParts`."""
        seam_numbers = np.cumsum(self._seam_vertices.is_kept) - 1
        start = self._num_seam
        for number in range(self._store.num_tiles):
            tile = self._store.tile(number)
            (first, last) = self._seam.bounds[number : number + 2]
            chosen = self._interior(tile)
            numbers = start + np.cumsum(chosen) - 1
            start += int(chosen.sum())
            numbers[tile.seam_places] = seam_numbers[self._seam.numbers[first:last]]
            yield numbers[
                tile.triangles[self._is_kept[tile.components[tile.triangles[:, 0]]]]
            ].astype(np.int32)
