"""What a reader says of a file, compared with what it should say."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

READ = "read"
FAILED = "FAILED"
NOT_THERE = "not there"


class NotThere(Exception):
    """A reader or a file that is missing; the text is a sentence that says how to get it."""


class Box(NamedTuple):
    """An axis-aligned box.

    | field         | shape             |
    |---------------|-------------------|
    | `low`, `high` | f64[2] or f64[3]  |
    """

    low: np.ndarray
    high: np.ndarray

    @classmethod
    def of(cls, points: np.ndarray) -> "Box":
        """Of points [n,d], n > 0."""
        points = np.asarray(points, np.float64)
        return cls(points.min(axis=0), points.max(axis=0))

    @property
    def size(self) -> float:
        """The longest side."""
        return float(np.max(np.asarray(self.high) - self.low))

    def __str__(self) -> str:
        low, high = (", ".join(f"{value:.10g}" for value in end) for end in self)
        return f"({low}) to ({high})"


class Comparison:
    """What was compared of one file, and what was not as it should be.

    Attributes:
        compared: names of what was compared, in order.
        failures: a sentence for each that differs.
    """

    def __init__(self) -> None:
        self.compared: list[str] = []
        self.failures: list[str] = []

    def holds(self, name: str, is_so: bool, expected: str, got: Any) -> None:
        """Something that has to be so."""
        if name not in self.compared:
            self.compared.append(name)
        if not is_so:
            self.failures.append(f"{name}: expected {expected}, got {got}")

    def equal(self, name: str, got: Any, expected: Any) -> None:
        """Two values that have to be the same."""
        self.holds(name, bool(got == expected), str(expected), got)

    def close(self, name: str, got: Any, expected: Any, within: float) -> None:
        """Numbers that may differ by `within`; NaN never fits."""
        got = np.asarray(got, np.float64)
        expected = np.asarray(expected, np.float64)
        is_close = got.shape == expected.shape and bool((np.abs(got - expected) <= within).all())
        self.holds(name, is_close, f"{expected.tolist()} within {within:.3g}", got.tolist())

    def box(self, name: str, got: Box, expected: Box, within: float) -> None:
        """Two boxes whose sides may differ by `within`."""
        gap = np.abs(np.asarray(got, np.float64) - np.asarray(expected, np.float64)).max()
        self.holds(name, bool(gap <= within), f"{expected} within {within:.3g}", got)

    def contains(self, name: str, outer: Box, inner: Box, within: float = 0.0) -> None:
        """A box inside of another one, but for `within`."""
        is_inside = (np.asarray(outer.low) - within <= inner.low).all() and (
            np.asarray(inner.high) <= np.asarray(outer.high) + within
        ).all()
        self.holds(name, bool(is_inside), f"{inner} inside", outer)


class Reader(NamedTuple):
    """A program or a package of others.

    | field     | content                                                                       |
    |-----------|-------------------------------------------------------------------------------|
    | `name`    | of it                                                                         |
    | `version` | () -> its version; raises `NotThere`                                          |
    """

    name: str
    version: Callable[[], str]


class Check(NamedTuple):
    """One file, read by one reader.

    | field     | content                                                                       |
    |-----------|-------------------------------------------------------------------------------|
    | `file`    | path in the workdir                                                           |
    | `form`    | its format                                                                    |
    | `reader`  | who reads it                                                                  |
    | `compare` | (path, comparison) -> None: reads and compares; what it raises is a failure   |
    | `maker`   | the command that writes the file                                              |
    """

    file: str
    form: str
    reader: Reader
    compare: Callable[[Path, Comparison], None]
    maker: str


class Row(NamedTuple):
    """What came of a check; the fields are the columns of the table, and `why` its sentences."""

    file: str
    form: str
    reader: str
    version: str
    compared: str
    result: str
    why: tuple[str, ...] = ()


def run_check(check: Check, workdir: Path) -> Row:
    """Reads one file.

    Args:
        check: what is to be read and compared.
        workdir: of the run.
    """
    row = Row(check.file, check.form, check.reader.name, "", "", NOT_THERE)
    path = workdir / check.file
    if not path.exists():
        return row._replace(why=(f"{path} is missing; run `{check.maker}`",))
    try:
        row = row._replace(version=check.reader.version())
    except NotThere as error:
        return row._replace(why=(str(error),))
    comparison = Comparison()
    try:
        check.compare(path, comparison)
    except NotThere as error:
        return row._replace(why=(str(error),))
    except Exception as error:  # whatever a reader of others raises
        said = str(error).splitlines() or [""]
        comparison.failures.append(f"{type(error).__name__}: {said[0][:300]}")
    if not comparison.compared and not comparison.failures:
        comparison.failures.append("nothing was compared")
    result = FAILED if comparison.failures else READ
    compared = ", ".join(comparison.compared)
    return row._replace(compared=compared, result=result, why=tuple(comparison.failures))


def table(rows: Sequence[Row]) -> str:
    """The rows as Markdown, and a line for each sentence below."""
    head = ("file", "format", "reader", "version", "compared", "result")
    cells = [head, *(row[:6] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    lines = [
        "| " + " | ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) + " |"
        for row in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    said = [f"{row.file}, {row.reader}: {why}" for row in rows for why in row.why]
    return "\n".join([*lines, *[""][: len(said)], *said])


def exit_code(rows: Sequence[Row], strict: bool) -> int:
    """1 where something failed, 2 where something is missing and nothing may be, else 0."""
    results = {row.result for row in rows}
    if FAILED in results:
        return 1
    if strict and NOT_THERE in results:
        return 2
    return 0
