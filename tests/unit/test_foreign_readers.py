"""scripts/foreign_readers.py: what it compares has to be able to differ, on small stand-ins."""

import json
import types

import foreign_readers
import numpy as np
import pytest
from foreign import comparison, maps, meshes, page, readers, splats
from foreign.comparison import FAILED, NOT_THERE, READ, Box, Check, Comparison, Reader

from cosurfgs_jax.formats.place_json import Place

OFFSET = np.array([500_000.0, 4_649_776.0, 100.0])
POINTS = np.array([[0.0, 0, 0], [10, 20, 3], [4, 6, 1]])
LOGITS = np.array([0.0, 1.0, -1.0])
DC = np.array([[0.1, 0.2, 0.3]] * 3)


def _wanted(**more):
    """What a workdir has, without one."""
    values = {
        "count": 3,
        "means": POINTS,
        "opacities": 1 / (1 + np.exp(-LOGITS)),
        "dc": DC,
        "epsg": 32614,
        "offset": OFFSET,
        "on_map": lambda points: Box.of(points + OFFSET),
        "voxel_size": 0.1,
        "mesh": types.SimpleNamespace(vertices=POINTS, num_vertices=3, largest_coordinate=20.0),
        "place": lambda path: Place(np.eye(3), OFFSET, 32614),
        "note": lambda name: NOTES[name],
    }
    return types.SimpleNamespace(**values | more)


NOTES = {
    "dsm.json": {
        "width": 110,
        "height": 210,
        "pixel_size": 0.1,
        "left": 499_999.5,
        "top": 4_649_796.5,
    },
    "contours.json": {"num_lines": 5, "contours_of": "dtm"},
    "textured.json": {"num_triangles": 1, "size": 8},
}


def _failures(compare, *arguments) -> str:
    found = Comparison()
    compare(*arguments, found)
    assert found.compared
    return "\n".join(found.failures)


def _splats(**changes) -> str:
    columns = dict(zip("xyz", POINTS.T, strict=True)) | {"opacity": LOGITS}
    columns |= {f"f_dc_{channel}": DC[:, channel] for channel in range(3)}
    columns = {name: np.array(values) for name, values in columns.items()} | changes
    place = Place(np.eye(3), OFFSET, 32614)

    def compare(found):
        splats.compare_splats(columns, _wanted(), place, found, 1e-3)

    return _failures(compare)


def test_a_wrong_splat_file_fails():
    assert _splats() == ""
    short = {name: POINTS[:2, axis] for axis, name in enumerate("xyz")}
    assert "count: expected 3, got 2" in _splats(**short)
    assert _splats(x=POINTS[:, 0] + 0.01).startswith("bounds: expected (500000, ")
    assert _splats(opacity=LOGITS + 1).startswith("mean opacity")
    assert _splats(f_dc_2=DC[:, 0]).startswith("mean colour")
    assert _splats(x=np.full(3, np.nan)).startswith("bounds")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, ""),
        ({"num_triangles": 2}, "triangles: expected 1, got 2"),
        ({"texture": None}, r"texture: expected (8, 8), got None"),
        ({"vertices": POINTS[:, [0, 2, 1]]}, "bounds near the mesh's"),
    ],
)
def test_a_wrong_textured_mesh_fails(tmp_path, change, words):
    seen = meshes.Seen(POINTS, 1, (8, 8))._replace(**change)
    said = _failures(meshes.compare_textured, seen, _wanted(), tmp_path / "textured.glb")
    assert said.startswith(words) and bool(said) == bool(words)


RASTER = maps.Raster(
    epsg=32614,
    size=(110, 210),
    transform=(499_999.5, 0.1, 0.0, 4_649_796.5, 0.0, -0.1),
    bands=("height", "confidence"),
    units=("metre", ""),
    overviews=0,
    layout="COG",
)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, ""),
        ({"epsg": 32615}, "system: expected 32614, got 32615"),
        ({"size": (110, 211)}, "size: expected (110, 210), got (110, 211)"),
        ({"size": (1100, 210), "overviews": 0}, "size"),
        ({"bands": ("height",), "units": ("metre",)}, "bands"),
        ({"units": ("", "")}, "units: expected ('metre', '')"),
        ({"layout": ""}, "layout: expected COG"),
        ({"transform": (499_999.5, 0.1, 0.0, 4_649_796.5, 0.0, 0.1)}, "pixel"),
        ({"transform": (499_990.0, 0.1, 0.0, 4_649_796.5, 0.0, -0.1)}, "corner"),
    ],
)
def test_a_wrong_raster_fails(change, words):
    said = _failures(maps.compare_raster, RASTER._replace(**change), _wanted(), "dsm.tif")
    assert said.startswith(words) and bool(said) == bool(words)
    assert ("overviews" in said) == (change.get("size") == (1100, 210))
    if words == "corner":
        assert "bounds around the mesh" in said


