"""Measures the style of the package and holds it to the budgets of the house.

python scripts/house_table.py                  the table
python scripts/house_table.py --check          exit status 1 where a budget is exceeded
python scripts/house_table.py --list NAME      the places of one measure, as file:line
python scripts/house_table.py --package DIR    the same measures of another package

Reads source text alone (`ast`, `tokenize`) and imports nothing of what it measures. Rates are per
1,000 lines of the package; blank lines, comments and docstrings count as lines.
"""

import argparse
import ast
import dataclasses
import io
import subprocess
import sys
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import house_evidence

ROOT = Path(__file__).parents[1]
PACKAGE = "cosurfgs_jax"

# What --check allows: two per 1,000 lines, the others in number. They only fall.
BUDGETS = {
    "parallel_assignments": 1.0,
    "conditional_expressions": 8.0,
    "crowded_statements": 0,
    "function_statements": 0,
    "function_arguments": 39,
    "positional_arguments": 144,
    "missing_docstrings": 0,
    "long_files": 16,
    "long_lines": 0,
}
RATES = ("parallel_assignments", "conditional_expressions")
# Above this size a function, a call or a line counts.
LIMITS = {
    "function_statements": 40,
    "function_arguments": 6,
    "positional_arguments": 4,
    "long_lines": 100,
}
MAX_PYTHON_LINES = 400
MAX_NATIVE_LINES = 600

# Lengths of files and lines are measured here, in all languages, prose (.md) apart. The other
# measures read the package alone.
FOLDERS = (PACKAGE, "scripts", "tests", "configs")
NATIVE_SUFFIXES = (".h", ".cc", ".cu", ".cuh")
EVERYWHERE = ("long_files", "long_lines")
SUFFIXES = (".py", ".sh", *NATIVE_SUFFIXES)
# What `validate` of a settings class does is said once, in settings.py.
DOCUMENTED_ELSEWHERE = ("validate",)
# Arguments of these calls have no names.
NAMELESS_CALLS = ("_log.debug", "_log.info", "_log.warning", "_log.error", "struct.pack")


class Finding(NamedTuple):
    """Where a measure found something; `value` is the size that was found, `text` what it is."""

    path: str
    line: int
    value: int
    text: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.text}"


@dataclasses.dataclass(frozen=True)
class Source:
    """One file: path in the repository, lines, and syntax tree (None if it is not Python)."""

    path: str
    lines: list[str]
    tree: ast.Module | None

    def place(self, node: ast.AST, value: int = 1, text: str = "") -> Finding:
        """A place in this file, described by its first line unless `text` does it."""
        return Finding(self.path, node.lineno, value, text or self.lines[node.lineno - 1].strip())

    def nodes(self, *kinds: type[ast.AST]) -> Iterator[ast.AST]:
        """Nodes of some kinds, in the order of `ast.walk`; none where the file is not Python."""
        tree = self.tree or ast.Module([], [])
        return (node for node in ast.walk(tree) if isinstance(node, kinds))


def read_source(path: Path, root: Path = ROOT) -> Source:
    """Reads and parses one file."""
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text, filename=str(path)) if path.suffix == ".py" else None
    return Source(path.relative_to(root).as_posix(), text.splitlines(), tree)


