"""Splat files: exact round trips, the column layout that viewers read, and failures that leave
nothing behind.
"""

import resource
import struct

import jax.numpy as jnp
import numpy as np
import pytest

from cosurfgs_jax.errors import InputError
from cosurfgs_jax.formats import ply
from cosurfgs_jax.formats.splat_ply import read_surfels_ply, write_surfels_ply
from cosurfgs_jax.types import Surfels

FIELDS = ("means", "quats", "log_scales", "logit_opacities", "sh")


def make_surfels(num=7, num_coefficients=16, seed=0):
    generator = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(generator.normal(size=shape).astype(np.float32))

    return Surfels(
        means=normal(num, 3) * 50,
        quats=normal(num, 4),
        log_scales=normal(num, 2) * 0.3 - 3,
        logit_opacities=normal(num),
        sh=normal(num, num_coefficients, 3),
        alive=jnp.ones(num, bool),
    )


@pytest.mark.parametrize("form", ["2d", "3dgs"])
@pytest.mark.parametrize("num_coefficients", [1, 4, 9, 16])
def test_round_trip_is_bit_exact(tmp_path, form, num_coefficients):
    surfels = make_surfels(num_coefficients=num_coefficients)
    path = tmp_path / "a" / "b" / "surfels.ply"  # folders are made
    assert write_surfels_ply(path, surfels, form) == 7
    back = read_surfels_ply(path)
    for name in FIELDS:
        assert (
            np.asarray(getattr(back, name)).tobytes()
            == np.asarray(getattr(surfels, name)).tobytes()
        ), name
    assert np.asarray(back.alive).all()


@pytest.mark.parametrize("form", ["2d", "3dgs"])
@pytest.mark.parametrize("offset, kind", [(0.0, "f4"), (500.0, "f4"), (5_412_345.0, "f8")])
def test_map_coordinates_keep_their_digits(tmp_path, caplog, form, offset, kind):
    surfels = make_surfels()
    means = np.asarray(surfels.means, np.float64) + offset
    write_surfels_ply(tmp_path / "s.ply", surfels.replace(means=means), form)
    table = ply.read_ply(tmp_path / "s.ply")[0]["vertex"]
    assert {table.dtype[name].str[1:] for name in "xyz"} == {kind}
    assert {table.dtype[name].str[1:] for name in table.dtype.names if name not in "xyz"} == {"f4"}
    assert ("double precision" in caplog.text) == (kind == "f8")
    np.testing.assert_allclose(
        np.stack([table[name] for name in "xyz"], axis=1), means, rtol=0, atol=1e-4
    )


def test_only_living_finite_surfels_are_written(tmp_path):
    surfels = make_surfels()
    alive = np.ones(7, bool)
    alive[2] = False
    means = np.asarray(surfels.means).copy()
    means[4, 1] = np.nan
    quats = np.asarray(surfels.quats).copy()
    quats[5] = 0
    broken = surfels.replace(
        alive=jnp.asarray(alive), means=jnp.asarray(means), quats=jnp.asarray(quats)
    )
    assert write_surfels_ply(tmp_path / "s.ply", broken) == 4
    assert np.array_equal(
        np.asarray(read_surfels_ply(tmp_path / "s.ply").means), means[[0, 1, 3, 6]]
    )


def read_by_position(path):
    """As a viewer would that knows nothing of this package: the header's names, then rows of
    float32.
    """
    data = path.read_bytes()
    header, body = data.split(b"end_header\n", 1)
    lines = header.decode().splitlines()
    names = [line.split()[2] for line in lines if line.startswith("property float")]
    count = int(next(line for line in lines if line.startswith("element vertex")).split()[2])
    assert lines[:2] == ["ply", "format binary_little_endian 1.0"]
    assert len(body) == 4 * count * len(names)
    return names, np.array(struct.unpack(f"<{count * len(names)}f", body), np.float32).reshape(
        count, len(names)
    )


def test_columns_are_those_of_splat_files(tmp_path):
    surfels = make_surfels(num_coefficients=4)
    surfels = surfels.replace(log_scales=surfels.log_scales.at[6, 1].set(-8.0))
    expected = (
        ["x", "y", "z", "nx", "ny", "nz"]
        + [f"f_dc_{i}" for i in range(3)]
        + [f"f_rest_{i}" for i in range(9)]
        + ["opacity", "scale_0", "scale_1"]
    )
    rotation = [f"rot_{i}" for i in range(4)]
    write_surfels_ply(tmp_path / "flat.ply", surfels, "2d")
    names, values = read_by_position(tmp_path / "flat.ply")
    assert names == expected + rotation
    # Channel-major: coefficient 1, 2, 3 of red come first.
    sh = np.asarray(surfels.sh)
    assert np.array_equal(values[:, 9:18], np.concatenate([sh[:, 1:, c] for c in range(3)], axis=1))
    write_surfels_ply(tmp_path / "solid.ply", surfels, "3dgs")
    names, values = read_by_position(tmp_path / "solid.ply")
    assert names == [*expected, "scale_2", *rotation]
    thickness = values[:, names.index("scale_2")]
    spread = np.sqrt(np.asarray(surfels.means).astype(np.float64).var(axis=0).sum())
    assert np.allclose(thickness[:6], np.log(1e-6 * spread), atol=1e-5)
    assert thickness[6] == pytest.approx(-8 - np.log(100), abs=1e-5)  # a tiny one stays a disc


