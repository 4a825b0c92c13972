"""The falling budget of scripts/type_check.py, on output of the checker that is written here."""

import importlib.util
import sys
from pathlib import Path

import pytest

PATH = Path(__file__).parents[2] / "scripts" / "type_check.py"
OUTPUT = """\
cosurfgs_jax/a.py:3:9: error[invalid-argument-type] Expected `Path`, found `Path | None`
cosurfgs_jax/losses/b.py:40:1: warning[possibly-unbound] Name `x` may be unbound: see line 3
Found 2 diagnostics
"""


@pytest.fixture
def type_check(monkeypatch):
    """The script, with budgets of its own."""
    spec = importlib.util.spec_from_file_location("type_check", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "COUNTED_ON", sys.version_info[:2])
    monkeypatch.setattr(module, "FREE_OF_ERRORS", ("types.py", "raster"))
    monkeypatch.setattr(module, "MAX_ERRORS", 2)
    return module


def test_output_is_read(type_check):
    first, second = type_check.parse(OUTPUT)
    assert str(first).startswith("cosurfgs_jax/a.py:3: invalid-argument-type: Expected `Path`")
    assert (second.line, second.rule) == (40, "possibly-unbound")
    assert type_check.parse("All checks passed!\n") == []


@pytest.mark.parametrize("output", ["", "Found 3 diagnostics\n", OUTPUT.replace("2 d", "3 d")])
def test_output_that_cannot_be_read_is_an_error(type_check, output):
    with pytest.raises(ValueError, match="expected the concise output of ty"):
        type_check.parse(output)


def test_the_budget_only_falls(type_check, monkeypatch):
    problems = type_check.parse(OUTPUT)
    assert type_check.verdict(problems) == ([], True)
    sentences, is_within = type_check.verdict(problems[:1])
    assert is_within and "set MAX_ERRORS = 1" in sentences[0]
    sentences, is_within = type_check.verdict([*problems, problems[0]])
    assert not is_within and "expected at most 2, got 3" in sentences[0]
    monkeypatch.setattr(type_check, "COUNTED_ON", (2, 7))
    assert type_check.verdict([*problems, problems[0]]) == ([], True)


@pytest.mark.parametrize(
    "path", ["cosurfgs_jax/types.py", "cosurfgs_jax/raster/ffi.py", "examples/own_loss.py"]
)
def test_files_without_errors_stay_so(type_check, path):
    problem = type_check.TypeProblem(path, 1, "rule", "text")
    sentences, is_within = type_check.verdict([problem])
    assert not is_within and "FREE_OF_ERRORS" in sentences[0]


def test_files_without_errors_exist():
    spec = importlib.util.spec_from_file_location("type_check", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    missing = [
        name
        for name in module.FREE_OF_ERRORS
        if not (PATH.parents[1] / module.PACKAGE / name).exists()
    ]
    assert not missing, f"FREE_OF_ERRORS of scripts/type_check.py names {missing}: moved or gone"
