"""The Dockerfile: it copies files that are there, and installs what the repository says."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = re.sub(r"\\\n\s*", "", (ROOT / "Dockerfile").read_text(encoding="utf-8"))
# Stage -> its instructions, (name, rest) each.
STAGES: dict[str, list[tuple[str, str]]] = {}
for _line in TEXT.splitlines():
    if _line and not _line.startswith("#"):
        _name, _, _rest = _line.partition(" ")
        if _name == "FROM":
            _stage = STAGES.setdefault(_rest.split()[2], [])
        _stage.append((_name, _rest))


def _rest(stage: str, name: str) -> list[str]:
    return [rest for found, rest in STAGES[stage] if found == name]


def _apt_packages(stage: str) -> set[str]:
    (run,) = [rest for rest in _rest(stage, "RUN") if "apt-get install" in rest]
    (install,) = re.findall(r"apt-get install ([^&]*)", run)
    return {word for word in install.split() if not word.startswith("-")}


def test_the_image_for_cpus_is_what_a_build_makes():
    assert list(STAGES) == ["build-cpu", "build-cuda", "cuda", "cpu"]


@pytest.mark.parametrize("stage", ["build-cpu", "build-cuda"])
def test_what_is_copied_is_there_and_enough(stage):
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    copied = [name for rest in _rest(stage, "COPY") for name in rest.split()[:-1]]
    assert all((ROOT / name).exists() for name in copied)
    assert {f"!{name}" for name in copied} == {line for line in ignored if line.startswith("!")}
    # What the build of the package reads.
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    needed = {"pyproject.toml", "CMakeLists.txt", "cmake", project["project"]["readme"]}
    needed |= set(project["project"]["license-files"])
    needed |= set(project["tool"]["scikit-build"]["wheel"]["packages"])
    cmake = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
    needed |= {name for name in ("configs",) if name in cmake}
    assert needed <= set(copied)


@pytest.mark.parametrize("stage, extras", [("build-cpu", ""), ("build-cuda", ",cuda13")])
def test_it_installs_the_extras_with_pinned_versions(stage, extras):
    (install,) = [rest for rest in _rest(stage, "RUN") if '".[' in rest]
    words = shlex.split(install)
    assert words[-1] == f".[mesh,geo,sfm,report{extras}]"
    assert words[words.index("-c") + 1] == "requirements.txt" and "--no-build-isolation" in words
    (tools,) = [rest for rest in _rest(stage, "RUN") if "scikit-build-core" in rest]
    pinned = re.findall(
        r"^([\w-]+)==", (ROOT / "requirements.txt").read_text(encoding="utf-8"), re.MULTILINE
    )
    named = shlex.split(tools)
    assert set(named[named.index("requirements.txt") + 1 :]) <= set(pinned)


@pytest.mark.parametrize("stage", ["cpu", "cuda"])
def test_the_libraries_of_open3d_are_those_that_the_scripts_install(stage):
    script = (ROOT / "scripts" / "environment.sh").read_text(encoding="utf-8")
    wanted = set(re.findall(r"missing\+=\((\S+)\)", script))
    assert len(wanted) > 4 and wanted <= _apt_packages(stage)
    assert STAGES[stage][-1] == ("ENTRYPOINT", '["cosurfgs"]')


def test_it_is_the_image_of_the_jobs():
    (image,) = set(re.findall(r"image: (\S+)", (ROOT / "deploy/kubernetes_rest.yaml").read_text()))
    assert f"docker build -t {image.partition(':')[0]} --target=cuda ." in TEXT
