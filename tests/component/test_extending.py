"""The code of docs/extending.md: each section's blocks are run, registered as the text says, and
used.
"""

import dataclasses
import json
import re
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from blocks_case import four_blocks, model_of, solid_state, surfels_of
from PIL import Image

from cosurfgs_jax import LossView, load_scene, rasterize, train_model
from cosurfgs_jax.collab import importance, importance_scores, stages
from cosurfgs_jax.data.readers import unregister_reader
from cosurfgs_jax.model import density_strategies
from cosurfgs_jax.outputs import exports
from cosurfgs_jax.outputs.trained import Trained
from cosurfgs_jax.raster import RasterOptions, backends, render
from cosurfgs_jax.settings import (
    DensitySettings,
    GeneratedSettings,
    LossSettings,
    RasterSettings,
    Settings,
    SurfelSettings,
    TrainSettings,
)
from cosurfgs_jax.settings.declaration import term_weight
from cosurfgs_jax.training import loss_terms
from cosurfgs_jax.training.run_log import read_history
from cosurfgs_jax.workdir import Workdir

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "extending.md"
SECTIONS = dict(
    re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE.read_text(encoding="utf-8"), re.M | re.S)
)


def code_of(title: str) -> types.ModuleType:
    """A module of the Python blocks of a section."""
    blocks = re.findall(r"^```python\n(.*?)^```", SECTIONS[title], re.M | re.S)
    assert blocks, title
    module = types.ModuleType(title.replace(" ", "_"))
    for block in blocks:
        exec(compile(block, f"{PAGE.name}: {title}", "exec"), module.__dict__)
    return module


def entries_of(title: str) -> str:
    """What a section adds to tables."""
    return "\n".join(re.findall(r"^\+(.*)$", SECTIONS[title], re.M))


def type_with(group: type, entry: str) -> type:
    """A group of settings with one more, as if the entry stood in it."""
    text = f"@dataclasses.dataclass\nclass Longer({group.__name__}, name='longer'):\n    {entry}"
    names = {group.__name__: group, "dataclasses": dataclasses, "term_weight": term_weight}
    exec(text, names)
    return names["Longer"]


def test_every_section_with_code_is_here():
    tests = Path(__file__).read_text(encoding="utf-8")
    titles = [title for title, text in SECTIONS.items() if "```python" in text]
    assert len(titles) == 7
    for title in titles:
        assert f'code_of("{title}")' in tests, title


def test_a_run_with_a_term_a_strategy_and_a_stage(tmp_path, monkeypatch):
    loss = code_of("A loss term")
    strategy = code_of("A density strategy")
    stage = code_of("A stage")
    with_weight = type_with(LossSettings, entries_of("A loss term"))
    monkeypatch.setitem(sys.modules, "cosurfgs_jax.losses.roundness", loss)
    assert loss_terms.declared_terms(with_weight)[-1] is loss.TERM
    assert with_weight().roundness_weight == 0
    monkeypatch.setattr(LossSettings, "roundness_weight", 0.1, raising=False)
    monkeypatch.setattr(loss_terms, "TERMS", (*loss_terms.TERMS, loss.TERM))
    entry = eval(f"{{{entries_of('A density strategy')}}}", {"fading": strategy})
    monkeypatch.setattr(density_strategies, "STRATEGIES", entry)
    device, *others = stages.STAGES
    monkeypatch.setattr(stages, "STAGES", (device, stage.POLISH, *others))
    settings = Settings(
        generated=GeneratedSettings(num_views=6, width=48, height=36, size_m=40.0),
        surfels=SurfelSettings(sh_degree=0, capacity=300),
        density=DensitySettings(strategy="fading", start=0.2, stop=0.9, every=0.2),
        train=TrainSettings(steps=40, log_every=1),
    )
    settings.density.prune_opacity = settings.surfels.init_opacity  # drops those that fade
    settings.loss.multi_view_geometric_weight = 0.0
    settings.loss.multi_view_photometric_weight = 0.0
    model = train_model(settings, tmp_path)
    assert model.step == 42
    rows = [row for row in read_history(Workdir(tmp_path)) if "loss" in row]
    shown = [row["loss/roundness"] for row in rows if row.get("loss/roundness") is not None]
    assert {row["stage"] for row in rows} == {"device", "polish"}
    assert len(shown) < len(rows), "it begins with the geometric losses"
    assert 0 < len(model.surfels.means) < 300
    metrics = Workdir(tmp_path).read_metrics()
    assert [each["name"] for each in metrics["stages"]] == ["device", "polish"]


def test_a_term_from_python_is_one():
    term = code_of("A loss term").term
    loss_terms.check_own_terms([term])
    surfels = surfels_of(solid_state(four_blocks(), 0))
    view = LossView(out=None, surfels=surfels, camera=None, photo=None)
    assert term.evaluate(view, Settings()).total >= 0


