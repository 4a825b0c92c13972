"""Runs a program: exit codes, logging, and one sentence instead of a traceback for a user's
mistake.

Exit codes: 0 done; 2 a mistake that the user can mend; 130 and 143 stopped by Ctrl-C or SIGTERM; 1
    anything else.
"""

import functools
import logging
import os
import re
import select
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from absl import flags
from absl import logging as absl_logging

from cosurfgs_jax import host_memory, run_record, settings_file
from cosurfgs_jax.errors import BadLossError, InputError
from cosurfgs_jax.program.options import (
    HELP_FLAGS,
    Options,
    declare_flags,
    help_text,
    no_flags,
    parse_options,
)
from cosurfgs_jax.program.platform_environment import set_environment
from cosurfgs_jax.program.presets import without_presets
from cosurfgs_jax.program.processes import has_peers
from cosurfgs_jax.settings import Settings
from cosurfgs_jax.storage import forbidden, is_disk_full, storage_problem

_PATIENCE_S = 15  # from SIGTERM to the end
_AGAIN_S = 0.05  # until a SIGTERM comes again that Python has swallowed
_DONE = 0
_FAILED = 1
_USER_MISTAKE = 2
_INTERRUPTED = 128 + signal.SIGINT
_TERMINATED = 128 + signal.SIGTERM
_sigterm_came = threading.Event()  # libraries may make an error of their own of what it raises


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
            after training; "optional": as "create", but it may be left out and is not made; "":
            neither.
        argv: the command line with the program's name first; None = that of the process.
    Returns:
        The exit code.
    """
    if argv is None:
        argv = sys.argv
    _sigterm_came.clear()
    try:
        _run(main, declare, workdir, list(argv))
        return _DONE
    except _Terminated:
        _end_terminated()
    except KeyboardInterrupt:
        print("stopped by Ctrl-C", file=sys.stderr)
        return _leave(_INTERRUPTED)
    except Exception as error:
        if _sigterm_came.is_set():
            _end_terminated()
        return _leave(_report(error))


def _end_terminated() -> NoReturn:
    """Not by the interpreter's regular end: it crashes where a library in C++ still computes."""
    sys.stderr.flush()
    sys.stdout.flush()
    os._exit(_TERMINATED)


def _run(main: Callable, declare: Callable, workdir: str, argv: list[str]) -> None:
    given = argv
    if workdir:
        argv = without_presets(argv)
    values = declare_flags(declare, workdir, argv)
    if HELP_FLAGS.intersection(argv[1:]):
        doc = getattr(main, "__globals__", {}).get("__doc__") or ""
        is_full = "--helpfull" in argv
        print(help_text(doc, values, workdir, is_full=is_full), flush=True)
        return
    _start_logging()
    set_environment()
    # Temporary files are removed at SIGTERM, too; training saves first, by a handler of its own.
    if workdir != "create" and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _stop)
        sys.unraisablehook = functools.partial(_stop_again, sys.unraisablehook)
    with run_record.command_line(given):
        main(parse_options(values, workdir, argv))
    sys.stdout.flush()


def _report(error: Exception) -> int:
    """Prints what went wrong; the exit code."""
    if isinstance(error, InputError | flags.Error):
        return _print_mistake(_one_line(error))
    if isinstance(error, BrokenPipeError) and _is_unread():
        return _discard_output()
    if isinstance(error, BadLossError):
        print(f"error: {error}", file=sys.stderr)
        return _FAILED
    if host_memory.ran_out(error):
        return _print_mistake(_no_memory(error))
    if _is_of_a_lost_peer(error):
        print(
            "error: another process of this run ended or cannot be reached; start all processes "
            f"again, and it goes on from the last checkpoint ({str(error).splitlines()[0][:200]})",
            file=sys.stderr,
        )
        return _FAILED
    name = getattr(error, "filename", None)
    where = f" ({name})" if name else ""
    if is_disk_full(error):
        return _print_mistake(
            f"the disk is full{where}; free some space and give the same command again"
        )
    reason = forbidden(error)
    if reason:
        return _print_mistake(
            f"the file system refused{where}: {reason}; mend that, or use folders that can be read "
            "and written, then give the same command again"
        )
    traceback.print_exception(error)
    return _FAILED