def test_normal_is_the_third_axis(tmp_path):
    half = np.sqrt(0.5)
    quats = np.array([[1, 0, 0, 0], [half, half, 0, 0], [2 * half, 0, 2 * half, 0]], np.float32)
    surfels = make_surfels(3).replace(quats=jnp.asarray(quats))
    write_surfels_ply(tmp_path / "n.ply", surfels)
    names, values = read_by_position(tmp_path / "n.ply")
    # z stays, z -> -y by a quarter turn around x, z -> x by one around y.
    assert np.allclose(values[:, 3:6], [[0, 0, 1], [0, -1, 0], [1, 0, 0]], atol=1e-6)


def test_reads_any_column_order_types_and_extra_columns(tmp_path):
    surfels = make_surfels(num_coefficients=4)
    write_surfels_ply(tmp_path / "a.ply", surfels)
    table = ply.read_ply(tmp_path / "a.ply")[0]["vertex"]
    names = list(table.dtype.names)[::-1]
    shuffled = np.empty(len(table), [("extra", "u1"), *((name, "f8") for name in names)])
    for name in names:
        shuffled[name] = table[name]
    shuffled["extra"] = 9
    ply.write_ply(tmp_path / "b.ply", shuffled)
    assert np.array_equal(
        np.asarray(read_surfels_ply(tmp_path / "b.ply").sh), np.asarray(surfels.sh)
    )


def test_volumes_and_broken_files_are_refused(tmp_path):
    surfels = make_surfels(num_coefficients=1)
    path = tmp_path / "v.ply"
    write_surfels_ply(path, surfels, "3dgs")
    table = ply.read_ply(path)[0]["vertex"]
    table["scale_2"] = 5
    ply.write_ply(path, table)
    with pytest.raises(InputError, match="flat surfels"):
        read_surfels_ply(path)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(InputError, match="cut off"):
        read_surfels_ply(path)
    path.write_bytes(b"solid stl\n")
    with pytest.raises(InputError, match="not 'ply'"):
        read_surfels_ply(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_surfels_ply(tmp_path / "missing.ply")
    ply.write_ply(path, np.zeros(3, [("x", "f4"), ("y", "f4")]))
    with pytest.raises(InputError, match="f_dc|scale_0"):
        read_surfels_ply(path)
    with pytest.raises(InputError, match='"2d" or "3dgs"'):
        write_surfels_ply(path, surfels, "obj")
    with pytest.raises(InputError, match="no living surfel"):
        write_surfels_ply(path, surfels.replace(alive=jnp.zeros(7, bool)))


def test_a_write_that_fails_half_way_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "s.ply"
    write_surfels_ply(path, make_surfels())
    before = path.read_bytes()
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The file system refuses in the middle of the data, as a full disk does.
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, old[1]))
    try:
        with pytest.raises(InputError, match="could not be written"):
            write_surfels_ply(path, make_surfels(num=500))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["s.ply"]


def test_a_folder_that_cannot_be_made_is_an_input_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="could not be written"):
        write_surfels_ply(tmp_path / "file" / "s.ply", make_surfels())


@pytest.mark.parametrize("form", ["ascii", "binary_big_endian"])
def test_other_ply_encodings_are_read(tmp_path, form):
    header = (
        f"ply\nformat {form} 1.0\ncomment hello world\nelement vertex 2\nproperty double "
        "x\nproperty float y\n"
        "property uchar z\nelement face 1\nproperty list uchar uint vertex_indices\nend_header\n"
    ).encode()
    if form == "ascii":
        body = b"1.5 2.5 3\n-1 0.25 255\n3 0 1 1\n"
    else:
        body = (
            struct.pack(">dfB", 1.5, 2.5, 3)
            + struct.pack(">dfB", -1, 0.25, 255)
            + struct.pack(">BIII", 3, 0, 1, 1)
        )
    (tmp_path / "p.ply").write_bytes(header + body)
    tables, comments = ply.read_ply(tmp_path / "p.ply")
    assert comments == ["hello world"]
    assert np.array_equal(ply.read_points_ply(tmp_path / "p.ply"), [[1.5, 2.5, 3], [-1, 0.25, 255]])
    assert tables["face"]["vertex_indices"].tolist() == [[0, 1, 1]]


def test_polygons_are_refused(tmp_path):
    header = (
        b"ply\nformat binary_little_endian 1.0\nelement vertex 1\nproperty float x\nelement face "
        b"1\n"
        b"property list uchar int vertex_indices\nend_header\n"
    )
    (tmp_path / "q.ply").write_bytes(
        header + struct.pack("<f", 0) + struct.pack("<Biiii", 4, 0, 0, 0, 0)
    )
    with pytest.raises(InputError, match="triangles"):
        ply.read_ply(tmp_path / "q.ply")


def test_lines_of_a_header_have_at_most_4096_bytes(tmp_path):
    table = np.zeros(1, [("x", "f4")])
    for length, is_read in ((4096, True), (4097, False)):
        path = tmp_path / f"{length}.ply"
        ply.write_ply(path, table, comments=("a" * (length - len("comment \n")),))
        if is_read:
            assert ply.read_ply(path)[0]["vertex"].dtype.names == ("x",)
            continue
        with pytest.raises(InputError, match="the PLY header has no end"):
            ply.read_ply(path)
