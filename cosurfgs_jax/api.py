"""The package from Python: load a dataset, train, load the model, render, extract a mesh.

Everything here is in the dataset's frame and unit, unless it says otherwise. The programs
(`python -m cosurfgs_jax.train` and the others) do the same with the same functions below.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cosurfgs_jax import settings_file
from cosurfgs_jax.collab import pipeline
from cosurfgs_jax.data import loading
from cosurfgs_jax.data.scene import Scene
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.losses.term import LossTerm
from cosurfgs_jax.outputs import commands
from cosurfgs_jax.outputs.trained import Trained, load_trained
from cosurfgs_jax.settings import DataSettings, GeneratedSettings, Settings
from cosurfgs_jax.surface import Mesh, read_mesh_ply
from cosurfgs_jax.types import Surfels
from cosurfgs_jax.workdir import Workdir

AnyPath = str | os.PathLike


class Model:
    """A trained model: surfels, and the dataset that they were trained on.

    Attributes:
        settings: of the run.
        scene: the dataset; its poses are `camera_from_dataset` f64[V,4,4].
        step: training steps of all stages.
    """

    def __init__(self, trained: Trained, workdir: Workdir):
        """
        Args:
            trained: from `outputs.trained.load_trained`.
            workdir: that it was loaded from.
        """
        self._trained = trained
        self._workdir = workdir
        self._render = None
        self.settings = trained.settings
        self.scene = trained.partitioned.scene
        self.step = trained.step

    @property
    def surfels(self) -> Surfels:
        """The surfels of all blocks in the dataset's frame, all alive; NumPy float64 centres."""
        return self._trained.partitioned.frame.surfels_to_dataset(self._trained.surfels)

    def render(self, view: int) -> dict[str, np.ndarray]:
        """Draws one view of the dataset.

        Args:
            view: its number in `scene`.
        Returns:
            "color" f32[H,W,3] in canonical colours, "alpha" f32[H,W], "depth" (expected),
            "median_depth" and "plane_depth" f32[H,W] in the dataset's unit, 0 = no surface, and
            "normal" f32[H,W,3], dataset axes, towards the camera, of length <= alpha.
        Raises:
            InputError: there is no such view.
        """
        if not 0 <= view < self.scene.num_views:
            raise InputError(
                f"view: expected a number from 0 to {self.scene.num_views - 1}, got {view}"
            )
        if self._render is None:
            self._render = self._trained.render_fn()
        return self._render(view)

    def extract_mesh(self, form: str = "ply") -> Mesh:
        """Fuses the rendered depth of all training views, and reads the mesh that was written.

        Args:
            form: "ply": mesh/mesh.ply in the workdir alone; "obj" or "glb": that file beside it.
        Returns:
            Vertices f64[M,3], triangles i32[F,3] and colours u8[M,3], dataset frame.
        Raises:
            InputError: the mesh would be empty (with the reason), or open3d is missing.
        """
        commands.extract_mesh(self.settings, self._workdir, form)
        return read_mesh_ply(self._workdir.mesh)


def load_scene(
    path: AnyPath, *, downscale: int = 1, split: str = "every8", cache: AnyPath | None = None
) -> Scene:
    """Reads a dataset: COLMAP, transforms.json, or what a registered reader knows.

    Args:
        path: its folder.
        downscale: whole factor by which the photographs are shrunk.
        split: see `config.data.split`: "every8", "all", "folders", or a file of test names.
        cache: folder for notes of what masks leave; None = `path`/.cosurfgs_cache.
    Returns:
        The scene: names, `views` (poses camera_from_dataset f64[V,4,4], intrinsics f64[V,3,3] in
        pixels of the loaded photographs, sizes i64[V,2] (H, W)), `cloud` (SfM points f64[P,3] with
        colours and tracks), training and test views. Photographs are not in memory.
    Raises:
        InputError: what `data.loading.load_scene` refuses, with file, expected, got and what to do.
    """
    data = DataSettings(path=str(path), downscale=downscale, split=split)
    folder = Path(path) / ".cosurfgs_cache"
    if cache is not None:
        folder = Path(cache)
    return loading.load_scene(data, GeneratedSettings(), folder)


def train_model(settings: Settings, workdir: AnyPath, losses: Sequence[LossTerm] = ()) -> Model:
    """Trains a model, goes on where an earlier call stopped, or finds that it is finished.

    All stages that the settings name run: blocks, compression (LMC), distillation (MAS). Blocks
    lie on the devices that JAX sees (`config.mesh.num_devices`), several on one if need be.

    Args:
        settings: of the run; `data.path` names the dataset.
        workdir: folder of the run; made where it is missing. `Workdir` says what lies there.
        losses: terms of your own (`own_term`), added to those of the settings in every stage.
    Returns:
        The merged model.
    Raises:
        InputError: wrong settings, a dataset that cannot be used, or a workdir of another run.
        SystemExit: after SIGINT or SIGTERM, when the state is saved; call again to go on.
    """
    folder = Workdir(Path(workdir).absolute())
    settings_file.check(settings)
    settings = settings_file.with_absolute_paths(settings)
    settings_file.check_fits(settings, folder)
    pipeline.train(settings, folder, losses)
    return load_model(folder.root)


def load_model(workdir: AnyPath) -> Model:
    """The newest saved model of a workdir, with the dataset that it was trained on.

    Args:
        workdir: of a run, finished or not.
    Raises:
        InputError: nothing was trained there, the checkpoints are damaged, or the dataset has
            changed or is gone.
    """
    folder = Workdir(Path(workdir).absolute())
    if not folder.config.exists():
        raise InputError(
            f"{folder.config}: expected the settings of a run, got no such file; train first"
        )
    return Model(load_trained(settings_file.load(folder.config), folder), folder)
