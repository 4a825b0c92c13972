"""Exit codes and messages of the shared program wrapper, in this process and as a user
sees them.
"""

import asyncio
import errno
import gc
import importlib.metadata
import logging
import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
from absl import flags

from cosurfgs_jax import program, settings_file
from cosurfgs_jax.errors import BadLossError, InputError
from cosurfgs_jax.settings import iter_help


@pytest.fixture(autouse=True)
def _restored_hooks(monkeypatch):
    """A program sets them for its process; pytest has its own."""
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    monkeypatch.setattr(logging.getLogger("asyncio"), "filters", [])


def _run(main, *arguments, workdir="create", declare=program.no_flags):
    return program.run(main, declare, workdir=workdir, argv=["prog", *arguments])


def _capture(*arguments, workdir="create", declare=program.no_flags):
    """Runs a program that keeps its options, and writes them down as `train` does once the data is
    open.
    """
    seen = []

    def main(options):
        seen.append(options)
        if workdir == "create":
            settings_file.save(options.settings, options.workdir.config)

    code = _run(main, *arguments, workdir=workdir, declare=declare)
    return code, seen[0] if seen else None


@pytest.fixture
def config_file(tmp_path):
    def write(text):
        path = tmp_path / "my_config.py"
        path.write_text(text)
        return f"--config={path}"

    return write


GOOD = """
from cosurfgs_jax.settings import Settings, TrainSettings

def get_config():
    return Settings(seed=3, train=TrainSettings(steps=11))
"""


def test_flags_change_single_settings(tmp_path, config_file):
    code, options = _capture(
        config_file(GOOD),
        "--config.train.log_every=5",
        "--config.optim.quats",
        "0.25",
        "--noconfig.density.enabled",
        "--config.data.path=photos",
        f"--workdir={tmp_path}/run",
    )
    assert code == 0
    assert (
        options.settings.seed,
        options.settings.train.steps,
        options.settings.train.log_every,
    ) == (3, 11, 5)
    assert options.settings.optim.quats == 0.25
    assert options.settings.density.enabled is False
    assert options.settings.data.path.startswith("/") and options.settings.data.path.endswith(
        "/photos"
    )
    assert settings_file.load(tmp_path / "run" / "config.json") == options.settings


def test_the_settings_of_a_run_are_the_start(tmp_path, config_file):
    workdir = f"--workdir={tmp_path}"
    _capture(config_file(GOOD), workdir)
    # Also before the first checkpoint: a run that was killed early must not go on with the
    # defaults.
    assert _capture(workdir)[1].settings.train.steps == 11
    assert (
        _capture(workdir, "--config.train.steps=12")[1].settings.train.steps == 12
    )  # nothing is saved: it binds nobody
    _capture(config_file(GOOD), workdir)
    (tmp_path / "checkpoints" / "device" / "5").mkdir(parents=True)
    code, options = _capture(workdir, "--config.train.log_every=2")
    assert code == 0
    assert (options.settings.train.steps, options.settings.train.log_every) == (11, 2)


def test_changed_setting_on_resume_is_refused(tmp_path, capsys):
    _capture(f"--workdir={tmp_path}")
    (tmp_path / "checkpoints" / "device" / "5").mkdir(parents=True)
    assert _capture(f"--workdir={tmp_path}", "--config.seed=1") == (2, None)
    assert "config.seed" in capsys.readouterr().err


def test_a_config_file_does_not_undo_the_settings_of_a_trained_run(tmp_path, config_file):
    text = GOOD.replace(
        "return Settings(", "return Settings(surface=SurfaceSettings(voxel_size=2.5), "
    ).replace("import Settings,", "import Settings, SurfaceSettings,")
    workdir = f"--workdir={tmp_path}/run"
    _capture(
        config_file(GOOD), workdir, f"--config.data.path={tmp_path}", "--config.train.steps=60"
    )
    (tmp_path / "run" / "checkpoints" / "device" / "60").mkdir(parents=True)
    code, options = _capture(
        config_file(text), workdir, "--config.surface.memory_mb=99", workdir="trained"
    )
    assert code == 0
    assert (options.settings.data.path, options.settings.train.steps) == (str(tmp_path), 60)
    assert (options.settings.surface.voxel_size, options.settings.surface.memory_mb) == (2.5, 99)
    assert (
        settings_file.load(tmp_path / "run" / "config.json").surface.voxel_size == 0
    )  # only training writes it
    assert _capture(config_file(text), workdir, "--config.train.steps=61", workdir="trained") == (
        2,
        None,
    )


