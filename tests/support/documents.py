"""What the documents say: their pages, links, code, and the commands in them."""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

from package_tree import ROOT

from cosurfgs_jax.program.command import PROGRAMS

PAGES = sorted((ROOT / "docs").glob("*.md"))
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *PAGES]

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`([^`\n]+(?:\n[^`\n]+)?)`")
# What stands for something: "...", NAME, N.
_PLACEHOLDERS = re.compile(r"\.\.\.|…|--config\.NAME=VALUE|--preset=NAME")


class Command(NamedTuple):
    """A command of a document: where it stands, and its words."""

    page: str
    words: list[str]

    def __str__(self) -> str:
        return f"{self.page}: {shlex.join(self.words)}"


def read(path: Path) -> str:
    """The text of a document."""
    return path.read_text(encoding="utf-8")


def prose(text: str) -> str:
    """A document without its blocks of code."""
    return _FENCE.sub("", text)


def code_blocks(text: str, language: str = "") -> list[str]:
    """The blocks of a language; "" are commands and what they print."""
    return [block for name, block in _FENCE.findall(text) if name == language]


def inline_code(text: str) -> list[str]:
    """What stands between backticks outside of blocks, each on one line."""
    return [" ".join(code.split()) for code in _INLINE.findall(prose(text))]


def anchors(text: str) -> set[str]:
    """The anchors of a document's headings, as GitHub and MkDocs make them."""
    found = set()
    for heading in re.findall(r"^#+ (.*)$", prose(text), re.MULTILINE):
        kept = re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower())
        found.add(re.sub(r"[ \-]+", "-", kept.strip()))
    return found


def commands(path: Path) -> list[Command]:
    """The commands of a document: lines of its blocks, and code in its text that starts with a
    program of this repository.
    """
    text = read(path)
    lines = []
    for block in code_blocks(text):
        lines += re.sub(r"\\\n\s*", " ", block).splitlines()
    found = [_words(line.removeprefix("$ ")) for line in lines]
    found += [_words(code) for code in inline_code(text)]
    return [Command(path.name, words) for words in found if words]


def _words(line: str) -> list[str]:
    """The words of a command of this repository, "cosurfgs" first for its programs; [] for others.
    An example in brackets (`[--seed=S]`) is one of its flags.
    """
    line = re.sub(r"\[(--[^\]]*)\]", r"\1", line.partition("   #")[0])
    head = line.split(maxsplit=1)[:1]
    if head and head[0] in PROGRAMS and "--" in line:
        line = f"cosurfgs {line}"
    line = re.sub(r"^python -m cosurfgs_jax\.", "cosurfgs ", line)
    line = re.sub(r"^docker run .* cosurfgs (?=\w)", "cosurfgs ", line)
    line = re.sub(r"^python (?=scripts/|examples/)", "", line)
    if not re.match(r"cosurfgs \w|(scripts|deploy|examples)/\w+\.(sh|py)\b", line):
        return []
    words = shlex.split(line, comments=True)
    return [word for word in words if not _PLACEHOLDERS.search(word)]
