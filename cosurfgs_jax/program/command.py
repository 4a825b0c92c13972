"""The programs as one command: `cosurfgs NAME [flags]` is `python -m cosurfgs_jax.NAME [flags]`."""

import ast
import difflib
import importlib.util
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from cosurfgs_jax.errors import required

# In the order of use.
PROGRAMS = (
    "prepare",
    "plan",
    "train",
    "launch",
    "extract_mesh",
    "evaluate",
    "export",
    "render",
    "view",
    "status",
    "doctor",
)
_PACKAGE = "cosurfgs_jax"
_DONE = 0
_USER_MISTAKE = 2


def version() -> str:
    """The version of the package."""
    return sys.modules[_PACKAGE].__version__


def sentence_of(name: str) -> str:
    """The first sentence of a program's docstring; the program is not imported."""
    spec = required(importlib.util.find_spec(f"{_PACKAGE}.{name}"), f"{_PACKAGE}.{name}")
    path = Path(required(spec.origin, f"file of {_PACKAGE}.{name}"))
    doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    first, stop, _ = " ".join(doc.split()).partition(". ")
    return first + stop.strip()


def overview() -> str:
    """What `cosurfgs` prints alone: every program with a sentence."""
    width = max(map(len, PROGRAMS))
    lines = [f"cosurfgs {version()}", "", "cosurfgs NAME [flags]; NAME is one of", ""]
    lines += [f"  {name:<{width}}  {sentence_of(name)}" for name in PROGRAMS]
    lines += [
        "",
        "cosurfgs NAME --help explains the flags of a program; cosurfgs --version the version.",
    ]
    return "\n".join(lines)


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name.replace("-", "_"), PROGRAMS, n=2)
    hint = "`cosurfgs` lists them"
    if near:
        hint = f"did you mean {' or '.join(near)}?"
    return f"error: cosurfgs {name}: expected the name of a program, got {name!r}; {hint}"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program that the command line names.

    Args:
        argv: the command line with the command's name first; None = that of the process.
    Returns:
        The exit code of what is not a program's: 0, or 2 for an unknown name.
    Raises:
        SystemExit: with the exit code of the program.
    """
    if argv is None:
        argv = sys.argv
    arguments = list(argv[1:])
    if not arguments or arguments[0] in ("-h", "-help", "--help", "help"):
        print(overview())
        return _DONE
    name = arguments[0]
    if name in ("--version", "-version"):
        print(version())
        return _DONE
    if name not in PROGRAMS:
        print(_unknown(name), file=sys.stderr)
        return _USER_MISTAKE
    # Exactly as `python -m` does it, so that there is one way into a program.
    sys.argv = [name, *arguments[1:]]
    runpy.run_module(f"{_PACKAGE}.{name}", run_name="__main__", alter_sys=True)
    return _DONE
