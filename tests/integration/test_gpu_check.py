"""scripts/gpu_check.sh and what it runs, where there is no GPU: it says so, runs its CPU half, and
notices what differs.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fast_compiling import QUICK_ENVIRONMENT

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "scripts"
sys.path += [str(ROOT / "tests" / "gpu"), str(SCRIPTS)]

import bench_peers  # noqa: E402
import profile_kernels  # noqa: E402
import stored_cases as stored  # noqa: E402
import stored_compare  # noqa: E402

NAMES = ("ties", "town_2k")


@pytest.fixture(scope="module")
def fixtures(tmp_path_factory):
    """Stored results of two tiny cases."""
    folder = tmp_path_factory.mktemp("fixtures")
    subprocess.run(
        [sys.executable, SCRIPTS / "make_gpu_fixtures.py", folder, f"--only={','.join(NAMES)}"],
        check=True,
        env=os.environ | QUICK_ENVIRONMENT,
    )
    return folder


def run(script: str, *arguments, **environment) -> subprocess.CompletedProcess:
    """A script with this interpreter, unless the arguments name another; both streams in stdout."""
    arguments = [str(argument) for argument in arguments]
    if not any(argument.startswith(("--python", "--sanitize")) for argument in arguments):
        arguments.append(f"--python={sys.executable}")
    environment = os.environ | QUICK_ENVIRONMENT | {"JAX_PLATFORMS": "cpu"} | environment
    return subprocess.run(
        [SCRIPTS / script, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=1000,
        env=environment,
    )


def executable(path: Path, text: str) -> Path:
    """A shell script."""
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)
    return path


def steps_of(folder: Path) -> dict[str, dict]:
    """What results.json says of each step."""
    return {
        step["step"]: step for step in json.loads((folder / "results.json").read_text())["steps"]
    }


def test_the_cpu_half(fixtures, tmp_path):
    """Every step that a machine without a GPU can do, in its short form; the others say why they
    did not run.
    """
    options = ["--short", "--no_build", "--skip=first", "--seconds=900"]
    result = run(
        "gpu_check.sh",
        *options,
        f"--fixtures={fixtures}",
        f"--work={tmp_path / 'work'}",
        OUT=str(tmp_path / "out"),
    )
    assert result.returncode == 1, result.stdout
    steps = steps_of(tmp_path / "out")
    done = {"facts", "small", "large", "kernels", "parts"}
    assert {name for name, step in steps.items() if step["result"] == "ok"} == done, result.stdout
    left = {name: step["what"] for name, step in steps.items() if name not in done}
    assert {"memcheck", "tests", "peers", "training"} <= set(left) and "build" not in steps
    assert left.pop("program") == "the stand-alone program was not built"
    assert all(why.startswith("no NVIDIA GPU here: JAX sees cpu") for why in left.values())
    assert steps["small"]["what"] == "1 case agrees with the stored results"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "summary.txt",
        "log.txt",
        "results.json",
    }
    assert "===== large: ok" in (tmp_path / "out" / "log.txt").read_text()
    measured = json.loads((tmp_path / "out" / "results.json").read_text())["measured"]
    assert measured["parts"]["parts_ms"]["whole step"] > 0 and measured["kernels"]["kernels"]
    assert result.stdout.splitlines()[-1].startswith("failed or not run: program memcheck")


def test_with_a_gpu_everything_chosen_has_to_pass(fixtures, tmp_path):
    """The way through on a GPU machine: an interpreter that says so; a program and a sanitizer
    stand in for the real ones.
    """
    work = tmp_path / "work"
    tools = tmp_path / "tools"
    tools.mkdir()
    work.mkdir()
    python = executable(
        tools / "python",
        f'case "$1" in *gpu_facts.py) echo gpu >"${{2#*=}}"; exit ;; esac\n'
        f'JAX_PLATFORMS=cpu exec {sys.executable} "$@"',
    )
    executable(
        work / "gpu_program", 'echo "1 checks, 0 failed"; [ "$1" = check -o "$1" = sanitize ]'
    )
    sanitizer = 'shift 4; "$@"; echo "========= ERROR SUMMARY: {} errors"'
    executable(tools / "compute-sanitizer", sanitizer.format(0))
    options = [
        f"--python={python}",
        f"--fixtures={fixtures}",
        f"--work={work}",
        "--short",
        "--only=small,program,memcheck",
    ]
    result = run("gpu_check.sh", *options, PATH=f"{tools}:{os.environ['PATH']}")
    assert result.returncode == 0, result.stdout
    assert [step["result"] for step in steps_of(work).values()] == ["ok"] * 4
    executable(tools / "compute-sanitizer", sanitizer.format(3))
    result = run(
        "gpu_check.sh", *options[:-1], "--only=memcheck,times", PATH=f"{tools}:{os.environ['PATH']}"
    )
    assert result.returncode == 1, result.stdout
    assert {name: step["result"] for name, step in steps_of(work).items()} == {
        "facts": "ok",
        "memcheck": "FAILED",
        "times": "FAILED",
    }
    assert "memcheck found something" in steps_of(work)["memcheck"]["what"]


def test_what_has_no_time_is_not_run(fixtures, tmp_path):
    result = run(
        "gpu_check.sh",
        "--seconds=0",
        "--only=small",
        f"--fixtures={fixtures}",
        f"--work={tmp_path}",
    )
    assert result.returncode == 1
    assert steps_of(tmp_path)["small"]["result"] == "not run"
    assert steps_of(tmp_path)["small"]["what"].startswith("no time left")


def test_missing_results_name_the_command(tmp_path):
    result = run(
        "gpu_check.sh", "--only=small", f"--fixtures={tmp_path / 'none'}", f"--work={tmp_path}"
    )
    assert result.returncode == 1
    assert (
        f"python scripts/make_gpu_fixtures.py {tmp_path / 'none'}"
        in steps_of(tmp_path)["small"]["what"]
    )


@pytest.mark.parametrize(
    "argument, message",
    [
        ("--colour", "--colour: expected one of the options"),
        ("--only=smal", "smal: expected the name of a step, one of facts"),
        ("--seconds=x", "--seconds=x: expected a whole number"),
        ("--python=nothing", "--python: expected an interpreter"),
    ],
)
def test_mistakes_are_named(argument, message, tmp_path):
    result = run("gpu_check.sh", argument, f"--work={tmp_path}")
    assert result.returncode == 2 and message in result.stdout


# Stored results
# ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_results_agree_with_themselves(fixtures, name):
    result = stored_compare.compare(name, "cpu", fixtures)
    assert not result.failures() and len(result.numbers) > 8
    assert max(value for value, _ in result.numbers.values()) < 1e-6


@pytest.mark.parametrize(
    "key",
    [
        "map/color",
        "map/transmittance",
        "map/normal_sum",
        "map/distortion",
        "num_invalid",
        "contributions",
        "gradient/means",
        "gradient/sh",
        "gradient/probe",
        "gradient/camera_from_world",
    ],
)
@pytest.mark.parametrize("name", NAMES)
def test_what_differs_is_found(fixtures, name, key):
    """One tile of a map, one surfel's contributions, a gradient that is a little off everywhere."""
    want = stored.load(name, fixtures)
    case, cotangents = stored.inputs(name, want)
    got = {part: value.copy() for part, value in want.items()}
    if key.startswith("map/"):
        tile = 2 if name in stored.LARGE else 16
        got[key][:tile, :tile] *= 1.5
        got[key][:tile, :tile] += 0.01
    elif key == "contributions":
        got[key][got[key][:, 0].argmax()] *= 2
    else:
        got[key] = got[key] * 1.02 + 1
    compare = (
        stored_compare.compare_large
        if name in stored.LARGE
        else lambda *x: stored_compare.compare_whole(name, *x)
    )
    assert not compare(want, want).failures()
    assert compare(got, want).failures()