GDALINFO = {
    "size": [110, 210],
    "coordinateSystem": {"wkt": 'PROJCRS["a",ID["EPSG",9001]],ID["EPSG",32614]]'},
    "geoTransform": list(RASTER.transform),
    "metadata": {"IMAGE_STRUCTURE": {"LAYOUT": "COG"}},
    "bands": [{"description": "height", "unit": "metre"}, {"description": "confidence"}],
}
OGRINFO = """Layer name: contours
Feature Count: 5
Extent: (500000.500000, 4649777.000000) - (500009.000000, 4649790.000000)
Layer SRS WKT:
PROJCRS["WGS 84 / UTM zone 14N",
    ID["EPSG",32614]]
elevation: Real (0.0)
"""


def test_what_gdal_prints_is_read():
    assert maps.parse_gdalinfo(json.dumps(GDALINFO)) == RASTER
    lines = maps.parse_ogrinfo(OGRINFO)
    assert lines[:3] == (32614, 5, ("elevation",))
    assert lines.box.low.tolist() == [500000.5, 4649777.0]
    with pytest.raises(ValueError, match="expected a layer"):
        maps.parse_ogrinfo("ERROR")


def test_wrong_contour_lines_fail(monkeypatch, tmp_path):
    monkeypatch.setattr(maps, "by_rasterio", lambda path: RASTER)
    wanted = _wanted(workdir=types.SimpleNamespace(export=tmp_path))
    lines = maps.parse_ogrinfo(OGRINFO)
    assert _failures(maps.compare_lines, lines, wanted) == ""
    fewer = lines._replace(count=4)
    assert _failures(maps.compare_lines, fewer, wanted) == "count: expected 5, got 4"
    moved = lines._replace(box=Box(lines.box.low - 100, lines.box.high))
    assert "bounds in the raster's" in _failures(maps.compare_lines, moved, wanted)


def _index() -> dict:
    def box(middle, half):
        return {"box": [*middle, half, 0, 0, 0, half, 0, 0, 0, half]}

    child = {"boundingVolume": box((1, 1, 1), 1), "geometricError": 0, "content": {"uri": "a.glb"}}
    root = {"boundingVolume": box((2, 2, 2), 2), "geometricError": 7.0, "refine": "REPLACE"}
    root["children"] = [child]
    return {"asset": {"version": "1.1"}, "geometricError": 7.0, "root": root}


def test_a_wrong_index_of_tiles_fails():
    assert _failures(meshes.compare_index, _index()) == ""
    index = _index()
    index["asset"]["version"] = "1.0"
    del index["root"]["refine"]
    index["root"]["transform"] = [1.0] * 15
    (child,) = index["root"]["children"]
    child["geometricError"] = 8.0
    child["boundingVolume"]["box"][0] = 9.0
    del child["content"]
    said = _failures(meshes.compare_index, index).splitlines()
    names = ["version", "refine", "transform", "nesting", "geometricError", "contents"]
    assert [line.split(":")[0] for line in said] == names


def test_a_tile_outside_of_its_box_fails():
    y_up = np.array([[0.0, 0, 0], [2, 2, -2]])  # z up: (0, 0, 0) to (2, 2, 2)
    volume = _index()["root"]["children"][0]["boundingVolume"]
    seen = meshes.Seen(y_up, 1, (8, 8))
    assert _failures(meshes.compare_tile, seen, volume) == ""
    turned = seen._replace(vertices=np.abs(y_up))
    assert "bounds of tiles" in _failures(meshes.compare_tile, turned, volume)


