"""Splats for browsers: what is given to the program that writes them, with a stand-in for it that
copies the splat file, and where it is there the program itself.
"""

import functools
import json
import os
import shutil
import subprocess

import numpy as np
import pytest
from blocks_case import four_blocks, model_of, solid_state, surfels_of

from cosurfgs_jax import doctor
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.formats.splat_ply import read_surfels_ply, write_surfels_ply
from cosurfgs_jax.geometry.spherical_harmonics import rotate
from cosurfgs_jax.outputs import exports
from cosurfgs_jax.outputs.exports import browser
from cosurfgs_jax.outputs.trained import Trained
from cosurfgs_jax.settings import Settings
from cosurfgs_jax.workdir import EXPORTS, Workdir

NAMES = ("html", "spz", "sog")
# Flags, settings of the viewer, splat file, result.
COPIES = """#!/bin/sh
if [ "$1" = --version ]; then echo 'splat-transform v3.7.0 (0f60b17)' >&2; exit; fi
for last; do :; done
echo "$@" > {folder}/arguments
while [ "$1" != --viewer-settings ]; do shift; done
cp "$2" {folder}/viewer.json
cp "$3" "$last"
"""


@functools.cache
def _trained():
    surfels = surfels_of(solid_state(four_blocks(), 0))
    return Trained(Settings(), four_blocks(), model_of(surfels), Workdir("run"))


def _write(form, folder):
    form.write(_trained()._replace(workdir=Workdir(folder / "run")), folder / "export")


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
    _write(form, tmp_path)
    names = {path.name for path in (tmp_path / "export").iterdir()}
    assert names == {f"model.{name}", "place.json"}
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
    assert doctor._splat_transform().startswith("not on the PATH; for export --format=html")
    _program(tmp_path, monkeypatch, COPIES)
    assert doctor._splat_transform() == str(tmp_path / "splat-transform")


def test_a_version_that_leaves_spz_upside_down_is_refused(monkeypatch, tmp_path):
    says = "#!/bin/sh\necho 'splat-transform v{} (b42b60c)' >&2\n"
    _program(tmp_path, monkeypatch, says.replace("{}", "2.7.1"))
    exports.find_format("sog").check(Settings())
    words = r"--format=spz: expected splat-transform 3 or later, got 2, .*npm install -g"
    with pytest.raises(InputError, match=words):
        exports.find_format("spz").check(Settings())
    for said in ("3.0.0", ""):  # one that does not say its version is tried
        _program(tmp_path, monkeypatch, says.replace("{}", said))
        exports.find_format("spz").check(Settings())


@pytest.mark.parametrize("end", ["exit 3", "exit 0"])
def test_a_failure_is_said_and_leaves_nothing(tmp_path, monkeypatch, end):
    text = f"#!/bin/sh\necho starting >&2\necho '  Error: no room' >&2\n{end}\n"
    _program(tmp_path, monkeypatch, text)
    with pytest.raises(InputError, match=r"write model\.sog.* got exit code [03] .*Error: no room"):
        _write(exports.find_format("sog"), tmp_path)
    assert list((tmp_path / "export").iterdir()) == []


HEAP = "FATAL ERROR: Reached heap limit - JavaScript heap out of memory"


@pytest.mark.parametrize(
    "text, words",
    [
        (f"#!/bin/sh\necho '{HEAP}' >&2\nexit 134", f"code 134 .{HEAP}.; .* --format=ply"),
        ("#!/bin/sh\necho loading\nkill -9 $$", "code -9 .loading.; it was killed, .* memory"),
        ("#!/usr/bin/env no-such-node\n", "code 127 .*no-such-node.*; install Node.js"),
        ("no program\n", "splat-transform cannot be run .Exec format error.; update it"),
    ],
)
def test_the_advice_fits_the_failure(tmp_path, monkeypatch, text, words):
    _program(tmp_path, monkeypatch, text)
    with pytest.raises(InputError, match=words):
        _write(exports.find_format("sog"), tmp_path)
    assert list((tmp_path / "export").iterdir()) == []


def test_the_splat_file_lies_in_the_scratch_of_the_run(tmp_path, monkeypatch):
    """It is gigabytes, and the next program deletes there what a killed one left."""
    _program(tmp_path, monkeypatch, COPIES)
    _write(exports.find_format("spz"), tmp_path)
    source = (tmp_path / "arguments").read_text().split()[-2]
    assert source.startswith(str(Workdir(tmp_path / "run").own_scratch(EXPORTS)))
    assert not os.path.exists(source)


@pytest.mark.skipif(shutil.which("splat-transform") is None, reason="splat-transform is missing")
def test_the_program_itself_writes_spz_that_it_reads(tmp_path):
    _write(browser.SPZ, tmp_path)
    out = tmp_path / "back.ply"
    command = ["splat-transform", "-q", str(tmp_path / "export" / "model.spz"), str(out)]
    subprocess.run(command, check=True)
    read = read_surfels_ply(out)
    wanted = browser.upright(_trained().partitioned.frame).surfels_to_dataset(_trained().surfels)
    write_surfels_ply(tmp_path / "wanted.ply", wanted, "3dgs")
    means = np.asarray(read_surfels_ply(tmp_path / "wanted.ply").means)
    gaps = np.abs(np.sort(read.means, axis=0) - np.sort(means, axis=0))
    assert gaps.max() < 1e-3
