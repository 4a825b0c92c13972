"""Changes random lines of the package, one at a time, and counts how many the tests notice.

python scripts/mutation_check.py [--num=20] [--seed=0] [--workers=2] [--list]

A change is a comparison turned round, + and - exchanged, another number, a `not` before a
condition, or an argument returned in place of a result. Messages of errors, annotations,
docstrings, `strict=True` of a zip and `if __name__` are left alone. The change is made in a copy of
the working tree. The nearest tests run first: those named after the module, then those that import
it (of tests/unit, tests/component and tests/parity), then the rest of tests/unit and
tests/component; the first failure ends it. A test that fails without the change, too, is named and
left out from then on. One line is printed for each change; the exit status is 1 where fewer than
95 % are noticed. Minutes for a change that nothing near notices. --list prints the changes and runs
nothing; --skip=N leaves out the first N.
"""

import argparse
import ast
import importlib
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PACKAGE = "cosurfgs_jax"
NEAR = ("unit", "component", "parity")  # folders of tests/
ALL = ("unit", "component")
BAR = 0.95  # of the changes that are to be noticed
SECONDS = 1200  # for one call of pytest; a loop without an end is noticed by this
COMPARISONS = {
    ast.Lt: ast.GtE,
    ast.LtE: ast.Gt,
    ast.Gt: ast.LtE,
    ast.GtE: ast.Lt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
SIGNS = {ast.Add: ast.Sub, ast.Sub: ast.Add}
# An editable installation finds modules before the path does, and would find the unchanged ones.
# Every Python that a test starts reads this.
CUSTOMIZE = """import sys
sys.meta_path[:] = [f for f in sys.meta_path if "ScikitBuild" not in type(f).__name__]
sys.path.insert(0, {copy!r})
"""


class Mutation(NamedTuple):
    """One change of a file."""

    path: str  # from the root
    line: int  # number of the first one that it changes
    start: int  # bytes of the file
    end: int
    before: str
    after: str

    def applied(self, source: bytes) -> bytes:
        """The file with the change."""
        return source[: self.start] + self.after.encode() + source[self.end :]

    def __str__(self) -> str:
        shown = [" ".join(text.split())[:60] for text in (self.before, self.after)]
        return f"{self.path}:{self.line}: {shown[0]} -> {shown[1]}"


def _is_main_guard(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "__name__" in ast.unparse(node.test)


def _is_message(node: ast.AST) -> bool:
    """A text for people: an error, or a line of the log."""
    if isinstance(node, ast.Raise | ast.JoinedStr):
        return True
    if not isinstance(node, ast.Call):
        return False
    called = ast.unparse(node.func)
    return called.endswith("Error") or called.startswith(("_log.", "logging.", "warnings."))


def _asserted(node: ast.AST) -> list[ast.keyword]:
    """The `strict=True` of a zip, which only says that its arguments are as long as each other:
    without it the same comes out, as without the check of a message.
    """
    if not (isinstance(node, ast.Call) and ast.unparse(node.func) == "zip"):
        return []
    return [word for word in node.keywords if ast.unparse(word) == "strict=True"]


def _children(node: ast.AST) -> Iterator[ast.AST]:
    """What below a node may be changed."""
    if _is_main_guard(node) or _is_message(node):
        return
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list") or _other_negative(node):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and child not in _asserted(node):
                yield child


def _other_negative(node: ast.AST) -> str | None:
    """For a number and its minus, which are one: NumPy takes every negative length as the one that
    is left open.
    """
    if not (isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub)):
        return None
    if not (isinstance(node.operand, ast.Constant) and isinstance(node.operand.value, int | float)):
        return None
    return str(1 - node.operand.value)


def _negated(test: ast.expr) -> str:
    return f"not ({ast.unparse(test)})"


def _other_number(value: object) -> str | None:
    if isinstance(value, bool):
        return str(not value)
    if isinstance(value, int):
        return str(value + 1)
    if isinstance(value, float):
        return str(2 * value or 1.0)
    return None


def _is_text(node: ast.expr) -> bool:
    """Whether an operand of + or - may be a text or a list, which have no difference."""
    is_constant = isinstance(node, ast.Constant) and isinstance(node.value, str)
    return is_constant or isinstance(node, ast.JoinedStr | ast.List | ast.Tuple)


def _changes(node: ast.AST) -> Iterator[tuple[ast.expr, str]]:
    """The expressions of a node that may be replaced, and by what."""
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        other = COMPARISONS[type(node.ops[0])]()
        yield node, ast.unparse(ast.Compare(node.left, [other], node.comparators))
    elif isinstance(node, ast.BinOp) and type(node.op) in SIGNS:
        if not (_is_text(node.left) or _is_text(node.right)):
            other = SIGNS[type(node.op)]()
            yield node, f"({ast.unparse(ast.BinOp(node.left, other, node.right))})"
    elif isinstance(node, ast.If | ast.While | ast.IfExp):
        yield node.test, _negated(node.test)
    elif isinstance(node, ast.Constant):
        other = _other_number(node.value)
        if other is not None:
            yield node, other
    elif isinstance(node, ast.UnaryOp):
        other = _other_negative(node)
        if other is not None:
            yield node, other
    elif isinstance(node, ast.FunctionDef):
        yield from _other_results(node)


def _other_results(function: ast.FunctionDef) -> Iterator[tuple[ast.expr, str]]:
    """Its returned values, replaced by its arguments."""
    arguments = function.args.posonlyargs + function.args.args + function.args.kwonlyargs
    names = [argument.arg for argument in arguments if argument.arg not in ("self", "cls", "_")]
    for node in function.body:
        if isinstance(node, ast.Return) and node.value is not None:
            for name in names:
                if ast.unparse(node.value) != name:
                    yield node.value, name


def mutations_of(path: str, source: bytes) -> list[Mutation]:
    """All changes of a file.

    Args:
        path: from the root, for the reader.
        source: of the file.
    """
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    found = []
    pending: list[ast.AST] = [ast.parse(source)]
    while pending:
        node = pending.pop()
        if not (_is_main_guard(node) or _is_message(node)):
            for replaced, after in _changes(node):
                start = starts[replaced.lineno - 1] + replaced.col_offset
                end = starts[(replaced.end_lineno or 0) - 1] + (replaced.end_col_offset or 0)
                before = source[start:end].decode()
                found.append(Mutation(path, replaced.lineno, start, end, before, after))
        pending += _children(node)
    return found


def mutations_of_package() -> list[Mutation]:
    """All changes of all files of the package."""
    found = []
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        found += mutations_of(path.relative_to(ROOT).as_posix(), path.read_bytes())
    return found


def choose(mutations: list[Mutation], num: int, seed: int) -> list[Mutation]:
    """Random lines, each with one of its changes; the same for the same seed."""
    lines: dict[tuple[str, int], list[Mutation]] = {}
    for mutation in mutations:
        lines.setdefault((mutation.path, mutation.line), []).append(mutation)
    chance = random.Random(seed)
    places = chance.sample(sorted(lines), min(num, len(lines)))
    return [chance.choice(lines[place]) for place in places]


def _imports(path: Path, module: str) -> bool:
    """Whether a file of tests imports a module of the package, or something out of it."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        if any(name == module or name.startswith(f"{module}.") for name in names):
            return True
    return False


def groups_of_tests(path: str, root: Path = ROOT) -> list[list[str]]:
    """The files of tests in the order in which they run: named after the module, importing it (the
    shortest first), all others.
    """
    module = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    stem = module.rpartition(".")[2]
    files = {name: sorted((root / "tests" / name).glob("test_*.py")) for name in NEAR}
    near = [file for name in NEAR for file in files[name]]
    named = [file for file in near if re.search(rf"_{stem}(_|$)", file.stem)]
    importing = [file for file in near if file not in named and _imports(file, module)]
    importing.sort(key=lambda file: file.stat().st_size)
    rest = [file for name in ALL for file in files[name] if file not in named + importing]
    groups = [named, importing, rest]
    return [[str(file.relative_to(root)) for file in group] for group in groups if group]


def copy_tree(copy: Path) -> None:
    """The files that git tracks, new ones that it does not ignore, and the module that says what
    the libraries were built with.
    """
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
    built = importlib.import_module(f"{PACKAGE}._build_info").__file__
    shutil.copy2(str(built), copy / PACKAGE)


class Runner:
    """Runs tests on a copy of the tree."""

    def __init__(self, folder: Path, num_workers: int):
        """
        Args:
            folder: an empty one, for the copy and what Python needs to find it.
            num_workers: of pytest.
        """
        self._copy = folder / "tree"
        self._start = folder / "start"
        self._num_workers = num_workers
        self._left_out: list[str] = []  # tests that fail without any change
        self._start.mkdir()
        copy_tree(self._copy)
        text = CUSTOMIZE.format(copy=str(self._copy))
        (self._start / "sitecustomize.py").write_text(text)

    def noticed_by(self, mutation: Mutation) -> str:
        """The test that fails with a change and passes without it; "" = none."""
        file = self._copy / mutation.path
        source = file.read_bytes()
        while True:
            file.write_bytes(mutation.applied(source))
            try:
                failed = self._first_of_groups(mutation.path)
            finally:
                file.write_bytes(source)
            if not failed.startswith("tests/") or not self._first_failure([failed], 0):
                return failed
            print(f"{failed} fails without any change: left out", flush=True)
            self._left_out.append(failed)

    def _first_of_groups(self, path: str) -> str:
        for group in groups_of_tests(path, self._copy):
            failed = self._first_failure(group, self._num_workers)
            if failed:
                return failed
        return ""

    def _first_failure(self, tests: list[str], num_workers: int) -> str:
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
        command += [f"--deselect={test}" for test in self._left_out]
        if num_workers and len(tests) > 1:
            command += ["-n", str(num_workers), "--dist", "loadfile"]
        # The bytecode of a change must not outlive it: both may have the same time and size.
        environment = {"PYTHONPATH": str(self._start), "PYTHONDONTWRITEBYTECODE": "1"}
        try:
            done = subprocess.run(
                [*command, *tests],
                cwd=self._copy,
                env=os.environ | environment,
                capture_output=True,
                text=True,
                timeout=SECONDS,
            )
        except subprocess.TimeoutExpired:
            return f"the limit of {SECONDS} s"
        if done.returncode in (0, 5):  # 5: all of them are left out, or skipped
            return ""
        # A test's parameters may hold spaces; the reason follows " - ".
        found = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", done.stdout, re.MULTILINE)
        return found[1] if found else f"pytest's exit status {done.returncode}"


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num", type=int, default=20, help="how many lines are changed")
    parser.add_argument("--seed", type=int, default=0, help="which lines and which changes")
    parser.add_argument("--skip", type=int, default=0, help="the first ones that are left out")
    parser.add_argument("--workers", type=int, default=2, help="of pytest")
    parser.add_argument("--list", action="store_true", help="print the changes, run nothing")
    options = parser.parse_args()
    chosen = choose(mutations_of_package(), options.num, options.seed)[options.skip :]
    if options.list:
        print(*chosen, sep="\n")
        return 0
    num_noticed = 0
    with tempfile.TemporaryDirectory(prefix="cosurfgs-mutations-") as folder:
        runner = Runner(Path(folder), options.workers)
        for mutation in chosen:
            started = time.monotonic()
            test = runner.noticed_by(mutation)
            num_noticed += bool(test)
            verdict = f"noticed by {test}" if test else "SURVIVED"
            print(f"{mutation}: {verdict} ({time.monotonic() - started:.0f} s)", flush=True)
    print(f"{num_noticed} of {len(chosen)} noticed")
    return int(num_noticed < BAR * len(chosen))


if __name__ == "__main__":
    sys.exit(main())
