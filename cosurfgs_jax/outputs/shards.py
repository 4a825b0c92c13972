"""Outputs by shards: processes that know nothing of each other make a part each, on any machines
that share the workdir, and one more merges the parts.
"""

import contextlib
import logging
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from cosurfgs_jax import files, locks
from cosurfgs_jax.distributed import processes
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.part import Part
from cosurfgs_jax.shard_folders import ShardFolders
from cosurfgs_jax.workdir import Output, Workdir

_log = logging.getLogger(__name__)


class Shard(NamedTuple):
    """What a shard has left."""

    part: Part
    folder: Path
    note: dict[str, Any]  # what it said at its end


class Shards:
    """The shards of one output of a workdir."""

    def __init__(self, workdir: Workdir, output: Output, command: str, made_with: dict[str, Any]):
        """
        Args:
            workdir: of the run.
            output: that they are parts of.
            command: that makes it, without the name of the program's package and --workdir, for
                messages: "export --format=las".
            made_with: name -> JSON value of everything that all shards must have in common.
        """
        self._workdir = workdir
        self._folders = ShardFolders(workdir.root)
        self._output = output
        self._command = command
        self._made_with = made_with
        self._what = command.replace(" --format=", "-")

    @contextlib.contextmanager
    def making(self, part: Part) -> Iterator[tuple[Path, dict[str, Any]] | None]:
        """Makes a shard, anew where one of another model is there.

        Args:
            part: which.
        Yields:
            Its empty folder, and a dict for what it says at its end, JSON data; None where it is
            done already.
        Raises:
            InputError: another process makes it or the whole output, or the shards that are there
                are of another number of parts, or were made with something else.
        """
        folder = self._folders.folder(self._what, part)
        path = self._folders.note(self._what, part)
        with (
            locks.hold_shared(self._workdir.lock(self._output.name), self._output.writer),
            locks.hold(self._folders.lock(self._what, part), f"shard {part}"),
        ):
            self._check(part.count, own=part)
            if path.exists() and not self._difference(files.read_json_object(path)):
                _log.info("%s: shard %s is done already, in %s", self._command, part, folder)
                yield None
                return
            with files.writing(folder):
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir(parents=True)
            note: dict[str, Any] = {}
            yield folder, note
            made = {"made_with": self._made_with, "versions": processes.versions()}
            files.write_json(path, made | {"note": note, "checksum": _checksum(note)})
        self._say_what_is_missing(part.count)

    def collect(self) -> list[Shard]:
        """All shards, in order; none where not one is done. For who holds the output's lock.

        Raises:
            InputError: some are missing, or were made with something else than what is there now.
        """
        parts = self._folders.begun().get(self._what, [])
        done = [part for part in parts if self._folders.note(self._what, part).exists()]
        if not done:
            return []
        count = done[0].count
        self._check(count)
        missing = self._missing(count)
        if missing:
            raise InputError(
                f"{self._workdir}: expected all {count} shards of `{self._command}` in "
                f"{self._folders.of(self._what)}, got all but {_listed(missing)}; run "
                f"`cosurfgs {self._command} --shard={missing[0]}` for each of them, or delete that "
                "folder, then one process makes all of it"
            )
        shards = []
        versions = set()
        for number in range(count):
            part = Part(number, count)
            content = files.read_json_object(self._folders.note(self._what, part))
            versions.add(str(content.get("versions")))
            shards.append(Shard(part, self._folders.folder(self._what, part), content["note"]))
        if len(versions | {processes.versions()}) > 1:
            _log.warning(
                "%s: the shards were made by %s, and here is %s: their last bits may differ from "
                "those of one process",
                self._command,
                " and ".join(sorted(versions)),
                processes.versions(),
            )
        return shards

    def delete(self) -> None:
        """Deletes all shards: they are merged."""
        folder = self._folders.of(self._what)
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # others are there
            folder.parent.rmdir()

    def _missing(self, count: int) -> list[Part]:
        parts = (Part(number, count) for number in range(count))
        return [part for part in parts if not self._folders.note(self._what, part).exists()]

    def _say_what_is_missing(self, count: int) -> None:
        missing = self._missing(count)
        if missing:
            _log.info("%s: missing shards: %s", self._command, _listed(missing))
            return
        _log.info(
            "%s: all %d shards are there; `cosurfgs %s` without --shard merges them",
            self._command,
            count,
            self._command,
        )

    def _check(self, count: int, own: Part | None = None) -> None:
        """Compares the shards that are there, but for the one that is made anew, with what all are
        to be made with.
        """
        for part in self._folders.begun().get(self._what, []):
            path = self._folders.note(self._what, part)
            if not path.exists():
                continue
            found = f"{self._folders.folder(self._what, part)}"
            if part.count != count:
                raise InputError(
                    f"{found}: expected a shard of {count}, got one of {part.count}; go on "
                    f"with that number, or delete {self._folders.of(self._what)} to begin anew"
                )
            difference = self._difference(files.read_json_object(path))
            if difference and part != own:
                raise InputError(
                    f"{found}: {difference}; give the same to all shards, or delete "
                    f"{self._folders.of(self._what)} to begin anew"
                )

    def _difference(self, content: dict[str, Any]) -> str:
        """In which way a shard was made with something else than what is there now; "" if not."""
        before = content.get("made_with")
        if not isinstance(before, dict) or content.get("checksum") != _checksum(
            content.get("note")
        ):
            return "expected shard.json as the shard has written it, got something else"
        for name, value in self._made_with.items():
            if before.get(name) != value:
                return (
                    f"expected a shard made with {name} = {value!r}, got one with "
                    f"{before.get(name)!r}"
                )
        return ""


def _checksum(note: Any) -> int:
    """Of what a shard says at its end: each output has notes of its own form."""
    return zlib.crc32(files.to_json(note).encode())


def _listed(parts: list[Part]) -> str:
    return ", ".join(map(str, parts))