def test_a_misspelt_config_file_is_answered_with_the_near_one(tmp_path, capsys, monkeypatch):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "aerial.py").write_text(GOOD)
    monkeypatch.chdir(tmp_path)
    for path in ("configs/arial.py", "aerial", "aerial.py"):
        assert _capture(f"--config={path}", "--workdir=run") == (2, None)
        assert "did you mean --config=configs/aerial.py?" in capsys.readouterr().err


def test_own_flags(tmp_path):
    def declare(values):
        flags.DEFINE_string("format", "ply", "file format", flag_values=values)

    assert (
        _capture("--format=glb", f"--workdir={tmp_path}", declare=declare)[1].flags.format == "glb"
    )
    without = _capture(workdir="")[1]
    assert without.folder is None
    with pytest.raises(ValueError, match="Options.folder"):
        _ = without.workdir


@pytest.mark.parametrize(
    "arguments, words",
    [
        ([], "--workdir: expected a folder"),
        (["--workdir={tmp}", "--config.train.setps=3"], "did you mean config.train.steps"),
        (["--config.train.setps=3", "--workdir={tmp}"], "did you mean config.train.steps"),
        (
            ["--workdir={tmp}", "--config.train.steps=abc"],
            "config.train.steps: expected a whole number, got 'abc'",
        ),
        (
            ["--workdir={tmp}", "--config.train.steps=-1"],
            "config.train.steps: expected at least 1, got -1",
        ),
        (
            ["--workdir={tmp}", "--config.density.enabled=maybe"],
            "config.density.enabled: expected true or false",
        ),
        (["--workdir={tmp}", "--config.train=3"], "got a group"),
        (["--workdr={tmp}"], "Did you mean: workdir"),
        (["--workdir={tmp}", "--downscale=2"], "mean --config.data.downscale or "),
        (["--workdir={tmp}", "--nosuchthing=2"], "Unknown command line flag 'nosuchthing'"),
        (
            ["--workdir={tmp}", "configs/x.py"],
            "configs/x.py: unexpected positional argument; did you mean --config=configs/x.py?",
        ),
        (["--workdir={tmp}", "x"], "x: unexpected positional argument; give --NAME=VALUE, as"),
        (["--workdir={tmp}", "--config=/nowhere/x.py"], "got no file"),
        (["--workdir=/proc/nowhere"], "could not be written"),
    ],
)
def test_mistake_is_one_message_and_exit_code_2(tmp_path, capsys, arguments, words):
    assert _capture(*[argument.format(tmp=tmp_path) for argument in arguments]) == (2, None)
    message = capsys.readouterr().err
    assert words in message
    assert len(message.splitlines()) == 1 and message.startswith("error: ")


@pytest.mark.parametrize(
    "text, words",
    [
        ("def get_config(:\n", "line 1 fails: SyntaxError"),
        ("import nothing_like_this\n", "line 1 fails: ModuleNotFoundError"),
        ("x = 1\n", "expected a function get_config()"),
        (
            "def get_config():\n    return {}\n",
            "expected get_config() to return Settings, got dict",
        ),
        ("def get_config():\n    return 1 / 0\n", "line 2 fails: ZeroDivisionError"),
        (
            "from cosurfgs_jax.settings import Settings\ndef get_config():\n    s = Settings()\n   "
            " s.train.steps = 'x'\n"
            "    return s\n",
            "config.train.steps: expected a whole number, got 'x'",
        ),
    ],
)
def test_bad_config_file_is_one_message(tmp_path, capsys, config_file, text, words):
    assert _capture(config_file(text), f"--workdir={tmp_path}/run") == (2, None)
    message = capsys.readouterr().err
    assert words in message
    assert message.count("error: ") == 1 and message.count("--config=") <= 1


def test_overrides_before_the_config_file_are_refused(tmp_path, capsys, config_file):
    assert _capture("--config.seed=1", config_file(GOOD), f"--workdir={tmp_path}/run") == (2, None)
    assert "before" in capsys.readouterr().err


def test_an_optional_workdir_may_be_missing_and_is_not_made(tmp_path, config_file):
    code, options = _capture(config_file(GOOD), workdir="optional")
    assert code == 0 and options.folder is None and options.settings.train.steps == 11
    folder = tmp_path / "run"
    code, options = _capture(config_file(GOOD), f"--workdir={folder}", workdir="optional")
    assert code == 0 and options.workdir.root == folder and not folder.exists()
    _capture(config_file(GOOD), f"--workdir={folder}")
    code, options = _capture(f"--workdir={folder}", workdir="optional")  # the run's settings
    assert code == 0 and options.settings.train.steps == 11
    assert _capture("--config.train.steps=-1", workdir="optional") == (2, None)


