"""Several processes of one run: that they agree at the start, stop together, and wait for each
other.
"""

import functools
import zlib
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from cosurfgs_jax import settings_file
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.native import ffi
from cosurfgs_jax.settings import Settings

# What each process may set for itself: its own copy of the photographs, and how much of it is kept
# in memory.
_OWN_SETTINGS = ("data.path", "data.host_memory_mb")
_TEXT_BYTES = 2000  # of a message between processes


def is_first() -> bool:
    """Whether this process writes what is written once."""
    return jax.process_index() == 0


def count() -> int:
    """How many processes there are."""
    return jax.process_count()


def index() -> int:
    """Which of them this one is."""
    return jax.process_index()


def gather(values: np.ndarray | np.generic) -> np.ndarray:
    """The values of all processes, [processes, ...]; all must call it, with equal shapes."""
    values = np.asarray(values)
    if jax.process_count() == 1:
        return values[None]
    from jax.experimental import multihost_utils

    # As bytes: JAX would cut 64-bit numbers to 32.
    flat = np.frombuffer(np.ascontiguousarray(values).tobytes(), np.uint8)
    gathered = np.asarray(multihost_utils.process_allgather(flat))
    return np.frombuffer(gathered.tobytes(), values.dtype).reshape(-1, *values.shape)


def barrier(name: str) -> None:
    """Waits until all processes are here."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def any_process(flag: bool) -> bool:
    """Whether it is true anywhere; all must call it."""
    return bool(gather(np.array(flag)).any())


def max_over_processes(counts: Sequence[int]) -> int:
    """The largest number of any process; all must call it."""
    return int(gather(np.array(max(counts, default=0))).max())


def _named(processes: np.ndarray) -> str:
    return f"process {', '.join(map(str, processes))}"


def _digest(text: str) -> np.uint32:
    return np.uint32(zlib.crc32(text.encode()))


def check_settings_agree(settings: Settings) -> None:
    """Compares the settings of all processes.

    Raises:
        InputError: in every process, with the name of the first setting that differs and the
            processes that differ from process 0 in it.
    """
    leaves = [
        (name, value)
        for name, _, value in settings_file.leaves(settings)
        if name not in _OWN_SETTINGS
    ]
    digests = gather(np.array([_digest(repr(value)) for _, value in leaves]))
    for column, (name, value) in enumerate(leaves):
        others = np.flatnonzero(digests[:, column] != digests[0, column])
        if len(others):
            raise InputError(
                f"config.{name}: differs between processes: expected the value of process 0, got "
                f"another in {_named(others)} (here, in process {jax.process_index()}, it is "
                f"{value!r}); start all processes with the same configuration"
            )


def check_equal(what: str, value: str, hint: str) -> None:
    """Raises InputError in every process where a text is not the same in all."""
    digests = gather(_digest(value))
    others = np.flatnonzero(digests != digests[0])
    if len(others):
        raise InputError(
            f"{what}: differs between processes: expected that of process 0, got another in "
            f"{_named(others)}; {hint}"
        )


def raise_everywhere(error: InputError | None) -> None:
    """Raises in every process what the first one met; all must call it.

    Args:
        error: of this process; only that of the first counts. None: nothing.
    """
    _raise_first(error, from_processes=1)


def raise_of_any(error: InputError | None) -> None:
    """Raises in every process what any of them met, that of the first which did; all must call it.

    Args:
        error: of this process. None: nothing.
    """
    _raise_first(error, from_processes=jax.process_count())


def _raise_first(error: InputError | None, from_processes: int) -> None:
    if jax.process_count() == 1:
        if error is not None:
            raise error
        return
    texts = gather_texts("" if error is None else str(error))
    for text in filter(None, texts[:from_processes]):
        raise InputError(text) from error


def gather_texts(text: str) -> list[str]:
    """The texts of all processes, in their order, cut off after 2,000 bytes; all must call it."""
    raw = np.zeros(_TEXT_BYTES, np.uint8)
    encoded = np.frombuffer(text.encode()[:_TEXT_BYTES], np.uint8)
    raw[: len(encoded)] = encoded
    return [row.tobytes().rstrip(b"\0").decode(errors="replace") for row in gather(raw)]


def check_versions() -> None:
    """Raises InputError in every process, with both versions, unless all run the same code, JAX,
    backend and, on CPUs, native kernels: others would give other bits, or wait for each other for
    ever.
    """
    texts = gather_texts(versions())
    for number, text in enumerate(texts):
        if text != texts[0]:
            raise InputError(
                "versions differ between processes: expected those of process 0, which are "
                f"{texts[0]}; got {text} in process {number}; install the same everywhere, and "
                "where only the CPUs differ, give all processes the environment variable "
                "COSURFGS_INSTRUCTION_SET=v3 (or baseline)"
            )


def versions() -> str:
    """What the bits of this process's results depend on besides the input: code, JAX, backend and,
    on CPUs, native kernels.
    """
    backend = jax.default_backend()
    text = f"cosurfgs_jax of sources {sources():08x}, JAX {jax.__version__}, backend {backend}"
    if backend != "cpu":
        return text
    if ffi.why_no_cpu_library():
        return f"{text}, no native kernels"
    build = _checksum(ffi.cpu_library_path())
    return f"{text}, native kernels of build {build:08x} for {ffi.cpu_instruction_set()}"


@functools.cache
def sources() -> int:
    """Checksum of the sources at the first call, which are those that run: later they may have been
    replaced.
    """
    code = zlib.crc32(b"")
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        if path.name != "_build_info.py":
            code = zlib.crc32(path.read_bytes(), code)
    return code


@functools.cache
def _checksum(library: Path) -> int:
    return zlib.crc32(library.read_bytes())


def check_shared_folder(folder: Path, mark: Path) -> None:
    """Raises InputError in every process unless all see one folder: checkpoints and results of all
    go there.

    Args:
        folder: for the message.
        mark: a file in it that the first process writes and the others look for.
    """
    if jax.process_count() == 1:
        return
    if is_first():
        mark.write_text(str(np.random.default_rng().integers(2**62)), encoding="utf-8")
    barrier("mark")
    text = mark.read_text(encoding="utf-8") if mark.exists() else ""
    check_equal(f"--workdir={folder}", text, "give a folder that all processes share")
    if is_first():
        mark.unlink(missing_ok=True)
