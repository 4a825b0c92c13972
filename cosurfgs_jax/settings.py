"""Every setting of the package: one dataclass per consumer, each with `validate()`. No JAX here.

A config file (`configs/*.py`) returns a `Settings`; flags `--config.a.b=value` change single
fields. A value of 0 (or "") where the comment says "from the data" is replaced by the consumer,
which logs what it chose."""

import dataclasses

from cosurfgs_jax.errors import InputError

_MAX_OFFSET = 1e10  # of map coordinates, in any unit of length
BACKENDS = ("cpu", "cuda", "tpu", "portable", "reference")  # of the rasterizer
IMPORTANCE_SCORES = ("removal", "weight")  # collab/importance.py holds them


def _require(condition: bool, name: str, expected: str, got) -> None:
    if not condition:
        raise InputError(f"config.{name}: expected {expected}, got {got!r}")


@dataclasses.dataclass
class DataSettings:
    """Where the photographs and their poses are, and which of them are kept for testing."""

    path: str = "generated"  # a dataset folder, or "generated" for the built-in town
    images: str = (
        ""  # image folder inside the dataset; "" = images, or images_<downscale> where it exists
    )
    model: str = ""  # COLMAP model folder inside the dataset; "" = the one with most images
    downscale: int = 1  # images are shrunk by this whole factor
    # "every<n>": each n-th by name is test; "all": no test view; "folders"; or a list file of test
    # names
    split: str = "every8"
    host_memory_mb: int = 4096  # decoded images are cached as uint8 up to this
    # photographs stay on their device if all fit into this; 0 = never, -1 = a quarter of what is
    # free
    device_memory_mb: int = -1
    # there; on a CPU, whose memory is the host's, -1 means never

    def validate(self) -> None:
        _require(
            self.downscale >= 1, "data.downscale", "a whole number of at least 1", self.downscale
        )
        _require(
            self.host_memory_mb >= 64, "data.host_memory_mb", "at least 64", self.host_memory_mb
        )
        _require(
            self.device_memory_mb >= -1,
            "data.device_memory_mb",
            "-1 (from the device), 0 (never) or MiB",
            self.device_memory_mb,
        )
        _require(self.path != "", "data.path", 'a dataset folder or "generated"', self.path)


@dataclasses.dataclass
class GeneratedSettings:
    """The built-in town."""

    num_views: int = 120
    width: int = 640  # pixels
    height: int = 480
    size_m: float = 200.0  # side of the square town, metres
    seed: int = 0
    exposure_jitter: float = 0.0  # standard deviation of the photographs' exposure, stops

    def validate(self) -> None:
        _require(self.num_views >= 4, "generated.num_views", "at least 4", self.num_views)
        _require(
            min(self.width, self.height) >= 32,
            "generated.width, height",
            "at least 32",
            (self.width, self.height),
        )
        _require(self.size_m >= 30, "generated.size_m", "at least 30 metres", self.size_m)
        _require(self.seed >= 0, "generated.seed", "0 or more", self.seed)
        _require(
            self.exposure_jitter >= 0,
            "generated.exposure_jitter",
            "0 or more stops",
            self.exposure_jitter,
        )


@dataclasses.dataclass
class SurfelSettings:
    """The model's arrays."""

    capacity: int = (
        0  # the most surfels there may ever be; 0 = from the data (pixels of all images)
    )
    sh_degree: int = 3
    init_opacity: float = 0.1

    def validate(self) -> None:
        _require(
            self.capacity >= 0,
            "surfels.capacity",
            "0 (from the data) or a positive number",
            self.capacity,
        )
        _require(0 <= self.sh_degree <= 3, "surfels.sh_degree", "0 to 3", self.sh_degree)
        _require(
            0 < self.init_opacity < 1,
            "surfels.init_opacity",
            "a number in (0, 1)",
            self.init_opacity,
        )


@dataclasses.dataclass
class RasterSettings:
    """How surfels are drawn."""

    backend: str = ""  # one of BACKENDS; "" = the best for the device
    near: float = 0.01  # world lengths: a fraction of the scene scale
    background: float = 0.0  # grey level behind the surfels

    def validate(self) -> None:
        _require(self.near > 0, "raster.near", "a positive fraction of the scene scale", self.near)
        _require(
            0 <= self.background <= 1, "raster.background", "a grey level, 0 to 1", self.background
        )
        _require(
            self.backend in ("", *BACKENDS),
            "raster.backend",
            f"one of {', '.join(BACKENDS)}, or nothing",
            self.backend,
        )


