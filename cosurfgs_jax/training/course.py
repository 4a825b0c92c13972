"""The course of a stage before it runs: which compiled step takes how many surfels, from when on.

The arrays of blocks have fixed sizes that follow from settings and dataset alone, so the largest of
them is known. How many of their slots are in use is an estimate: density control fills the budget
that it has."""

from collections.abc import Sequence
from typing import NamedTuple

from cosurfgs_jax.settings import Settings
from cosurfgs_jax.training.loop import common_slots
from cosurfgs_jax.training.partitioned_scene import Block
from cosurfgs_jax.training.schedule import Schedule
from cosurfgs_jax.training.step import StepShape


class Span(NamedTuple):
    """Steps in a row that are one compiled program, with about as many surfels."""

    num_steps: int
    num_slots: int  # of every block
    num_surfels: int  # of all blocks together
    shape: StepShape


class Course(NamedTuple):
    """The steps of a stage, and what comes between them."""

    spans: list[Span]
    num_densified: int  # rounds of density control

    @property
    def num_slots(self) -> int:
        """The most slots that a block has."""
        return max(span.num_slots for span in self.spans)

    @property
    def num_surfels(self) -> int:
        """The most surfels that all blocks have together."""
        return max(span.num_surfels for span in self.spans)

    @property
    def shapes(self) -> list[StepShape]:
        """The kinds of steps, in the order in which they come."""
        return list(dict.fromkeys(span.shape for span in self.spans))

    @property
    def slot_sizes(self) -> list[int]:
        """The sizes of the arrays, in the order in which they come."""
        return list(dict.fromkeys(span.num_slots for span in self.spans))

    @property
    def programs(self) -> list[tuple[int, StepShape]]:
        """Slots and kind of each step that is compiled."""
        taken = (span for span in self.spans if span.num_steps)
        return list(dict.fromkeys((span.num_slots, span.shape) for span in taken))


def course_of(schedule: Schedule, blocks: Sequence[Block], settings: Settings) -> Course:
    """The course of the training of blocks from their SfM points.

    Args:
        schedule: of the stage.
        blocks: of the run.
        settings: of the run; `density` is used.
    """
    counts = [block.num_initial for block in blocks]
    num_slots = common_slots(blocks, counts, settings)
    spans: list[Span] = []
    num_densified = 0
    for step in range(schedule.num_steps):
        now = Span(1, num_slots, sum(counts), schedule.shape(step))
        if spans and spans[-1]._replace(num_steps=1) == now:
            spans[-1] = now._replace(num_steps=spans[-1].num_steps + 1)
        else:
            spans.append(now)
        if not schedule.densifies_after(step + 1):
            continue
        num_densified += 1
        counts = [schedule.budget(step + 1, block.num_initial, block.capacity) for block in blocks]
        if max(counts) > num_slots:
            num_slots = common_slots(blocks, counts, settings)
    return Course(spans, num_densified)