def source_paths(root: Path, folders: Iterable[str]) -> list[Path]:
    """Source files that git tracks or would track; all below `folders` where there is no git."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--"]
    command += folders
    listing = subprocess.run(command, cwd=root, capture_output=True, text=True).stdout
    paths = {root / name for name in listing.split("\0") if name}
    if not paths:
        paths = {path for folder in folders for path in (root / folder).rglob("*")}
    return sorted(path for path in paths if path.suffix in SUFFIXES and path.is_file())


@dataclasses.dataclass(frozen=True)
class Repository:
    """What is measured: every source file, and the Python files of the package among them."""

    package: str
    sources: list[Source]

    @classmethod
    def read(cls, root: Path = ROOT, package: str = PACKAGE) -> "Repository":
        """Reads the package, and the other folders where it is our own."""
        folders = FOLDERS if package == PACKAGE else (package,)
        return cls(package, [read_source(path, root) for path in source_paths(root, folders)])

    @property
    def modules(self) -> list[Source]:
        """The Python files of the package."""
        inside = (item for item in self.sources if item.path.startswith(f"{self.package}/"))
        return [item for item in inside if item.tree is not None]

    @property
    def num_lines(self) -> int:
        """Python lines of the package."""
        return sum(len(source.lines) for source in self.modules)


def _mentions(value: ast.expr, names: set[str]) -> bool:
    return any(ast.unparse(node) in names for node in ast.walk(value) if isinstance(node, ast.expr))


def is_parallel_assignment(node: ast.Assign) -> bool:
    """Whether an assignment is `a, b = x, y` with values that have nothing to do with each other.

    Both sides are literal tuples or lists of one length, two or more, without a star. A swap or a
    step of a recurrence (`a, b = b, a + b`), where a value mentions a target, is not counted: one
    assignment after the other would be wrong there.
    """
    if not isinstance(node.value, ast.Tuple | ast.List) or len(node.value.elts) < 2:
        return False
    values = node.value.elts
    for target in node.targets:
        if not isinstance(target, ast.Tuple | ast.List) or len(target.elts) != len(values):
            continue
        if any(isinstance(item, ast.Starred) for item in (*target.elts, *values)):
            continue
        names = {ast.unparse(item) for item in target.elts}
        if not any(_mentions(value, names) for value in values):
            return True
    return False


def parallel_assignments(source: Source) -> Iterator[Finding]:
    """Parallel assignments of unrelated values."""
    for node in source.nodes(ast.Assign):
        if is_parallel_assignment(node):
            yield source.place(node)


def conditional_expressions(source: Source) -> Iterator[Finding]:
    """Conditional expressions."""
    for node in source.nodes(ast.IfExp):
        yield source.place(node)


def _own_nodes(statement: ast.stmt) -> Iterator[ast.AST]:
    """The nodes of one statement without those of the statements inside it."""
    todo = list(ast.iter_child_nodes(statement))
    while todo:
        node = todo.pop()
        if not isinstance(node, ast.stmt):
            yield node
            todo += ast.iter_child_nodes(node)


def crowded_statements(source: Source) -> Iterator[Finding]:
    """Statements with more than one conditional expression.

    Of a compound statement the head counts.
    """
    for node in source.nodes(ast.stmt):
        count = sum(isinstance(inner, ast.IfExp) for inner in _own_nodes(node))
        if count > 1:
            yield source.place(node, count)


def _is_docstring(node: ast.AST) -> bool:
    is_constant = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    return is_constant and isinstance(node.value.value, str)


def function_statements(source: Source) -> Iterator[Finding]:
    """Functions by statements.

    Nested statements count, docstrings do not.
    """
    for node in source.nodes(ast.FunctionDef, ast.AsyncFunctionDef):
        inside = [item for item in ast.walk(node) if isinstance(item, ast.stmt)]
        count = sum(not _is_docstring(item) for item in inside) - 1
        yield source.place(node, count, f"{node.name}: {count} statements")


def function_arguments(source: Source) -> Iterator[Finding]:
    """Functions by arguments.

    Keywords, *args and **kwargs count, `self` and `cls` do not.
    """
    for node in source.nodes(ast.FunctionDef, ast.AsyncFunctionDef):
        given = node.args
        positional = [*given.posonlyargs, *given.args]
        count = len(positional) + len(given.kwonlyargs)
        count += (given.vararg is not None) + (given.kwarg is not None)
        if positional and positional[0].arg in ("self", "cls"):
            count -= 1
        yield source.place(node, count, f"{node.name}: {count} arguments")


def positional_arguments(source: Source) -> Iterator[Finding]:
    """Calls by positional arguments, those behind a star apart."""
    for node in source.nodes(ast.Call):
        count = sum(not isinstance(argument, ast.Starred) for argument in node.args)
        if count and ast.unparse(node.func) not in NAMELESS_CALLS:
            yield source.place(node, count)


def missing_docstrings(source: Source) -> Iterator[Finding]:
    """Public functions, classes and methods without docstring."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    public = [node for node in source.tree.body if isinstance(node, kinds) and node.name[0] != "_"]
    for outer in [node for node in public if isinstance(node, ast.ClassDef)]:
        methods = [node for node in outer.body if isinstance(node, kinds) and node.name[0] != "_"]
        public += [node for node in methods if node.name not in DOCUMENTED_ELSEWHERE]
    for node in public:
        if not ast.get_docstring(node):
            yield source.place(node)


def long_files(source: Source) -> Iterator[Finding]:
    """Files above 400 lines, native ones above 600."""
    is_native = source.path.endswith(NATIVE_SUFFIXES)
    limit = MAX_NATIVE_LINES if is_native else MAX_PYTHON_LINES
    count = len(source.lines)
    if count > limit:
        yield Finding(source.path, 1, count, f"{count} lines")


def long_lines(source: Source) -> Iterator[Finding]:
    """Lines by columns."""
    for number, line in enumerate(source.lines, start=1):
        yield Finding(source.path, number, len(line), f"{len(line)} columns")


MEASURES = {
    measure.__name__: measure
    for measure in (
        parallel_assignments,
        conditional_expressions,
        crowded_statements,
        function_statements,
        function_arguments,
        positional_arguments,
        missing_docstrings,
        long_files,
        long_lines,
    )
}


