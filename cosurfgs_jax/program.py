"""What all programs share: flags to `Settings`, a workdir, and one sentence instead of a traceback
for a user's mistake.

Exit codes: 0 done; 2 a mistake that the user can mend; 130 and 143 stopped by Ctrl-C or SIGTERM; 1
    anything else.
"""

import ctypes
import dataclasses
import difflib
import errno
import importlib.util
import logging
import os
import re
import select
import signal
import socket
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import flags
from absl import logging as absl_logging

from cosurfgs_jax import settings_file
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.settings import Settings
from cosurfgs_jax.workdir import Workdir

MAX_VIRTUAL_DEVICES = 16  # of one processor: more only share its cores
_HEARTBEAT_S = 15  # after which a process that is not heard of counts as dead
_HELP = {"-h", "-help", "--help", "--helpshort", "--helpfull"}


@dataclasses.dataclass(frozen=True)
class Options:
    """What a program was asked to do."""

    settings: Settings
    workdir: Workdir | None  # None for a program that has none
    flags: flags.FlagValues  # the program's own flags by name


def no_flags(values: flags.FlagValues) -> None:
    """Declares nothing, for a program that has no flags of its own."""


def run(
    main: Callable[[Options], None],
    declare: Callable[[flags.FlagValues], None] = no_flags,
    *,
    workdir: str = "",
    argv: Sequence[str] | None = None,
) -> int:
    """Runs a program.

    Args:
        main: the program; its module's docstring is the help text.
        declare: adds the program's own flags to the FlagValues it is given.
        workdir: "create": --workdir and --config, the folder is made; "trained": --workdir is the
            folder of an earlier `train`, whose settings apply, and --config may change what is free
            after training; "": neither.
        argv: the command line with the program's name first; None = that of the process.
    Returns:
        The exit code.
    """
    argv = list(sys.argv if argv is None else argv)
    try:
        values = _declared(declare, workdir, argv)
        if _HELP.intersection(argv[1:]):
            print(_help(main, values, workdir), flush=True)
            return 0
        _start_logging()
        if workdir != "create" and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
            signal.signal(
                signal.SIGTERM, _stop
            )  # temporary files go, too; training saves first, by a handler of its own
        main(_options(values, workdir, argv))
        sys.stdout.flush()
        return 0
    except (InputError, flags.Error) as error:
        return _leave(_fail(_one_line(error)))
    except KeyboardInterrupt:
        print("stopped by Ctrl-C", file=sys.stderr)
        return _leave(130)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _is_unread():
            return _leave(_without_reader())
        if _has_peers() and type(error).__name__ == "JaxRuntimeError":
            print(
                "error: another process of this run ended or cannot be reached; start all "
                "processes again, and it goes on "
                f"from the last checkpoint ({str(error).splitlines()[0][:200]})",
                file=sys.stderr,
            )
            return _leave(1)
        if _is_disk_full(error):
            where = f" ({error.filename})" if isinstance(error, OSError) and error.filename else ""
            return _leave(
                _fail(f"the disk is full{where}; free some space and give the same command again")
            )
        traceback.print_exc()
        return _leave(1)


def _is_unread() -> bool:
    """Whether standard output is a pipe whose reader has gone, as behind `| head`."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        return any(event & select.POLLERR for _, event in poll.poll(0))
    except (AttributeError, OSError, ValueError):  # no such call, or no file behind it
        return False


def _without_reader() -> int:
    """Ends quietly, as by SIGPIPE; what Python flushes at its end goes nowhere."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, sys.stdout.fileno())
    return 128 + signal.SIGPIPE


def _stop(signal_number: int, _frame) -> None:
    raise SystemExit(128 + signal_number)


def _has_peers() -> bool:
    """Whether this process is one of several of a run."""
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized()


def _leave(code: int) -> int:
    """Ends at once where other processes are in the run: a regular exit would wait for them, and
    they for this one.
    """
    if _has_peers():
        sys.stderr.flush()
        sys.stdout.flush()
        os._exit(code)
    return code


