"""What extending the package costs, and which type errors are allowed: the last rows of
`house_table.py`.

Counted from docs/extending.md, whose code the tests run: a block of Python that becomes a file of
the package begins with a comment that names it (`# losses/roundness.py`), and a block of `diff` has
a line `@@ FILE @@` above the lines that go into a file that is there.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from house_table import Repository

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "extending.md"
TYPE_CHECK = ROOT / "scripts" / "type_check.py"

_FILE_OF_BLOCK = {"python": r"\A# ([\w/]+\.py)$", "diff": r"^@@ ([\w/]+\.py) @@$"}


def files_to_touch(page: str) -> dict[str, list[str]]:
    """Title of a way of extending -> the files that it makes or changes, in order.

    Args:
        page: text of docs/extending.md. Ways are its sections with a block of `diff`.
    Raises:
        ValueError: a block of `diff` does not say first in which file its lines are.
    """
    found = {}
    for title, text in re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", page, re.M | re.S):
        blocks = re.findall(r"^```(python|diff)\n(.*?)^```", text, re.M | re.S)
        for kind, block in blocks:
            if kind == "diff" and not block.startswith("@@"):
                raise ValueError(f"{title}: expected @@ FILE @@ above the lines, got {block!r}")
        if "diff" in dict(blocks):
            named = [re.findall(_FILE_OF_BLOCK[kind], block, re.M) for kind, block in blocks]
            found[title] = list(dict.fromkeys(sum(named, [])))
    return found


def allowed_type_errors(source: str) -> int:
    """MAX_ERRORS in the text of scripts/type_check.py."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "MAX_ERRORS":
            return ast.literal_eval(node.value)
    raise ValueError("scripts/type_check.py: expected a number MAX_ERRORS, got none")


def functions_of_tests(repository: "Repository") -> list[str]:
    """Test functions; a parametrised one is one."""
    files = [source for source in repository.sources if Path(source.path).name.startswith("test_")]
    found = [(source.path, node.name) for source in files for node in source.nodes(ast.FunctionDef)]
    return [f"{path}::{name}" for path, name in found if name.startswith("test_")]


def rows() -> Iterator[tuple[str, str, str, str]]:
    """Rows of the table of `house_table.py`: files to touch, and allowed type errors."""
    for title, files in files_to_touch(PAGE.read_text(encoding="utf-8")).items():
        way = title.removeprefix("A ").removeprefix("An ")
        yield (str(len(files)), "", "", f"files to touch, {way}: {', '.join(files)}")
    allowed = allowed_type_errors(TYPE_CHECK.read_text(encoding="utf-8"))
    yield (str(allowed), "", "", "type errors allowed (scripts/type_check.py)")