def title(name: str) -> str:
    """What a measure counts: the first line of its docstring, with the limit and the unit."""
    text = MEASURES[name].__doc__.partition("\n")[0].rstrip(".")
    unit = ", per 1,000 lines" if name in RATES else ""
    limit = f", above {LIMITS[name]}" if name in LIMITS else ""
    return f"{text}{limit}{unit}"


def places(repository: Repository, name: str) -> list[Finding]:
    """What one measure counts, the largest first."""
    sources = repository.sources if name in EVERYWHERE else repository.modules
    found = [place for source in sources for place in MEASURES[name](source)]
    found = [place for place in found if place.value > LIMITS.get(name, 0)]
    return sorted(found, key=lambda place: (-place.value, place.path, place.line))


def value_of(repository: Repository, name: str) -> float:
    """What the budget of a measure limits: a number of places, or their number per 1,000 lines."""
    count = len(places(repository, name))
    return 1000 * count / max(repository.num_lines, 1) if name in RATES else count


def exceeded(repository: Repository) -> list[str]:
    """A sentence for every budget that is exceeded; empty where all are kept."""
    sentences = []
    for name, budget in BUDGETS.items():
        value = value_of(repository, name)
        if value > budget:
            expected = f"{title(name)}: expected at most {budget:g}, got {value:.5g}"
            sentences.append(f"{expected}; python scripts/house_table.py --list {name} shows them")
    return sentences


def slack(repository: Repository) -> list[str]:
    """A sentence for every number in BUDGETS that can be lowered."""
    found = {name: value_of(repository, name) for name in BUDGETS if name not in RATES}
    return [
        f"{title(name)}: expected {BUDGETS[name]}, got {value}; lower BUDGETS[{name!r}]"
        for name, value in found.items()
        if value < BUDGETS[name]
    ]


def public_names(repository: Repository) -> list[str]:
    """The names in `__all__` of the package, read from its source."""
    path = f"{repository.package}/__init__.py"
    for source in repository.modules:
        for node in source.nodes(ast.Assign) if source.path == path else []:
            if ast.unparse(node.targets[0]) == "__all__":
                return [item.value for item in node.value.elts]
    return []


def code_lines(source: Source) -> int:
    """Lines with code: no blank lines, comments or docstrings."""
    silent = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
    text = io.StringIO("\n".join(source.lines) + "\n")
    lines = set()
    for token in tokenize.generate_tokens(text.readline):
        if token.type not in (*silent, tokenize.ENDMARKER):
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in source.nodes(ast.Expr):
        if _is_docstring(node):
            lines.difference_update(range(node.lineno, node.end_lineno + 1))
    return len(lines)


def largest(repository: Repository, name: str, count: int = 5) -> str:
    """The largest finds of a measure, below its limit too."""
    found = [place for source in repository.modules for place in MEASURES[name](source)]
    found.sort(key=lambda place: -place.value)
    return ", ".join(place.text.replace(":", "") for place in found[:count])


def table(repository: Repository) -> str:
    """All measures as text: value, budget, name for --list, and what is counted."""
    rows = [("value", "budget", "name", "")]
    for name, budget in BUDGETS.items():
        value = f"{value_of(repository, name):.4g}"
        rows.append((value, f"{budget:g}", name, title(name)))
    modules = repository.modules
    paths = {source.path for source in modules}
    wide = [place for place in places(repository, "long_lines") if place.path in paths]
    facts = {
        "Python lines of the package": repository.num_lines,
        "of them with code": sum(map(code_lines, modules)),
        "of them above 100 columns": f"{100 * len(wide) / max(repository.num_lines, 1):.2g} %",
        "Python files of the package": len(modules),
        "public names": len(public_names(repository)),
        "test functions": len(house_evidence.functions_of_tests(repository)),
    }
    rows += [(str(value), "", "", text) for text, value in facts.items()]
    if repository.package == PACKAGE:
        rows += house_evidence.rows()
    lines = [f"{row[0]:>8}  {row[1]:>6}  {row[2]:<24}{row[3]}".rstrip() for row in rows]
    lines.append(f"most statements: {largest(repository, 'function_statements')}")
    lines.append(f"most arguments: {largest(repository, 'function_arguments')}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Prints the table, the places of one measure, or what exceeds a budget."""
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--list", choices=MEASURES)
    parser.add_argument("--package", type=Path, default=ROOT / PACKAGE)
    flags = parser.parse_args(arguments)
    folder = flags.package.resolve()
    repository = Repository.read(folder.parent, folder.name)
    sentences = exceeded(repository)
    if flags.list:
        print(*places(repository, flags.list), sep="\n")
    elif flags.check:
        print("\n".join([*sentences, *slack(repository)]))
    else:
        print(table(repository))
    return 1 if flags.check and sentences else 0


if __name__ == "__main__":
    sys.exit(main())
