"""What an export format is."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from cosurfgs_jax.outputs.trained import Trained
from cosurfgs_jax.settings import Settings


class ExportFormat(NamedTuple):
    """A way to write a trained model for other programs.

    | field   | content                                                                            |
    |---------|------------------------------------------------------------------------------------|
    | `name`  | value of --format                                                                  |
    | `help`  | files that it writes, for --help                                                   |
    | `check` | refuses a missing package or a wrong setting, before the model is loaded           |
    | `write` | (model, folder) -> None; raises `InputError`                                       |
    | `is_in_report` | whether the report shows something of it: it is written anew afterwards     |
    """

    name: str
    help: str
    check: Callable[[Settings], None]
    write: Callable[[Trained, Path], None]
    is_in_report: bool = False


def needs_nothing(settings: Settings) -> None:
    """The check of a format that works everywhere."""
