"""How orbax finds the steps of a stage: by the names of their folders alone.

By itself it also reads from each step when that was saved, and no step can be read where one of
these notes is damaged. Nobody here asks for the time.
"""

import dataclasses
import datetime
from collections.abc import Iterator
from typing import Any

import orbax.checkpoint as ocp

_UNDATED = datetime.datetime.min.replace(tzinfo=datetime.UTC)


class _Step(ocp.path.step.Metadata):
    @property
    def commit_timestamp(self) -> datetime.datetime:
        return _UNDATED


@dataclasses.dataclass(frozen=True)
class StepFolders(ocp.path.step.NameFormat):
    """Names of steps for `ocp.CheckpointManagerOptions.step_name_format`: those of orbax."""

    by_orbax: Any = dataclasses.field(default_factory=ocp.path.step.standard_name_format)

    def build_name(self, step: int) -> str:
        """The name of a step's folder."""
        return self.by_orbax.build_name(step)

    def find_all(self, base_path: Any) -> Iterator[Any]:
        """All steps that are whole."""
        for found in self.by_orbax.find_all(base_path):
            yield _Step(found.step, found.path)

    def find_step(self, base_path: Any, step: int) -> Any:
        """One of them; ValueError where it is not there."""
        return self.by_orbax.find_step(base_path, step)
