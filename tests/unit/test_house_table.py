"""The measures of scripts/house_table.py, each on text where the right count is plain."""

import ast
import importlib.util
from pathlib import Path

import pytest

PATH = Path(__file__).parents[2] / "scripts" / "house_table.py"


def _load():
    spec = importlib.util.spec_from_file_location("house_table", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


house_table = _load()


def values(measure: str, text: str) -> list[int]:
    """What a measure counts in a text."""
    source = house_table.Source("pkg/a.py", text.splitlines(), ast.parse(text))
    places = house_table.places(house_table.Repository("pkg", [source]), measure)
    return [place.value for place in places]


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("a, b = x, y", 1),
        ("[a, b] = x, y", 1),
        ("self.a, self.b = 1, 2", 1),
        ("for i in x:\n    a, b = i, 0", 1),
        ("a, b = b, a", 0),
        ("a, b = b, a + b", 0),
        ("a[i], a[j] = a[j], a[i]", 0),
        ("a, b = pair", 0),
        ("a, b = f(x, y)", 0),
        ("a, *b = x, y", 0),
        ("a, b = x, *y", 0),
        ("(a,) = (x,)", 0),
        ("a = x, y", 0),
        ("a = b = 0", 0),
    ],
)
def test_parallel_assignments(text, count):
    assert len(values("parallel_assignments", text)) == count


def test_conditional_expressions_and_crowded_statements():
    text = "a = 1 if x else 2\nb = [1 if x else 2 if y else 3]\n"
    text += "if x:\n    c = 1 if x else 2\n    d = 0 if y else 1\n"
    assert len(values("conditional_expressions", text)) == 5
    assert values("crowded_statements", text) == [2]


def test_statements_of_a_function():
    body = "    x = 1\n" * 39
    docstring = '    """Docstring."""\n'
    assert values("function_statements", f"def f():\n{docstring}{body}    return x\n") == []
    nested = "    def g():\n        return 1\n"
    assert values("function_statements", f"def f():\n{docstring}{body}{nested}") == [41]


def test_arguments_of_a_function():
    assert values("function_arguments", "def f(a, b, /, c, d, *, e, f): ...") == []
    assert values("function_arguments", "def f(a, b, c, d, *args, e, **kwargs): ...") == [7]
    methods = "    def f(self, a, b, c, d, e, f): ...\n    def g(self, a, b, c, d, e, f, g): ...\n"
    assert values("function_arguments", f"class A:\n{methods}") == [7]


def test_positional_arguments_of_a_call():
    assert values("positional_arguments", "f(a, b, c, d, *rest, e=1, f=2)") == []
    assert values("positional_arguments", "f(a, b, c, d, e)") == [5]
    assert values("positional_arguments", "_log.info('%d %d %d %d', a, b, c, d)") == []


def test_missing_docstrings():
    methods = "    '''A.'''\n    def h(self): ...\n    def validate(self): ...\n"
    text = f"def f(): ...\ndef _g(): ...\nclass A:\n{methods}"
    assert len(values("missing_docstrings", text)) == 2


def test_long_files_and_lines():
    assert values("long_lines", f"x = 1  # {'-' * 92}\n") == [101]
    assert values("long_lines", f"x = 1  # {'-' * 91}\n") == []
    assert values("long_files", "x = 1\n" * 401) == [401]
    native = house_table.Source("pkg/a.cu", ["int x;"] * 401, None)
    assert house_table.places(house_table.Repository("pkg", [native]), "long_files") == []


def test_lines_with_code():
    text = '"""Module.\n\nText.\n"""\n\n# Comment.\nx = f(\n    1,  # one\n)\n'
    assert (
        house_table.code_lines(house_table.Source("a.py", text.splitlines(), ast.parse(text))) == 3
    )


def test_budgets_are_held(tmp_path, monkeypatch, capsys):
    package = tmp_path / "pkg"
    package.mkdir()
    (package / "__init__.py").write_text('"""Package."""\n\n__all__ = ["f"]\n')
    arguments = ["--check", f"--package={package}"]
    assert house_table.main(arguments) == 0
    (package / "a.py").write_text("a, b = 1, 2\n")
    assert house_table.main(arguments) == 1
    assert "parallel assignments" in capsys.readouterr().out.lower()
    monkeypatch.setitem(house_table.BUDGETS, "parallel_assignments", 1000.0)
    monkeypatch.setitem(house_table.BUDGETS, "missing_docstrings", 1)
    assert house_table.main(arguments) == 0
    assert "lower BUDGETS['missing_docstrings']" in capsys.readouterr().out
    assert house_table.public_names(house_table.Repository.read(tmp_path, "pkg")) == ["f"]


def test_every_measure_has_a_budget_and_a_list(capsys):
    assert list(house_table.MEASURES) == list(house_table.BUDGETS)
    lists = {}
    for name in house_table.MEASURES:
        house_table.main(["--list", name, f"--package={PATH.parents[1] / 'tests' / 'house'}"])
        lists[name] = [line for line in capsys.readouterr().out.splitlines() if line]
        assert all(line.startswith("house/") for line in lists[name])
    assert any(lists.values())
