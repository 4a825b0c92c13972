"""Presets: the files of configs/, by their names.

They are defined in configs/ alone. A source tree, and an installation in place, read them there;
the build puts copies into the wheel, in presets/ of the package.
"""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path

from cosurfgs_jax.errors import InputError

_PACKAGE = Path(__file__).parents[1]
_FLAG = re.compile(r"--?preset(?:=(?P<name>.*))?", re.DOTALL)


def preset_folder() -> Path:
    """The folder with the files of the presets."""
    root = _PACKAGE.parent
    if (root / "pyproject.toml").is_file() and (root / "configs").is_dir():
        return root / "configs"
    return _PACKAGE / "presets"


def preset_names() -> list[str]:
    """All presets, those in folders with the folder's name in front ("mine/small")."""
    folder = preset_folder()
    files = sorted(folder.rglob("*.py"), key=lambda path: (len(path.parts), path))
    return [path.relative_to(folder).with_suffix("").as_posix() for path in files]


def preset_file(name: str) -> Path:
    """The config file of a preset.

    Raises:
        InputError: there is none of this name; the message has those that there are.
    """
    names = preset_names()
    if name not in names:
        near = difflib.get_close_matches(Path(name).stem, names, n=1)
        hint = "".join(f"; did you mean --preset={found}?" for found in near)
        raise InputError(f"--preset: expected one of {', '.join(names)}, got {name!r}{hint}")
    return preset_folder() / f"{name}.py"


def without_presets(argv: Sequence[str]) -> list[str]:
    """A command line with --preset=NAME replaced by --config=FILE.

    Raises:
        InputError: an unknown name, two presets, or a preset beside a config file.
    """
    arguments = list(argv)
    found = [
        (place, match)
        for place, match in enumerate(map(_FLAG.fullmatch, arguments))
        if place and match
    ]
    if not found:
        return arguments
    if len(found) > 1:
        raise InputError(f"--preset: expected one, got {len(found)}; give one")
    if any(re.match(r"--?config(=|$)", text) for text in arguments[1:]):
        raise InputError("--preset, --config: expected one of the two, got both; leave one out")
    place, match = found[0]
    name = match["name"]
    length = 1
    if name is None:  # --preset NAME
        length = 2
        name = "".join(arguments[place + 1 : place + 2])
    arguments[place : place + length] = [f"--config={preset_file(name)}"]
    return arguments
