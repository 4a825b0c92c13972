"""scripts/check_style.sh: what it refuses and mends, in a small repository."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
needs_tools = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("ruff", "clang_format", "ty")),
    reason="ruff, clang-format or ty is missing: pip install -r requirements.txt",
)


@pytest.fixture
def repository(tmp_path):
    """A copy of the script and of its settings, with one good file of each language."""
    (tmp_path / "scripts").mkdir()
    for name in ("scripts/check_style.sh", ".clang-format", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    (tmp_path / "good.py").write_text("X = 1\n")
    (tmp_path / "good.cc").write_text("int x = 1;\n")
    # Types have a test of their own; there is no package here.
    (tmp_path / "scripts" / "type_check.py").write_text("")
    return tmp_path


def _check(repository, *arguments):
    environment = os.environ | {"VIRTUAL_ENV": sys.prefix}
    return subprocess.run(
        [repository / "scripts" / "check_style.sh", *arguments],
        capture_output=True,
        text=True,
        env=environment,
    )


@needs_tools
def test_good_files_pass(repository):
    result = _check(repository)
    assert result.returncode == 0, result.stdout + result.stderr


@needs_tools
@pytest.mark.parametrize(
    "name, text, message",
    [
        ("bad.py", "x=1\n", "Python is not formatted"),
        ("bad.py", "import os\n", "F401"),
        ("bad.cc", "int  x=1;\n", "C++ is not formatted"),
        ("bad.cuh", "int  x=1;\n", "C++ is not formatted"),
    ],
)
def test_a_bad_file_is_refused_and_mended(repository, name, text, message):
    (repository / name).write_text(text)
    result = _check(repository)
    assert result.returncode == 1 and message in result.stdout + result.stderr
    assert _check(repository, "--fix").returncode == 0
    assert _check(repository).returncode == 0


@needs_tools
def test_type_errors_are_refused(repository):
    (repository / "scripts" / "type_check.py").write_text('raise SystemExit("type errors")\n')
    result = _check(repository)
    assert result.returncode == 1 and "type errors" in result.stderr


def test_an_environment_without_the_tools_is_named(repository):
    environment = os.environ | {"VIRTUAL_ENV": str(repository)}
    result = subprocess.run(
        [repository / "scripts" / "check_style.sh"], capture_output=True, text=True, env=environment
    )
    assert result.returncode == 1 and "pip install -r requirements.txt" in result.stderr
