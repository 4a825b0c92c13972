"""What an export format is."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from cosurfgs_jax.outputs.trained import Trained
from cosurfgs_jax.part import Part
from cosurfgs_jax.settings import Settings


def needs_nothing(settings: Settings) -> None:
    """The check of a format that works everywhere."""


class ByParts(NamedTuple):
    """How shards make a format.

    | field    | content                                                                           |
    |----------|-----------------------------------------------------------------------------------|
    | `make`   | (model, part, empty folder) -> JSON data for `merge`; the folder gets the part    |
    | `merge`  | (model, folder and JSON data of each part in order, folder) -> None; writes the   |
    |          | bytes that `write` writes                                                         |
    | `groups` | groups of settings that the parts depend on                                       |
    | `check`  | refuses settings that shards cannot make                                          |
    """

    make: Callable[[Trained, Part, Path], dict[str, Any]]
    merge: Callable[[Trained, list[tuple[Path, dict[str, Any]]], Path], None]
    groups: tuple[str, ...] = ()
    check: Callable[[Settings], None] = needs_nothing


class ExportFormat(NamedTuple):
    """A way to write a trained model for other programs.

    | field   | content                                                                            |
    |---------|------------------------------------------------------------------------------------|
    | `name`  | value of --format                                                                  |
    | `help`  | files that it writes, for --help                                                   |
    | `check` | refuses a missing package or a wrong setting, before the model is loaded           |
    | `write` | (model, folder) -> None; raises `InputError`                                       |
    | `is_in_report` | whether the report shows something of it: it is written anew afterwards     |
    | `by_parts` | how shards make it; None where it is made as a whole alone                      |
    """

    name: str
    help: str
    check: Callable[[Settings], None]
    write: Callable[[Trained, Path], None]
    is_in_report: bool = False
    by_parts: ByParts | None = None
