"""Splat files and point clouds, read by others."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cosurfgs_jax.formats.place_json import Place
from cosurfgs_jax.formats.ply import columns as columns_of
from cosurfgs_jax.formats.ply import read_ply
from foreign.comparison import Box, Check, Comparison, NotThere
from foreign.expected import Expected
from foreign.readers import NpmFolder, package, run_program

_SINGLE = 2.0**-22  # of a coordinate: rounding to float32, and once more on the way
# Of a side of the box: positions of 16 bits on a logarithmic scale (SOG), or of 1/4096 (SPZ).
_COARSE = 2e-3
_SHADE = 0.02  # of the mean opacity and colour: 8 bits, and a palette
_EXPORT = "cosurfgs export --format="
_COMPARED = ("x", "y", "z", "opacity", "f_dc_0", "f_dc_1", "f_dc_2")
_BROWSERS = ("spz", "sog")


def _rounding(box: Box) -> float:
    return _SINGLE * float(np.max(np.abs([box.low, box.high])))


def compare_splats(
    columns: dict[str, np.ndarray],
    wanted: Expected,
    place_of_file: Place,
    found: Comparison,
    within: float,
) -> None:
    """Compares columns of a splat file with the model.

    Args:
        columns: x, y, z, opacity (logit) and f_dc_0 to f_dc_2, [N] each.
        wanted: what the workdir has.
        place_of_file: of the file on the map.
        found: gets the result.
        within: that bounds may differ by, map.
    """
    found.equal("count", len(columns["x"]), wanted.count)
    points = np.stack([columns[name] for name in "xyz"], axis=1)
    found.box("bounds", Box.of(place_of_file.to_map(points)), wanted.on_map(wanted.means), within)
    found.equal("system", place_of_file.epsg, wanted.epsg)
    opacities = 1 / (1 + np.exp(-np.asarray(columns["opacity"], np.float64)))
    found.close("mean opacity", opacities.mean(), wanted.opacities.mean(), _SHADE)
    colors = [np.mean(columns[f"f_dc_{channel}"], dtype=np.float64) for channel in range(3)]
    found.close("mean colour", colors, wanted.dc.mean(axis=0), _SHADE)


def _by_plyfile(path: Path) -> dict[str, np.ndarray]:
    import plyfile

    vertex = plyfile.PlyData.read(str(path))["vertex"]
    return {prop.name: np.asarray(vertex[prop.name]) for prop in vertex.properties}


def read_csv(path: Path) -> dict[str, np.ndarray]:
    """The columns `_COMPARED` of a CSV file with a line of names."""
    with open(path) as file:
        names = file.readline().strip().split(",")
        missing = set(_COMPARED) - set(names)
        if missing:
            raise ValueError(f"expected columns {', '.join(_COMPARED)}, got no {sorted(missing)}")
        places = [names.index(name) for name in _COMPARED]
        rows = np.loadtxt(file, delimiter=",", ndmin=2, usecols=places)
    return dict(zip(_COMPARED, rows.T, strict=True))


def _by_splat_transform(npm: NpmFolder, major: int, path: Path) -> dict[str, np.ndarray]:
    with tempfile.TemporaryDirectory() as folder:
        csv = Path(folder) / "splats.csv"
        run_program([npm.splat_transform(major)[0], "-q", "--gpu", "cpu", path, csv])
        return read_csv(csv)


def _splat_check(wanted: Expected, read, reader, name: str) -> Check:
    suffix = Path(name).suffix[1:]

    def compare(path: Path, found: Comparison) -> None:
        columns = read(path)
        bounds = Box.of(wanted.means)
        within = _rounding(bounds)
        if suffix in _BROWSERS:
            within = _COARSE * bounds.size
        if suffix == "spz":  # splat-transform turns it as files of 3DGS have it
            columns |= {"y": -columns["y"], "z": -columns["z"]}
        compare_splats(columns, wanted, wanted.place(path), found, within)

    form = {"ply": "splat PLY"}.get(suffix, suffix.upper())
    maker = _EXPORT + suffix
    return Check(f"export/{name}", form, reader, compare, maker)


def splat_checks(wanted: Expected, npm: NpmFolder) -> Iterator[Check]:
    """All checks of splat files."""
    plyfile = package("plyfile")
    for name in ("point_cloud_2d.ply", "point_cloud_3dgs.ply"):
        yield _splat_check(wanted, _by_plyfile, plyfile, name)
    for major in (2, 3):
        reader = npm.splat_reader(major)

        def read(path: Path, major: int = major) -> dict[str, np.ndarray]:
            return _by_splat_transform(npm, major, path)

        names = ["point_cloud_3dgs.ply", "model.spz", "model.sog"]
        if major > 2:  # version 2 wants three scales
            names.insert(0, "point_cloud_2d.ply")
        for name in names:
            yield _splat_check(wanted, read, reader, name)


def compare_las(cloud, wanted: Expected, points: np.ndarray, found: Comparison) -> None:
    """Compares an open LAS file with the points of points.ply.

    Args:
        cloud: of laspy.
        wanted: what the workdir has.
        points: f64[n,3], dataset frame.
        found: gets the result.
    """
    header = cloud.header
    found.equal("version", str(header.version), "1.4")
    found.equal("point format", header.point_format.id, 7)
    system = header.parse_crs()
    found.equal("system", system.to_epsg() if system else 0, wanted.epsg)
    found.equal("count", len(cloud.points), wanted.num_points)
    box = wanted.on_map(points)
    within = float(np.max(header.scales)) + _rounding(Box.of(points))
    found.box("bounds of header", Box(header.mins, header.maxs), box, within)
    found.box("bounds of points", Box.of(cloud.xyz), box, within)


def point_checks(wanted: Expected) -> Iterator[Check]:
    """All checks of point clouds."""

    def compare_ply(path: Path, found: Comparison) -> None:
        columns = _by_plyfile(path)
        points = np.stack([columns[name] for name in "xyz"], axis=1)
        found.equal("count", len(points), wanted.num_points)
        place = wanted.place(path)
        found.equal("system", place.epsg, wanted.epsg)
        mesh = wanted.on_map(wanted.mesh.vertices)
        rounding = _rounding(Box.of(wanted.mesh.vertices))
        found.contains("bounds in the mesh's", mesh, Box.of(place.to_map(points)), rounding)
        far = 5 * wanted.voxel_size  # along each side of the box some point lies
        found.box("bounds near the mesh's", Box.of(place.to_map(points)), mesh, far)

    def compare_laspy(path: Path, found: Comparison) -> None:
        import laspy

        beside = path.with_name("points.ply")
        if not beside.exists():
            raise NotThere(f"{beside} is missing, which it is compared with; run `{_EXPORT}points`")
        points = columns_of(read_ply(beside)[0]["vertex"], ("x", "y", "z"), beside)
        compare_las(laspy.read(path), wanted, points, found)

    yield Check(
        "export/points.ply", "points PLY", package("plyfile"), compare_ply, _EXPORT + "points"
    )
    for form, names in (("las", ("laspy",)), ("laz", ("laspy", "lazrs"))):
        maker = _EXPORT + form
        yield Check(f"export/points.{form}", form.upper(), package(*names), compare_laspy, maker)
