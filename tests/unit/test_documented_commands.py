"""The documents name programs, flags, values, scripts and messages that exist."""

import ast
import importlib
import re
import subprocess
import sys
import tomllib

import documents
import pytest
from documents import DOCUMENTS, ROOT, Command
from package_tree import TREES

import cosurfgs_jax
from cosurfgs_jax import program
from cosurfgs_jax.collab.block_choice import BlockChoice
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.outputs.exports import find_format
from cosurfgs_jax.program.options import declare_flags
from cosurfgs_jax.program.presets import without_presets
from cosurfgs_jax.report.sections import SECTIONS
from cosurfgs_jax.settings import PrepareSettings
from cosurfgs_jax.surface.mesh_files import FORMATS as MESH_FORMATS

COMMANDS = [command for path in DOCUMENTS for command in documents.commands(path)]
OF_PROGRAMS = [command for command in COMMANDS if command.words[0] == "cosurfgs"]
OF_SCRIPTS = [command for command in COMMANDS if command.words[0] != "cosurfgs"]
TROUBLES = documents.read(ROOT / "docs" / "troubleshooting.md")


def _kind_of_workdir(name: str) -> str:
    """What a program's module gives to `program.run` as `workdir`."""
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "run":
            given = {word.arg: word.value for word in node.keywords}
            if "workdir" in given:
                return ast.literal_eval(given["workdir"])
    return ""


def _check_values(name: str, values) -> None:
    """Raises where a value of a program's own flags is none that it takes."""
    if name == "prepare":
        flags = PrepareSettings.__dataclass_fields__
        PrepareSettings(**{flag: getattr(values, flag) for flag in flags}).validate()
    if name == "train" and values.blocks and values.blocks != "i/n":
        BlockChoice.parse(values.blocks)
    if "shard" in values and "$" not in values.shard and values.shard != "i/n":
        program.shard_of(values)
    if name == "export":
        find_format(values.format)
    if name == "extract_mesh" and values.format not in MESH_FORMATS:
        raise InputError(f"--format={values.format}")


def _parse(words: list[str]) -> None:
    """Parses a program's command line as the program does, and checks what it can before a run."""
    name = words[1]
    module = importlib.import_module(f"cosurfgs_jax.{name}")
    workdir = _kind_of_workdir(name)
    argv = words[1:]
    if workdir:
        argv = without_presets(argv)
    values = declare_flags(getattr(module, "declare", program.no_flags), workdir, argv)
    rest = values([word for word in argv if word not in ("--help", "--helpfull")])
    assert rest == [name], f"unexpected: {rest[1:]}"
    if workdir:
        values.config.validate()
    _check_values(name, values)


@pytest.mark.parametrize("command", OF_PROGRAMS, ids=str)
def test_commands_of_programs_parse(command: Command, monkeypatch):
    monkeypatch.chdir(ROOT)
    name = command.words[1]
    if name == "NAME":
        return
    if (command.page, name) == ("extending.md", "export") and "--format=xyz" in command.words:
        pytest.skip("the format that this page adds")
    _parse(command.words)


def test_commands_are_found():
    assert len(OF_PROGRAMS) > 40 and len(OF_SCRIPTS) > 20
    assert {command.page for command in OF_PROGRAMS} >= {"README.md", "machines.md", "outputs.md"}


