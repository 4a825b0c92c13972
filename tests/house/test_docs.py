"""The documents agree with the code: the tree in docs/architecture.md, links, names of settings and
files, the reference of settings.
"""

import dataclasses
import re
from pathlib import Path

import documents
import pytest
import settings_page
from documents import DOCUMENTS
from package_tree import MODULES, ROOT
from test_layers import LAYERS, PROGRAMS

from cosurfgs_jax.settings import Settings, settings_reference

ARCHITECTURE = ROOT / "docs" / "architecture.md"
by_document = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
# docs/extending.md names files and settings that a reader adds; tests/component/test_extending.py
# adds them.
by_settled_document = pytest.mark.parametrize(
    "path",
    [path for path in DOCUMENTS if path.name != "extending.md"],
    ids=lambda path: path.name,
)


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
def test_links_lead_to_files_and_headings(path: Path):
    broken = []
    for link in re.findall(r"\]\(([^)\s:]+)\)", documents.prose(documents.read(path))):
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        if not target.is_file() or (
            anchor and anchor not in documents.anchors(documents.read(target))
        ):
            broken.append(link)
    assert not broken, f"{path.name}: links lead nowhere: {broken}"


@pytest.mark.parametrize("path", documents.PAGES, ids=lambda path: path.name)
def test_pages_link_within_the_site(path: Path):
    """The site has docs/ alone: a file outside of it is named, not linked."""
    outside = re.findall(r"\]\((\.\./[^)]*)\)", documents.prose(documents.read(path)))
    assert not outside, f"{path.name}: the site has no {outside}"


def test_every_page_is_in_the_navigation_and_in_the_overview():
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    listed = re.findall(r": (\w+\.md)$", navigation, re.M)
    assert sorted(listed) == [path.name for path in documents.PAGES]
    overview = documents.read(ROOT / "docs" / "index.md")
    missing = [name for name in listed if f"]({name})" not in overview and name != "index.md"]
    assert not missing, f"docs/index.md does not list {missing}"


def test_the_readme_is_short():
    assert len(documents.read(ROOT / "README.md").splitlines()) <= 120


# Names of settings that were tried and are no more, in docs/results.md.
GONE = {"lmc.min_front_views"}


@by_settled_document
def test_documents_name_settings_that_exist(path: Path):
    groups = {field.name: getattr(Settings(), field.name) for field in dataclasses.fields(Settings)}
    groups = {name: group for name, group in groups.items() if dataclasses.is_dataclass(group)}
    files = set("py ply json md sh tif html jsonl txt las laz obj glb".split())
    named = re.findall(
        r"(?:`|--config\.|`config\.)([a-z]+)\.([a-z]\w+)(?=[`= ])", documents.read(path)
    )
    unknown = {
        f"{group}.{name}"
        for group, name in named
        if group in groups and name not in files and not hasattr(groups[group], name)
    }
    assert not unknown - GONE, f"{path.name} names settings that are not there: {sorted(unknown)}"


def test_settings_are_named_in_the_documents():
    text = "".join(documents.read(path) for path in DOCUMENTS if path.name != "settings.md")
    assert len(set(re.findall(r"`[a-z]+\.[a-z]\w+`", text))) > 50, "the names could not be read"


@by_settled_document
def test_documents_name_files_that_exist(path: Path):
    """A path of the repository in the text; those of the package may begin below it."""
    roots = (ROOT, ROOT / "cosurfgs_jax", ROOT / "cosurfgs_jax" / "native" / "csrc")
    named = [
        code
        for code in documents.inline_code(documents.read(path))
        if re.fullmatch(r"[\w.]+/[\w./]*\w\.(py|sh|md|h|cc|cu|cuh|yaml|toml)", code)
    ]
    missing = [name for name in named if not any((root / name).is_file() for root in roots)]
    assert not missing, f"{path.name} names files that are not there: {missing}"


def test_the_page_of_settings_is_current():
    """`python scripts/settings_page.py` writes it."""
    assert documents.read(settings_page.PAGE) == settings_reference()