@dataclasses.dataclass
class LossSettings:
    """Weights of the training losses: EC-RGB, SV-Reg, MV-Reg; optional distortion."""

    ssim_weight: float = 0.2
    single_view_weight: float = 0.015  # SV-Reg: rendered normals against those of the plane depth
    multi_view_geometric_weight: float = (
        0.03  # MV-Reg: pixels return from a neighbouring view to where they came from
    )
    multi_view_photometric_weight: float = 0.5  # MV-Reg: patches look alike in a neighbouring view
    geometry_start: float = (
        0.25  # of train.steps, where SV-Reg and MV-Reg begin: before, there is no surface to judge
    )
    patch_stride: int = 3  # pixels between the places at which MV-Reg looks, along both axes
    max_neighbor_angle_deg: float = 30.0  # between the optical axes of neighbouring views
    num_neighbors: int = 8  # of a view, nearest first, taken in turn
    transparency_weight: float = (
        0.05  # light that passes through the model: dark surfaces would stay holes before black
    )
    distortion_weight: float = 0.0  # multiplies the mean distortion map in world lengths

    def validate(self) -> None:
        _require(
            0 <= self.ssim_weight <= 1, "loss.ssim_weight", "a number in [0, 1]", self.ssim_weight
        )
        for name in (
            "distortion_weight",
            "transparency_weight",
            "single_view_weight",
            "multi_view_geometric_weight",
            "multi_view_photometric_weight",
        ):
            _require(getattr(self, name) >= 0, f"loss.{name}", "0 or more", getattr(self, name))
        _require(
            0 <= self.geometry_start <= 1,
            "loss.geometry_start",
            "a share of the steps, 0 to 1",
            self.geometry_start,
        )
        _require(self.patch_stride >= 1, "loss.patch_stride", "at least 1 pixel", self.patch_stride)
        _require(
            0 < self.max_neighbor_angle_deg < 90,
            "loss.max_neighbor_angle_deg",
            "above 0 and below 90 degrees",
            self.max_neighbor_angle_deg,
        )
        _require(self.num_neighbors >= 1, "loss.num_neighbors", "at least 1", self.num_neighbors)

    @property
    def has_single_view(self) -> bool:
        """Whether SV-Reg is on."""
        return self.single_view_weight > 0

    @property
    def has_multi_view(self) -> bool:
        """Whether MV-Reg is on."""
        return self.multi_view_geometric_weight > 0 or self.multi_view_photometric_weight > 0


@dataclasses.dataclass
class AppearanceSettings:
    """The exposure model: one embedding per photograph and a small network."""

    enabled: bool = True
    embedding_dim: int = 16
    hidden_dim: int = 32
    learning_rate: float = 1e-3
    identity_weight: float = 0.01  # pull of the mean colour transform towards the identity
    # of train.steps; earlier, the transforms would learn the faults of an unfinished model
    start: float = 0.03

    def validate(self) -> None:
        _require(
            self.embedding_dim >= 1, "appearance.embedding_dim", "at least 1", self.embedding_dim
        )
        _require(self.hidden_dim >= 1, "appearance.hidden_dim", "at least 1", self.hidden_dim)
        _require(
            self.learning_rate > 0,
            "appearance.learning_rate",
            "a positive number",
            self.learning_rate,
        )
        _require(
            self.identity_weight >= 0,
            "appearance.identity_weight",
            "0 or more",
            self.identity_weight,
        )
        _require(
            0 <= self.start <= 1, "appearance.start", "a share of the steps, 0 to 1", self.start
        )


