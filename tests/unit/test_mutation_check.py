"""scripts/mutation_check.py: what it changes, what it leaves alone, and which tests run first."""

import ast

import mutation_check
import pytest

SOURCE = b'''"""A module's text: 1 + 1."""

import sys

LIMIT: "a + b" = 3


def first(a, b: "x < 1" = 2.0):
    """The greater: a < b."""
    if a < b:
        raise ValueError(f"{a + 1} < {b}: 5" + str(7))
    _log.info("%d", a - 9)
    names = ["\xc3\xa9"] + [a]
    rows = b.reshape(-1)
    pairs = zip(a, sorted(b, reverse=False), strict=True)
    cut = zip(a, b, strict=False), read(a, strict=True)
    return a - b if is_on else names


if __name__ == "__main__":
    sys.exit(1 + 1)
'''


def _found() -> dict[str, list[str]]:
    """What is replaced -> by what."""
    found: dict[str, list[str]] = {}
    for mutation in mutation_check.mutations_of("cosurfgs_jax/a.py", SOURCE):
        found.setdefault(mutation.before, []).append(mutation.after)
    return {before: sorted(after) for before, after in found.items()}


def test_what_is_changed_and_what_is_left_alone():
    assert _found() == {
        "3": ["4"],
        "2.0": ["4.0"],
        "-1": ["0"],
        "a < b": ["a >= b", "not (a < b)"],
        "a - b": ["(a + b)"],
        "is_on": ["not (is_on)"],
        "False": ["True", "True"],  # reverse, and the second zip's strict
        "True": ["False"],  # of read
        "a - b if is_on else names": ["a", "b"],
    }


@pytest.mark.parametrize("text", ["1 + 1", "7", "9", "5", "x < 1", "a + b", "a + 1"])
def test_messages_annotations_and_the_program_stay(text):
    assert text not in _found()


def test_a_change_is_one_place_and_still_python():
    for mutation in mutation_check.mutations_of("cosurfgs_jax/a.py", SOURCE):
        changed = mutation.applied(SOURCE)
        ast.parse(changed)
        assert changed != SOURCE
        assert changed.startswith(SOURCE[: mutation.start])
        assert changed.endswith(SOURCE[mutation.end :])
        assert SOURCE[: mutation.start].count(b"\n") == mutation.line - 1


def test_the_choice_follows_from_the_seed():
    path = mutation_check.ROOT / "cosurfgs_jax" / "settings_file.py"
    mutations = mutation_check.mutations_of("cosurfgs_jax/settings_file.py", path.read_bytes())
    chosen = mutation_check.choose(mutations, 8, seed=3)
    assert chosen == mutation_check.choose(mutations, 8, seed=3)
    assert chosen != mutation_check.choose(mutations, 8, seed=4)
    assert len({mutation.line for mutation in chosen}) == 8


def test_the_nearest_tests_run_first():
    named, importing, rest = mutation_check.groups_of_tests("cosurfgs_jax/model/optim.py")
    assert named == ["tests/component/test_optim.py"]
    assert "tests/component/test_cuda_training.py" in importing
    assert "tests/unit/test_colmap.py" in rest
    files = [*named, *importing, *rest]
    assert len(files) == len(set(files))
    assert not any(file.startswith(("tests/integration", "tests/gpu")) for file in files)


def test_tests_are_those_of_the_copy(tmp_path):
    """A test that came into the working tree later cannot be run there."""
    folder = tmp_path / "tests" / "unit"
    folder.mkdir(parents=True)
    (folder / "test_optim.py").write_text("")
    (folder / "test_other.py").write_text("")
    groups = mutation_check.groups_of_tests("cosurfgs_jax/model/optim.py", tmp_path)
    assert groups == [["tests/unit/test_optim.py"], ["tests/unit/test_other.py"]]
