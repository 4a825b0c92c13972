"""What an installation says of itself: version and types."""

import importlib.metadata
import importlib.resources
import re
import tomllib
from pathlib import Path

import cosurfgs_jax

ROOT = Path(__file__).parents[2]


def test_the_version_stands_in_one_place():
    assert re.fullmatch(r"\d+\.\d+\.\d+", cosurfgs_jax.__version__)
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert 'dynamic = ["version"]' in pyproject and cosurfgs_jax.__version__ not in pyproject
    assert importlib.metadata.version("cosurfgs_jax") == cosurfgs_jax.__version__


def test_the_command_leads_to_a_function():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    module, _, name = project["scripts"]["cosurfgs"].partition(":")
    assert callable(getattr(importlib.import_module(module), name))


def test_types_are_marked():
    assert importlib.resources.files(cosurfgs_jax).joinpath("py.typed").is_file()


def test_formatting_commits_are_whole_hashes():
    lines = (ROOT / ".git-blame-ignore-revs").read_text(encoding="utf-8").splitlines()
    commits = [line for line in lines if not line.startswith("#")]
    assert commits and all(re.fullmatch(r"[0-9a-f]{40}", commit) for commit in commits)
