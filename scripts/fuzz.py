"""Spoils valid files of every kind that the package reads, and counts what its readers say to them.

python scripts/fuzz.py [--mutations=2000] [--seed=0] [--only=colmap_text,...] [--out=REPORT.json]
[--keep=FOLDER]

For each reader: how many spoilt files were refused (in the package's own error, with the path),
read as if they were whole, read otherwise with a word in the log, read so little otherwise that no
point moves by a tenth of a pixel, or read otherwise without a word; and how many ended in another
error, took more than ten seconds of processor time or more than 300 MiB, or ended the process. The
last four must be zero, or the exit code is 1. A file with another number of views or points that is
read without a word is one of them, too; another value of a number cannot be told from a true one.

Each reader runs in a process of its own with a limit on its memory. The same seed and number give
the same files."""

import argparse
import collections
import contextlib
import json
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

MAX_SECONDS = 10
MAX_MEMORY = 300 * 2**20
_ADDRESS_SPACE = (
    8 * 2**30
)  # beyond what the process has at its start: a reader that asks for more meets MemoryError
BAD = ("another error", "hang", "memory", "other number without a word", "process ended")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))


class _Hang(BaseException):
    pass


def _ring(*_) -> None:
    raise _Hang


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    return 0


def _forget_peak() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _outcome(case, error_type) -> tuple[str, str]:
    """What became of one spoilt file, and a detail."""
    from fuzz_cases import NEGLIGIBLE

    try:
        wrong, heard = case.read()
    except error_type as error:
        paths = [str(path) for path in (*case.paths, *case.folder.rglob("*"))]
        if str(case.folder) in str(error) or any(Path(path).name in str(error) for path in paths):
            return "refused", ""
        return "refused without a path", str(error)
    except _Hang as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        return "hang", f"in {Path(frame.filename).name}:{frame.lineno}"
    except BaseException as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        return (
            "another error",
            f"{type(error).__name__} in {Path(frame.filename).name}:{frame.lineno}: "
            f"{str(error)[:120]}",
        )
    if not wrong:
        return "as if whole", ""
    if wrong == [NEGLIGIBLE]:
        return NEGLIGIBLE, ""
    if heard:
        return "otherwise, said", ""
    is_number = any(text.startswith("number of") for text in wrong)
    return (
        "other number without a word" if is_number else "other values without a word"
    ), ", ".join(wrong)


def run_reader(name: str, count: int, seed: int, keep: str) -> dict:
    """Spoils the files of one reader `count` times; returns counts and examples."""
    import fuzz_cases
    import fuzz_formats

    from cosurfgs_jax.errors import InputError

    warnings.simplefilter("ignore")
    reader = next(reader for reader in fuzz_formats.all_readers() if reader.name == name)
    counts = collections.Counter()
    examples = collections.defaultdict(dict)
    started = time.process_time()
    peak = 0
    signal.signal(signal.SIGPROF, _ring)
    with tempfile.TemporaryDirectory(
        dir="/dev/shm" if Path("/dev/shm").is_dir() else None
    ) as folder:
        case = fuzz_cases.Case(reader, Path(folder) / name)
        limit = _status("VmSize") + _ADDRESS_SPACE
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        for number in range(seed, seed + count):
            path, data = case.spoil(number)
            _forget_peak()
            before = _status("VmRSS")
            signal.setitimer(
                signal.ITIMER_PROF, MAX_SECONDS
            )  # of processor time: other work may slow this down
            outcome, detail = _outcome(case, InputError)
            signal.setitimer(signal.ITIMER_PROF, 0)
            used = _status("VmHWM") - before
            peak = max(peak, used)
            if used > MAX_MEMORY:
                outcome = "memory"
                detail = f"{used / 2**20:.0f} MiB"
            counts[outcome] += 1
            if (
                (detail or outcome in BAD)
                and detail not in examples[outcome]
                and len(examples[outcome]) < 20
            ):
                examples[outcome][detail] = f"{path.relative_to(case.folder)}, seed {number}"
                if keep:
                    target = Path(keep) / name / f"{number}_{path.name}"
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(data)
            case.restore()
    return {
        "counts": dict(counts),
        "examples": examples,
        "peak_mib": round(peak / 2**20),
        "seconds": round(time.process_time() - started, 1),
    }


def _in_process(name: str, options) -> dict:
    command = [
        sys.executable,
        __file__,
        f"--mutations={options.mutations}",
        f"--seed={options.seed}",
        f"--keep={options.keep}",
        f"--reader={name}",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    try:
        return json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        why = {f"exit code {done.returncode}": done.stderr[-500:]}
        return {
            "counts": {"process ended": 1},
            "examples": {"process ended": why},
            "peak_mib": 0,
            "seconds": 0,
        }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mutations", type=int, default=2000, help="of each reader's files")
    parser.add_argument("--seed", type=int, default=0, help="of the first; the others follow")
    parser.add_argument(
        "--only", default="", help="names of readers with commas between; default all"
    )
    parser.add_argument("--out", default="", help="a JSON file for all counts and examples")
    parser.add_argument("--keep", default="", help="a folder for the files of the examples")
    parser.add_argument("--reader", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.reader:
        print(json.dumps(run_reader(options.reader, options.mutations, options.seed, options.keep)))
        return 0
    import fuzz_formats

    names = [reader.name for reader in fuzz_formats.all_readers()]
    unknown = set(filter(None, options.only.split(","))) - set(names)
    if unknown:
        parser.error(
            f"--only: expected some of {', '.join(names)}, got {', '.join(sorted(unknown))}"
        )
    results = {}
    for name in filter(None, options.only.split(",")) if options.only else names:
        results[name] = _in_process(name, options)
        shown = ", ".join(
            f"{text} {count}" for text, count in sorted(results[name]["counts"].items())
        )
        print(
            f"{name}: {shown}; at most {results[name]['peak_mib']} MiB, {results[name]['seconds']} "
            "s",
            flush=True,
        )
        for outcome in (*BAD, "refused without a path"):
            for detail, where in results[name]["examples"].get(outcome, {}).items():
                print(f"    {outcome}: {detail} ({where})", flush=True)
    total = collections.Counter()
    for result in results.values():
        total.update(result["counts"])
    print(
        f"all: {sum(total.values())} files; "
        + ", ".join(f"{text} {count}" for text, count in sorted(total.items()))
    )
    if options.out:
        Path(options.out).write_text(json.dumps(results, indent=2) + "\n")
    return int(any(total[outcome] for outcome in BAD))


if __name__ == "__main__":
    sys.exit(main())
