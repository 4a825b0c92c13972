"""Where the readers of others are, and which version."""

import functools
import importlib
import importlib.metadata
import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from foreign.comparison import NotThere, Reader

# Folder below --npm -> package and version. Two splat-transforms cannot share a folder.
NPM = {
    "splat-transform-2": ("@playcanvas/splat-transform", "2.7.1"),
    "splat-transform-3": ("@playcanvas/splat-transform", "3.7.0"),
    "gltf-validator": ("gltf-validator", "2.0.0-dev.3.10"),
}
_PATIENCE_S = 600
_HOW = {
    "plyfile": "pip install plyfile",
    "trimesh": 'pip install "cosurfgs_jax[mesh]"',
    "open3d": 'pip install "cosurfgs_jax[mesh]"',
    "gdalinfo": "apt-get install gdal-bin",
    "ogrinfo": "apt-get install gdal-bin",
    "chromium": "apt-get install chromium",
    "node": "apt-get install nodejs",
    "npm": "apt-get install npm",
}
# The package is a module without a program.
_VALIDATE = """
const validator = require(process.argv[1]);
const bytes = new Uint8Array(require('fs').readFileSync(process.argv[2]));
validator.validateBytes(bytes, {maxIssues: 20}).then(
  (report) => console.log(JSON.stringify(report)),
  (error) => { console.error(String(error)); process.exit(1); });
"""


def run_program(command: Sequence[str | Path], also_errors: bool = False) -> str:
    """What a program prints.

    Args:
        command: its name and arguments.
        also_errors: with what it prints to stderr, after the rest.
    Raises:
        NotThere: it is not there.
        RuntimeError: it failed, with its last line.
    """
    try:
        done = subprocess.run(
            [str(word) for word in command],
            capture_output=True,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            timeout=_PATIENCE_S,
        )
    except FileNotFoundError as error:
        raise _missing(Path(str(command[0])).name) from error
    if done.returncode:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise RuntimeError(f"exit code {done.returncode}: {(lines or ['nothing'])[-1]}")
    return done.stdout + done.stderr * also_errors


def _version_number(name: str | Path) -> str:
    """What a program says at --version, wherever it prints that; "unknown" where it is none."""
    number = re.search(r"\d+(\.\d+)+", run_program([name, "--version"], also_errors=True))
    return number[0] if number else "unknown"


def _missing(name: str) -> NotThere:
    how = _HOW.get(name, 'pip install "cosurfgs_jax[geo]"')
    return NotThere(f"{name} is missing; run `{how}`")


def _package_version(name: str) -> str:
    try:
        importlib.import_module(name)
        return importlib.metadata.version(name)
    except (ImportError, OSError) as error:  # or a shared library that it needs
        raise _missing(name) from error


def package(*names: str) -> Reader:
    """Python packages that read together."""
    return Reader(" and ".join(names), lambda: ", ".join(_package_version(name) for name in names))


def program(name: str) -> Reader:
    """A program on the PATH that knows --version."""

    def version() -> str:
        found = shutil.which(name)
        if found is None:
            raise _missing(name)
        return _version_number(found)

    return Reader(name, version)


class NpmFolder:
    """The packages of npm in a folder, or on the PATH."""

    def __init__(self, folder: Path | None):
        self._folder = folder

    def install(self) -> None:
        """Puts the packages of `NPM` into the folder, where they are missing.

        Raises:
            NotThere: there is no npm.
            RuntimeError: npm failed.
        """
        for name, (package_name, version) in NPM.items():
            place = Path(self._folder or ".") / name
            note = place / "node_modules" / package_name / "package.json"
            if note.exists() and json.loads(note.read_text())["version"] == version:
                continue
            place.mkdir(parents=True, exist_ok=True)
            run_program(["npm", "install", "--prefix", place, f"{package_name}@{version}"])

    def _missing(self, name: str) -> NotThere:
        return NotThere(f"{name} is missing; give --npm=FOLDER and --install, which needs npm")

    @functools.cache  # noqa: B019  one folder lives as long as the program
    def splat_transform(self, major: int) -> tuple[str, str]:
        """Path and version of splat-transform with a major version.

        Raises:
            NotThere: it is not there.
        """
        places = [shutil.which("splat-transform")]
        if self._folder is not None:
            folder = self._folder / f"splat-transform-{major}"
            places.insert(0, str(folder / "node_modules" / ".bin" / "splat-transform"))
        for place in places:
            if place is None or not Path(place).exists():
                continue
            version = _version_number(place)
            if version.split(".")[0] == str(major):
                return place, version
        raise self._missing(f"splat-transform {major}")

    def splat_reader(self, major: int) -> Reader:
        """splat-transform of a major version."""
        return Reader(f"splat-transform {major}", lambda: self.splat_transform(major)[1])

    def _validator(self) -> Path:
        if self._folder is not None:
            place = self._folder / "gltf-validator" / "node_modules" / "gltf-validator"
            if place.exists():
                return place
        raise self._missing("gltf-validator")

    def gltf_reader(self) -> Reader:
        """The validator of Khronos."""

        def version() -> str:
            return json.loads((self._validator() / "package.json").read_text())["version"]

        return Reader("gltf-validator", version)

    def validate_gltf(self, path: Path) -> dict:
        """The report of gltf-validator on a file."""
        return json.loads(run_program(["node", "-e", _VALIDATE, self._validator().resolve(), path]))