def test_trained_run_is_needed(tmp_path, capsys):
    assert _capture(f"--workdir={tmp_path}", workdir="trained") == (2, None)
    assert "`cosurfgs train`" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name, words",
    [
        ("DJI_0001.JPG", "pictures in it (1, the first is DJI_0001.JPG)"),
        ("images/a.txt", "a dataset in it (images)"),
        (".prepare/x", "a dataset in it (.prepare)"),
    ],
)
def test_a_run_does_not_begin_among_photographs(tmp_path, capsys, name, words):
    path = tmp_path / "mine" / name
    path.parent.mkdir(parents=True)
    path.write_text("")
    before = sorted(tmp_path.rglob("*"))
    assert _capture(f"--workdir={path.parents[len(Path(name).parts) - 1]}") == (2, None)
    message = capsys.readouterr().err
    assert words in message and "--workdir=runs/mine" in message
    assert sorted(tmp_path.rglob("*")) == before


def test_a_run_goes_on_where_pictures_were_put_into_its_folder(tmp_path, config_file):
    _capture(config_file(GOOD), f"--workdir={tmp_path}/run")
    (tmp_path / "run" / "picture.png").write_text("")
    assert _capture(f"--workdir={tmp_path}/run")[0] == 0


def _raiser(error):
    def main(options):
        raise error

    return main


def _wrapped_no_memory():
    error = ValueError("the save failed")
    error.__context__ = RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 64 bytes.")
    return error


def _wrapped_disk_full():
    error = RuntimeError("the background save failed")
    error.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    return error


@pytest.mark.parametrize(
    "error, code, words",
    [
        (
            InputError("data.path: expected images, got none"),
            2,
            "error: data.path: expected images, got none",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device", "/data/x"),
            2,
            "the disk is full (/data/x)",
        ),
        (_wrapped_disk_full(), 2, "the disk is full"),
        (OSError(errno.EROFS, "x", "/data/x"), 2, "refused (/data/x): Read-only file system; mend"),
        (OSError(errno.EIO, "x"), 2, "the file system refused: Input/output error; mend"),
        (MemoryError(), 2, "error: memory did not suffice (MemoryError); end other programs"),
        (_wrapped_no_memory(), 2, "memory did not suffice (the save failed); end other"),
        (OSError(errno.ENOMEM, "x"), 2, "memory did not suffice ([Errno 12] x); end"),
        (RuntimeError("can't start new thread"), 2, "memory did not suffice (can't start"),
        (RuntimeError("std::bad_alloc"), 2, "memory did not suffice (std::bad_alloc)"),
        (KeyboardInterrupt(), 130, "stopped by Ctrl-C"),
        (BadLossError("device: the loss is nan"), 1, "error: device: the loss is nan"),
        (RuntimeError("a bug"), 1, "Traceback"),
        (FileNotFoundError(2, "No such file"), 1, "Traceback"),
    ],
)
def test_exit_codes(capsys, error, code, words):
    assert _run(_raiser(error), workdir="") == code
    message = capsys.readouterr().err
    assert words in message
    is_bug = code == 1 and not isinstance(error, BadLossError)
    assert ("Traceback" in message) == is_bug


def test_no_memory_in_a_background_thread_is_a_sentence(capsys):
    def main(options):
        thread = threading.Thread(target=_raiser(MemoryError("of a picture")), args=[None])
        thread.start()
        thread.join()

    assert _run(main, workdir="") == 0
    message = capsys.readouterr().err
    assert message.startswith("error: memory did not suffice (of a picture)")
    assert "Traceback" not in message


@pytest.mark.parametrize(
    "error, is_told",
    [(OSError(errno.ENOSPC, "No space left on device"), False), (ValueError("a bug"), True)],
)
def test_a_full_disk_in_a_background_thread_is_left_to_the_main_thread(capsys, error, is_told):
    def main(options):
        thread = threading.Thread(target=_raiser(error), args=[None])
        thread.start()
        thread.join()

    assert _run(main, workdir="") == 0
    assert ("a bug" in capsys.readouterr().err) == is_told
    assert threading.excepthook is program.wrapper.on_thread_error


