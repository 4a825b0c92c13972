"""The package as syntax trees, and who imports whom: what the tests of the house rules look at."""

import ast
import subprocess
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "cosurfgs_jax"


def _modules() -> dict[str, Path]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if path.name != "_build_info.py":
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


# Dotted name below the package ("" is the package itself) -> file, text, syntax tree.
MODULES = _modules()
TEXTS = {name: path.read_text(encoding="utf-8") for name, path in MODULES.items()}
TREES = {name: ast.parse(text) for name, text in TEXTS.items()}


def imports(tree: ast.AST) -> list[str]:
    """Dotted names of everything that is imported, `from a import b` as a.b."""
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports name the package"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def imported_modules(name: str) -> set[str]:
    """Modules of the package that one of its modules imports, also inside functions."""
    found = set()
    for imported in imports(TREES[name]):
        first, _, rest = imported.partition(".")
        while first == "cosurfgs_jax" and rest and rest not in MODULES:
            rest = rest.rpartition(".")[0]
        if first == "cosurfgs_jax":
            found.add(rest)
    return found


def broken(rule: Callable[[str], list[str]], but: tuple[str, ...] = ()) -> list[str]:
    """The sentences in which a rule finds fault with the modules of the package.

    Args:
        rule: name of a module -> what is wrong with it.
        but: modules, and folders with all that is in them, that the rule is not for.
    """
    judged = [name for name in MODULES if name and not _is_in(name, but)]
    return [f"{name}: {sentence}" for name in judged for sentence in rule(name)]


def _is_in(name: str, places: tuple[str, ...]) -> bool:
    return any(name == place or name.startswith(f"{place}.") for place in places)


def source_files() -> list[Path]:
    """Text files under version control, or all where there is no git."""
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listing.returncode == 0 and listing.stdout:
        paths = [ROOT / name for name in listing.stdout.split("\0") if name]
    else:
        folders = [ROOT / name for name in ("cosurfgs_jax", "configs", "scripts", "tests", ".ci")]
        paths = [path for folder in folders for path in folder.rglob("*")] + list(ROOT.glob("*.*"))
    texts = {".py", ".md", ".txt", ".toml", ".sh", ".h", ".cc", ".cu", ".cuh", ".json", ""}
    return [path for path in paths if path.is_file() and path.suffix in texts]