def test_a_reader(tmp_path):
    folder = tmp_path / "place"
    (folder / "images").mkdir(parents=True)
    poses = {}
    for number in range(3):
        pixels = np.full((32, 40, 3), 50 * number, np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
        pose = np.eye(4)
        pose[0, 3] = number
        poses[f"{number}.png"] = pose.tolist()
    lens = {"image_size": [32, 40], "focal_px": [30, 30], "principal_px": [20, 16]}
    points = np.random.default_rng(0).uniform(-1, 1, (20, 3)) + [0, 0, 4]
    content = {"poses": poses, "points": points.tolist()} | lens
    (folder / "poses.json").write_text(json.dumps(content))
    try:
        reader = code_of("A dataset reader")
        scene = load_scene(folder, split="all")
    finally:
        unregister_reader("poses")
    assert scene.image_names == list(poses) and len(scene.cloud) == 20
    np.testing.assert_array_equal(scene.views.camera_from_dataset, list(poses.values()))
    entry = eval(f"[{entries_of('A dataset reader')}]", {"Reader": reader.Reader, "poses": reader})
    assert entry[0].name == "poses"


def test_an_export_format(tmp_path, monkeypatch):
    module = code_of("An export format")
    table = dict(vars(exports), XYZ=module.XYZ)
    exec(entries_of("An export format"), table)
    monkeypatch.setattr(exports, "FORMATS", table["FORMATS"])
    form = exports.find_format("xyz")
    surfels = surfels_of(solid_state(four_blocks(), 0))
    trained = Trained(Settings(), four_blocks(), model_of(surfels), Workdir(tmp_path))
    form.check(trained.settings)
    form.write(trained, tmp_path)
    written = np.loadtxt(tmp_path / "centres.xyz")
    frame = four_blocks().frame
    np.testing.assert_allclose(written, frame.surfels_to_dataset(surfels).means, atol=1e-5)


def test_an_importance_score(monkeypatch):
    module = code_of("An importance score")
    entry = eval(f"{{{entries_of('An importance score')}}}", {"largest_weight": module})
    for name, score in entry.items():
        monkeypatch.setitem(importance_scores.SCORES, name, score)
    settings = Settings()
    settings.lmc.score = "largest"
    settings.lmc.camera_switch = False
    partitioned = four_blocks()
    state = solid_state(partitioned, 0)
    num = len(state.alive)
    camera = partitioned.views.camera(int(partitioned.blocks[0].views[0]))
    measured = importance.measure_view(
        jax.tree.map(jnp.asarray, importance.init_importance(num)),
        jax.tree.map(jnp.asarray, state),
        jnp.ones(num, bool),
        camera,
        jnp.bool_(True),
        partitioned.photo_size,
        settings,
    )
    scores = importance.importance_scores(
        measured, jnp.asarray(state.params.log_scales), jnp.asarray(state.alive), settings
    )
    options = RasterOptions.from_settings(settings.raster).on_black()
    size = partitioned.photo_size
    out = render(state.surfels(), camera, size, options, with_contributions=True)
    np.testing.assert_allclose(scores, np.where(state.alive, out.contributions[:, 1], 0))
    assert 0 < np.max(scores) <= 1


def test_a_backend(monkeypatch):
    module = code_of("A rasterizer backend")
    entry = eval(f"{{{entries_of('A rasterizer backend')}}}", vars(backends))
    monkeypatch.setitem(backends.BACKENDS, "dots", entry["dots"])
    assert backends.backend_of(RasterSettings(backend="dots")) == "dots"
    monkeypatch.setitem(sys.modules, "cosurfgs_jax.raster.dots", module)
    partitioned = four_blocks()
    surfels = surfels_of(solid_state(partitioned, 0))
    camera = partitioned.views.camera(int(partitioned.blocks[0].views[0]))
    size = partitioned.photo_size
    dots = rasterize(surfels, camera, image_size=size, backend="dots", maps="color")
    discs = rasterize(surfels, camera, image_size=size, maps="color")
    is_hit = np.asarray(dots.alpha) == 1
    assert is_hit.mean() > 0.02 and (np.asarray(discs.alpha)[is_hit] > 0.5).mean() > 0.95
    difference = np.abs(np.asarray(dots.color - discs.color))[is_hit]
    assert np.median(difference) < 0.1 and (np.asarray(dots.color)[~is_hit] == 0).all()


def test_the_table_counts_files_that_are_there():
    rows = re.findall(r"^\| (.*) \|$", SECTIONS["Files to touch"], re.M)[1:]
    assert len(rows) == 10
    for row in rows:
        name, _, new, lines, count = (cell.strip() for cell in row.split("|"))
        named = re.findall(r"`([\w/.]+)`", new + lines)
        for path in named:
            assert (ROOT / "cosurfgs_jax" / path).exists(), (name, path)
        is_group = name == "setting"
        assert int(count) == (1 if is_group else len(named)), name
