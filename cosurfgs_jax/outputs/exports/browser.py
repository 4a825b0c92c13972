"""Splats for browsers: a page that shows the model by itself, and the small files SPZ and SOG that
viewers load. PlayCanvas' splat-transform makes all three of a splat file: no Python package writes
SOG or such a page.
"""

import functools
import json
import logging
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from cosurfgs_jax import files
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.formats.place_json import placing
from cosurfgs_jax.formats.splat_ply import write_surfel_parts
from cosurfgs_jax.geometry.scene_frame import SceneFrame
from cosurfgs_jax.outputs.exports.export_format import ExportFormat
from cosurfgs_jax.outputs.map_frame import place_of
from cosurfgs_jax.outputs.trained import Trained
from cosurfgs_jax.settings import Settings
from cosurfgs_jax.workdir import EXPORTS

_PROGRAM = "splat-transform"
_UPDATE = "update it with `npm install -g @playcanvas/splat-transform`"
_PATIENCE_S = 120  # for its version; on a busy machine Node.js takes seconds to start
_NO_PROGRAM = 127  # exit codes of `env` without the interpreter, ...
_ABORTED = (134, 137)  # ... and of a shell whose program was aborted or killed
# Splat files are taken to be y down, z ahead: east, down and north from the world's east, north
# and up.
_SPLAT_FROM_WORLD = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
# Files of SPZ are y up, z back: splat-transform turns them from version 3 on, and readers mostly
# turn them back.
_TURNS_SPZ = 3
_SPLAT_FROM_SPZ = np.diag([1.0, -1.0, -1.0])
# Where the page's camera begins, by the extent of the scene: south of it, 40 degrees high, in the
# viewer's axes, which are west, up and north.
_FIRST_PLACE = np.array([0.0, 0.65, -0.75])
_SHOWN_DEG = 60.0
_log = logging.getLogger(__name__)


def _check(name: str, settings: Settings) -> None:
    if shutil.which(_PROGRAM) is None:
        raise InputError(
            f"--format={name}: needs the program {_PROGRAM}, which is not on the PATH; run `npm "
            "install -g @playcanvas/splat-transform` (Node.js 20 or later), or give --format=ply, "
            "whose point_cloud_3dgs.ply https://superspl.at/editor opens and converts"
        )
    if name != "spz":
        return
    version = _major_version()
    if version is not None and version < _TURNS_SPZ:
        raise InputError(
            f"--format=spz: expected {_PROGRAM} {_TURNS_SPZ} or later, got {version}, which leaves "
            f"the axes as files of 3DGS have them, so that the model lies upside down; {_UPDATE}"
        )