def _no_memory(error: BaseException) -> str:
    text = (str(error) or type(error).__name__).splitlines()[0][:200]
    return (
        f"memory did not suffice ({text}); end other programs or use a machine with more, then "
        "give the same command again: what is saved stays. Smaller photographs "
        "(config.data.downscale) need less, in a new --workdir"
    )


def _is_of_a_lost_peer(error: Exception) -> bool:
    """Whether a collective failed. JAX raises an error of its own, or, where one fails at once, a
    ValueError with the words of the library that connects processes.
    """
    return has_peers() and (type(error).__name__ == "JaxRuntimeError" or "Gloo" in str(error))


def _print_mistake(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return _USER_MISTAKE


def _is_unread() -> bool:
    """Whether standard output is a pipe whose reader has gone, as behind `| head`."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        return any(event & select.POLLERR for _, event in poll.poll(0))
    except (AttributeError, OSError, ValueError):  # no such call, or no file behind it
        return False


def _discard_output() -> int:
    """Ends quietly, as by SIGPIPE; what Python flushes at its end is discarded."""
    null_device = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null_device, sys.stdout.fileno())
    return 128 + signal.SIGPIPE


class _Terminated(SystemExit):
    """SIGTERM came."""


def _stop(signal_number: int, _frame) -> None:
    _sigterm_came.set()
    # Code in C++ (a compiler, a mesh library) may not return for minutes.
    timer = threading.Timer(_PATIENCE_S, os._exit, [128 + signal_number])
    timer.daemon = True
    timer.start()
    raise _Terminated(128 + signal_number)


def _stop_again(other_hook: Callable[[Any], object], swallowed: Any) -> None:
    """Python swallows what `_stop` raises while a callback of the garbage collector or a finaliser
    runs: then the signal comes again, a moment later.
    """
    if not isinstance(swallowed.exc_value, _Terminated):
        other_hook(swallowed)
        return
    timer = threading.Timer(_AGAIN_S, os.kill, [os.getpid(), signal.SIGTERM])
    timer.daemon = True
    timer.start()


def _leave(code: int) -> int:
    """Ends at once where other processes are in the run: a regular exit would wait for them, and
    they for this one.
    """
    if has_peers():
        sys.stderr.flush()
        sys.stdout.flush()
        os._exit(code)
    return code


def _one_line(error: Exception) -> str:
    """The message of a user's mistake; absl's message for a bad value becomes the name, the
    expected and the got.
    """
    text = str(error)
    bad_value = re.match(r"flag --config\.([\w.]+)=(.*?): ", text, re.DOTALL)
    if isinstance(error, flags.IllegalFlagValueError) and bad_value:
        name, got = bad_value.groups()
        kinds = {leaf: kind for leaf, kind, _ in settings_file.leaves(Settings())}
        return f"config.{name}: expected {settings_file.kind_words(kinds[name])}, got {got!r}"
    return re.sub(r"^flag --config=.*?: (?=--config=)", "", text, flags=re.DOTALL)


def on_thread_error(args: threading.ExceptHookArgs) -> None:
    """Ignores in a background thread what the storage refuses: the main thread meets it, too, and
    reports it. That memory did not suffice there is a sentence.
    """
    if host_memory.ran_out(args.exc_value) and args.exc_value is not None:
        _print_mistake(_no_memory(args.exc_value))
    elif not storage_problem(args.exc_value):
        threading.__excepthook__(args)


def is_no_storage_problem(record: logging.LogRecord) -> bool:
    """`on_thread_error` for what asyncio logs of a task for whose error nobody waited."""
    return not record.exc_info or not storage_problem(record.exc_info[1])


def _start_logging() -> None:
    # The writer of TensorBoard files ends with a traceback where a disk is full.
    threading.excepthook = on_thread_error
    # So do orbax's tasks that fail in the same moment as the one whose error it raises.
    logging.getLogger("asyncio").addFilter(is_no_storage_problem)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("cosurfgs_jax")
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False
    # orbax logs what it also raises, with tracebacks.
    absl_logging.set_verbosity(absl_logging.FATAL)
