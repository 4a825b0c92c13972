"""The documents agree with the code: the tree in docs/architecture.md, links, names of settings."""

import dataclasses
import re
from pathlib import Path

import pytest
from package_tree import MODULES, ROOT
from test_layers import LAYERS, PROGRAMS

from cosurfgs_jax.settings import Settings

ARCHITECTURE = ROOT / "docs" / "architecture.md"
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
by_document = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)


def files_of_tree(text: str) -> set[str]:
    """Paths that the tree of docs/architecture.md lists: a folder, then a block with its files."""
    found = set()
    for folder, block in re.findall(
        r"^`(cosurfgs_jax/[\w/]*)`\n\n```\n(.*?)^```", text, re.M | re.S
    ):
        found |= {folder + line.split()[0] for line in block.splitlines()}
    return found


def test_the_tree_lists_every_file():
    listed = files_of_tree(ARCHITECTURE.read_text(encoding="utf-8"))
    package = ROOT / "cosurfgs_jax"
    sources = [path for path in MODULES.values() if len(path.read_text().splitlines()) > 5]
    native = (package / "native").rglob("*.[ch]*")
    sources += [path for path in native if path.suffix != ".pyc"]  # what Python keeps
    missing = {str(path.relative_to(ROOT)) for path in sources} - listed
    assert not missing, f"docs/architecture.md does not list {sorted(missing)}"


def test_the_tree_lists_no_file_that_is_gone():
    listed = files_of_tree(ARCHITECTURE.read_text(encoding="utf-8"))
    assert len(listed) > 100, "the tree could not be read"
    gone = {name for name in listed if not (ROOT / name).is_file()}
    assert not gone, f"docs/architecture.md lists {sorted(gone)}"


def test_the_layers_are_those_of_the_house():
    text = ARCHITECTURE.read_text(encoding="utf-8")
    table = text.partition("## Layers")[2].partition("\n## ")[0]
    present = {name.split(".")[0] for name in MODULES}
    names = set().union(*LAYERS, PROGRAMS) & present
    missing = {name for name in names if f"`{name}`" not in table}
    assert not missing, f"docs/architecture.md, Layers: {sorted(missing)} are missing"


@by_document
def test_links_lead_to_files(path: Path):
    links = re.findall(r"\]\(([^)#:]+)\)", path.read_text(encoding="utf-8"))
    broken = [link for link in links if not (path.parent / link).exists()]
    assert not broken, f"{path.name}: links lead nowhere: {broken}"


def test_the_readme_names_settings_that_exist():
    groups = {field.name: getattr(Settings(), field.name) for field in dataclasses.fields(Settings)}
    groups = {name: group for name, group in groups.items() if dataclasses.is_dataclass(group)}
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    named = re.findall(r"(?:`|--config\.)([a-z]+)\.([a-z]\w+)(?=[`= ])", text)
    assert len(named) > 20, "the names of settings could not be read"
    files = {"py", "ply", "json", "md", "sh", "tif", "html", "jsonl", "txt"}
    unknown = {
        f"{group}.{name}"
        for group, name in named
        if group in groups and name not in files and not hasattr(groups[group], name)
    }
    assert not unknown, f"README.md names settings that are not there: {sorted(unknown)}"