@pytest.mark.parametrize(
    "words",
    [
        "train --workdir=x --config.data.pth=y",
        "train --workdir=x --config=configs/arial.py",
        "train --workdir=x --preset=arial",
        "train --workdir=x --config.lmc.prune_ratio=2",
        "train --workdir=x --blocks=4/4",
        "export --workdir=x --format=tif",
        "evaluate --workdir=x --shard=4/4",
        "extract_mesh --workdir=x --format=stl",
        "prepare --images=x --out=y --lens=PINHOLES",
        "prepare --images=x --image_size=3",
        "status x",
    ],
)
def test_a_wrong_command_does_not_parse(words: str, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises((InputError, program.options.flags.Error, AssertionError)):
        _parse(["cosurfgs", *words.split()])


@pytest.mark.parametrize("command", OF_SCRIPTS, ids=str)
def test_scripts_and_their_flags_exist(command: Command, monkeypatch):
    path = ROOT / command.words[0]
    assert path.is_file(), f"{path} is not there"
    if path.name == "slurm_blocks.sh" and len(command.words) > 1:
        monkeypatch.chdir(ROOT)
        assert command.words[1].isdigit()
        _parse(["cosurfgs", "train", *command.words[2:]])
        return
    text = path.read_text(encoding="utf-8")
    for word in command.words[1:]:
        flag = re.match(r"--([\w-]+)", word)
        if flag and flag[1] != "config":
            assert f"--{flag[1]}" in text, f"{command}: no {flag[0]} in {path.name}"


def test_flags_in_the_text_belong_to_a_program():
    """A flag alone (`--matching=exhaustive`) is one of some program or script."""
    known = {"help", "helpfull", "version", "config", "target"}
    for name in program.command.PROGRAMS:
        module = importlib.import_module(f"cosurfgs_jax.{name}")
        declare = getattr(module, "declare", program.no_flags)
        known |= set(declare_flags(declare, _kind_of_workdir(name), [name]))
    for path in (ROOT / "scripts").iterdir():
        if path.suffix in (".py", ".sh"):
            known |= set(re.findall(r"--([a-z]\w*)", path.read_text(encoding="utf-8")))
    unknown = [
        f"{path.name}: {code}"
        for path in DOCUMENTS
        for code in documents.inline_code(documents.read(path))
        for flag in re.findall(r"^--([a-z]\w*)", code)
        if flag not in known
    ]
    assert not unknown


def test_extras_exist():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
        "optional-dependencies"
    ]
    text = "".join(map(documents.read, DOCUMENTS))
    asked = {
        name
        for found in re.findall(r'"(?:\.|cosurfgs_jax)\[([\w,]+)\]"', text)
        for name in found.split(",")
    }
    assert len(asked) > 3 and asked <= set(extras)
    table = documents.read(ROOT / "docs" / "install.md")
    missing = [name for name in extras if f"`{name}`" not in table]
    assert not missing, f"docs/install.md, Extras: {missing}"


@pytest.mark.parametrize("name", ["README.md", "docs/python.md"])
def test_python_code_uses_names_that_exist(name):
    (code,) = documents.code_blocks(documents.read(ROOT / name), "python")
    tree = ast.parse(code)
    roots = {
        "cosurfgs": cosurfgs_jax,
        "settings": cosurfgs_jax.Settings(),
        "model": cosurfgs_jax.Model,
    }
    checked = 0
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute):
            continue
        path = ast.unparse(node).split(".")
        if path[0] in roots and all(part.isidentifier() for part in path):
            thing = roots[path[0]]
            for part in path[1:]:
                thing = getattr(thing, part)
            checked += 1
    assert checked >= 4


def _texts_of_the_package() -> list[str]:
    """All texts in the package's code, what is put into them as "…"."""
    found = []
    for tree in TREES.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(_piece(part) for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(re.sub(r"%[-+.\d]*[sdfgr]|%%", _percent, node.value))
    return found


def _piece(part: ast.expr) -> str:
    return str(part.value) if isinstance(part, ast.Constant) else "…"


def _percent(match: re.Match) -> str:
    return "%" if match[0] == "%%" else "…"


def _messages() -> list[str]:
    """The first cells of the tables of docs/troubleshooting.md that are code."""
    return re.findall(r"^\| `([^`]+)` \|", TROUBLES, re.MULTILINE)


def _is_said(message: str, texts: list[str]) -> bool:
    """Whether the parts of a message stand in one text, in their order."""
    cut = message.removeprefix("error: ").removeprefix("suspicious: ").removeprefix("… ")
    parts = [part for part in cut.split("…") if part.strip()]
    pattern = re.compile(".*".join(map(re.escape, parts)), re.DOTALL)
    return any(pattern.search(text) for text in texts)


def test_messages_are_those_of_the_code():
    cmake = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8").replace("\\\n", "")
    texts = [*_texts_of_the_package(), re.sub(r'"\s*"', "", cmake)]
    messages = _messages()
    assert len(messages) > 40
    unsaid = [message for message in messages if not _is_said(message, texts)]
    assert not unsaid
    assert not _is_said("config.…: no such thing; …", texts)


def test_the_report_page_explains_every_section():
    text = documents.read(ROOT / "docs" / "report.md")
    missing = [section.title for section in SECTIONS if f"| {section.title} " not in text]
    assert not missing and len(SECTIONS) > 10


def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs", reason='needs the extra docs: pip install -e ".[docs]"')
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", tmp_path / "site"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    assert (tmp_path / "site" / "settings" / "index.html").is_file()