@dataclasses.dataclass
class OptimSettings:
    """Learning rates; lengths are in units of the scene scale."""

    means_start: float = 1.6e-4
    means_end: float = 1.6e-6
    quats: float = 1e-3
    log_scales: float = 5e-3
    logit_opacities: float = 0.05
    sh_dc: float = 2.5e-3
    sh_rest: float = 1.25e-4
    adam_eps: float = 1e-15

    def validate(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            _require(value > 0, f"optim.{field.name}", "a positive number", value)


@dataclasses.dataclass
class DensitySettings:
    """Density control. Times are fractions of the number of steps, so that short and long runs
    follow the same course.
    """

    enabled: bool = True
    start: float = 0.0167  # of train.steps
    stop: float = 0.5
    every: float = 0.00333
    opacity_reset_every: float = 0.1
    gradient_threshold: float = (
        2e-4  # mean norm of the screen gradient, loss per normalised image half-width
    )
    absolute_gradient_threshold: float = 8e-4
    split_scale: float = 0.01  # larger surfels are split, smaller ones cloned; world lengths
    prune_opacity: float = 0.005
    prune_scale: float = (
        0.1  # world lengths; larger surfels are dropped after the first opacity reset
    )
    trim_every: float = (
        0.0333  # of train.steps: drop what too few photographs see in the front half of their light
    )
    trim_min_views: int = (
        0  # 0 = never; 2 cost 0.4 dB and 0.007 SSIM at the rim of a real scene (docs/results.md)
    )
    growth_factor: float = 1.5  # of the allocated slots, at a recompile

    def validate(self) -> None:
        _require(
            0 <= self.start <= self.stop <= 1,
            "density.start, stop",
            "0 <= start <= stop <= 1",
            (self.start, self.stop),
        )
        _require(self.every > 0, "density.every", "a positive fraction", self.every)
        _require(self.trim_every > 0, "density.trim_every", "a positive fraction", self.trim_every)
        _require(
            self.trim_min_views >= 0,
            "density.trim_min_views",
            "0 (never) or more",
            self.trim_min_views,
        )
        _require(self.growth_factor > 1, "density.growth_factor", "more than 1", self.growth_factor)
        for name in (
            "opacity_reset_every",
            "gradient_threshold",
            "absolute_gradient_threshold",
            "split_scale",
            "prune_scale",
        ):
            _require(
                getattr(self, name) > 0, f"density.{name}", "a positive number", getattr(self, name)
            )
        _require(
            0 <= self.prune_opacity < 1,
            "density.prune_opacity",
            "a number in [0, 1)",
            self.prune_opacity,
        )


@dataclasses.dataclass
class TrainSettings:
    """The course of training."""

    steps: int = 7000
    sh_degree_every: float = 1 / 30  # of steps: one more degree of spherical harmonics
    checkpoint_every: int = 500  # steps
    log_every: int = 50
    test_every: int = 0  # steps between PSNR on test views; 0 = only at the end

    def validate(self) -> None:
        _require(self.steps >= 1, "train.steps", "at least 1", self.steps)
        _require(
            self.checkpoint_every >= 1,
            "train.checkpoint_every",
            "at least 1",
            self.checkpoint_every,
        )
        _require(self.log_every >= 1, "train.log_every", "at least 1", self.log_every)
        _require(
            self.test_every >= 0,
            "train.test_every",
            "0 (only at the end) or a number of steps",
            self.test_every,
        )
        _require(
            self.sh_degree_every > 0,
            "train.sh_degree_every",
            "a positive share of the steps",
            self.sh_degree_every,
        )


@dataclasses.dataclass
class PartitionSettings:
    """How a place is cut into blocks, and which blocks form an edge. Both are logical: any number
    of devices carries them.
    """

    num_blocks: int = 1
    num_edges: int = 1
    expansion: float = 0.2  # of a cell's side, on each side: what a block trains on beyond its cell
    min_coverage: float = (
        0.25  # of an image's area that a cell's airspace must cover to make it one of the block's
    )
    min_views: int = 3  # a block with fewer training views is merged with its neighbour
    min_points: int = 100  # likewise

    def validate(self) -> None:
        _require(self.num_blocks >= 1, "partition.num_blocks", "at least 1", self.num_blocks)
        _require(
            1 <= self.num_edges <= self.num_blocks,
            "partition.num_edges",
            f"1 to partition.num_blocks ({self.num_blocks}), as an edge is a group of blocks",
            self.num_edges,
        )
        _require(
            0 <= self.expansion <= 1,
            "partition.expansion",
            "a share of a cell's side, 0 to 1",
            self.expansion,
        )
        _require(
            0 < self.min_coverage <= 1,
            "partition.min_coverage",
            "a number in (0, 1]",
            self.min_coverage,
        )
        _require(self.min_views >= 1, "partition.min_views", "at least 1", self.min_views)
        _require(self.min_points >= 1, "partition.min_points", "at least 1", self.min_points)


@dataclasses.dataclass
class MeshSettings:
    """The devices that carry the blocks."""

    num_devices: int = 0  # 0 = all that JAX sees

    def validate(self) -> None:
        _require(
            self.num_devices >= 0,
            "mesh.num_devices",
            "0 (all that JAX sees) or a positive number",
            self.num_devices,
        )


@dataclasses.dataclass
class LmcSettings:
    """Local model compression (LMC): importance, pruning, and training to recover. Only where there
    are several blocks.
    """

    enabled: bool = True
    prune_ratio: float = 0.4  # of a block's surfels
    importance_share: float = (
        0.0  # or: keep the smallest head that carries this share of the importance; 0 = by ratio
    )
    camera_switch: bool = (
        True  # importance counts only photographs that really look at the block's cell
    )
    # of a photograph's pixels, by rendered weight, that must come from the cell to call it used
    min_cell_share: float = 0.25
    # what surfels are ranked by: "removal" (the change of the pictures without it) or "weight"
    score: str = "removal"
    area_exponent: float = (
        -0.3
    )  # of "weight"; below 0: of surfels that weigh as much, large ones go first
    rounds: int = 4  # of pruning, each followed by its part of the recovery and a new measurement
    recovery: float = (
        0.15  # of train.steps: steps of training after pruning, in all rounds together
    )
    edge_prune_ratio: float = 0.1  # of an edge's surfels, between edge and cloud

    def validate(self) -> None:
        _require(
            0 <= self.prune_ratio < 1, "lmc.prune_ratio", "a share in [0, 1)", self.prune_ratio
        )
        _require(
            0 <= self.edge_prune_ratio < 1,
            "lmc.edge_prune_ratio",
            "a share in [0, 1)",
            self.edge_prune_ratio,
        )
        _require(
            0 <= self.importance_share < 1,
            "lmc.importance_share",
            "0 (by ratio) or a share below 1",
            self.importance_share,
        )
        _require(
            0 <= self.min_cell_share <= 1,
            "lmc.min_cell_share",
            "a share, 0 to 1",
            self.min_cell_share,
        )
        _require(
            self.score in IMPORTANCE_SCORES,
            "lmc.score",
            f"one of {', '.join(IMPORTANCE_SCORES)}",
            self.score,
        )
        _require(self.rounds >= 1, "lmc.rounds", "at least 1", self.rounds)
        _require(
            0 <= self.recovery <= 1, "lmc.recovery", "a share of train.steps, 0 to 1", self.recovery
        )


@dataclasses.dataclass
class MasSettings:
    """Model aggregation (MAS): the blocks distilled into one model."""

    enabled: bool = True
    steps: int = (
        0  # of each stage, one photograph of every block a step; 0 = a tenth of train.steps
    )
    teacher_weight: float = (
        0.5  # of the frozen local models' colours; the rest is that of the devices' own photographs
    )
    depth_weight: float = 0.2  # of the teachers' depth, relative to the depth
    normal_weight: float = 0.05  # of the teachers' normals
    start_progress: float = (
        0.5  # where on the course of the learning rates a stage begins; it ends at 1
    )
    max_partners: int = (
        8  # devices that may be asked to draw parts of one device's view, where there are more
    )

    def validate(self) -> None:
        _require(
            self.steps >= 0,
            "mas.steps",
            "0 (a tenth of train.steps) or a positive number",
            self.steps,
        )
        _require(
            0 <= self.teacher_weight <= 1,
            "mas.teacher_weight",
            "a share, 0 to 1",
            self.teacher_weight,
        )
        _require(self.depth_weight >= 0, "mas.depth_weight", "0 or more", self.depth_weight)
        _require(self.normal_weight >= 0, "mas.normal_weight", "0 or more", self.normal_weight)
        _require(
            0 <= self.start_progress <= 1,
            "mas.start_progress",
            "a share of the course, 0 to 1",
            self.start_progress,
        )
        _require(self.max_partners >= 1, "mas.max_partners", "at least 1", self.max_partners)


@dataclasses.dataclass
class SurfaceSettings:
    """Mesh extraction. Lengths are in the dataset's unit; 0 = from the data."""

    depth_map: str = "plane"  # which rendered depth is fused: "plane", "median" or "expected"
    voxel_size: float = 0.0
    truncation_voxels: float = 4.0
    max_angle_deg: float = 80.0  # between ray and normal
    min_neighbor_views: int = 2  # views that must confirm a depth, where so many could
    min_cluster_share: float = (
        0.005  # smaller connected pieces (of the largest, by triangles) are dropped
    )
    target_triangles: int = (
        0  # collapse edges until so few are left; 0 = keep all. Needs the whole mesh in memory
    )
    memory_mb: int = 2048  # a place that needs more is fused tile by tile, with the same result

    def validate(self) -> None:
        _require(self.memory_mb >= 64, "surface.memory_mb", "at least 64", self.memory_mb)
        _require(
            self.target_triangles >= 0,
            "surface.target_triangles",
            "0 (keep all) or a positive number",
            self.target_triangles,
        )
        _require(
            self.depth_map in ("plane", "median", "expected"),
            "surface.depth_map",
            '"plane", "median" or "expected"',
            self.depth_map,
        )
        _require(
            self.voxel_size >= 0,
            "surface.voxel_size",
            "0 (from the data) or a positive length",
            self.voxel_size,
        )
        _require(
            self.truncation_voxels >= 1,
            "surface.truncation_voxels",
            "at least 1",
            self.truncation_voxels,
        )
        _require(
            0 < self.max_angle_deg <= 90,
            "surface.max_angle_deg",
            "above 0, at most 90 degrees",
            self.max_angle_deg,
        )
        _require(
            self.min_neighbor_views >= 0,
            "surface.min_neighbor_views",
            "0 or more",
            self.min_neighbor_views,
        )
        _require(
            0 <= self.min_cluster_share < 1,
            "surface.min_cluster_share",
            "a share in [0, 1)",
            self.min_cluster_share,
        )


@dataclasses.dataclass
class GeoSettings:
    """Height map, orthophoto and points for maps. Lengths are in the dataset's unit."""

    pixel_size: float = (
        0.0  # on the ground; 0 = from the data: the median size of a photograph's pixel there
    )
    # "x,y,z" that makes map coordinates of the dataset's; it is added in the files that are written
    offset: str = ""
    # number of the projected coordinate system that coordinates are in then; 0 = none is written
    epsg: int = 0

    def offset_xyz(self) -> tuple[float, float, float]:
        """The offset as numbers."""
        parts = self.offset.replace(" ", "").split(",") if self.offset.strip() else ["0"] * 3
        try:
            numbers = tuple(map(float, parts))
        except ValueError:
            numbers = ()
        _require(
            len(numbers) == 3 and all(abs(number) <= _MAX_OFFSET for number in numbers),
            "geo.offset",
            'three numbers "x,y,z"',
            self.offset,
        )
        return numbers[0], numbers[1], numbers[2]

    def validate(self) -> None:
        _require(
            self.pixel_size >= 0,
            "geo.pixel_size",
            "0 (from the data) or a positive length",
            self.pixel_size,
        )
        _require(
            self.epsg >= 0,
            "geo.epsg",
            "0 (none) or the EPSG number of a projected system",
            self.epsg,
        )
        self.offset_xyz()


@dataclasses.dataclass
class Settings:
    """All of them; what a config file returns."""

    seed: int = 0
    data: DataSettings = dataclasses.field(default_factory=DataSettings)
    generated: GeneratedSettings = dataclasses.field(default_factory=GeneratedSettings)
    surfels: SurfelSettings = dataclasses.field(default_factory=SurfelSettings)
    raster: RasterSettings = dataclasses.field(default_factory=RasterSettings)
    loss: LossSettings = dataclasses.field(default_factory=LossSettings)
    appearance: AppearanceSettings = dataclasses.field(default_factory=AppearanceSettings)
    optim: OptimSettings = dataclasses.field(default_factory=OptimSettings)
    density: DensitySettings = dataclasses.field(default_factory=DensitySettings)
    train: TrainSettings = dataclasses.field(default_factory=TrainSettings)
    partition: PartitionSettings = dataclasses.field(default_factory=PartitionSettings)
    mesh: MeshSettings = dataclasses.field(default_factory=MeshSettings)
    lmc: LmcSettings = dataclasses.field(default_factory=LmcSettings)
    mas: MasSettings = dataclasses.field(default_factory=MasSettings)
    surface: SurfaceSettings = dataclasses.field(default_factory=SurfaceSettings)
    geo: GeoSettings = dataclasses.field(default_factory=GeoSettings)

    def validate(self) -> None:
        _require(self.seed >= 0, "seed", "0 or more", self.seed)
        for field in dataclasses.fields(self):
            part = getattr(self, field.name)
            if dataclasses.is_dataclass(part):
                part.validate()
