"""Reads every file that a run exports with programs of others, and compares what they say with the
run's own model, mesh and notes.

python scripts/foreign_readers.py --workdir=DIR [--export] [--out=REPORT.json] [--strict]
    [--offset=X,Y,Z --epsg=NUMBER] [--tile_size=SIDE] [--npm=FOLDER [--install]]
    [--pictures=FOLDER] [--only=WORD]

DIR is the workdir of a run that `train`, `extract_mesh` (with --format=obj and glb) and `export` in
all formats were run on; --export makes these files first (the program splat-transform has to be on
the PATH for three of them). Where they were made with --config.geo.offset, --config.geo.epsg or
--config.texture.tile_size, the same values are given here; without them those of the run's geo.json
hold. --npm is the folder of the packages of npm, which --install fills. --pictures keeps the
screenshot of the page. --only takes files, formats and readers whose names have the word.

Prints a table and writes it as JSON. A reader or a file that is missing is "not there", with a
sentence that says how to get it. Exits with 1 where a file cannot be read or says something else
than the model, with 2 where --strict is given and something is not there, or the workdir cannot be
used, and with 0 otherwise. What the readers are, and how to get them: docs/outputs.md.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from foreign import comparison, maps, meshes, page, splats
from foreign.comparison import NotThere, Row
from foreign.expected import Expected
from foreign.readers import NpmFolder

from cosurfgs_jax.errors import InputError

_UNUSABLE = 2


def all_checks(wanted: Expected, npm: NpmFolder, pictures: Path | None) -> list[comparison.Check]:
    """Every check of a workdir."""
    return [
        *splats.splat_checks(wanted, npm),
        *splats.point_checks(wanted),
        *meshes.mesh_checks(wanted, npm),
        *meshes.tile_checks(wanted, npm),
        *maps.raster_checks(wanted),
        *maps.line_checks(wanted),
        *page.page_checks(wanted, pictures),
    ]


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--export", action="store_true")
    parser.add_argument("--strict", action="store_true")
    parser.add_argument("--offset", default="")
    parser.add_argument("--epsg", type=int, default=0)
    parser.add_argument("--tile_size", type=float, default=0.0)
    parser.add_argument("--npm", type=Path)
    parser.add_argument("--install", action="store_true")
    parser.add_argument("--pictures", type=Path)
    parser.add_argument("--only", default="")
    given = parser.parse_args(arguments)
    if given.install and given.npm is None:
        parser.error("--install: expected --npm=FOLDER, which it fills, got none")
    return given


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _rows(given: argparse.Namespace) -> list[Row]:
    npm = NpmFolder(given.npm)
    if given.install:
        npm.install()
    wanted = Expected(given.workdir, given.offset, given.epsg, given.tile_size)
    if given.export:
        wanted.export_all(_tell)
    wanted.trained  # noqa: B018  a model that cannot be loaded is said here, once
    rows = []
    for check in all_checks(wanted, npm, given.pictures):
        if given.only not in f"{check.file} {check.form} {check.reader.name}":
            continue
        rows.append(comparison.run_check(check, given.workdir))
        _tell(f"{rows[-1].file}, {rows[-1].reader}: {rows[-1].result}")
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program; its exit code."""
    given = _parse(arguments)
    try:
        rows = _rows(given)
    except (InputError, NotThere, RuntimeError) as error:
        _tell(f"error: {error}")
        return _UNUSABLE
    print(comparison.table(rows))
    if given.out is not None:
        content = {"format": 1, "rows": [row._asdict() for row in rows]}
        given.out.write_text(json.dumps(content, indent=1) + "\n")
    return comparison.exit_code(rows, given.strict)


if __name__ == "__main__":
    sys.exit(main())
