"""Settings of the training of one block: losses, learning rates, density control, schedule."""

import dataclasses

from cosurfgs_jax.settings.declaration import (
    SettingsGroup,
    at_least,
    fraction,
    not_negative,
    number,
    positive,
    require,
    setting,
    term_weight,
)


@dataclasses.dataclass
class LossSettings(SettingsGroup, name="loss"):
    """Weights of the training losses: EC-RGB, SV-Reg, MV-Reg; optional distortion."""

    ssim_weight: float = setting(
        0.2,
        "Weight of D-SSIM in the photometric loss; L1 has the rest.",
        fraction("a number in [0, 1]"),
    )
    single_view_weight: float = setting(
        0.015,
        "SV-Reg: weight of the difference between rendered normals and those of the plane depth.",
        not_negative(),
    )
    multi_view_geometric_weight: float = setting(
        0.03,
        "MV-Reg: weight of the round-trip reprojection error through a neighbouring view.",
        not_negative(),
    )
    multi_view_photometric_weight: float = setting(
        0.5,
        "MV-Reg: weight of the normalised cross-correlation of patches with a neighbouring view.",
        not_negative(),
    )
    geometry_start: float = setting(
        0.25,
        "Where SV-Reg and MV-Reg begin, as a fraction of train.steps; before, there is no surface "
        "to regularise.",
        fraction("a fraction of the steps, 0 to 1"),
    )
    patch_stride: int = setting(
        3,
        "Distance in pixels, along both axes, between the patches that MV-Reg compares.",
        at_least(1, "at least 1 pixel"),
    )
    patch_plane_px: float = setting(
        0.5,
        "Standard deviation, in pixels, of the distance from the plane that the depth has in the "
        "middle of a patch at which its pixels count for MV-Reg: patches across an edge are then "
        "of one plane. 0 means that all pixels of a patch count alike.",
        not_negative("0 (all pixels count) or a number of pixels"),
    )
    max_neighbor_angle_deg: float = setting(
        30.0,
        "Maximum angle in degrees between the optical axes of neighbouring views; twice as much "
        "for what the nearest of them do not show.",
        number("above 0 and below 90 degrees", above=0, below=90),
    )
    num_neighbors: int = setting(
        8,
        "Number of neighbouring views of a view: the nearest, and up to four more for what those "
        "do not show. They are taken so that all parts of the picture are compared equally often.",
        at_least(1),
    )
    remember_depth: bool = setting(
        True,
        "Whether MV-Reg compares a view with the depth that its neighbour showed when it was drawn "
        "last, instead of drawing the neighbour in every step.",
    )
    transparency_weight: float = setting(
        0.1,
        "Weight of the squared transmittance that is left behind the model: without it, dark "
        "surfaces stay holes before a black background.",
        not_negative(),
    )
    distortion_weight: float = term_weight(
        "distortion", 0.0, "Weight of the mean distortion map, in world lengths."
    )

    @property
    def has_single_view(self) -> bool:
        """Whether SV-Reg is on."""
        return self.single_view_weight > 0

    @property
    def has_multi_view(self) -> bool:
        """Whether MV-Reg is on."""
        return self.multi_view_geometric_weight > 0 or self.multi_view_photometric_weight > 0


@dataclasses.dataclass
class OptimSettings(SettingsGroup, name="optim"):
    """Learning rates; lengths are in units of the scene scale."""

    means_start: float = setting(1.6e-4, "Learning rate of the means at the start.", positive())
    means_end: float = setting(
        3.2e-5, "Learning rate of the means at the end; it falls exponentially.", positive()
    )
    quats: float = setting(1e-3, "Learning rate of the quaternions.", positive())
    log_scales: float = setting(0.01, "Learning rate of the log scales.", positive())
    logit_opacities: float = setting(0.1, "Learning rate of the logit opacities.", positive())
    sh_dc: float = setting(
        5e-3, "Learning rate of the spherical harmonics of degree 0.", positive()
    )
    sh_rest: float = setting(
        2.5e-4, "Learning rate of the spherical harmonics above degree 0.", positive()
    )
    adam_eps: float = setting(1e-15, "Epsilon of Adam.", positive())
    lazy: bool = setting(
        True,
        "Whether surfels outside of a view wait for the next view that may show them, and are then "
        "brought to where Adam would have taken them: the same steps at less cost. On CPUs, and "
        "where adam_eps is at most 1e-12, only.",
    )


