"""The command `cosurfgs`, and presets by name."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from package_tree import MODULES, TREES
from test_layers import PROGRAMS

import cosurfgs_jax
from cosurfgs_jax import program
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.outputs.exports import FORMATS
from cosurfgs_jax.program import command, presets

ROOT = Path(__file__).parents[2]


def test_it_lists_every_program_with_a_sentence(capsys):
    assert set(command.PROGRAMS) == PROGRAMS & set(MODULES)
    assert command.main(["cosurfgs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in command.PROGRAMS:
        (line,) = [text for text in lines if text.startswith(f"  {name} ")]
        sentence = line.split(maxsplit=1)[1]
        assert sentence.endswith(".") and len(sentence) > 20
        assert " ".join(ast.get_docstring(TREES[name]).split()).startswith(sentence)


def test_version(capsys):
    assert command.main(["cosurfgs", "--version"]) == 0
    assert capsys.readouterr().out.strip() == cosurfgs_jax.__version__


@pytest.mark.parametrize(
    "name, words",
    [
        ("trian", "did you mean train?"),
        ("extract-mesh", "did you mean extract_mesh?"),
        ("quux", "`cosurfgs` lists them"),
        ("--workdir=x", "expected the name of a program"),
    ],
)
def test_an_unknown_name_is_one_sentence(capsys, name, words):
    assert command.main(["cosurfgs", name]) == 2
    message = capsys.readouterr().err
    assert words in message and len(message.splitlines()) == 1


def test_help_has_the_command_that_people_type_and_a_line_for_each_format():
    code = "import sys; from cosurfgs_jax.program import command; "
    code += "sys.exit(command.main(['cosurfgs', 'export', '--help']))"
    text = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert "\ncosurfgs export --workdir=DIR" in text and "python -m" not in text
    for form in FORMATS:
        assert re.search(rf"^ +{form.name} +{re.escape(form.help)}$", text, re.MULTILINE)


def test_it_is_the_same_as_the_module():
    """Flags, exit code and message; and a list of programs imports neither them nor JAX."""
    start = "import sys; from cosurfgs_jax.program import command; "
    code = start + "sys.exit(command.main(['cosurfgs', 'export', '--workdir=/nowhere', '--foo=1']))"
    ours = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    theirs = subprocess.run(
        [sys.executable, "-m", "cosurfgs_jax.export", "--workdir=/nowhere", "--foo=1"],
        capture_output=True,
        text=True,
    )
    assert (ours.returncode, ours.stderr) == (theirs.returncode, theirs.stderr)
    assert ours.returncode == 2 and "foo" in ours.stderr
    code = start + "command.main(['cosurfgs']); print(*sys.modules, file=sys.stderr)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr
    assert not {"jax", "scipy", "ml_collections", "cosurfgs_jax.train"} & set(modules.split())


def _options(*arguments):
    seen = []
    code = program.run(seen.append, workdir="create", argv=["prog", *arguments])
    return code, seen[0] if seen else None


@pytest.mark.parametrize("spelling", [["--preset=quickstart"], ["--preset", "quickstart"]])
def test_a_preset_is_the_file_of_its_name(tmp_path, monkeypatch, spelling):
    monkeypatch.chdir(tmp_path)  # no configs/ here
    code, options = _options(*spelling, "--workdir=run", "--config.seed=5")
    expected = program.load_config_file(str(ROOT / "configs" / "quickstart.py"))
    expected.seed = 5
    assert code == 0 and options.settings == expected


def test_presets_are_those_of_the_folder_and_all_load():
    files = {path.relative_to(ROOT / "configs") for path in (ROOT / "configs").rglob("*.py")}
    assert set(presets.preset_names()) == {path.with_suffix("").as_posix() for path in files}
    for name in presets.preset_names():
        program.load_config_file(str(presets.preset_file(name)))


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--preset=arial"], "did you mean --preset=aerial?"),
        (["--preset=configs/aerial.py"], "did you mean --preset=aerial?"),
        (["--preset=aerial", "--preset=default"], "expected one, got 2"),
        (["--preset=aerial", "--config=x.py"], "got both"),
        (["--config=aerial"], "did you mean --preset=aerial?"),
        (["--preset"], "--preset: expected one of"),
    ],
)
def test_a_wrong_preset_is_one_sentence(tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    assert _options("--workdir=run", *arguments) == (2, None)
    message = capsys.readouterr().err
    assert words in message and len(message.splitlines()) == 1


def test_an_installation_reads_the_copies_in_the_package(tmp_path, monkeypatch):
    (tmp_path / "pkg" / "presets").mkdir(parents=True)
    (tmp_path / "pkg" / "presets" / "mine.py").write_text("x = 1\n")
    monkeypatch.setattr(presets, "_PACKAGE", tmp_path / "pkg")
    assert presets.preset_names() == ["mine"]
    with pytest.raises(InputError, match="expected one of mine"):
        presets.preset_file("aerial")