def test_errors_of_gltf_fail():
    row = {"code": "NODE_LOOP", "pointer": "/nodes/0"}
    report = {"issues": {"numErrors": 0, "numWarnings": 0}, "info": {"totalTriangleCount": 4}}
    assert _failures(meshes.compare_report, report, 4) == ""
    assert "triangles: expected 5, got 4" in _failures(meshes.compare_report, report, 5)
    report["issues"] = {"numErrors": 1, "numWarnings": 0, "messages": [row]}
    said = _failures(meshes.compare_report, report, 4)
    assert said == "0 errors: expected none, got ['NODE_LOOP at /nodes/0']"


def test_a_blank_page_fails():
    background = np.array([235, 237, 245], np.uint8)
    blank = np.tile(background, (600, 1000, 1))
    assert "pixels with the model" in _failures(page.compare_picture, blank, background)
    black = np.zeros_like(blank)
    assert _failures(page.compare_picture, black, background).startswith("colours")
    rng = np.random.default_rng(0)
    shown = blank.copy()
    shown[200:400, 300:700] = rng.integers(0, 200, (200, 400, 3))
    assert _failures(page.compare_picture, shown, background) == ""


def _check(compare, version=lambda: "1.0") -> Check:
    return Check("a.ply", "PLY", Reader("reader", version), compare, "cosurfgs export")


def _missing():
    raise comparison.NotThere("reader is missing; run `pip install reader`")


def test_results_and_exit_codes(tmp_path):
    def compare(path, found):
        found.equal("count", int(path.read_text()), 3)

    def run(check):
        return comparison.run_check(check, tmp_path)

    absent = run(_check(compare))
    assert absent.result == NOT_THERE and "run `cosurfgs export`" in absent.why[0]
    (tmp_path / "a.ply").write_text("3")
    good = run(_check(compare))
    assert good == ("a.ply", "PLY", "reader", "1.0", "count", READ, ())
    without = run(_check(compare, _missing))
    assert without.result == NOT_THERE and without.why[0].startswith("reader is missing")
    (tmp_path / "a.ply").write_text("2")
    wrong = run(_check(compare))
    assert wrong.result == FAILED and wrong.why == ("count: expected 3, got 2",)
    (tmp_path / "a.ply").write_text("two")
    assert run(_check(compare)).why[0].startswith("ValueError: invalid literal")
    assert run(_check(lambda path, found: None)).why == ("nothing was compared",)
    codes = [comparison.exit_code(rows, False) for rows in ([good], [good, without], [wrong])]
    assert codes == [0, 0, 1]
    codes = [comparison.exit_code(rows, True) for rows in ([good], [good, without], [wrong])]
    assert codes == [0, 2, 1]
    lines = comparison.table([good, wrong]).splitlines()
    assert lines[0].startswith("| file ") and lines[-1] == "a.ply, reader: count: expected 3, got 2"
    assert len({len(line) for line in lines[:4]}) == 1


def test_missing_programs_are_a_sentence(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    npm = readers.NpmFolder(tmp_path)
    wanted = {
        readers.program("gdalinfo"): "run `apt-get install gdal-bin`",
        readers.package("no_such_reader"): "no_such_reader is missing",
        npm.splat_reader(3): "splat-transform 3 is missing; give --npm=FOLDER and --install",
        npm.gltf_reader(): "gltf-validator is missing",
    }
    for reader, words in wanted.items():
        with pytest.raises(comparison.NotThere, match=words):
            reader.version()
    assert foreign_readers.main([f"--workdir={tmp_path}"]) == 2
    assert "expected the workdir of a run" in capsys.readouterr().err
    command = [f"--workdir={tmp_path}", f"--npm={tmp_path}", "--install"]
    assert foreign_readers.main(command) == 2
    assert "npm is missing; run `apt-get install npm`" in capsys.readouterr().err


def test_splat_transform_is_told_by_its_version(monkeypatch, tmp_path):
    program = tmp_path / "splat-transform"
    program.write_text("#!/bin/sh\necho 'splat-transform v3.7.0 (0f60b17)' >&2\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert readers.NpmFolder(None).splat_transform(3) == (str(program), "3.7.0")
    with pytest.raises(comparison.NotThere):
        readers.NpmFolder(None).splat_transform(2)


def test_columns_of_csv(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("x,y,z,f_dc_0,f_dc_1,f_dc_2,opacity,rot_0\n1,2,3,4,5,6,7,8\n")
    assert splats.read_csv(path)["opacity"].tolist() == [7]
    path.write_text("x,y\n1,2\n")
    with pytest.raises(ValueError, match="got no .*opacity"):
        splats.read_csv(path)
