"""Every setting's default and the numbers that it accepts while the others stay as they are. Runs
without a word of a setting, and saved ones that lack it, mean what stands here: whoever changes it
on purpose changes it here, too, and says so in CHANGELOG.md.
"""

import dataclasses
import math
import re

import pytest

from cosurfgs_jax import settings_file
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.settings import PrepareSettings, Settings


def accepts(name: str, value) -> bool:
    try:
        if name.startswith("prepare."):
            name = name.removeprefix("prepare.")
            dataclasses.replace(PrepareSettings(), **{name: value}).validate()
        else:
            settings = Settings()
            settings_file.set_value(settings, name, value)
            settings_file.check(settings)
    except InputError:
        return False
    return True


def defaults() -> dict:
    own = {name: default for name, _, default in settings_file.leaves(Settings())}
    prepare = dataclasses.asdict(PrepareSettings())
    return own | {f"prepare.{name}": default for name, default in prepare.items()}


def next_to(value, towards: float):
    """The nearest other number of the same type."""
    if isinstance(value, float):
        return math.nextafter(value, towards)
    return value + int(math.copysign(1, towards))


DECLARED = {
    "seed": (0, "[0, 4294967295]"),
    "data.path": ("generated", ""),
    "data.images": ("", ""),
    "data.model": ("", ""),
    "data.downscale": (1, "[1, 1024]"),
    "data.split": ("every8", ""),
    "data.host_memory_mb": (4096, "[64, 2147483647]"),
    "data.device_memory_mb": (-1, "[-1, 2147483647]"),
    "generated.num_views": (120, "[4, 100000]"),
    "generated.width": (640, "[32, 32767]"),
    "generated.height": (480, "[32, 32767]"),
    "generated.size_m": (200.0, "[30, 1000000]"),
    "generated.seed": (0, "[0, 4294967295]"),
    "generated.exposure_jitter": (0.0, "[0, 1000000]"),
    "generated.embankment_deg": (0.0, ""),
    "surfels.capacity": (0, "[0, 2147483647]"),
    "surfels.sh_degree": (3, "[0, 3]"),
    "surfels.init_opacity": (0.1, "(0, 1)"),
    "surfels.fill_gaps": (True, ""),
    "raster.backend": ("", ""),
    "raster.near": (0.01, "(0, 1000000]"),
    "raster.background": (0.0, "[0, 1]"),
    "loss.ssim_weight": (0.2, "[0, 1]"),
    "loss.single_view_weight": (0.015, "[0, 1000000]"),
    "loss.multi_view_geometric_weight": (0.03, "[0, 1000000]"),
    "loss.multi_view_photometric_weight": (0.5, "[0, 1000000]"),
    "loss.geometry_start": (0.25, "[0, 1]"),
    "loss.patch_stride": (3, "[1, 2147483647]"),
    "loss.patch_plane_px": (0.5, "[0, 1000000]"),
    "loss.max_neighbor_angle_deg": (30.0, "(0, 90)"),
    "loss.num_neighbors": (8, "[1, 2147483647]"),
    "loss.remember_depth": (True, ""),
    "loss.transparency_weight": (0.1, "[0, 1000000]"),
    "loss.distortion_weight": (0.0, "[0, 1000000]"),
    "appearance.enabled": (True, ""),
    "appearance.embedding_dim": (16, "[1, 2147483647]"),
    "appearance.hidden_dim": (32, "[1, 2147483647]"),
    "appearance.learning_rate": (0.001, "(0, 1000000]"),
    "appearance.identity_weight": (0.01, "[0, 1000000]"),
    "appearance.start": (0.03, "[0, 1]"),
    "optim.means_start": (0.00016, "(0, 1000000]"),
    "optim.means_end": (3.2e-05, "(0, 1000000]"),
    "optim.quats": (0.001, "(0, 1000000]"),
    "optim.log_scales": (0.01, "(0, 1000000]"),
    "optim.logit_opacities": (0.1, "(0, 1000000]"),
    "optim.sh_dc": (0.005, "(0, 1000000]"),
    "optim.sh_rest": (0.00025, "(0, 1000000]"),
    "optim.adam_eps": (1e-15, "(0, 1000000]"),
    "optim.lazy": (True, ""),
    "density.enabled": (True, ""),
    "density.strategy": ("error", ""),
    "density.start": (0.0167, "[0, 0.5]"),
    "density.stop": (0.5, "[0.0167, 1]"),
    "density.every": (0.01, "(0, 1000000]"),
    "density.opacity_reset_every": (0.0, "[0, 1000000]"),
    "density.gradient_threshold": (0.0002, "(0, 1000000]"),
    "density.absolute_gradient_threshold": (0.0008, "(0, 1000000]"),
    "density.error_views": (8, "[1, 2147483647]"),
    "density.split_scale": (0.01, "(0, 1000000]"),
    "density.prune_opacity": (0.005, "[0, 1)"),
    "density.prune_scale": (0.1, "(0, 1000000]"),
    "density.prune_scale_start": (0.1, "[0, 1]"),
    "density.trim_every": (0.0333, "(0, 1000000]"),
    "density.trim_min_views": (0, "[0, 2147483647]"),
    "density.growth_factor": (1.5, "(1, 1000000]"),
    "density.min_slots": (34_816, "[1, 2147483647]"),
    "mask.weight": (0.0, "[0, 1000000]"),
    "mask.start": (0.5, "[0, 0.7)"),
    "mask.stop": (0.7, "(0.5, 1]"),
    "train.steps": (7000, "[1, 2147483647]"),
    "train.sh_degree_every": (0.03333333333333333, "(0, 1000000]"),
    "train.dilation": (0, "[0, 2]"),
    "train.dilation_stop": (0.9, "[0, 1]"),
    "train.make_do": (True, ""),
    "train.checkpoint_every": (500, "[1, 2147483647]"),
    "train.keep_moments": (False, ""),
    "train.log_every": (50, "[1, 2147483647]"),
    "train.test_every": (0, "[0, 2147483647]"),
    "partition.num_blocks": (1, "[1, 100000]"),
    "partition.num_edges": (1, "[1, 1]"),
    "partition.expansion": (0.2, "[0, 1]"),
    "partition.backdrop": (0.25, "[0, 1000000]"),
    "partition.grows_backdrop": (False, ""),
    "partition.min_coverage": (0.25, "(0, 1]"),
    "partition.min_views": (3, "[1, 2147483647]"),
    "partition.min_points": (100, "[1, 2147483647]"),
    "mesh.num_devices": (0, "[0, 2147483647]"),
    "lmc.enabled": (True, ""),
    "lmc.prune_ratio": (0.4, "[0, 1)"),
    "lmc.importance_share": (0.0, "[0, 1)"),
    "lmc.camera_switch": (True, ""),
    "lmc.min_cell_share": (0.25, "[0, 1]"),
    "lmc.score": ("removal", ""),
    "lmc.area_exponent": (-0.3, "[-1000000, 1000000]"),
    "lmc.rounds": (4, "[1, 2147483647]"),
    "lmc.recovery": (0.15, "[0, 1]"),
    "lmc.start_progress": (0.5, "[0, 1]"),
    "lmc.edge_prune_ratio": (0.1, "[0, 1)"),
    "lmc.compact": (False, ""),
    "mas.enabled": (True, ""),
    "mas.steps": (0, "[0, 2147483647]"),
    "mas.teacher_weight": (0.0, "[0, 1]"),
    "mas.depth_weight": (0.2, "[0, 1000000]"),
    "mas.normal_weight": (0.05, "[0, 1000000]"),
    "mas.whole_teachers": (True, ""),
    "mas.start_progress": (0.5, "[0, 1]"),
    "mas.max_partners": (8, "[1, 2147483647]"),
    "surface.depth_map": ("plane", ""),
    "surface.voxel_size": (0.0, "[0, 1000000]"),
    "surface.truncation_voxels": (3.0, "[1, 1000000]"),
    "surface.max_angle_deg": (80.0, "(0, 90]"),
    "surface.min_neighbor_views": (2, "[0, 2147483647]"),
    "surface.min_cluster_share": (0.005, "[0, 1)"),
    "surface.smoothing_passes": (10, "[0, 1000]"),
    "surface.target_triangles": (0, "[0, 2147483647]"),
    "surface.memory_mb": (2048, "[64, 2147483647]"),
    "geo.heights": ("surface", ""),
    "geo.pixel_size": (0.0, "[0, 1000000]"),
    "geo.offset": ("", ""),
    "geo.epsg": (0, "[0, 2147483647]"),
    "points.source": ("surface", ""),
    "points.spacing": (0.0, "[0, 1000000]"),
    "terrain.object_width": (50.0, "(0, 1000000]"),
    "terrain.slope": (0.15, "(0, 1000000]"),
    "terrain.contours_of": ("dtm", ""),
    "terrain.interval": (0.0, "[0, 1000000]"),
    "texture.tile_size": (0.0, "[0, 1000000]"),
    "texture.tile_obj": (False, ""),
    "texture.triangles": (0, "[0, 2147483647]"),
    "texture.size": (0, "[0, 0] or [64, 16384]"),
    "texture.downscale": (0, "[0, 1024]"),
    "prepare.matching": ("auto", ""),
    "prepare.neighbors": (20, "[2, 10000]"),
    "prepare.mapper": ("incremental", ""),
    "prepare.lens": ("RADIAL", ""),
    "prepare.focal": ("auto", ""),
    "prepare.focal_px": (0.0, "[0, 1000000]"),
    "prepare.max_image_size": (2400, "[200, inf)"),
    "prepare.max_features": (8192, "[100, 1000000]"),
    "prepare.gps": ("auto", ""),
    "prepare.epsg": (0, "[0, inf)"),
    "prepare.cameras": ("", ""),
    "prepare.gcp": ("", ""),
    "prepare.check_points": ("", ""),
}


def test_defaults():
    assert defaults() == {name: default for name, (default, _) in DECLARED.items()}


@pytest.mark.parametrize("name", [name for name, (_, numbers) in DECLARED.items() if numbers])
def test_numbers_at_the_edges_of_what_is_accepted(name):
    default, intervals = DECLARED[name]
    kind = type(default)
    for opening, low, high, closing in re.findall(r"([\[(])(\S+), (\S+)([\])])", intervals):
        for bracket, text, inwards in ((opening, low, 1.0), (closing, high, -1.0)):
            if text == "inf":
                continue
            edge = kind(text)
            assert accepts(name, edge) == (bracket in "[]"), edge
            inner = next_to(edge, inwards * math.inf)
            assert low == high or accepts(name, inner), inner
            outer = next_to(edge, -inwards * math.inf)
            assert not accepts(name, outer), outer