def test_nan_is_beyond_every_limit(fixtures):
    want = stored.load("town_2k", fixtures)
    for key in ("map/depth_sum", "gradient/quats"):
        got = dict(want) | {key: np.full_like(want[key], np.nan)}
        assert stored_compare.compare_large(got, want).failures()


def test_other_random_numbers_are_noticed(fixtures, tmp_path):
    content = dict(np.load(stored.path_of(fixtures, "town_2k")))
    np.savez(stored.path_of(tmp_path, "town_2k"), **content | {"checksum": np.str_("0")})
    rows = stored_compare.compare_all(["town_2k", "ties"], "cpu", tmp_path)
    assert "draws other random numbers" in rows["town_2k"]["wrong"]
    assert "make_gpu_fixtures.py DIR --only=town_2k" in rows["town_2k"]["wrong"]
    assert "No such file" in rows["ties"]["wrong"]


def test_sums_over_blocks():
    image = np.random.default_rng(0).normal(size=(20, 24, 3))
    sums = stored.block_sums(image)
    assert sums.shape == (3, 3, 3)
    np.testing.assert_allclose(sums[2, 1], image[16:20, 8:16].sum(axis=(0, 1)), rtol=1e-5)


# The other scripts
# ---------------------------------------------------------------------------


def test_gpu_tests_that_test_nothing_fail(tmp_path):
    result = run("test_gpu.sh")
    assert result.returncode == 1
    assert (
        "error: nothing was tested: JAX computes on cpu here" in result.stdout
        and "JAX" in result.stdout.splitlines()[0]
    )
    skipping = executable(
        tmp_path / "python",
        'if [ "$1" = - ]; then cat >/dev/null; else echo "3 skipped in 0.1s"; fi',
    )
    result = run("test_gpu.sh", f"--python={skipping}")
    assert result.returncode == 1 and "every test was skipped" in result.stdout
    passing = executable(
        tmp_path / "python",
        'if [ "$1" = - ]; then cat >/dev/null; else echo "3 passed, 1 skipped in 1s"; fi',
    )
    assert run("test_gpu.sh", f"--python={passing}").returncode == 0
    failing = executable(
        tmp_path / "python",
        'if [ "$1" = - ]; then cat >/dev/null; else echo "3 passed, 1 failed"; exit 1; fi',
    )
    assert run("test_gpu.sh", f"--python={failing}").returncode == 1


