"""Where the shards of a run's outputs lie: a folder for each part, `<what>/<i>-of-<n>/`, with a
`shard.json` in it as soon as the shard is done.
"""

import dataclasses
import re
from pathlib import Path

from cosurfgs_jax.part import Part

_NAME = re.compile(r"(\d{1,9})-of-(\d{1,9})")


@dataclasses.dataclass(frozen=True)
class ShardFolders:
    """The folders of all shards of a run.

    Attributes:
        root: of the run.
    """

    root: Path

    def of(self, what: str) -> Path:
        """Folder of the shards of an output; it may be missing."""
        return self.root / "shards" / what

    def folder(self, what: str, part: Part) -> Path:
        """Folder of what a shard makes."""
        return self.of(what) / _name(part)

    def note(self, what: str, part: Part) -> Path:
        """What a shard was made with, and what it found; it is there when the shard is done."""
        return self.folder(what, part) / "shard.json"

    def lock(self, what: str, part: Part) -> Path:
        """File of the lock of a shard."""
        return self.root / ".locks" / f"{what}-{_name(part)}"

    def begun(self) -> dict[str, list[Part]]:
        """The outputs of which there are shards -> their parts, done or not, in order."""
        found: dict[str, list[Part]] = {}
        for path in self.root.glob("shards/*/*"):
            match = _NAME.fullmatch(path.name)
            if match:
                part = Part(int(match[1]), int(match[2]))
                found.setdefault(path.parent.name, []).append(part)
        return {what: sorted(found[what]) for what in sorted(found)}


def _name(part: Part) -> str:
    return f"{part.number}-of-{part.count}"
