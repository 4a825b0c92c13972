"""When what happens: fractions of the run turned into step numbers, and the order of the
photographs.
"""

import dataclasses

import numpy as np

from cosurfgs_jax.settings import Settings
from cosurfgs_jax.training.step import StepShape

_MIN_BETWEEN_DENSIFICATIONS = 20  # steps: fewer views say little of a surfel
# the budget is all given at 1/1.25 of density control's time, the rest of which moves surfels
_BUDGET_LEAD = 1.25
_MIN_BETWEEN_TRIMS = 200  # steps: a trim draws all photographs once
_MIN_BETWEEN_RESETS = 500  # steps: opacities need about as many to come back
_MIN_BEFORE_PRUNING_LARGE = 500  # steps: large surfels need about as many to be split


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The course of one run. A step number counts finished steps: after step 1 one photograph was
    used.
    """

    num_steps: int
    density_start: int
    density_stop: int
    density_every: int
    reset_every: int  # 0 = never
    prune_large_start: int
    trim_every: int  # 0 = never
    sh_every: int  # 0 = all degrees from the start
    sh_degree: int
    is_growing: bool
    geometry_start: int | None  # steps before SV-Reg and MV-Reg begin; None = never
    dilation: int  # of dilated steps
    dilation_stop: int  # steps before all pixels are drawn
    mask_start: int  # steps before masks are learned
    mask_stop: int  # steps before they prune; those of the start: there are none

    @classmethod
    def from_settings(cls, settings: Settings, dilation: int = 1) -> "Schedule":
        """Rounds the fractions of `train.steps`, with floors where a few steps would show nothing
        yet.
        """
        num_steps = settings.train.steps
        density = settings.density

        def steps(fraction: float, minimum: int = 1) -> int:
            return max(minimum, round(fraction * num_steps))

        trim_every = 0
        if density.trim_min_views:
            trim_every = steps(density.trim_every, _MIN_BETWEEN_TRIMS)
        reset_every = 0
        if density.opacity_reset_every:
            reset_every = steps(density.opacity_reset_every, _MIN_BETWEEN_RESETS)
        mask_start = steps(settings.mask.start, 0)
        mask_stop = mask_start
        if settings.mask.weight:
            mask_stop = steps(settings.mask.stop, 0)
        geometry_start = None
        if settings.loss.has_single_view or settings.loss.has_multi_view:
            geometry_start = steps(settings.loss.geometry_start, 0)
        return cls(
            num_steps=num_steps,
            density_start=steps(density.start, _MIN_BETWEEN_DENSIFICATIONS),
            density_stop=steps(density.stop),
            density_every=steps(density.every, _MIN_BETWEEN_DENSIFICATIONS),
            reset_every=reset_every,
            prune_large_start=steps(density.prune_scale_start, _MIN_BEFORE_PRUNING_LARGE),
            trim_every=trim_every,
            sh_every=steps(settings.train.sh_degree_every),
            sh_degree=settings.surfels.sh_degree,
            is_growing=density.enabled,
            geometry_start=geometry_start,
            dilation=dilation,
            dilation_stop=steps(settings.train.dilation_stop, 0),
            mask_start=mask_start,
            mask_stop=mask_stop,
        )

    @classmethod
    def without_growth(cls, settings: Settings, num_steps: int) -> "Schedule":
        """A course on which the surfels stay as many as they are, all of their colours learning."""
        course = cls.from_settings(settings)
        return dataclasses.replace(
            course,
            num_steps=num_steps,
            is_growing=False,
            sh_every=0,
            geometry_start=None if course.geometry_start is None else 0,
            dilation_stop=0,
            mask_stop=course.mask_start,
        )

    def shape(self, step: int) -> StepShape:
        """What the step after `step` finished ones is compiled for."""
        has_geometry = self.geometry_start is not None and step >= self.geometry_start
        return StepShape(
            self.is_growing and step < self.density_stop,
            has_geometry,
            self.dilation if step < self.dilation_stop else 1,
        )

    def sh_degree_at(self, step: int) -> int:
        """The highest degree of spherical harmonics that learns in the step after `step` finished
        ones.
        """
        if not self.sh_every:
            return self.sh_degree
        return min(self.sh_degree, step // self.sh_every)

    def looks_at_all_after(self, step: int) -> bool:
        """Whether density control or masks look at all surfels after this many steps, or they are
        the stage's last.
        """
        return (
            self.densifies_after(step)
            or self.trims_after(step)
            or self.resets_after(step)
            or self.prunes_masked_after(step)
            or step == self.num_steps
        )

    def densifies_after(self, step: int) -> bool:
        """Whether density control runs after this many steps."""
        return (
            self.is_growing
            and self.density_start <= step <= self.density_stop
            and step % self.density_every == 0
        )

    def budget(self, step: int, first: int, capacity: int) -> int:
        """How many surfels may live after the density control of this step: from `first` to
        `capacity` in a straight line.

        Without it the large gradients of the first steps fill all slots at once, with surfels that
        nobody needs later."""
        fraction = (step - self.density_start) / max(1, self.density_stop - self.density_start)
        return max(first, round(first + (capacity - first) * min(1.0, fraction * _BUDGET_LEAD)))

    def resets_after(self, step: int) -> bool:
        """Whether the opacities are lowered after this many steps; not so late that density control
        could not follow.
        """
        return (
            self.is_growing
            and self.reset_every > 0
            and step % self.reset_every == 0
            and step + self.reset_every <= self.density_stop
        )

    def trims_after(self, step: int) -> bool:
        """Whether what too few photographs see is dropped after this many steps; not while
        opacities are low.
        """
        if not (
            self.is_growing
            and self.trim_every
            and self.density_start <= step <= self.density_stop
            and step % self.trim_every == 0
        ):
            return False
        first = max(1, step - self.reset_every // 2 + 1)
        return not any(self.resets_after(earlier) for earlier in range(first, step + 1))

    def is_masked(self, step: int) -> bool:
        """Whether masks are learned in the step after `step` finished ones."""
        return self.mask_start <= step < self.mask_stop

    def prunes_masked_after(self, step: int) -> bool:
        """Whether what the masks leave out is pruned after this many steps."""
        return self.mask_start < step == self.mask_stop

    def prunes_large(self, step: int) -> bool:
        """Whether the density control of this step prunes surfels for their size."""
        return step > self.prune_large_start


def progress_at(step: int, num_steps: int, first_progress: float = 0.0) -> float:
    """Where on the course of the learning rates a stage is after `step` of its steps: from
    `first_progress` to 1.
    """
    return first_progress + (1 - first_progress) * step / num_steps


class ViewOrder:
    """Which photograph each step uses: all once per epoch, in an order that follows from seed,
    block and epoch alone.
    """

    def __init__(self, views: np.ndarray, seed: int, block: int = 0):
        """
        Args:
            views: i64[n] training views of the block.
            seed: of the run.
            block: its number.
        """
        self._views = views
        self._seed = (seed, block)
        self._epoch = -1
        self._order = views

    def view(self, step: int) -> int:
        """The view of the step after `step` finished ones."""
        epoch, position = divmod(step, len(self._views))
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = np.random.default_rng([*self._seed, epoch]).permutation(self._views)
        return int(self._order[position])

    def views(self, first: int, count: int) -> list[int]:
        """The views of `count` steps from `first` on."""
        return [self.view(step) for step in range(first, first + count)]