def _major_version() -> int | None:
    """Of the program, by what it says; None where it says none, and `_run` finds out more."""
    try:
        said = subprocess.run(
            [_PROGRAM, "--version"],
            capture_output=True,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            timeout=_PATIENCE_S,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    number = re.search(r"\bv(\d+)\.", said.stdout + said.stderr)
    return int(number[1]) if number else None


def upright(frame: SceneFrame) -> SceneFrame:
    """The frame of the files: around the middle of the ground, in the dataset's unit, down and
    north where viewers of 3DGS have y and z. It takes the place of the dataset's.
    """
    return SceneFrame(frame.scale, _SPLAT_FROM_WORLD.T, np.zeros(3))


def place_in(name: str, frame: SceneFrame) -> tuple[np.ndarray, np.ndarray]:
    """Where the files lie in the dataset's frame: their axes f64[3,3] in it, in columns, and their
    origin f64[3].

    Args:
        name: of the format.
        frame: of the dataset.
    """
    axes = frame.rotation.T @ _SPLAT_FROM_WORLD.T
    if name == "spz":
        axes = axes @ _SPLAT_FROM_SPZ
    return axes, frame.to_dataset(np.zeros(3))


def viewer_settings(frame: SceneFrame) -> dict[str, Any]:
    """What the page begins with (schema 2 of SuperSplat's viewer)."""
    place = (_FIRST_PLACE / frame.scale).tolist()
    first = {"position": place, "target": [0.0, 0.0, 0.0], "fov": _SHOWN_DEG}
    off = {"enabled": False}
    effects = {
        "sharpness": off | {"amount": 0},
        "bloom": off | {"intensity": 1, "blurLevel": 2},
        "grading": off | {"brightness": 0, "contrast": 1, "saturation": 1, "tint": [1, 1, 1]},
        "vignette": off | {"intensity": 0.5, "inner": 0.3, "outer": 0.75, "curvature": 1},
        "fringing": off | {"intensity": 0.5},
    }
    return {
        "version": 2,
        "tonemapping": "none",
        "highPrecisionRendering": False,
        "background": {"color": [0.9, 0.93, 0.96]},
        "postEffectSettings": effects,
        "animTracks": [],
        "cameras": [{"initial": first}],
        "annotations": [],
        "startMode": "default",
    }


def _write(name: str, trained: Trained, folder: Path) -> None:
    frame = trained.partitioned.frame
    scratch_folder = trained.workdir.own_scratch(EXPORTS)  # /tmp may be memory
    with files.writing(scratch_folder):
        scratch_folder.mkdir(parents=True, exist_ok=True)
    axes, origin = place_in(name, frame)
    places = {f"model.{name}": place_of(trained.settings.geo, axes, origin)}
    with (
        tempfile.TemporaryDirectory(prefix="splats-", dir=scratch_folder) as scratch,
        placing(folder, places),
        files.atomic_path(folder / f"model.{name}") as path,
    ):
        source = Path(scratch) / "model.ply"
        choices = Path(scratch) / "viewer.json"
        turn = upright(frame).surfels_to_dataset
        count = write_surfel_parts(source, lambda: map(turn, trained.model.chunks()), "3dgs")
        choices.write_text(json.dumps(viewer_settings(frame)))
        _log.info("%s is at work on %d surfels and says nothing until its end", _PROGRAM, count)
        # Without a GPU it would stop.
        command = [_PROGRAM, "--quiet", "--overwrite", "--gpu", "cpu"]
        command += ["--viewer-settings", str(choices), str(source), str(path)]
        _run(name, command, path)
        num_bytes = path.stat().st_size
    _log.info("%d surfels, %.1f MB, in %s", count, num_bytes / 1e6, folder / f"model.{name}")


def _run(name: str, command: list[str], path: Path) -> None:
    """Runs the program.

    Args:
        name: of the format.
        command: the program and its arguments.
        path: of the file that it writes.
    Raises:
        InputError: it cannot be run, it failed, or the file is empty.
    """
    try:
        found = subprocess.run(
            command, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL
        )
    except OSError as error:
        raise InputError(
            f"--format={name}: {_PROGRAM} cannot be run ({error.strerror}); {_UPDATE}"
        ) from error
    if not found.returncode and path.stat().st_size:
        return
    lines = [line.strip() for text in (found.stderr, found.stdout) for line in text.splitlines()]
    lines = ["nothing", *filter(None, lines)]
    said = next((line for line in lines if "error" in line.lower()), lines[-1])
    advice = _UPDATE
    if found.returncode == _NO_PROGRAM:
        advice = "install Node.js 20 or later, whose `node` has to be on the PATH"
    elif found.returncode < 0 or found.returncode in _ABORTED:
        advice = (
            "it was killed, most likely for want of memory: set NODE_OPTIONS=--max-old-space-size "
            "to more MiB, or give --format=ply, which does without it"
        )
    raise InputError(
        f"--format={name}: expected {_PROGRAM} to write model.{name}, got exit code "
        f"{found.returncode} ({said[:200]}); {advice}"
    )


def _format(name: str, words: str, *, is_in_report: bool = False) -> ExportFormat:
    return ExportFormat(
        name,
        f"model.{name}, {words}, with up up and the middle of the ground as its origin; needs "
        f"{_PROGRAM} (npm)",
        functools.partial(_check, name),
        functools.partial(_write, name),
        is_in_report=is_in_report,
    )


HTML = _format("html", "a page that shows the splats and needs no other file", is_in_report=True)
SPZ = _format("spz", "a sixth of the size of the splat file")
SOG = _format("sog", "a sixth of the size of the splat file, for PlayCanvas and SuperSplat")
