"""Trains the generated town from Python with a loss term of one's own.

    python examples/own_loss.py [--steps=120] [--weight=0.1] [--workdir=DIR]

The term keeps surfels round: it is the mean squared difference of the two log scales. Prints the
scores of the test views and how elongated the surfels are, and extracts the mesh where open3d is
installed. The photographs are tiny, so that it takes seconds: look at the numbers, not the mesh.
"""

import argparse
import importlib.util
import tempfile

import jax.numpy as jnp
import numpy as np

from cosurfgs_jax import LossView, Maps, Settings, own_term, train_model


def elongation(view: LossView):
    """f32[], mean squared log of the ratio of a surfel's two scales; traced by `jax.jit`."""
    log_scales = view.surfels.log_scales
    squares = jnp.square(log_scales[:, 0] - log_scales[:, 1])
    alive = view.surfels.alive.astype(jnp.float32)  # slots that are not in use do not count
    return (squares * alive).sum() / jnp.maximum(alive.sum(), 1.0)


def small_settings(num_steps: int) -> Settings:
    """The built-in town, small; `data.path` of another dataset would do as well."""
    settings = Settings()
    settings.data.path = "generated"
    settings.generated.num_views = 12
    settings.generated.width = 96
    settings.generated.height = 72
    settings.generated.size_m = 60.0
    settings.surfels.sh_degree = 0
    settings.surfels.capacity = 3000
    settings.train.steps = num_steps
    settings.train.log_every = max(num_steps // 5, 1)
    return settings


def main() -> None:
    """Runs the example."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=120, help="training steps")
    parser.add_argument("--weight", type=float, default=0.1, help="of the term; positive")
    parser.add_argument("--workdir", help="folder of the run, kept; without it a temporary one")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as temporary:
        term = own_term("elongation", elongation, weight=options.weight, maps=Maps.COLOR)
        settings = small_settings(options.steps)
        model = train_model(settings, options.workdir or temporary, losses=[term])

        log_scales = np.asarray(model.surfels.log_scales)
        ratios = np.exp(np.abs(log_scales[:, 0] - log_scales[:, 1]))
        print(
            f"{len(ratios)} surfels after {model.step} steps; median ratio of their scales "
            f"{np.median(ratios):.2f}"
        )

        view = int(model.scene.test_views[0])
        maps = model.render(view)
        print(
            f"{model.scene.image_names[view]}: {maps['color'].shape[1]}x{maps['color'].shape[0]} "
            f"pixels, median depth {np.median(maps['depth'][maps['alpha'] > 0.5]):.1f} m"
        )

        if importlib.util.find_spec("open3d"):
            mesh = model.extract_mesh()
            print(f"mesh: {mesh.num_vertices} vertices, {mesh.num_triangles} triangles")
        else:
            print("mesh: open3d is not installed (pip install 'cosurfgs_jax[mesh]')")

        scores = model.evaluate()
        final = scores["final"]
        print(f"test views: PSNR {final['psnr']:.2f} dB, SSIM {final['ssim']:.3f}")
        if scores["geometry"]:
            print(f"surface: accuracy {scores['geometry']['accuracy']:.2f} m")


if __name__ == "__main__":
    main()
