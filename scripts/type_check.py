"""Checks the types of the package and of the examples: the number of errors may only fall.

python scripts/type_check.py [--list]     exit status 1 where there are more errors than MAX_ERRORS,
                                          or any in FREE_OF_ERRORS; --list prints all of them

The checker is ty, at the version that requirements.txt pins; its rules are in pyproject.toml. The
number depends on the versions of NumPy and JAX, and so it is compared on one Python alone.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PACKAGE = "cosurfgs_jax"
EXAMPLES = "examples"  # never have errors: users copy them

# Lower it when errors are mended; never raise it.
MAX_ERRORS = 0
# requirements.txt gives later Pythons other versions of NumPy and JAX, with other types.
COUNTED_ON = (3, 11)
# Files and folders of the package that stay without errors.
FREE_OF_ERRORS = (
    # what users import and extend
    "__init__.py",
    "api.py",
    "types.py",
    "errors.py",
    "settings",
    "settings_file.py",
    "raster",
    "losses",
    "model",
    "formats",
    "metrics",
    "outputs",
    "workdir.py",
    "data/capture.py",
    "data/generated.py",
    "data/ground_truth.py",
    "data/loading.py",
    "data/readers.py",
    "data/scene.py",
    "data/transforms_json.py",
    "geometry/airspace.py",
    "geometry/cameras.py",
    "geometry/rotations.py",
    "geometry/scene_frame.py",
    "geometry/spherical_harmonics.py",
    "geometry/view_pairs.py",
    "geometry/views.py",
    "surface",
    "sfm",
    # programs
    "prepare.py",
    "train.py",
    "evaluate.py",
    "render.py",
    "extract_mesh.py",
    "export.py",
    "doctor.py",
    "program",
    # the rest
    "collab",
    "distributed",
    "native",
    "report",
    "training",
    "files.py",
    "partition",
    "photograph.py",
    "pictures.py",
)

_LINE = re.compile(
    r"(?P<path>[^:]+):(?P<line>\d+):\d+: (error|warning)\[(?P<rule>[\w-]+)\] (?P<text>.*)"
)


class TypeProblem(NamedTuple):
    """One line of the checker."""

    path: str
    line: int
    rule: str
    text: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.rule}: {self.text}"


def parse(output: str) -> list[TypeProblem]:
    """Reads the checker's concise output.

    Raises:
        ValueError: a line that reports a problem cannot be read, or the number of problems differs
            from the checker's own count.
    """
    problems = []
    for line in output.splitlines():
        match = _LINE.fullmatch(line)
        if match:
            problems.append(
                TypeProblem(match["path"], int(match["line"]), match["rule"], match["text"])
            )
    counted = re.search(r"^Found (\d+) diagnostics?$", output, re.MULTILINE)
    expected = int(counted[1]) if counted else 0
    is_clean = "All checks passed!" in output
    if len(problems) != expected or not (counted or is_clean):
        raise ValueError(f"expected the concise output of ty, got {output[-2000:]!r}")
    return problems


def check(folder: Path = ROOT) -> list[TypeProblem]:
    """Runs the checker over the package and the examples with the packages of this interpreter."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    command = [sys.executable, "-m", "ty", "check", "--output-format=concise", "--no-progress"]
    command += ["--color=never", f"--python={sys.prefix}", f"--python-version={version}"]
    command += [name for name in (PACKAGE, EXAMPLES) if (folder / name).is_dir()]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    # 0 without and 1 with problems; `-m` answers 1 too where ty is not installed.
    if result.returncode not in (0, 1) or not result.stdout:
        sys.exit(f"ty failed:\n{result.stdout}{result.stderr}")
    return parse(result.stdout)


def is_free_of_errors(path: str) -> bool:
    """Whether FREE_OF_ERRORS names a file of the package, or a folder above it; all examples are
    free of errors.
    """
    if Path(path).parts[0] == EXAMPLES:
        return True
    inside = Path(path).relative_to(PACKAGE)
    return any(inside == Path(name) or Path(name) in inside.parents for name in FREE_OF_ERRORS)


def verdict(problems: list[TypeProblem]) -> tuple[list[str], bool]:
    """What to say about the problems, and whether they are within the budget."""
    forbidden = [problem for problem in problems if is_free_of_errors(problem.path)]
    sentences = [f"{problem} (this file is in FREE_OF_ERRORS)" for problem in forbidden]
    count = len(problems)
    is_counted = sys.version_info[:2] == COUNTED_ON
    if is_counted and count > MAX_ERRORS:
        sentences.append(
            f"type errors: expected at most {MAX_ERRORS}, got {count};"
            " python scripts/type_check.py --list shows them"
        )
    elif is_counted and count < MAX_ERRORS:
        sentences.append(
            f"type errors: {count}, fewer than the budget of {MAX_ERRORS};"
            f" set MAX_ERRORS = {count} in scripts/type_check.py"
        )
    return sentences, not forbidden and (count <= MAX_ERRORS or not is_counted)


def main(arguments: list[str] | None = None) -> int:
    """Runs the checker, says what is over the budget, and returns the exit status."""
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("--list", action="store_true")
    flags = parser.parse_args(arguments)
    problems = check()
    sentences, is_within_budget = verdict(problems)
    for sentence in [*(problems if flags.list else []), *sentences]:
        print(sentence)
    return 0 if is_within_budget else 1


if __name__ == "__main__":
    sys.exit(main())
