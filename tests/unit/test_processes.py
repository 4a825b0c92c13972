"""What processes of one run must have in common, with the other processes replaced."""

import re
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from blocks_case import four_blocks

from cosurfgs_jax import settings_file
from cosurfgs_jax.collab import open_run, pipeline
from cosurfgs_jax.distributed import processes
from cosurfgs_jax.distributed.layout import make_layout
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.program import processes as starting
from cosurfgs_jax.settings import Settings
from cosurfgs_jax.training import loop
from cosurfgs_jax.training.checkpoints import Checkpoints
from cosurfgs_jax.training.interrupts import StopRequest
from cosurfgs_jax.training.run import Run, StopAgreement, Stopped
from cosurfgs_jax.training.run_log import Log
from cosurfgs_jax.workdir import Workdir


@pytest.fixture
def other_differs(monkeypatch):
    """A run of three processes, of which process 2 has another value in one place."""

    def gather(value):
        value = np.asarray(value)
        other = value.copy()
        other.reshape(-1)[-1] += 1
        return np.stack([value, value, other])

    monkeypatch.setattr(processes, "gather", gather)


def test_settings_that_differ_are_named(other_differs):
    name, *_ = list(settings_file.leaves(Settings()))[-1]
    with pytest.raises(
        InputError, match=rf"config\.{re.escape(name)}: differs between processes: .* in pro"
    ):
        processes.check_settings_agree(Settings())


def test_a_text_that_differs_is_named(other_differs):
    with pytest.raises(
        InputError, match="the dataset: differs between processes: .* process 2; do"
    ):
        processes.check_equal("the dataset", "a", "do this")


def test_versions_that_differ_are_both_told(monkeypatch):
    own = processes.versions()
    assert jax.__version__ in own and "backend cpu" in own
    other = own.replace(jax.__version__, "0.0.1")
    monkeypatch.setattr(processes, "gather_texts", lambda text: [text, text, other])
    with pytest.raises(InputError) as error:
        processes.check_versions()
    assert own in str(error.value) and f"{other} in process 2" in str(error.value)
    monkeypatch.setattr(processes, "gather_texts", lambda text: [text] * 3)
    processes.check_versions()


def test_where_only_cpus_differ_the_variable_is_named_and_gpus_do_not_care(monkeypatch, tmp_path):
    own = processes.versions()
    monkeypatch.setattr(processes.ffi, "cpu_instruction_set", lambda: "x86-64-v99")
    other = processes.versions()
    assert own != other and other.endswith("for x86-64-v99")
    monkeypatch.setattr(processes, "gather_texts", lambda text: [own, text])
    with pytest.raises(InputError, match="COSURFGS_INSTRUCTION_SET=v3"):
        processes.check_versions()
    monkeypatch.setattr(processes.ffi, "cpu_library_path", lambda: tmp_path / "library.so")
    (tmp_path / "library.so").write_bytes(b"of another compiler")
    assert processes.versions() not in (own, other)
    monkeypatch.setattr(processes.jax, "default_backend", lambda: "gpu")
    assert processes.versions().endswith("backend gpu")


def test_all_processes_meet_in_the_same_order(monkeypatch, tmp_path):
    """Where the first one makes the photographs and the others wait: they would mistake one
    meeting for another.
    """
    met = {True: [], False: []}
    monkeypatch.setattr(open_run, "open_place", lambda *_, **__: four_blocks())
    monkeypatch.setattr(processes, "count", lambda: 2)
    for is_first in met:
        names = ("check_settings_agree", "check_shared_folder", "check_equal", "raise_everywhere")
        for name in (*names, "any_process"):

            def meet(*values, name=name, is_first=is_first):
                met[is_first].append(values[0] if name == "check_equal" else name)
                return False

            monkeypatch.setattr(processes, name, meet)
        monkeypatch.setattr(processes, "is_first", lambda is_first=is_first: is_first)
        open_run.open_in_all_processes(Settings(), Workdir(tmp_path))
    assert met[True] == met[False] and "raise_everywhere" in met[True]


@pytest.mark.parametrize("is_first", [True, False])
def test_the_first_process_alone_reads_the_settings(monkeypatch, tmp_path, is_first):
    """On a network file system the others may not see the file yet."""
    runs = []
    for name, result in (("open_in_all_processes", four_blocks()), ("check_photographs", None)):
        monkeypatch.setattr(pipeline, name, lambda *_, result=result: result)
    monkeypatch.setattr(pipeline, "run_stages", runs.append)
    monkeypatch.setattr(pipeline, "write_merged", lambda *_: None)
    monkeypatch.setattr(processes, "is_first", lambda: is_first)
    pipeline._train(Settings(), Workdir(tmp_path), (), None)
    config = b""
    if is_first:
        config = (tmp_path / "config.json").read_bytes()
    assert runs[0].config == config