def _is_in_cluster() -> bool:
    """Whether a scheduler started several processes; JAX finds out the rest by itself."""
    environment = os.environ
    sizes = (
        environment.get(name, "1") for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
    )
    return (
        any(size.isdigit() and int(size) > 1 for size in sizes)
        or "," in environment.get("TPU_WORKER_HOSTNAMES", "")
        or {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= set(environment)
    )


def _bind_address(coordinator_address: str) -> str | None:
    """Where process 0 listens: only at the address that was given, if it is one of this machine;
    None: JAX's choice, all.

    Anyone who reaches the port can take part in the run: there is no authentication.
    """
    host, _, port = coordinator_address.rpartition(":")
    name = host.removeprefix("[").removesuffix("]")
    if not name or not port.isdigit():
        return None
    try:
        family, kind, _, _, place = socket.getaddrinfo(name, 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.bind(place)
    except OSError:  # the address of a router, or a name that only the others can resolve
        print(
            f"--coordinator_address={coordinator_address}: it is no address of this machine, which "
            "therefore listens on all of "
            f"its interfaces; port {port} has no authentication",
            file=sys.stderr,
        )
        return None
    return f"[{place[0]}]:{port}" if family == socket.AF_INET6 else f"{place[0]}:{port}"


def start_devices(
    num_devices: int,
    coordinator_address: str = "",
    num_processes: int = 0,
    process_id: int = -1,
    start_timeout: int = 45,
) -> None:
    """Makes the devices and processes of a run known to JAX, before its backend starts.

    On a CPU JAX sees one device unless the environment asks for more; where more are wanted they
    are made, up to MAX_VIRTUAL_DEVICES a process.

    Args:
        num_devices: of all processes together; 0 = what there is.
        coordinator_address, num_processes, process_id: of a run of several processes; empty, 0 and
        -1 where the cluster
            tells them, or where there is one process.
        start_timeout: seconds to wait for the other processes.
    Raises:
        InputError: some of the three are given and others not, or the other processes cannot be
            reached.
    """
    import jax

    given = (bool(coordinator_address), num_processes > 0, process_id >= 0)
    if any(given) and not all(given):
        raise InputError(
            "--coordinator_address, --num_processes, --process_id: expected all three or none, got "
            f"{coordinator_address!r}, {num_processes}, {process_id}"
        )
    if all(given) and process_id >= num_processes:
        raise InputError(
            f"--process_id: expected 0 to {num_processes - 1} for {num_processes} processes, got "
            f"{process_id}"
        )
    set_environment()
    is_counted = (
        "JAX_NUM_CPU_DEVICES" in os.environ
        or "force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    )
    per_process = -(-num_devices // max(num_processes, 1))
    if (
        os.environ.get("JAX_PLATFORMS") == "cpu"
        and not is_counted
        and 1 < per_process <= MAX_VIRTUAL_DEVICES
    ):
        jax.config.update("jax_num_cpu_devices", per_process)
    if not all(given) and not _is_in_cluster():
        return
    where = (
        {
            "coordinator_address": coordinator_address,
            "num_processes": num_processes,
            "process_id": process_id,
        }
        if all(given)
        else {}
    )
    if all(
        given
    ):  # where one is missing the runtime ends the program by itself, in words of its own
        print(
            f"process {process_id} of {num_processes}: waiting up to {start_timeout} s for the "
            f"others at {coordinator_address}",
            file=sys.stderr,
        )
        if process_id == 0:
            where["coordinator_bind_address"] = _bind_address(coordinator_address)
    try:
        jax.distributed.initialize(
            **where,
            initialization_timeout=start_timeout,
            heartbeat_timeout_seconds=_HEARTBEAT_S,
            shutdown_timeout_seconds=_HEARTBEAT_S,
        )
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"--coordinator_address={coordinator_address}: the processes of this run could not "
            "find each other "
            f"({str(error).splitlines()[0][:200]}); start all of them, with one address and number "
            "of "
            "processes"
        ) from error


def _fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2


def _one_line(error: Exception) -> str:
    """The message of a user's mistake; absl's words for a bad value become the name, the expected
    and the got.
    """
    text = str(error)
    bad_value = re.match(r"flag --config\.([\w.]+)=(.*?): ", text, re.DOTALL)
    if isinstance(error, flags.IllegalFlagValueError) and bad_value:
        name, got = bad_value.groups()
        kinds = {leaf: kind for leaf, kind, _ in settings_file.leaves(Settings())}
        return f"config.{name}: expected {settings_file.kind_words(kinds[name])}, got {got!r}"
    return re.sub(r"^flag --config=.*?: (?=--config=)", "", text, flags=re.DOTALL)


def _is_disk_full(error: BaseException | None) -> bool:
    """Whether the disk was full, also where a library wrapped the error in one of its own."""
    while error is not None:
        if getattr(error, "errno", None) in (
            errno.ENOSPC,
            errno.EDQUOT,
        ) or "No space left on device" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _on_thread_error(args: threading.ExceptHookArgs) -> None:
    """Keeps quiet about a full disk: the main thread meets it too, and says it in one sentence."""
    if not _is_disk_full(args.exc_value):
        threading.__excepthook__(args)


def _start_logging() -> None:
    # the writer of TensorBoard files ends with a traceback where a disk is full
    threading.excepthook = _on_thread_error
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("cosurfgs_jax")
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False
    absl_logging.set_verbosity(
        absl_logging.FATAL
    )  # orbax raises what goes wrong and also logs it, with tracebacks
    set_environment()


def _has_accelerator() -> bool:
    """Whether there is an NVIDIA GPU or a TPU, and what JAX needs for it."""
    present = {
        "jax_cuda12_plugin": "/dev/nvidiactl",
        "jax_cuda13_plugin": "/dev/nvidiactl",
        "libtpu": "/dev/accel0",
    }
    is_there = any(
        Path(device).exists() and importlib.util.find_spec(package)
        for package, device in present.items()
    )
    return is_there or bool(importlib.util.find_spec("libtpu") and Path("/dev/vfio/0").exists())


def keep_freed_memory() -> None:
    """Makes this process keep memory that it frees for what it allocates next, where glibc lets it.

    XLA allocates what a step needs anew in each. Memory of more than 32 MiB would go back to the
    system every time, which then
    has to clear it page by page: a sixth of the processor time of training a megapixel.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        trim_threshold = -1
        mmap_max = -4
        arena_max = -8  # of malloc.h
        mallopt(trim_threshold, -1)
        mallopt(mmap_max, 0)
        mallopt(
            arena_max, 1
        )  # the arenas of threads are of pieces that go back as soon as they are empty


def set_environment() -> None:
    """Sets what JAX and XLA read when they start, where the user has not."""
    # Programs with collectives in flight can deadlock on virtual CPU devices when the pool has
    # fewer threads than waiting shards; and uneven shards may keep each other waiting for minutes.
    if not _has_accelerator():  # else JAX chooses
        os.environ.setdefault("JAX_PLATFORMS", "cpu")  # also says nothing of what it did not find
    # GPUs and TPUs would round the factors of a product to 10 or 7 bits: MV-Reg would look half a
    # pixel beside.
    os.environ.setdefault("JAX_DEFAULT_MATMUL_PRECISION", "highest")
    os.environ.setdefault("PJRT_NPROC", str(max(32, os.cpu_count() or 1)))
    timeouts = (
        "--xla_cpu_collective_call_warn_stuck_timeout_seconds=60 "
        "--xla_cpu_collective_call_terminate_timeout_seconds=1800"
    )
    if "xla_cpu_collective_call" not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {timeouts}".strip()


def _declared(declare: Callable, workdir: str, argv: Sequence[str]) -> flags.FlagValues:
    values = flags.FlagValues()
    if workdir:
        from ml_collections import (
            config_flags,
        )  # benchmarks, which need this module and no settings, do without the package

        for argument in argv[1:]:
            override = re.match(r"--?(?:no)?config\.([^=]*)", argument)
            if override:
                settings_file.check_name(override.group(1))
        meaning = {
            "create": "folder of the run; the same one again resumes it",
            "trained": "folder of a run that `train` made",
        }[workdir]
        flags.DEFINE_string("workdir", None, meaning, flag_values=values)
        config_flags.DEFINE_config_dataclass(
            "config",
            Settings(),
            "Python file with get_config() -> Settings; --config.NAME=VALUE changes one setting",
            flag_values=values,
            sys_argv=list(argv),
            parse_fn=load_config_file,
        )
    declare(values)
    return values


def load_config_file(path: str) -> Settings:
    """What `get_config()` of a Python file returns.

    Raises:
        InputError: no such file, it fails, it has no get_config, or that returns something else.
    """
    spec = importlib.util.spec_from_file_location("cosurfgs_config", path)
    if not path.endswith(".py") or spec is None or not os.path.isfile(path):
        near = _near_config_files(Path(path))
        hint = f"; did you mean --config={' or '.join(near)}?" if near else ""
        raise InputError(
            f"--config={path}: expected a Python file, got "
            f"{'another' if os.path.exists(path) else 'no'} "
            f"file{hint}"
        )
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        if not callable(getattr(module, "get_config", None)):
            raise InputError(
                f"--config={path}: expected a function get_config() that returns Settings, got none"
            )
        settings = module.get_config()
    except InputError:
        raise
    except Exception as error:
        lines = [
            frame.lineno
            for frame in traceback.extract_tb(error.__traceback__)
            if frame.filename == path
        ]
        line = getattr(error, "lineno", None) or (lines[-1] if lines else "?")
        raise InputError(
            f"--config={path}: line {line} fails: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(settings, Settings):
        raise InputError(
            f"--config={path}: expected get_config() to return Settings, got "
            f"{type(settings).__name__}"
        )
    return settings


def _near_config_files(path: Path) -> list[str]:
    """Python files beside a path, and in configs/, with nearly its name."""
    files = {
        near.stem: str(near)
        for folder in (Path("configs"), path.parent)
        for near in sorted(folder.glob("*.py"))
    }
    return [files[stem] for stem in difflib.get_close_matches(path.stem, files, n=2)]


def _make_writable(folder: Path) -> None:
    """Makes the workdir, and tries it, before the long work."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        if _is_disk_full(error):
            raise
        raise InputError(
            f"--workdir={folder}: expected a folder that can be written, but it could not be "
            "written "
            f"({error.strerror}); choose another one"
        ) from error


def _options(values: flags.FlagValues, workdir: str, argv: Sequence[str]) -> Options:
    surplus = values(argv)[1:]
    if surplus:
        hint = f"; did you mean --config={surplus[0]}?" if surplus[0].endswith(".py") else ""
        raise InputError(f"{surplus[0]}: expected flags only, got an argument without --{hint}")
    if not workdir:
        return Options(Settings(), None, values)
    if not values.workdir:
        raise InputError("--workdir: expected a folder, got none; give --workdir=DIR")
    folder = Workdir(Path(values.workdir).expanduser().absolute())
    saved = folder.config
    if workdir == "trained" and not saved.exists():
        raise InputError(
            f"--workdir={values.workdir}: expected the folder of a trained run, got no "
            f"{saved.name} "
            "in it; run `python -m cosurfgs_jax.train` first"
        )
    _make_writable(folder.root)
    given = values.config
    has_file = any(re.match(r"--?config(=|$)", argument) for argument in argv[1:])
    settings = given
    if workdir == "trained" or (saved.exists() and not has_file):
        settings = settings_file.load(saved)
        if (
            has_file
        ):  # it knows neither the dataset nor the other flags that the run was started with
            settings_file.take_free(settings, given)
        from ml_collections import config_flags

        for name, value in config_flags.get_override_values(values["config"]).items():
            settings_file.set_value(settings, name, value)
    settings_file.check(settings)
    settings = settings_file.with_absolute_paths(settings)
    free = (
        settings_file.FREE_AFTER_TRAINING if workdir == "trained" else settings_file.FREE_TO_CHANGE
    )
    settings_file.check_fits(settings, folder, free)
    return Options(settings, folder, values)


def _help(main: Callable, values: flags.FlagValues, workdir: str) -> str:
    lines = [(main.__globals__.get("__doc__") or "").strip(), "", "Flags:"]
    for flag in sorted(values):
        default = values[flag].default
        shown = "" if flag == "config" or default in (None, "") else f" (default {default})"
        lines.append(f"  --{flag}: {values[flag].help}{shown}")
    if workdir:
        lines += ["", "Settings:"]
        lines += [
            f"  --config.{leaf}={value}" for leaf, _, value in settings_file.leaves(Settings())
        ]
    return "\n".join(lines)
