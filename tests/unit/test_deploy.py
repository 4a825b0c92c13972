"""The files of deploy/: what they submit is what `train` understands."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from cosurfgs_jax.collab.block_choice import BlockChoice

DEPLOY = Path(__file__).parents[2] / "deploy"
# Notes its arguments, one a line, and the cores of srun; prints a number as the schedulers do.
RECORDER = """#!/usr/bin/env bash
record="$RECORDS/$(basename "$0").$(ls "$RECORDS" | wc -l)"
printf '%s\\n' "$@" ${SRUN_CPUS_PER_TASK+"cores $SRUN_CPUS_PER_TASK"} > "$record"
"""
SBATCH = """[[ "${*: -1}" == -* ]] || exit 1  # a script is not given as a file, but as input
name="$(basename "$record")"
cat > "$SCRIPTS/${name#*.}"
chmod +x "$SCRIPTS/${name#*.}"
echo "17;cluster"
"""


@pytest.fixture
def programs(tmp_path):
    """An environment in which sbatch, srun and cosurfgs note what they are asked for."""
    for name in ("sbatch", "srun", "cosurfgs"):
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(RECORDER + (SBATCH if name == "sbatch" else ""))
        path.chmod(0o755)
    (tmp_path / "records").mkdir()
    (tmp_path / "scripts").mkdir()
    return os.environ | {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "RECORDS": str(tmp_path / "records"),
        "SCRIPTS": str(tmp_path / "scripts"),
        "LC_ALL": "C",  # in which bash quotes letters of other languages in a way of its own
    }


def _records(environment: dict) -> list[list[str]]:
    files = sorted(Path(environment["RECORDS"]).iterdir(), key=lambda path: path.suffix)
    return [path.read_text().splitlines() for path in files]


def _submit(environment: dict, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [DEPLOY / "slurm_blocks.sh", *arguments], capture_output=True, text=True, env=environment
    )


def test_slurm_trains_parts_in_an_array_and_then_the_rest(programs):
    flags = ["--workdir=/data/my runs/Zürich", "--config.train.steps=9", "--config.data.path=a$b"]
    programs |= {"BLOCK_OPTIONS": "--gpus=1 --time=1:00:00", "REST_OPTIONS": "--ntasks=4"}
    result = _submit(programs, "3", *flags)
    assert result.returncode == 0 and "job 17, 3 tasks" in result.stdout, result
    blocks, rest = _records(programs)
    assert {"--array=0-2", "--gpus=1", "--time=1:00:00", "--requeue"} <= set(blocks)
    assert "--signal=B:TERM@120" in blocks
    assert {"--dependency=afterok:17", "--ntasks=4"} <= set(rest) and "--gpus=1" not in rest
    assert "--kill-on-invalid-dep=yes" in rest
    scripts = Path(programs["SCRIPTS"])
    subprocess.run([scripts / "0"], check=True, env=programs | {"SLURM_ARRAY_TASK_ID": "1"})
    subprocess.run([scripts / "1"], check=True, env=programs)
    subprocess.run([scripts / "1"], check=True, env=programs | {"SLURM_CPUS_PER_TASK": "8"})
    block_command, rest_command, with_cores = _records(programs)[2:]
    assert with_cores == [*rest_command, "cores 8"]
    assert block_command == ["train", "--blocks=1/3", *flags]
    assert BlockChoice.parse("1/3").of(5) == [1, 4]
    assert rest_command == ["cosurfgs", "train", *flags], "by srun"


@pytest.mark.parametrize("arguments", [[], ["--workdir=x"], ["0"], ["3x"]])
def test_slurm_wants_the_number_of_parts(programs, arguments):
    result = _submit(programs, *arguments)
    assert result.returncode == 2 and "expected the number of parts first" in result.stderr
    result = _submit(programs, "3")
    assert result.returncode == 2 and "expected the flags of train" in result.stderr
    assert not _records(programs)


def _job(name: str) -> dict:
    job = yaml.safe_load((DEPLOY / name).read_text())
    assert job["apiVersion"] == "batch/v1" and job["kind"] == "Job"
    return job["spec"]


def _command(spec: dict) -> list[str]:
    (container,) = spec["template"]["spec"]["containers"]
    assert container["command"] == ["sh", "-c"]
    return shlex.split(*container["args"])


def test_the_jobs_of_kubernetes_agree():
    blocks = _job("kubernetes_blocks.yaml")
    rest = _job("kubernetes_rest.yaml")
    command = _command(blocks)
    assert command[:3] == ["exec", "cosurfgs", "train"]
    index, _, parts = command[3].removeprefix("--blocks=").partition("/")
    assert index == "$JOB_COMPLETION_INDEX" and blocks["completionMode"] == "Indexed"
    assert int(parts) == blocks["completions"] == blocks["parallelism"]
    rules = blocks["podFailurePolicy"]["rules"]
    assert not any("onExitCodes" in rule for rule in rules), "2 may be a full disk"
    assert [*command[:3], *command[4:]] == _command(rest)
    for spec in (blocks, rest):
        command = _command(spec)
        pod = spec["template"]["spec"]
        assert pod["restartPolicy"] == "Never"
        (volume,) = pod["volumes"]
        (mount,) = pod["containers"][0]["volumeMounts"]
        assert volume["name"] == mount["name"]
        assert all(
            flag.partition("=")[2].startswith(mount["mountPath"])
            for flag in command
            if flag.startswith(("--workdir", "--config.data.path"))
        )