@pytest.mark.parametrize(
    "error, is_told",
    [(ValueError("Failed to write: File too large"), False), (ValueError("a bug"), True)],
)
def test_a_full_disk_in_a_task_is_left_to_the_main_thread(caplog, error, is_told):
    async def fail():
        raise error

    async def leave():
        asyncio.ensure_future(fail())
        await asyncio.sleep(0)

    def main(options):
        loop = asyncio.new_event_loop()
        loop.run_until_complete(leave())
        loop.close()
        gc.collect()

    assert _run(main, workdir="") == 0
    assert ("never retrieved" in caplog.text) == is_told


@pytest.mark.parametrize("workdir, fewest, most", [("create", 13, 17), ("trained", 4, 8)])
def test_help_explains_the_settings_that_matter_most(capsys, workdir, fewest, most):
    assert _run(_raiser(RuntimeError()), "--help", workdir=workdir) == 0
    text = capsys.readouterr().out
    assert "--workdir" in text and "--config.data.path=generated" in text
    # What a trained run was trained with cannot be changed.
    assert ("--config.train.steps=7000" in text) == (workdir == "create")
    shown = [item for item in iter_help() if f"--config.{item.name}=" in text]
    assert fewest <= len(shown) <= most
    for item in shown:
        assert f"--config.{item.name}={item.default}\n      {item.help_text}\n" in text
    assert text.endswith(f"\n  all {len(list(iter_help()))} settings: --helpfull\n")


def test_helpfull_explains_every_setting(capsys):
    assert _run(_raiser(RuntimeError()), "--helpfull") == 0
    text = capsys.readouterr().out
    for item in iter_help():
        assert f"--config.{item.name}={item.default}\n      {item.help_text}\n" in text + "\n"


def _python(*arguments):
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=120)


