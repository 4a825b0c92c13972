"""How the code is written: budgets, docstrings, names, and what stands in no file."""

import ast
import re

import house_table
import pytest
from package_tree import MODULES, ROOT, TEXTS, TREES, broken, source_files
from test_layers import PROGRAMS


@pytest.fixture(scope="module")
def repository():
    return house_table.Repository.read()


@pytest.mark.parametrize("name", house_table.BUDGETS)
def test_budget(repository, name):
    """Per 1,000 lines or in number; scripts/house_table.py says what each of them counts."""
    value = house_table.value_of(repository, name)
    assert value <= house_table.BUDGETS[name], "\n".join(
        [
            f"{house_table.title(name)}: {value:.4g}",
            *map(str, house_table.places(repository, name)[:20]),
        ]
    )


def test_every_module_has_a_docstring():
    assert not [name for name, tree in TREES.items() if not ast.get_docstring(tree)]


def test_names_say_their_space():
    def rule(name):
        found = {node.id for node in ast.walk(TREES[name]) if isinstance(node, ast.Name)}
        found |= {node.arg for node in ast.walk(TREES[name]) if isinstance(node, ast.arg)}
        return sorted(found & {"R", "T", "viewmat", "viewmats"})

    assert not broken(rule)


def test_no_private_name_is_left_over():
    """One of a module that nothing in it uses any more."""

    def rule(name):
        names = [node for node in ast.walk(TREES[name]) if isinstance(node, ast.Name)]
        made = {
            node.id
            for statement in TREES[name].body
            if isinstance(statement, ast.Assign | ast.AnnAssign)
            for node in ast.walk(statement)
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
        }
        made |= {
            node.name
            for node in TREES[name].body
            if isinstance(node, ast.FunctionDef | ast.ClassDef)
        }
        private = {each for each in made if each.startswith("_") and not each.startswith("__")}
        return sorted(private - {node.id for node in names if isinstance(node.ctx, ast.Load)})

    assert not broken(rule)


def test_no_path_or_host_of_one_machine():
    # Written in pieces, so that this file passes its own check.
    pieces = (
        ("/wor", "k/"),
        ("/opt/", "pypi"),
        ("/home", "/"),
        ("/roo", "t/"),
        ("pypi", ".org"),
        ("python", "hosted"),
        ("--index", "-url"),
    )
    banned = [first + second for first, second in pieces]
    found = [
        f"{path.relative_to(ROOT)}: {word}"
        for path in source_files()
        for word in banned
        if word in path.read_text(encoding="utf-8")
    ]
    assert not found


def test_no_unfinished_work_is_left():
    words = re.compile(r"\b(TO" r"DO|FIX" r"ME|X" r"XX)\b")
    texts = {path: path.read_text(encoding="utf-8") for path in source_files()}
    assert not [str(path.relative_to(ROOT)) for path, text in texts.items() if words.search(text)]


def test_every_program_explains_itself_and_is_in_the_docs():
    page = (ROOT / "docs" / "programs.md").read_text(encoding="utf-8")
    programs = PROGRAMS & set(MODULES)
    assert programs
    for name in programs:
        command = f"python -m cosurfgs_jax.{name}"
        assert command in ast.get_docstring(TREES[name]), name
        assert f"| `cosurfgs {name}` " in page, f"docs/programs.md: {name} is missing"


def test_comments_cite_files_that_exist():
    """A file of this repository that a comment or docstring names is there."""
    native = [path for path in source_files() if path.suffix in (".h", ".cc", ".cu", ".cuh")]
    texts = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in native}
    texts |= {str(MODULES[name].relative_to(ROOT)): text for name, text in TEXTS.items()}
    known = {str(path.relative_to(ROOT)) for path in source_files()}
    missing = []
    for path, text in texts.items():
        for cited in re.findall(r"(?<![\w/.<*])([\w/]+/[\w/]+\.(?:py|h|cc|cu|cuh|md))\b", text):
            if cited.startswith("xla/"):  # a header of JAX
                continue
            if not any(name == cited or name.endswith(f"/{cited}") for name in known):
                missing.append(f"{path}: {cited}")
    assert not missing
