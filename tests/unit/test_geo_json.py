"""geo.json: written, carried into a workdir, and taken for map coordinates."""

import json

import numpy as np
import pytest

from cosurfgs_jax.errors import InputError
from cosurfgs_jax.formats import geo_json
from cosurfgs_jax.formats.geo_json import GeoReference, carry_geo, read_geo, write_geo
from cosurfgs_jax.outputs.map_frame import with_map_frame
from cosurfgs_jax.report.place import place_table
from cosurfgs_jax.report.section import ReportInput
from cosurfgs_jax.settings import GeoSettings, Settings
from cosurfgs_jax.workdir import Workdir

GEO = GeoReference(32615, (576720.0, 5188170.0, 160.5), True, {"fit": {"method": "robust"}})


def test_it_is_read_as_it_was_written(tmp_path):
    path = tmp_path / geo_json.NAME
    assert read_geo(path) is None
    write_geo(path, GEO)
    assert read_geo(path) == GEO and GEO.offset_text == "576720,5188170,160.5"
    content = json.loads(path.read_text())
    assert content["epsg"] == 32615 and content["unit"] == "metre" and content["format"] == 1
    nowhere = GeoReference(0, (0.0, 0.0, 0.0), False)
    write_geo(path, nowhere)
    assert read_geo(path) == nowhere and not nowhere.is_map
    assert json.loads(path.read_text())["epsg"] is None


@pytest.mark.parametrize(
    "change, words",
    [
        ({"format": 2}, "expected a file of format 1"),
        ({"epsg": "32615"}, "expected epsg"),
        ({"epsg": True}, "expected epsg"),
        ({"offset": [1, 2]}, "expected epsg"),
        ({"offset": [1, 2, "3"]}, "expected epsg"),
        ({"offset": [1, -(7**500), 3]}, "expected epsg"),
        ({"offset": [1, float("nan"), 3]}, "expected epsg"),
        ({"unit": "foot"}, "expected epsg"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, change, words):
    path = tmp_path / geo_json.NAME
    write_geo(path, GEO)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=words):
        read_geo(path)


def test_a_workdir_gets_that_of_its_dataset(tmp_path):
    workdir = Workdir(tmp_path / "run")
    workdir.root.mkdir()
    assert workdir.geo.name == geo_json.NAME
    carry_geo(tmp_path, workdir.geo)
    assert not workdir.geo.exists()
    write_geo(tmp_path / geo_json.NAME, GEO)
    carry_geo(tmp_path, workdir.geo)
    assert read_geo(workdir.geo) == GEO
    (tmp_path / geo_json.NAME).unlink()
    carry_geo(tmp_path, workdir.geo)  # the dataset has moved without it
    assert read_geo(workdir.geo) == GEO


@pytest.mark.parametrize(
    "given, expected",
    [
        ({}, (32615, "576720,5188170,160.5")),
        ({"offset": "1,2,3"}, (0, "1,2,3")),
        ({"offset": "576720, 5188170,160.50"}, (32615, "576720, 5188170,160.50")),
        ({"epsg": 32615}, (32615, "576720,5188170,160.5")),
        ({"offset": "1,2,3", "epsg": 25832}, (25832, "1,2,3")),
        ({"offset": "0,0,0"}, (0, "0,0,0")),
    ],
)
def test_settings_that_are_given_win(tmp_path, given, expected):
    workdir = Workdir(tmp_path)
    settings = Settings(geo=GeoSettings(pixel_size=0.5, **given))
    assert with_map_frame(settings, workdir) == settings
    write_geo(workdir.geo, GEO)
    found = with_map_frame(settings, workdir).geo
    assert (found.epsg, found.offset) == expected and found.pixel_size == 0.5
    found.offset_xyz()
    write_geo(workdir.geo, GeoReference(0, (0.0, 0.0, 0.0), False))
    assert with_map_frame(settings, workdir) == settings


def test_a_system_of_degrees_is_refused_for_every_output(tmp_path):
    pytest.importorskip("rasterio")
    settings = Settings(geo=GeoSettings(offset="1,2,3", epsg=4326))
    with pytest.raises(InputError, match="config.geo.epsg: expected a projected system"):
        with_map_frame(settings, Workdir(tmp_path))


def test_a_geo_json_of_another_program_is_not_ours(tmp_path, caplog):
    (tmp_path / geo_json.NAME).write_text('{"type": "FeatureCollection", "features": []}')
    workdir = Workdir(tmp_path / "run")
    assert read_geo(tmp_path / geo_json.NAME) is None and "GeoJSON" in caplog.text
    carry_geo(tmp_path, workdir.geo)
    assert not workdir.geo.exists()


def test_the_report_has_the_words_of_the_summary(tmp_path):
    given = ReportInput(Workdir(tmp_path), {}, {}, {}, np.array([0, 0, 1.0]), 4)
    assert place_table(given) == ""
    details = {
        "summary": ["registered 5 < 8"],
        "suspicious": ["two"],
        "versions": {"pycolmap": "4"},
    }
    write_geo(given.workdir.geo, GeoReference(0, (0.0, 0.0, 0.0), False, details))
    text = place_table(given)
    assert "registered 5 &lt; 8" in text and "<td>suspicious</td><td>two</td>" in text
    assert "pycolmap 4" in text


def test_another_system_needs_an_offset_in_it(tmp_path):
    write_geo(Workdir(tmp_path).geo, GEO)
    with pytest.raises(InputError, match="config.geo.epsg: expected 32615, .* got 25832"):
        with_map_frame(Settings(geo=GeoSettings(epsg=25832)), Workdir(tmp_path))