def test_a_program_as_a_user_sees_it(tmp_path):
    result = _python(
        "-m", "cosurfgs_jax.train", f"--workdir={tmp_path}/run", "--config.train.setps=3"
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert "did you mean config.train.steps" in result.stderr and "Traceback" not in result.stderr


def test_doctor_always_succeeds():
    result = _python("-m", "cosurfgs_jax.doctor")
    assert result.returncode == 0, result.stderr
    for word in (
        "python",
        "jax",
        "devices",
        "rasterizer cpu",
        "rasterizer cuda",
        "memory",
        "open3d",
        "rasterio",
        "laspy",
        "lazrs",
    ):
        assert word in result.stdout


def test_jax_chooses_its_device_only_where_there_is_an_accelerator(monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setattr(program.platform_environment, "has_accelerator", lambda: True)
    program.set_environment()
    assert "JAX_PLATFORMS" not in os.environ
    monkeypatch.setattr(program.platform_environment, "has_accelerator", lambda: False)
    program.set_environment()
    assert os.environ["JAX_PLATFORMS"] == "cpu"


@pytest.mark.parametrize(
    ("version", "given", "added"),
    [
        ("0.10.2", "", ["use_fusion_emitters=false", "parallel_codegen_split_count=1"]),
        ("0.10.2", "use_fusion_emitters=true", ["parallel_codegen_split_count=1"]),
        ("0.10.2", "parallel_codegen_split_count=8", ["use_fusion_emitters=false"]),
        ("0.11.0", "", []),  # XLA ends the process at a flag that it does not know
    ],
)
def test_xla_gets_the_flags_that_it_knows(monkeypatch, version, given, added):
    own = [f"--xla_cpu_{name}" for name in given.split()]
    monkeypatch.setenv("XLA_FLAGS", " ".join(own))
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)
    program.set_environment()
    flags = os.environ["XLA_FLAGS"].split()
    timeouts = [flag for flag in flags if flag.startswith("--xla_cpu_collective_call")]
    assert len(timeouts) == 2
    assert flags == [*own, *timeouts, *(f"--xla_cpu_{name}" for name in added)]
    program.set_environment()
    assert os.environ["XLA_FLAGS"].split() == flags


@pytest.mark.parametrize(
    ("has_peers", "error", "is_told"),
    [
        (True, ValueError("UNKNOWN: Gloo AllGather failed: Connection closed by peer"), True),
        (True, type("JaxRuntimeError", (RuntimeError,), {})("DEADLINE_EXCEEDED"), True),
        (True, ValueError("a bug"), False),
        (False, ValueError("UNKNOWN: Gloo AllGather failed"), False),
    ],
)
def test_a_lost_process_is_a_sentence(monkeypatch, capsys, has_peers, error, is_told):
    def fail(_):
        raise error

    monkeypatch.setattr(program.wrapper, "has_peers", lambda: has_peers)
    monkeypatch.setattr(program.wrapper, "_leave", lambda code: code)
    assert program.run(fail, argv=["prog"]) == 1
    printed = capsys.readouterr().err
    assert ("Traceback" in printed) != is_told
    assert ("another process of this run ended" in printed) == is_told


def test_sigterm_lets_a_program_clean_up(tmp_path):
    script = tmp_path / "program_under_test.py"
    script.write_text(
        textwrap.dedent("""\
        '''Waits.'''
        import atexit, os, sys, tempfile, time
        from cosurfgs_jax import program
        atexit.register(os.abort)  # so ends a library in C++ that still computes
        def main(options):
            with tempfile.TemporaryDirectory(dir=sys.argv[1]) as folder:
                print(folder, flush=True)
                time.sleep(60)
        sys.exit(program.run(main, argv=["prog"]))
        """)
    )
    process = subprocess.Popen(
        [sys.executable, script, tmp_path], stdout=subprocess.PIPE, text=True
    )
    folder = Path(process.stdout.readline().strip())
    assert folder.is_dir()
    process.terminate()
    assert process.wait(30) == 143
    process.stdout.close()
    assert not folder.exists()


def test_sigterm_is_heard_where_python_swallows_what_is_raised(tmp_path):
    script = tmp_path / "program_under_test.py"
    script.write_text(
        textwrap.dedent("""\
        '''Waits.'''
        import gc, os, signal, sys, time
        from cosurfgs_jax import program
        def strike(phase, _):
            gc.callbacks.remove(strike)
            os.kill(os.getpid(), signal.SIGTERM)
        def main(options):
            hook = sys.unraisablehook
            def told(swallowed):  # before the signal comes again
                os.write(1, b"swallowed\\n")
                hook(swallowed)
            sys.unraisablehook = told
            gc.callbacks.append(strike)
            gc.collect()
            time.sleep(60)
            print("went on", flush=True)
        sys.exit(program.run(main, argv=["prog"]))
        """)
    )
    result = _python(script)
    # On a busy machine it is swallowed more than once before the program ends.
    assert (result.returncode, set(result.stdout.split())) == (143, {"swallowed"})
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("program_name", ["train", "render"])
def test_a_reader_that_goes_away_is_no_fault(program_name):
    command = f"{sys.executable} -m cosurfgs_jax.{program_name} --help | head -n 1"
    result = subprocess.run(
        ["bash", "-c", f"{command}; exit ${{PIPESTATUS[0]}}"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (
        result.returncode in (0, 141) and not result.stderr and len(result.stdout.splitlines()) == 1
    )


def test_a_broken_pipe_of_something_else_is_a_fault(capsys):
    assert _run(_raiser(BrokenPipeError("a socket")), workdir="") == 1
    assert "a socket" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "bound"),
    [
        ("127.0.0.1:4567", "127.0.0.1:4567"),
        ("localhost:4567", "127.0.0.1:4567"),
        ("[::1]:4567", "[::1]:4567"),
        ("192.0.2.7:4567", None),
        ("no.such.host.invalid:4567", None),
        ("4567", None),
        ("host:port", None),
    ],
)
def test_the_coordinator_listens_where_it_was_told_to(given, bound, capsys):
    found = program.processes.bind_address(given)
    if given.startswith(("localhost", "[")) and found != bound:
        pytest.skip("this machine has no such address")
    assert found == bound
    is_told = "listens on all of its interfaces" in capsys.readouterr().err
    assert is_told == (bound is None and given.endswith(":4567"))


def test_the_help_names_the_defaults_that_say_something():
    values = flags.FlagValues()
    flags.DEFINE_string("out", "", "where to", flag_values=values)
    flags.DEFINE_string("format", "ply", "file format", flag_values=values)
    flags.DEFINE_integer("step", None, "of the model", flag_values=values)
    lines = ["A program.", "", "Flags:", "  --format: file format (default ply)"]
    lines += ["  --out: where to", "  --step: of the model"]
    found = program.options.help_text("A program.\n", values, "", is_full=False)
    assert found.splitlines() == lines
    settings = program.options.help_text("A program.", values, "open", is_full=True).splitlines()
    assert settings[: len(lines)] == lines and "  --config.train.steps=7000" in settings
