"""What the files of a workdir have to say: its own model, mesh, notes and place on the map."""

import dataclasses
import json
from functools import cached_property
from pathlib import Path

import numpy as np

from cosurfgs_jax import settings_file
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.formats.place_json import Place, read_places
from cosurfgs_jax.formats.splat_ply import drawable_of
from cosurfgs_jax.outputs import commands, exports
from cosurfgs_jax.outputs.map_frame import with_map_frame
from cosurfgs_jax.outputs.trained import Trained, load_trained
from cosurfgs_jax.settings import Settings
from cosurfgs_jax.surface import Mesh, read_mesh_ply
from cosurfgs_jax.surface.mesh_points import plan_points
from cosurfgs_jax.workdir import Workdir
from foreign.comparison import Box, NotThere


class Expected:
    """The truth about a workdir. What is read is read once.

    Attributes:
        workdir: of the run.
        settings: of the run, with the place on the map.
    """

    def __init__(self, folder: Path, offset: str = "", epsg: int = 0, tile_size: float = 0.0):
        """
        Args:
            folder: the workdir.
            offset, epsg, tile_size: see the settings `geo.offset`, `geo.epsg`,
                `texture.tile_size`.
        Raises:
            InputError: there is no run in it.
        """
        self.workdir = Workdir(folder)
        if not self.workdir.config.exists():
            raise InputError(f"{folder}: expected the workdir of a run, got no config.json")
        settings = settings_file.load(self.workdir.config)
        changes = {
            "geo": dataclasses.replace(settings.geo, offset=offset, epsg=epsg),
            "texture": dataclasses.replace(settings.texture, tile_size=tile_size),
        }
        self.settings: Settings = with_map_frame(
            dataclasses.replace(settings, **changes), self.workdir
        )

    @cached_property
    def trained(self) -> Trained:
        """The model."""
        return load_trained(self.settings, self.workdir)

    @cached_property
    def _drawable(self):
        return drawable_of(self.trained.surfels)

    @property
    def count(self) -> int:
        """Surfels that can be drawn."""
        return len(self.means)

    @cached_property
    def means(self) -> np.ndarray:
        """Their centres, f64[N,3], dataset frame."""
        frame = self.trained.partitioned.frame
        return frame.to_dataset(np.asarray(self._drawable.means, np.float64))

    @cached_property
    def opacities(self) -> np.ndarray:
        """Their opacities, f64[N]."""
        return 1 / (1 + np.exp(-np.asarray(self._drawable.logit_opacities, np.float64)))

    @cached_property
    def dc(self) -> np.ndarray:
        """Their coefficients of SH of degree 0, f64[N,3]."""
        return np.asarray(self._drawable.sh, np.float64)[:, 0]

    @cached_property
    def mesh(self) -> Mesh:
        """The mesh, dataset frame."""
        return read_mesh_ply(self.workdir.mesh)

    @cached_property
    def voxel_size(self) -> float:
        """Of the mesh, dataset unit."""
        return json.loads(self.workdir.mesh_choices.read_text())["voxel_size"]

    @cached_property
    def num_points(self) -> int:
        """Points that are spread over the mesh."""
        spacing = self.settings.points.spacing or self.voxel_size
        return plan_points(self.workdir.mesh, spacing).extent.count

    @property
    def epsg(self) -> int:
        """Of the map coordinates; 0 = of no system."""
        return self.settings.geo.epsg

    @cached_property
    def offset(self) -> np.ndarray:
        """From the dataset's to map coordinates, f64[3]."""
        return np.array(self.settings.geo.offset_xyz())

    def on_map(self, points: np.ndarray) -> Box:
        """The box of points of the dataset in map coordinates."""
        return Box.of(points + self.offset)

    def place(self, path: Path) -> Place:
        """What place.json says of a file.

        Raises:
            InputError: nothing.
        """
        places = read_places(path.parent)
        if path.name not in places:
            raise InputError(
                f"{path.parent / 'place.json'}: expected {path.name}, got no such file"
            )
        return places[path.name]

    def note(self, name: str) -> dict:
        """A JSON file beside the exports."""
        path = self.workdir.export / name
        if not path.exists():
            raise NotThere(f"{path} is missing; export again what it is of")
        return json.loads(path.read_text())

    def export_all(self, say) -> None:
        """Writes every format.

        Args:
            say: takes a sentence for each format that cannot be written.
        """
        for form in ("obj", "glb"):
            commands.extract_mesh(self.settings, self.workdir, form)
        for form in exports.FORMATS:
            try:
                commands.export(self.settings, self.workdir, form.name)
            except InputError as error:
                say(f"{form.name}: {error}")
