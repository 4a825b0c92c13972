"""The package from Python: load a dataset, train, load a model, render, evaluate, extract a mesh.

Everything here is in the dataset's frame and unit. The programs (`python -m cosurfgs_jax.train` and
the others) are the same functions behind flags, and work on the same workdirs.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cosurfgs_jax import planning, settings_file
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

    `train_model` and `load_model` make one.

    Attributes:
        settings: of the run.
        scene: the dataset. The numbers of its V views are those that `render` takes.
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
        self._render: Callable[[int], dict[str, np.ndarray]] | None = None
        self.settings: Settings = trained.settings
        self.scene: Scene = trained.partitioned.scene
        self.step: int = trained.step

    @property
    def surfels(self) -> Surfels:
        """The merged surfels, dataset frame, all alive. NumPy arrays, f64 centres and f32 others:
        `write_surfels_ply` keeps the precision of large map coordinates, `rasterize` rounds them to
        float32.
        """
        return self._trained.partitioned.frame.surfels_to_dataset(self._trained.surfels)

    def render(self, view: int) -> dict[str, np.ndarray]:
        """Draws one view of the dataset.

        Args:
            view: its number in `scene`.
        Returns:
            Name -> map, with (H, W) of the view in `scene.views.image_sizes`: "color" f32[H,W,3],
            without the exposure of the photograph; "alpha" f32[H,W]; "depth" (expected),
            "median_depth" and "plane_depth" f32[H,W], camera z in the dataset's unit, 0 = no
            surface; "normal" f32[H,W,3], dataset axes, towards the camera, of length <= alpha.
        Raises:
            InputError: there is no such view.
        """
        if not 0 <= view < self.scene.num_views:
            raise InputError(
                f"view: expected a number from 0 to {self.scene.num_views - 1}, got {view}"
            )
        if self._render is None:
            self._render = self._trained.render_fn(self._trained.surfels)
        return self._render(view)

    def evaluate(
        self, *, lpips_weights: Sequence[AnyPath] = (), with_nearest_exposure: bool = False
    ) -> dict[str, Any]:
        """Scores the renders of the test views, and the mesh where there is one and the dataset has
        ground truth. Writes pictures, metrics.json and report.html in the workdir.

        Args:
            lpips_weights: files of torch.save with the weights of LPIPS, those of its network and
                those of its linear layers; none: LPIPS is not measured.
            with_nearest_exposure: also with the exposure of the nearest training view.
        Returns:
            The parts of metrics.json: "stages", a list; "final", with "psnr" and
            "psnr_color_corrected" in dB, "ssim", "num_surfels" and "num_test_views", and as asked
            for "lpips" and "psnr_nearest_view" and their like, or None without test views;
            "geometry", with distances in the dataset's unit, or None.
        Raises:
            InputError: there are no test views and no surface to score, or a file of weights is
                not readable.
        """
        commands.evaluate(
            self.settings,
            self._workdir,
            lpips_weights=commands.read_lpips_weights(lpips_weights),
            with_nearest_exposure=with_nearest_exposure,
        )
        return self._workdir.read_metrics()

    def extract_mesh(self, form: str = "ply", *, force: bool = False) -> Mesh:
        """Fuses the rendered depth of all training views, and reads the mesh that was written. One
        that is there already, of this model and these settings, is read as it is.

        Args:
            form: "ply": mesh/mesh.ply in the workdir alone; "obj" or "glb": that file beside it.
            force: fuse anew whatever is there.
        Returns:
            Vertices f64[M,3], triangles i32[F,3], colours u8[M,3] and normals f32[M,3], dataset
            frame. The whole mesh is in memory.
        Raises:
            InputError: the mesh would be empty (with the reason), another form, or open3d is
                missing (or trimesh, for "glb").
        """
        commands.extract_mesh(self.settings, self._workdir, form, force=force)
        return read_mesh_ply(self._workdir.mesh)


def load_scene(
    path: AnyPath, *, downscale: int = 1, split: str = "every8", cache: AnyPath | None = None
) -> Scene:
    """Reads a dataset: COLMAP, transforms.json, or what a registered reader knows.

    Args:
        path: its folder.
        downscale: whole factor by which the photographs are shrunk.
        split: which views are kept for testing: "every8" (or another number: each n-th by name),
            "all" (none), "folders" (train and test), or a file of their names.
        cache: folder for notes of what masks leave; None = `path`/.cosurfgs_cache. Without masks
            nothing is written.
    Returns:
        The scene: names, `views` (poses camera_from_dataset f64[V,4,4], intrinsics f64[V,3,3] in
        pixels of the loaded photographs, sizes i64[V,2] (H, W)), `cloud` (SfM points f64[P,3] with
        colours and tracks), training and test views. Photographs are not in memory.
    Raises:
        InputError: no such folder, nothing known in it, damaged files, or values that cannot be;
            with file, expected, got and what to do.
    """
    root = Path(path).expanduser()
    data = DataSettings(path=str(root), downscale=downscale, split=split)
    settings_file.check(Settings(data=data))
    folder = root / ".cosurfgs_cache"
    if cache is not None:
        folder = Path(cache).expanduser()
    return loading.load_scene(data, GeneratedSettings(), folder)


def train_model(settings: Settings, workdir: AnyPath, losses: Sequence[LossTerm] = ()) -> Model:
    """Trains a model, goes on where an earlier call stopped, or finds that it is finished.

    All stages that the settings name run: blocks, compression (LMC), distillation (MAS). Blocks
    lie on the devices that JAX sees (`config.mesh.num_devices`), several on one if need be.
    Progress goes to stderr, messages to the logger "cosurfgs_jax".

    Args:
        settings: of the run; `data.path` names the dataset, "generated" is the built-in town.
        workdir: folder of the run; made where it is missing. The table in `workdir` says what lies
            there.
        losses: terms of your own (`own_term`), added to those of the settings in every stage. A run
            goes on only with terms of the same names; the programs know none, so a run that was
            stopped goes on from Python.
    Returns:
        The merged model.
    Raises:
        InputError: wrong settings, a dataset that cannot be used, a workdir of another run, or
            other terms than those that the run began with.
        SystemExit: after SIGINT or SIGTERM, when the state is saved; call again to go on.
    """
    folder = _open_workdir(workdir)
    settings_file.check(settings)
    settings = settings_file.with_absolute_paths(settings)
    settings_file.check_fits(settings, folder)
    pipeline.train(settings, folder, losses, planning.FirstEstimate())
    return Model(load_trained(settings, folder), folder)


def _open_workdir(workdir: AnyPath) -> Workdir:
    return Workdir(Path(workdir).expanduser().absolute())


def load_model(workdir: AnyPath) -> Model:
    """The newest saved model of a workdir, with the dataset that it was trained on.

    Args:
        workdir: of a run, finished or not, of this interface or of the programs. Terms of your own
            that it was trained with are not needed.
    Returns:
        The model, with the settings of the workdir's config.json.
    Raises:
        InputError: nothing was trained there, the checkpoints are damaged, or the dataset has
            changed or is gone.
    """
    folder = _open_workdir(workdir)
    if not folder.config.exists():
        raise InputError(
            f"{folder.config}: expected the settings of a run, got no such file; train first"
        )
    return Model(load_trained(settings_file.load(folder.config), folder), folder)