def test_processes_agree_on_when_they_ask_next(monkeypatch):
    """Quick steps: seldom; slow ones, in whichever process: after each."""
    seconds = {"other": 0.0}
    asked = []

    def gather(value):
        asked.append(value)
        return np.stack([value, [0, seconds["other"]]])

    monkeypatch.setattr(processes, "gather", gather)
    monkeypatch.setattr(processes, "count", lambda: 2)
    stop = StopRequest()
    agreement = StopAgreement(stop)
    assert not any(agreement.is_asked(is_last=False) for _ in range(41)) and len(asked) == 3
    seconds["other"] = 1.5
    assert not any(agreement.is_asked(is_last=False) for _ in range(25)) and len(asked) == 9
    stop.signal_number = 15
    assert agreement.is_asked(is_last=False)


def test_processes_agree_at_the_last_step_of_a_stage(monkeypatch):
    """However quick steps are: scores of all test views follow."""
    monkeypatch.setattr(processes, "gather", lambda value: np.stack([value, [0, 0.0]]))
    monkeypatch.setattr(processes, "count", lambda: 2)
    stop = StopRequest()
    agreement = StopAgreement(stop)
    assert not agreement.is_asked(is_last=False)
    stop.signal_number = 15
    assert not agreement.is_asked(is_last=False) and agreement.is_asked(is_last=True)


@pytest.mark.parametrize("stop_at", [2, 3])
def test_a_stop_is_heard_in_the_last_step_of_a_stage_too(monkeypatch, tmp_path, stop_at):
    """Pruning, restoring or scores follow, in which nobody asks."""
    saved = []
    monkeypatch.setattr(loop, "save_stage", lambda run, stage, _: saved.append(stage.step))
    for name in ("_check_losses", "_write_log"):
        monkeypatch.setattr(loop, name, lambda *_, **options: None)
    monkeypatch.setattr(Checkpoints, "wait", lambda self: saved.append("waited"))
    stop = StopRequest()
    with Log(Workdir(tmp_path)) as log:
        run = Run(Settings(), None, None, make_layout(np.zeros(1, np.int64), 1), None, stop, log)

        def advance(stage, progress):
            stop.signal_number = 15 * (stage.step + 1 == stop_at)
            return stage._replace(step=stage.step + 1), []

        with pytest.raises(Stopped):
            begun = loop.StageState("device", [], 0, 0, 0.0)
            loop.run_stage(run, begun, 3, advance, object.__new__(Checkpoints))
    assert saved == [stop_at, "waited"]


_WAITER = """
import sys, time
from cosurfgs_jax.training.interrupts import StopRequest
with StopRequest(patience_s=0.5) as stop:
    stop.step_took(1.0 if sys.argv[1] == "slow" else 0.1)
    print("ready", flush=True)
    while not stop:
        time.sleep(0.01)
    if sys.argv[1] == "heard":
        stop.heard()
    time.sleep(1.2)
    print("saved", flush=True)
stop.exit()
"""


@pytest.mark.parametrize("how", ["heard", "ignored", "slow", "ctrl-c"])
def test_a_signal_is_heard_within_seconds_but_a_save_or_a_slow_step_takes_its_time(how):
    """Who has pressed Ctrl-C is told what a second one does."""
    process = subprocess.Popen(
        [sys.executable, "-c", _WAITER, how],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT if how == "ctrl-c" else signal.SIGTERM)
    out, text = process.communicate(timeout=30)
    assert process.returncode == (130 if how == "ctrl-c" else 143)
    assert ("saved" in out) == (how != "ignored")
    assert ("Ctrl-C again stops at once" in text) == (how == "ctrl-c")
    assert ("the same command goes on from what is saved" in text) == (how == "ignored")


def test_equal_settings_pass(monkeypatch):
    monkeypatch.setattr(processes, "gather", lambda value: np.stack([np.asarray(value)] * 3))
    processes.check_settings_agree(Settings())
    processes.check_equal("the dataset", "a", "do this")


@pytest.mark.parametrize("number", [0, 1])
def test_the_first_process_alone_listens(monkeypatch, number):
    met, started = [], []
    monkeypatch.setattr(
        starting, "meet", lambda *cluster, timeout, bound: met.append((*cluster, bound))
    )
    monkeypatch.setattr("jax.distributed.initialize", lambda **given: started.append(given))
    cluster = starting._Cluster("127.0.0.1:4321", 2, number)
    starting._connect(cluster, 7)
    bound = "127.0.0.1:4321" if number == 0 else None
    assert met == [("127.0.0.1:4321", 2, number, bound)]
    (given,) = started
    assert given.get("coordinator_bind_address") == bound
    assert (given["process_id"], given["num_processes"]) == (number, 2)
    assert given["initialization_timeout"] == 7


def test_sources_are_those_of_the_start(monkeypatch, tmp_path):
    """An update while a program runs does not change what it is; and no save reads them again."""
    own = processes.versions()
    monkeypatch.setattr(processes, "__file__", str(tmp_path / "package" / "distributed" / "x.py"))
    assert processes.versions() == own
