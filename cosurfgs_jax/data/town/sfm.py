"""What structure from motion would give for the generated town: noisy points with tracks, written
as a COLMAP model.

The binary layout is the one that COLMAP documents: little endian, counts as u64, images with their
2-D observations."""

import dataclasses
import pathlib
import struct

import numpy as np

from cosurfgs_jax.data.town.flight import Flight
from cosurfgs_jax.data.town.render import View

NOISE_PX = 0.3  # standard deviation of an observation, in each of x and y
_KEEP = 0.55  # fraction of the visible observations that feature matching finds
_MIN_VIEWS = 3
_MAX_ERROR_PX = (
    3.0  # points whose noise came out larger, for lack of parallax, are left out, as programs do
)
_PINHOLE = 1  # COLMAP's number of the camera model


@dataclasses.dataclass(frozen=True)
class Observations:
    """What one photograph sees of the candidates.

    | field     | shape    | unit, meaning                                                  |
    |-----------|----------|----------------------------------------------------------------|
    | `numbers` | i64[k]   | of the candidates                                              |
    | `pixels`  | f64[k,2] | noisy position, pixels, x+0.5 is the centre of pixel x         |
    | `colors`  | u8[k,3]  | of the photograph there                                        |
    """

    numbers: np.ndarray
    pixels: np.ndarray
    colors: np.ndarray


@dataclasses.dataclass(frozen=True)
class SparsePoints:
    """Triangulated points.

    | field           | shape    | unit, meaning                                                |
    |-----------------|----------|--------------------------------------------------------------|
    | `points`        | f64[P,3] | m, local frame                                               |
    | `colors`        | u8[P,3]  | mean over the track                                          |
    | `errors`        | f64[P]   | mean distance of the observations to the projections, pixels |
    | `point_numbers` | i64[T]   | point of each observation, sorted by view                    |
    | `view_numbers`  | i64[T]   | view of each observation                                     |
    | `pixels`        | f64[T,2] | of each observation                                          |
    """

    points: np.ndarray
    colors: np.ndarray
    errors: np.ndarray
    point_numbers: np.ndarray
    view_numbers: np.ndarray
    pixels: np.ndarray


def visible_points(
    flight: Flight,
    number: int,
    view: View,
    points: np.ndarray,
    normals: np.ndarray,
    min_cosine: float,
):
    """Which points a photograph sees.

    A point is seen if it faces the camera and lies in the tangent plane of the surface that the
    pixel shows.

    Args:
        flight: cameras.
        number: of the photograph.
        view: its exact depth and normals.
        points, normals: f64[n,3] local frame.
        min_cosine: least cosine between normal and direction to the camera.
    Returns:
        numbers i64[k] of the points, and their exact pixel positions f64[k,2].
    """
    rows = flight.intrinsics @ flight.camera_from_local[number, :3]
    center = flight.centers[number]
    # Sums of columns: a matrix product would start the threads of BLAS, one set for every
    # photograph in work.
    x, y, depth = (
        row[0] * points[:, 0] + row[1] * points[:, 1] + row[2] * points[:, 2] + row[3]
        for row in rows
    )
    is_inside = (
        (depth > 1) & (x > 0) & (y > 0) & (x < flight.width * depth) & (y < flight.height * depth)
    )
    numbers = np.flatnonzero(is_inside)
    pixels = np.stack([x[numbers], y[numbers]], axis=1) / depth[numbers, None]
    column = np.minimum(pixels[:, 0].astype(int), flight.width - 1)
    row = np.minimum(pixels[:, 1].astype(int), flight.height - 1)
    # Distance to the tangent plane through the surface point of the pixel's centre.
    rays = (
        np.stack([column + 0.5, row + 0.5, np.ones(len(row))], axis=1)
        @ np.linalg.inv(flight.intrinsics).T
    )
    surface = center + view.depth[row, column, None] * (
        rays @ flight.camera_from_local[number, :3, :3]
    )
    offset = np.einsum("ij,ij->i", view.normal[row, column], points[numbers] - surface)
    # The ground bends away from its tangent plane by far less than a hundredth of a pixel; 0.02 of
    # one parts all surfaces.
    is_on = np.abs(offset) < 0.02 * flight.ground_pixel_m + 1e-4
    away = center - points[numbers]
    cosine = np.einsum("ij,ij->i", normals[numbers], away) / np.linalg.norm(away, axis=1)
    is_seen = is_on & (cosine > min_cosine)
    return numbers[is_seen], pixels[is_seen]