@dataclasses.dataclass
class DensitySettings(SettingsGroup, name="density"):
    """Density control. Times are fractions of the number of steps, so that short and long runs
    follow the same course.
    """

    enabled: bool = setting(True, "Whether surfels are cloned, split and pruned.")
    strategy: str = setting(
        "error",
        'Which strategy adds and drops surfels: "error" by what photographs show to be wrong and '
        'by screen gradients, "adaptive" by these alone; or another in '
        "model/density_strategies.py.",
    )
    start: float = setting(0.0167, "Where density control begins, as a fraction of train.steps.")
    stop: float = setting(0.5, "Where density control ends, as a fraction of train.steps.")
    every: float = setting(
        0.01,
        "Steps between two rounds of cloning, splitting and pruning, as a fraction of train.steps, "
        "at least 20 steps. As in 3DGS (0.00333) costs more time for no more (docs/results.md).",
        positive("a positive fraction"),
    )
    opacity_reset_every: float = setting(
        0.0,
        "Steps between two opacity resets, as a fraction of train.steps, but at least 500 steps; 0 "
        "means never. Resets as in 3DGS (0.1) cost more than they clear away (docs/results.md).",
        not_negative("0 (never) or a fraction of the steps"),
    )
    gradient_threshold: float = setting(
        2e-4,
        'Mean norm of the screen gradient above which a surfel grows with "adaptive"; loss per '
        'image half-width. For "error" its ratio to the next one counts alone.',
        positive(),
    )
    absolute_gradient_threshold: float = setting(
        8e-4,
        "The same for the sum of absolute gradients over pixels (AbsGS).",
        positive(),
    )
    error_views: int = setting(
        8,
        'Photographs that the strategy "error" looks at before each round, at every second pixel '
        "of every second row.",
        at_least(1),
    )
    split_scale: float = setting(
        0.01,
        "Scale above which a growing surfel is split, and below which it is cloned; in extents of "
        "the block.",
        positive(),
    )
    prune_opacity: float = setting(
        0.005,
        "Opacity below which surfels are pruned.",
        number("a number in [0, 1)", at_least=0, below=1),
    )
    prune_scale: float = setting(
        0.1,
        "Scale above which surfels are pruned, from prune_scale_start on; in extents of the block.",
        positive(),
    )
    prune_scale_start: float = setting(
        0.1,
        "Where surfels begin to be pruned for their size, as a fraction of train.steps, but not "
        "before step 500: at first they are large where points are few.",
        fraction("a fraction of the steps, 0 to 1"),
    )
    trim_every: float = setting(
        0.0333,
        "Steps between two trims, as a fraction of train.steps: surfels that too few photographs "
        "see while transmittance > 0.5 are dropped.",
        positive("a positive fraction"),
    )
    trim_min_views: int = setting(
        0,
        "Number of photographs that must see a surfel at a trim; 0 means never trim. A value of 2 "
        "costs 0.4 dB and 0.007 SSIM at the rim of a real scene (docs/results.md).",
        not_negative("0 (never) or more"),
    )
    growth_factor: float = setting(
        1.5,
        "Factor by which allocated slots grow at a recompile.",
        number("more than 1", above=1),
    )
    min_slots: int = setting(
        34_816,
        "Slots that a block has from the start, or its capacity where that is less: so many empty "
        "ones cost a run less than compiling its steps again.",
        at_least(1),
    )

    def check_together(self) -> None:
        """Density control begins before it ends."""
        require(
            0 <= self.start <= self.stop <= 1,
            "density.start, stop",
            "0 <= start <= stop <= 1",
            (self.start, self.stop),
        )


@dataclasses.dataclass
class MaskSettings(SettingsGroup, name="mask"):
    """Masks learned in the training of a block: which surfels are pruned while it goes on. Times
    are fractions of the number of steps.
    """

    weight: float = setting(
        0.0,
        "Weight of the square of the mean probability that a surfel is kept; the larger, the fewer "
        "surfels are left. 0 means no masks.",
        not_negative("0 (no masks) or a positive number"),
    )
    start: float = setting(
        0.5,
        "Where masks begin, as a fraction of train.steps; not before density control ends.",
        fraction("a fraction of the steps, 0 to 1"),
    )
    stop: float = setting(
        0.7,
        "Where what is masked more often than not is pruned, as a fraction of train.steps; the "
        "steps after it are the recovery.",
        fraction("a fraction of the steps, 0 to 1"),
    )

    def check_together(self) -> None:
        """Masks begin before they end."""
        require(self.start < self.stop, "mask.start, stop", "start < stop", (self.start, self.stop))


@dataclasses.dataclass
class TrainSettings(SettingsGroup, name="train"):
    """The course of training."""

    steps: int = setting(7000, "Number of training steps of a block.", at_least(1), is_main=True)
    sh_degree_every: float = setting(
        1 / 30,
        "Steps until one more degree of spherical harmonics is trained, as a fraction of "
        "train.steps.",
        positive("a positive fraction of the steps"),
    )
    dilation: int = setting(
        0,
        "A dilated step draws every second pixel of every second row with 2; 1 draws all pixels "
        "in all steps; 0 means from the data (2 where photographs have half a megapixel and more "
        "and steps are many, else 1).",
        number("0 (from the data), 1 or 2", at_least=0, at_most=2),
    )
    dilation_stop: float = setting(
        0.9,
        "Where steps begin to draw all pixels, as a fraction of train.steps.",
        fraction("a fraction of the steps, 0 to 1"),
    )
    make_do: bool = setting(
        True,
        "Whether settings are changed before the first step where memory would not suffice, with a "
        "line for each; else there is only a warning.",
    )
    checkpoint_every: int = setting(500, "Steps between two checkpoints.", at_least(1))
    keep_moments: bool = setting(
        False,
        "Whether checkpoints of finished stages keep the moments of the optimiser, so that other "
        "runs may begin with them: three times as many bytes.",
    )
    log_every: int = setting(50, "Steps between two lines of the log.", at_least(1))
    test_every: int = setting(
        0,
        "Steps between measurements of PSNR on test views; 0 means only at the end.",
        not_negative("0 (only at the end) or a number of steps"),
    )
