"""The attribute of docs/extending.md, added to a copy of the package as the page says: it is
trained through all stages, saved, restored and exported.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from fast_compiling import QUICK_ENVIRONMENT

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
SECTION = re.search(r"^## A surfel attribute\n(.*?)^## ", PAGE, re.M | re.S)[1]

PROGRAM = """
import sys
from pathlib import Path

# An editable installation finds the package before any folder of sys.path does.
sys.meta_path = [each for each in sys.meta_path if "ScikitBuild" not in type(each).__name__]

import jax.numpy as jnp
import numpy as np

import cosurfgs_jax
from cosurfgs_jax import LossView, Maps, own_term, train_model
from cosurfgs_jax.formats.ply import read_ply
from cosurfgs_jax.formats.splat_ply import read_surfels_ply
from cosurfgs_jax.settings import Settings
from cosurfgs_jax.types import DRAWN_NAMES, PARAM_NAMES

assert Path(cosurfgs_jax.__file__).is_relative_to(Path.cwd())
assert set(PARAM_NAMES) - set(DRAWN_NAMES) == {"roughness"}


def smoothness(view: LossView):
    surfels = view.surfels
    return jnp.where(surfels.alive, jnp.square(surfels.roughness), 0.0).mean()


settings = Settings()
settings.generated.num_views = 6
settings.generated.width = 48
settings.generated.height = 36
settings.generated.size_m = 40.0
settings.surfels.sh_degree = 0
settings.surfels.capacity = 300
settings.partition.num_blocks = 1
settings.partition.num_edges = 1
settings.optim.roughness = 0.02
settings.train.steps = 20
settings.loss.multi_view_geometric_weight = 0.0
settings.loss.multi_view_photometric_weight = 0.0
terms = [own_term("smoothness", smoothness, weight=1.0, maps=Maps.COLOR)]
workdir = Path("runs")
model = train_model(settings, workdir, losses=terms)
surfels = model.surfels
roughness = np.asarray(surfels.roughness)[np.asarray(surfels.alive)]
print("roughness", roughness.min(), roughness.max())
assert (roughness < 0.4).all(), "it began at 0.5"
(path,) = workdir.glob("point_cloud/*/point_cloud.ply")
assert "roughness" in read_ply(path)[0]["vertex"].dtype.names
np.testing.assert_array_equal(read_surfels_ply(path).roughness, roughness)
again = train_model(settings, workdir, losses=terms)
np.testing.assert_array_equal(again.surfels.roughness, surfels.roughness)
"""


def _insert(path: Path, before: str, line: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count(before) == 1, path
    path.write_text(text.replace(before, f"{line}\n{before}"), encoding="utf-8")


def test_the_attribute_of_the_page(tmp_path):
    package = tmp_path / "cosurfgs_jax"
    shutil.copytree(
        ROOT / "cosurfgs_jax", package, ignore=shutil.ignore_patterns("csrc", "__pycache__")
    )
    field, rate = re.findall(r"^\+(.*)$", SECTION, re.M)
    _insert(package / "types.py", '    sh: Float[Array, "n k 3"]', field)
    _insert(package / "settings" / "training.py", "    sh_dc: float = setting(", rate)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | QUICK_ENVIRONMENT,
    )
    assert done.returncode == 0, done.stdout + done.stderr
