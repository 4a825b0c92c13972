"""Splats for browsers: what is given to the program that writes them, with a stand-in for it that
copies the splat file, and where it is there the program itself.
"""

import functools
import json
import shutil
import subprocess

import numpy as np
import pytest
from blocks_case import four_blocks, solid_state, surfels_of

from cosurfgs_jax.errors import InputError
from cosurfgs_jax.formats.splat_ply import read_surfels_ply, write_surfels_ply
from cosurfgs_jax.geometry.spherical_harmonics import rotate
from cosurfgs_jax.outputs import exports
from cosurfgs_jax.outputs.exports import browser
from cosurfgs_jax.outputs.trained import Trained
from cosurfgs_jax.settings import Settings
from cosurfgs_jax.workdir import Workdir

NAMES = ("html", "spz", "sog")
# Flags, settings of the viewer, splat file, result.
COPIES = """#!/bin/sh
for last; do :; done
echo "$@" > {folder}/arguments
while [ "$1" != --viewer-settings ]; do shift; done
cp "$2" {folder}/viewer.json
cp "$3" "$last"
"""


@functools.cache
def _trained():
    surfels = surfels_of(solid_state(four_blocks(), 0))
    return Trained(Settings(), four_blocks(), surfels, 1, Workdir("run"))


def _program(folder, monkeypatch, text):
    path = folder / "splat-transform"
    path.write_text(text.format(folder=folder))
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")


@pytest.mark.parametrize("name", NAMES)
def test_the_program_gets_an_upright_model_and_the_first_view(tmp_path, monkeypatch, name):
    _program(tmp_path, monkeypatch, COPIES)
    form = exports.find_format(name)
    form.check(Settings())
    form.write(_trained(), tmp_path / "export")
    assert [path.name for path in (tmp_path / "export").iterdir()] == [f"model.{name}"]
    given = (tmp_path / "arguments").read_text().split()
    assert given[:4] == ["--quiet", "--overwrite", "--gpu", "cpu"] and given[-1].endswith(name)
    frame = _trained().partitioned.frame
    world = _trained().surfels
    read = read_surfels_ply((tmp_path / "export" / f"model.{name}").rename(tmp_path / "model.ply"))
    # East, down and north, in lengths of the dataset.
    alive = np.asarray(world.alive)
    turned = np.asarray(world.means)[alive][:, [0, 2, 1]] * [1, -1, 1] / frame.scale
    np.testing.assert_allclose(read.means, turned, rtol=1e-4, atol=1e-4)
    to_splat = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
    np.testing.assert_allclose(read.sh, rotate(np.asarray(world.sh)[alive], to_splat), atol=1e-5)
    view = json.loads((tmp_path / "viewer.json").read_text())["cameras"][0]["initial"]
    west, up, north = view["position"]
    assert west == 0 and up > 0 > north and np.hypot(up, north) * frame.scale < 1.1


def test_without_the_program_the_way_to_it_is_said(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="--format=spz: needs .*; run `npm install .*--format=ply"):
        exports.find_format("spz").check(Settings())


@pytest.mark.parametrize("end", ["exit 3", "exit 0"])
def test_a_failure_is_said_and_leaves_nothing(tmp_path, monkeypatch, end):
    text = f"#!/bin/sh\necho starting >&2\necho '  Error: no room' >&2\n{end}\n"
    _program(tmp_path, monkeypatch, text)
    with pytest.raises(InputError, match=r"write model\.sog.* got exit code [03] .*Error: no room"):
        exports.find_format("sog").write(_trained(), tmp_path / "export")
    assert list((tmp_path / "export").iterdir()) == []


@pytest.mark.skipif(shutil.which("splat-transform") is None, reason="splat-transform is missing")
def test_the_program_itself_writes_spz_that_it_reads(tmp_path):
    browser.SPZ.write(_trained(), tmp_path)
    out = tmp_path / "back.ply"
    command = ["splat-transform", "-q", str(tmp_path / "model.spz"), str(out)]
    subprocess.run(command, check=True)
    read = read_surfels_ply(out)
    wanted = browser.upright(_trained().partitioned.frame).surfels_to_dataset(_trained().surfels)
    write_surfels_ply(tmp_path / "wanted.ply", wanted, "3dgs")
    means = np.asarray(read_surfels_ply(tmp_path / "wanted.ply").means)
    gaps = np.abs(np.sort(read.means, axis=0) - np.sort(means, axis=0))
    assert gaps.max() < 1e-3