def observe(
    flight: Flight, number: int, view: View, image: np.ndarray, points, normals, seed: int
) -> Observations:
    """Noisy observations of candidates in one photograph (u8[H,W,3])."""
    numbers, pixels = visible_points(flight, number, view, points, normals, min_cosine=0.2)
    rng = np.random.default_rng([seed, 7, number])
    is_found = rng.random(len(numbers)) < _KEEP
    numbers = numbers[is_found]
    pixels = pixels[is_found]
    pixels = pixels + rng.normal(0, NOISE_PX, pixels.shape)
    is_inside = np.all((pixels > 0) & (pixels < (flight.width, flight.height)), axis=1)
    numbers = numbers[is_inside]
    pixels = pixels[is_inside]
    return Observations(numbers, pixels, image[pixels[:, 1].astype(int), pixels[:, 0].astype(int)])


def triangulate(
    flight: Flight, observations: list[Observations], true_points: np.ndarray, limit: int
) -> SparsePoints:
    """Points that fit their noisy observations best.

    Args:
        flight: cameras.
        observations: one per view.
        true_points: f64[n,3] of the candidates; the fit starts there, so that one Gauss-Newton step
            is enough.
        limit: most points; the first candidates that succeed are taken.
    """
    count = len(true_points)
    matrix = np.zeros((count, 3, 3))
    vector = np.zeros((count, 3))
    for number, seen in enumerate(observations):
        jacobian, residual = _linearise(flight, number, true_points[seen.numbers], seen.pixels)
        matrix[seen.numbers] += np.einsum("nki,nkj->nij", jacobian, jacobian)
        vector[seen.numbers] += np.einsum("nki,nk->ni", jacobian, residual)
    tracks = np.bincount(np.concatenate([seen.numbers for seen in observations]), minlength=count)
    candidates = np.flatnonzero(tracks >= _MIN_VIEWS)
    step = np.linalg.solve(matrix[candidates], vector[candidates][..., None])[..., 0]
    is_good = np.linalg.norm(step, axis=1) < _MAX_ERROR_PX * flight.ground_pixel_m
    chosen = candidates[is_good][:limit]
    points = true_points[chosen] + step[is_good][:limit]
    new_number = np.full(count, -1)
    new_number[chosen] = np.arange(len(chosen))
    errors = np.zeros(len(chosen))
    colors = np.zeros((len(chosen), 3))
    parts = []
    for number, seen in enumerate(observations):
        is_kept = new_number[seen.numbers] >= 0
        numbers = new_number[seen.numbers[is_kept]]
        pixels = seen.pixels[is_kept]
        _, residual = _linearise(flight, number, points[numbers], pixels)
        errors[numbers] += np.linalg.norm(residual, axis=1)
        colors[numbers] += seen.colors[is_kept]
        parts.append((numbers, np.full(len(numbers), number), pixels))
    lengths = np.maximum(tracks[chosen], 1)
    point_numbers, view_numbers, pixels = (
        np.concatenate(column) for column in zip(*parts, strict=True)
    )
    colors = np.round(colors / lengths[:, None]).astype(np.uint8)
    return SparsePoints(
        points=points,
        colors=colors,
        errors=errors / lengths,
        point_numbers=point_numbers,
        view_numbers=view_numbers,
        pixels=pixels,
    )


