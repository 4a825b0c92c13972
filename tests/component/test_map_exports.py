"""Exports that are made of others: the height map, its terrain and contour lines are made once, and
again where they are not what is wanted.
"""

import dataclasses
import json

import pytest
from blocks_case import four_blocks, model_of, solid_state, surfels_of

from cosurfgs_jax.errors import InputError
from cosurfgs_jax.outputs import exports
from cosurfgs_jax.outputs.exports import contours, dsm, dtm
from cosurfgs_jax.outputs.trained import Trained
from cosurfgs_jax.settings import Settings
from cosurfgs_jax.workdir import Workdir

GRID = {"width": 8, "height": 6, "pixel_size": 0.5, "covered_share": 1.0}
TERRAIN = {"interpolated_share": 0.2, "lost_share": 0.0, "object_width": 1.0}


@pytest.fixture
def done(monkeypatch):
    """What was drawn, in order; the files are empty."""
    done = []

    def write_dsm(path, *given, **choices):
        done.append("dsm")
        path.write_bytes(b"")
        geo = given[-1]
        place = {"offset": geo.offset_xyz(), "epsg": geo.epsg}
        place["pixel_size"] = geo.pixel_size or GRID["pixel_size"]
        return GRID | place | {"agreement": {"visible_points": None}}

    def write_dtm(_, path, settings, progress):
        done.append("dtm")
        progress(1, 1)
        path.write_bytes(b"")
        return GRID | TERRAIN

    def write_contours(source, path, interval):
        done.append(f"contours of {source.name} every {interval:g}")
        return {"num_lines": 3, "num_heights": 2, "lowest": 1.0, "highest": 2.0, "interval": 1.0}

    monkeypatch.setattr(dsm, "write_dsm", write_dsm)
    monkeypatch.setattr(dsm, "mesh_of", lambda *_: "the mesh")
    monkeypatch.setattr(dsm, "why_fuse", lambda _: "")
    monkeypatch.setattr(dtm, "write_dtm", write_dtm)
    monkeypatch.setattr(contours, "write_contours", write_contours)
    return done


@pytest.fixture
def export(tmp_path, done):
    """Exports a format with settings, and gives what was drawn for it."""
    workdir = Workdir(tmp_path)
    workdir.export.mkdir()
    model = model_of(surfels_of(solid_state(four_blocks(), 0)), 28)

    def call(form, identity="one", **changes):
        settings = Settings()
        for name, value in changes.items():
            group, _, field = name.partition("_")
            setattr(getattr(settings, group), field, value)
        trained = Trained(
            settings, four_blocks(), dataclasses.replace(model, identity=identity), workdir
        )
        done.clear()
        exports.find_format(form).write(trained, workdir.export)
        return list(done)

    return call


def test_each_is_made_once(export):
    lines = "contours of dtm.tif every 0"
    assert export("contours") == ["dsm", "dtm", lines]
    assert export("contours") == [lines]
    assert export("dtm") == ["dtm"]  # what is asked for is always made
    assert export("contours", terrain_interval=2.0) == ["contours of dtm.tif every 2"]
    assert export("contours", terrain_slope=0.3) == ["dtm", lines]
    assert export("contours") == [lines]  # what nobody has set may be as it was
    assert export("contours", terrain_contours_of="dsm") == ["contours of dsm.tif every 0"]


@pytest.mark.parametrize(
    "changes",
    [
        {"identity": "two"},
        {"geo_pixel_size": 0.25},
        {"geo_offset": "1,2,3"},
        {"geo_epsg": 32632},
        {"geo_heights": "surfels"},
    ],
)
def test_another_height_map_makes_another_terrain(export, changes):
    export("contours")
    assert export("contours", **changes)[:2] == ["dsm", "dtm"]


def test_a_height_map_that_is_as_wanted_stays(export):
    export("dsm")
    assert export("dtm", geo_pixel_size=0.5, geo_offset="0,0,0") == ["dtm"]


def test_another_mesh_makes_another_height_map(export, tmp_path, monkeypatch):
    export("dsm")
    (tmp_path / "mesh").mkdir()
    (tmp_path / "mesh" / "mesh.json").write_text("{}")
    assert export("dtm") == ["dsm", "dtm"]
    assert export("dtm") == ["dtm"]
    monkeypatch.setattr(dsm, "why_fuse", lambda _: "it was made with another voxel size")
    assert export("dtm") == ["dsm", "dtm"]


@pytest.mark.parametrize("name", ["dsm", "dtm"])
def test_what_was_broken_off_is_made_again(export, tmp_path, monkeypatch, name):
    export("contours")
    module = {"dsm": dsm, "dtm": dtm}[name]
    write = getattr(module, f"write_{name}")

    def break_off(*given, **choices):
        write(*given, **choices)
        raise InputError("killed between the file and its note")

    monkeypatch.setattr(module, f"write_{name}", break_off)
    with pytest.raises(InputError, match="killed"):
        export(name, geo_pixel_size=0.25, terrain_slope=0.5)
    monkeypatch.setattr(module, f"write_{name}", write)
    assert name in export("contours")


def test_what_is_interpolated_is_said(export, monkeypatch, caplog, tmp_path):
    caplog.set_level("INFO")
    export("dtm")
    assert "8x6 pixels of 0.5, 100 % covered, 20 % of it interpolated" in caplog.text
    assert "has no height" not in caplog.text
    found = GRID | TERRAIN | {"interpolated_share": 0.7, "lost_share": 0.1}
    monkeypatch.setattr(dtm, "write_dtm", lambda *_, **__: found)
    export("dtm")
    assert "10.0 % of the map is farther than 1 from any ground that is seen" in caplog.text
    assert "most of it is interpolated, as under woods" in caplog.text
    about = json.loads((tmp_path / "export" / "dtm.json").read_text())
    assert about["step"] == 28 and about["made_with"] == {"object_width": 50.0, "slope": 0.15}
