"""Config files: Python files with a function `get_config() -> Settings`."""

import difflib
import importlib.util
import os
import traceback
from importlib.machinery import ModuleSpec
from pathlib import Path

from cosurfgs_jax.errors import InputError, required
from cosurfgs_jax.program.presets import preset_names
from cosurfgs_jax.settings import Settings


def load_config_file(path: str) -> Settings:
    """What `get_config()` of a Python file returns.

    Raises:
        InputError: no such file, it fails, it has no get_config, or that returns something else.
    """
    spec = _spec(path)
    module = importlib.util.module_from_spec(spec)
    try:
        required(spec.loader, "loader of a Python file").exec_module(module)
        if not callable(getattr(module, "get_config", None)):
            raise InputError(
                f"--config={path}: expected a function get_config() that returns Settings, got none"
            )
        settings = module.get_config()
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"--config={path}: line {_failing_line(error, path)} fails: "
            f"{type(error).__name__}: {error}"
        ) from error
    if not isinstance(settings, Settings):
        raise InputError(
            f"--config={path}: expected get_config() to return Settings, got "
            f"{type(settings).__name__}"
        )
    return settings


def _spec(path: str) -> ModuleSpec:
    spec = importlib.util.spec_from_file_location("cosurfgs_config", path)
    if spec is not None and path.endswith(".py") and os.path.isfile(path):
        return spec
    got = "another file" if os.path.exists(path) else "no file"
    near = _near_config_files(Path(path))
    hint = ""
    if near:
        hint = f"; did you mean --config={' or '.join(near)}?"
    else:
        presets = difflib.get_close_matches(Path(path).stem, preset_names(), n=1)
        hint = "".join(f"; did you mean --preset={name}?" for name in presets)
    raise InputError(f"--config={path}: expected a Python file, got {got}{hint}")


def _failing_line(error: Exception, path: str) -> int | str:
    """The line of a config file that raised, "?" where none of its lines did."""
    line = getattr(error, "lineno", None)  # of a SyntaxError
    if line:
        return line
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == path]
    return lines[-1] if lines and lines[-1] else "?"


def _near_config_files(path: Path) -> list[str]:
    """Python files beside a path, and in configs/, with nearly its name."""
    files = {
        near.stem: str(near)
        for folder in (Path("configs"), path.parent)
        for near in sorted(folder.glob("*.py"))
    }
    return [files[stem] for stem in difflib.get_close_matches(path.stem, files, n=2)]