def _linearise(flight, number, points, pixels):
    """Derivative f64[n,2,3] of the projection and what is missing to the observations f64[n,2]."""
    rows = flight.intrinsics @ flight.camera_from_local[number, :3]
    projected = points @ rows[:, :3].T + rows[:, 3]
    at = projected[:, :2] / projected[:, 2:]
    jacobian = (rows[None, :2, :3] - at[:, :, None] * rows[None, 2:, :3]) / projected[
        :, 2, None, None
    ]
    return jacobian, pixels - at


def write_colmap(
    folder, flight: Flight, names: list[str], sparse: SparsePoints, origin: np.ndarray
) -> None:
    """Write cameras.bin, images.bin and points3D.bin.

    Args:
        folder: where to.
        flight: cameras, local frame.
        names: of the photographs.
        sparse: points, local frame.
        origin: f64[3] added to local positions, m.
    """
    folder = pathlib.Path(folder)
    focal_x = flight.intrinsics[0, 0]
    focal_y = flight.intrinsics[1, 1]
    parameters = (focal_x, focal_y, flight.intrinsics[0, 2], flight.intrinsics[1, 2])
    camera = struct.pack("<QiiQQ4d", 1, 1, _PINHOLE, flight.width, flight.height, *parameters)
    (folder / "cameras.bin").write_bytes(camera)
    place = np.zeros(len(sparse.point_numbers), np.int64)  # of each observation in its image
    with open(folder / "images.bin", "wb") as file:
        file.write(struct.pack("<Q", len(names)))
        for number, name in enumerate(names):
            chosen = np.flatnonzero(sparse.view_numbers == number)
            place[chosen] = np.arange(len(chosen))
            pose = flight.camera_from_local[number]
            shift = pose[:3, 3] - pose[:3, :3] @ origin
            file.write(struct.pack("<i4d3di", number + 1, *_quaternion(pose[:3, :3]), *shift, 1))
            file.write(name.encode() + b"\0" + struct.pack("<Q", len(chosen)))
            table = np.empty(len(chosen), dtype=[("pixel", "<f8", (2,)), ("point", "<i8")])
            table["pixel"] = sparse.pixels[chosen]
            table["point"] = sparse.point_numbers[chosen] + 1
            file.write(table.tobytes())
    _write_points(folder / "points3D.bin", sparse, place, origin)


def _write_points(path, sparse: SparsePoints, place, origin) -> None:
    order = np.argsort(sparse.point_numbers, kind="stable")
    track = np.stack([sparse.view_numbers[order] + 1, place[order]], axis=1).astype("<i4")
    ends = np.cumsum(np.bincount(sparse.point_numbers, minlength=len(sparse.points)))
    start = 0
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(sparse.points)))
        rows = zip(
            (sparse.points + origin).tolist(),
            sparse.colors.tolist(),
            sparse.errors.tolist(),
            ends.tolist(),
            strict=True,
        )
        for number, (point, color, error, end) in enumerate(rows):
            file.write(struct.pack("<Q3d3BdQ", number + 1, *point, *color, error, end - start))
            file.write(track[start:end].tobytes())
            start = end


def _quaternion(rotation: np.ndarray) -> np.ndarray:
    """wxyz of a rotation matrix: the eigenvector of Bar-Itzhack's symmetric matrix, precise for
    every rotation.
    """
    (xx, yx, zx), (xy, yy, zy), (xz, yz, zz) = rotation
    matrix = np.array([
        [xx - yy - zz, 0, 0, 0],
        [yx + xy, yy - xx - zz, 0, 0],
        [zx + xz, zy + yz, zz - xx - yy, 0],
        [yz - zy, zx - xz, xy - yx, xx + yy + zz],
    ])  # fmt: skip
    vector = np.linalg.eigh(matrix)[1][:, -1]
    x, y, z, w = vector if vector[3] >= 0 else -vector
    return np.array([w, x, y, z])