def test_tests_and_benchmarks_do_without_optional_packages():
    """A GPU machine's interpreter may have no checker of types and nothing for flags of
    settings.
    """
    code = (
        "import runpy, sys; sys.modules |= {'beartype': None, 'ml_collections': None, "
        "'tensorboardX': None}; sys.path += ['scripts', 'tests/support']; "
        "runpy.run_path('tests/conftest.py'); import cosurfgs_jax.types, cosurfgs_jax.program; "
        "import bench_peers, bench_step"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "beartype is not installed: types and shapes are not checked" in result.stderr


def test_kernels_are_told_from_rows_that_sum_them_up():
    names = [
        {"name": "process_name", "pid": 1, "args": {"name": "/device:GPU:0"}},
        {"name": "process_name", "pid": 2, "args": {"name": "/host:CPU"}},
        {
            "name": "thread_name",
            "pid": 1,
            "tid": 1,
            "args": {"name": "Stream #13(Compute,MemcpyD2D)"},
        },
        {"name": "thread_name", "pid": 1, "tid": 2, "args": {"name": "XLA Ops"}},
    ]
    host = {"ph": "X", "pid": 2, "tid": 5, "name": "dot", "dur": 9, "args": {"hlo_op": "dot"}}
    ran = [
        {
            "ph": "X",
            "pid": 1,
            "tid": tid,
            "name": "void (anonymous namespace)::Blend<1>(int)",
            "dur": 3,
        }
        for tid in (1, 2)
    ]
    assert profile_kernels.device_events({"traceEvents": [*names, *ran, host]}) == [
        (ran[0]["name"], 3)
    ]
    assert profile_kernels.device_events({"traceEvents": [*names, host]}) == [("dot", 9)]
    assert profile_kernels.short_name(ran[0]["name"]) == "Blend<1>"


def test_the_table_of_peers():
    """Medians over all turns, ratios to ours, and cases that failed or were never reached."""
    first = (100, 16, 9)
    second = (200, 16, 9)
    seconds = {"peak_bytes": 1, "is_peak_of_earlier": False, "device": "gpu"}
    turns = {
        "cosurfgs_jax": [
            {first: {"seconds": [1.0, 3.0]} | seconds},
            {first: {"seconds": [2.0]} | seconds},
        ],
        "gsplat 2DGS": [
            {first: {"seconds": [5.0]} | seconds, second: {"error": "no memory"}},
            {first: {"seconds": [7.0]} | seconds},
        ],
    }
    rows = bench_peers.table([first, second], turns)
    assert [(row.get("median_s"), row.get("ratio"), row.get("error")) for row in rows] == [
        (2.0, 1.0, None),
        (6.0, 3.0, None),
        (None, None, "its process ended before this case"),
        (None, None, "its process ended before this case"),
    ]
    line = bench_peers.last_line(rows, {"another": "not installed"})
    assert line == (
        "ours 2000.0 ms; the peers take 3.00 to 3.00 times as long; not measured: another (not "
        "installed); "
        "2 measurements failed: its process ended before this case"
    )


def test_the_town_of_peers_is_seen_alike_in_both_sizes():
    small = bench_peers.scene(50, (320, 180))
    large = bench_peers.scene(50, (640, 360))
    np.testing.assert_array_equal(small["means"], large["means"])
    np.testing.assert_allclose(large["intrinsics"][:2], 2 * small["intrinsics"][:2], rtol=1e-6)
    np.testing.assert_allclose(
        small["intrinsics"], [[278.4, 0, 160], [0, 278.4, 90], [0, 0, 1]], rtol=1e-6
    )
