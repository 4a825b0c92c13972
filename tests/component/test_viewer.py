"""The page that shows a run: what its cameras see, when it draws, and the page in a browser."""

import contextlib
import io
import socket
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from blocks_case import NUM_BLOCKS, SETTINGS, four_blocks, solid_state, surfels_of
from browser import CHROMIUM, free_port, watch

from cosurfgs_jax.errors import InputError
from cosurfgs_jax.geometry.cameras import project
from cosurfgs_jax.metrics import confidence_ranges
from cosurfgs_jax.raster import RasterOptions, rasterize
from cosurfgs_jax.surface import Mesh
from cosurfgs_jax.surface.mesh import write_mesh_ply
from cosurfgs_jax.types import Surfels
from cosurfgs_jax.viewer import server, shown_mesh, surroundings
from cosurfgs_jax.viewer.drawing import KINDS, PageCamera, draw
from cosurfgs_jax.viewer.models import NEWEST, Shown
from cosurfgs_jax.workdir import Workdir

# From straight above, at height 1: x right, y down is -y of the world.
ABOVE = PageCamera(np.array([0.0, 1.0, 0.0, 0.0]), np.array([0.1, 0.2, 1.0]), 1.0, 1.5)


def _model() -> Surfels:
    return jax.tree.map(jnp.asarray, surfels_of(solid_state(four_blocks(), 0)))


class Models:
    """Stands in for the models of a workdir."""

    def __init__(self):
        self.partitioned = four_blocks()
        self.steps = 5
        self.loaded = []
        self.problem = ""
        self.saved_at_first = ("cloud", 5)

    def stages(self):
        return ["device", "cloud"] if self.steps else []

    def first(self):
        return Shown(_model(), "cloud", 5)

    def saved(self, choice):
        return ("cloud" if choice == NEWEST else choice), self.steps

    def load(self, choice):
        if self.problem:
            raise InputError(self.problem)
        self.loaded.append(choice)
        stage, steps = self.saved(choice)
        return Shown(_model(), stage, steps)


class Client:
    """Stands in for a browser, and keeps what it is sent."""

    def __init__(self):
        self.client_id = 1
        self.camera = SimpleNamespace(**ABOVE._asdict(), update_timestamp=0.0)
        self.scene = self
        self.sent = []

    def set_background_image(self, picture, depth=None, **_):
        self.sent.append((picture, depth))


@pytest.fixture
def viser_server():
    served = server.start_server("127.0.0.1", free_port())
    yield served
    served.stop()


@pytest.fixture
def shown(viser_server, monkeypatch, tmp_path):
    """A page, its models, and a browser that looks at it."""
    models = Models()
    client = Client()
    monkeypatch.setattr(viser_server, "get_clients", lambda: {1: client})
    monkeypatch.setattr(server, "_FOLLOW_S", 0.0)
    return server.Page(viser_server, models, SETTINGS, Workdir(tmp_path)), models, client


def _rounds(page, number=1):
    left = iter(range(number))
    page.run(until=lambda: next(left, None) is None)


def test_a_photographs_camera_is_the_same_on_the_page():
    partitioned = four_blocks()
    views = partitioned.scene.views
    points = partitioned.frame.to_world(partitioned.scene.cloud.points).astype(np.float32)
    for view in (0, 7):
        camera = surroundings.page_camera(views, partitioned.frame, view)
        height, width = views.image_sizes[view]
        size = camera.image_size(960)
        own = partitioned.views.camera_arrays(view)
        expected, depth = project(points, own.camera_from_world, own.intrinsics)
        page = camera.camera(size)
        found, page_depth = project(points, page.camera_from_world, page.intrinsics)
        np.testing.assert_allclose(page_depth, depth, atol=1e-5)
        in_front = depth > 0.1
        middle = own.intrinsics[:2, 2]  # which is that of the picture on the page
        np.testing.assert_allclose(
            (found / size[::-1] - 0.5)[in_front],
            ((expected - middle) / (width, height))[in_front],
            atol=1e-4,
        )


def test_where_a_camera_looks():
    np.testing.assert_allclose(surroundings.looked_at(ABOVE), [0.1, 0.2, 0.0], atol=1e-12)
    ahead = ABOVE._replace(wxyz=np.array([np.sqrt(0.5), -np.sqrt(0.5), 0.0, 0.0]))
    np.testing.assert_allclose(surroundings.looked_at(ahead), [0.1, 1.2, 1.0], atol=1e-12)


@pytest.mark.parametrize(
    "aspect, size", [(1.5, (640, 960)), (0.5, (960, 480)), (40.0, (32, 960)), (0.001, (960, 16))]
)
def test_pictures_have_sizes_of_steps(aspect, size):
    assert ABOVE._replace(aspect=aspect).image_size(960) == size


def test_cells_are_boxes():
    partition = four_blocks().partition
    sides = surroundings.cell_sides(partition).reshape(NUM_BLOCKS, 12, 2, 3)
    for block, box in enumerate(sides):
        lengths = np.abs(box[:, 1] - box[:, 0])
        assert ((lengths > 0).sum(axis=1) == 1).all()  # along one axis
        low, high = box.reshape(-1, 3).min(axis=0), box.reshape(-1, 3).max(axis=0)
        np.testing.assert_allclose(low[:2], partition.inner_lows[block])
        np.testing.assert_allclose(high[:2], partition.inner_highs[block])
        assert (low[2], high[2]) == (partition.low_z[block], partition.high_z[block])


def test_a_mesh_stands_where_the_model_stands():
    frame = four_blocks().frame
    vertices = np.array([[1.0, 2, 3], [4, 5, 6], [7, 8, 10]])
    normals = np.array([[0.0, 0, 1]] * 3)
    mesh = Mesh(vertices, np.array([[0, 1, 2]]), np.zeros((3, 3), np.uint8), normals)
    moved = surroundings.mesh_in_world(mesh, frame)
    np.testing.assert_allclose(frame.to_dataset(moved.vertices), vertices)
    np.testing.assert_allclose(frame.directions_to_dataset(moved.vertex_normals), normals)


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_are_those_of_the_rasterizer(kind):
    size = (48, 64)
    options = RasterOptions.from_settings(SETTINGS.raster)
    picture, depth = draw(_model(), ABOVE.camera(size), size, kind, options)
    out = rasterize(_model(), ABOVE.camera(size), image_size=size)
    hit = np.asarray(out.depth) > 0
    assert picture.shape == (48, 64, 3) and hit.any() and not hit.all()
    np.testing.assert_allclose(depth[hit], np.asarray(out.depth)[hit], rtol=1e-5)
    assert (depth[~hit] > 100).all()
    if kind == "colour":
        expected = np.clip(np.asarray(out.color), 0, 1) * 255
        assert np.abs(picture - expected).max() <= 0.51
    else:
        empty = {tuple(pixel) for pixel in picture[~hit].tolist()}
        assert len(empty) == 1 and len(np.unique(picture[hit], axis=0)) > 10


def test_a_page_draws_when_something_changes(shown):
    page, _, client = shown
    _rounds(page, 3)
    assert len(client.sent) == 1 and client.sent[0][0].shape == (640, 960, 3)
    client.camera.update_timestamp = time.time() + 60  # it moves
    _rounds(page, 2)
    assert client.sent[1][0].shape == (256, 384, 3)
    client.camera.update_timestamp = 1.0  # it stands
    _rounds(page, 2)
    assert [picture.shape[1] for picture, _ in client.sent] == [960, 384, 960]
    page._kind.value = "depth"
    _rounds(page)
    assert len(client.sent) == 4 and (client.sent[3][0] != client.sent[2][0]).any()


def test_a_page_follows_the_training(shown):
    page, models, client = shown
    _rounds(page)
    assert models.loaded == []
    models.steps = 10
    _rounds(page, 2)
    assert models.loaded == [NEWEST] and len(client.sent) == 2
    assert "stage cloud, step 10" in page._text.content
    page._choice.value = "device"
    _rounds(page, 2)
    assert models.loaded == [NEWEST, "device"] and "stage device" in page._text.content
    models.problem = "a checkpoint is damaged"
    models.steps = 15
    _rounds(page)
    assert "step 10" in page._text.content and models.problem in page._text.content
    models.problem = ""
    _rounds(page)
    assert "step 15" in page._text.content and "damaged" not in page._text.content
    models.steps = 0
    _rounds(page)
    assert "no checkpoints" in page._text.content


def test_a_page_looks_for_newer_models_now_and_then(shown, monkeypatch):
    page, models, _ = shown
    _rounds(page)
    monkeypatch.setattr(server, "_FOLLOW_S", 1e6)
    models.steps = 10
    _rounds(page, 3)
    assert models.loaded == []
    page._choice.value = "device"
    _rounds(page, 3)
    page._choice.value = NEWEST
    _rounds(page, 3)
    assert models.loaded == ["device", NEWEST]


def test_a_browser_that_cannot_be_drawn_for_stops_no_other(viser_server, monkeypatch, tmp_path):
    bad = Client()
    bad.client_id = 2
    bad.camera.fov = bad.camera.aspect = 0.0
    good = Client()
    monkeypatch.setattr(viser_server, "get_clients", lambda: {2: bad, 1: good})
    page = server.Page(viser_server, Models(), SETTINGS, Workdir(tmp_path))
    _rounds(page)
    assert len(good.sent) == 1 and not bad.sent
    assert "cannot be drawn" in page._text.content
    assert not page._draw_for(bad)  # it is not drawn for as often as one whose camera moves


def _mesh(models, confidence=None) -> Mesh:
    """A triangle in the dataset's frame."""
    normals = np.tile(np.float32([0, 0, 1]), (3, 1))
    return Mesh(
        models.partitioned.frame.to_dataset(np.eye(3)),
        np.array([[0, 1, 2]], np.int32),
        np.full((3, 3), 90, np.uint8),
        normals,
        vertex_confidence=confidence,
    )


def test_a_mesh_is_offered_when_there_is_one(shown, tmp_path):
    page, models, client = shown
    _rounds(page)
    assert list(page._kind.options) == list(KINDS)
    workdir = Workdir(tmp_path)
    workdir.mesh.parent.mkdir()
    mesh = _mesh(models)
    write_mesh_ply(workdir.mesh, mesh)
    _rounds(page)
    assert list(page._kind.options) == [*KINDS, "mesh", "confidence"]
    assert page._kind.value == KINDS[0]
    page._kind.value = "mesh"
    _rounds(page)
    assert client.sent[-1] == (None, None) and page._mesh_nodes["mesh"].visible
    page._kind.value = "normals"
    _rounds(page)
    assert client.sent[-1][0] is not None and not page._mesh_nodes["mesh"].visible


def test_the_confidence_of_a_mesh_is_shown_with_a_legend(shown, tmp_path):
    page, models, client = shown
    workdir = Workdir(tmp_path)
    workdir.mesh.parent.mkdir()
    write_mesh_ply(workdir.mesh, _mesh(models))
    _rounds(page)
    page._kind.value = "confidence"
    _rounds(page)
    assert "expected the confidence of its vertices, got a file without" in page._text.content
    assert not page._mesh_nodes and not page._legend.visible
    write_mesh_ply(workdir.mesh, _mesh(models, np.float32([1, 2, 7])))
    _rounds(page, 2)
    assert "expected" not in page._text.content
    assert page._mesh_nodes["confidence"].visible and page._legend.visible
    assert "6 to 9: 33.3%" in page._legend.content
    page._kind.value = "mesh"
    _rounds(page)
    assert page._mesh_nodes["mesh"].visible and not page._mesh_nodes["confidence"].visible
    assert not page._legend.visible
    write_mesh_ply(workdir.mesh, _mesh(models, np.float32([30, 30, 30])))
    page._kind.value = "confidence"
    _rounds(page)
    assert list(page._mesh_nodes) == ["confidence"] and "20 or more: 100" in page._legend.content


def test_colours_of_confidence_are_those_of_the_legend():
    """Of the file's vertices, in proportion to light, and without any lamp."""
    trimesh = pytest.importorskip("trimesh")
    mesh = surroundings.mesh_in_world(
        _mesh(Models(), np.float32([1, 2.9, 20])), four_blocks().frame
    )
    colors = shown_mesh.range_colors()
    assert len(np.unique(colors, axis=0)) == len(colors) == len(confidence_ranges())
    data = shown_mesh.glb_of(mesh, shown_mesh.CONFIDENCE)
    (shape,) = trimesh.load(io.BytesIO(data), file_type="glb").geometry.values()
    light = shape.visual.vertex_attributes["color"][:, :3] / 255
    seen = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    np.testing.assert_allclose(255 * seen, colors[[1, 2, -1]], atol=7)  # 8 bits of dark light
    assert b"KHR_materials_unlit" in data
    data = shown_mesh.glb_of(mesh, shown_mesh.MESH)
    assert b"KHR_materials_unlit" not in data and b'"metallicFactor":0' in data
    words = shown_mesh.legend(mesh)
    assert words.count("33.3%") == 3 and "20 or more" in words and "10 to 19" not in words


def test_cells_are_shown_when_they_are_wanted(shown):
    page, _, _ = shown
    assert not page._cell_lines.visible
    for is_wanted in (True, False):
        page._cells.value = is_wanted
        _rounds(page)
        assert page._cell_lines.visible == is_wanted


def test_cameras_and_photographs_are_added_when_they_are_wanted(shown):
    page, models, _ = shown
    assert not page._frusta
    page._photographs.value = True
    num_views = models.partitioned.scene.num_views
    _rounds(page, num_views)
    frusta = page._frusta.values()
    assert len(frusta) == num_views
    assert all(frustum.image is not None and frustum.visible for frustum in frusta)
    page._cameras.value = True
    page._photographs.value = False
    _rounds(page)
    assert all(frustum.image is None and frustum.visible for frustum in frusta)
    page._cameras.value = False
    _rounds(page)
    assert not any(frustum.visible for frustum in frusta)


def test_a_click_on_a_camera_looks_through_it(shown):
    page, models, client = shown
    page._cameras.value = True
    client.atomic = contextlib.nullcontext
    _rounds(page)
    page._clicked(client, 3)
    _rounds(page)
    partitioned = models.partitioned
    camera = surroundings.page_camera(partitioned.scene.views, partitioned.frame, 3)
    np.testing.assert_array_equal(client.camera.wxyz, camera.wxyz)
    np.testing.assert_array_equal(client.camera.position, camera.position)
    np.testing.assert_allclose(client.camera.look_at, surroundings.looked_at(camera))
    assert client.camera.fov == camera.fov and not page._frusta[3].visible


def test_a_taken_port_is_named():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        words = rf"--port: expected .* a free port, got 127.0.0.1:{port} .*--port="
        with pytest.raises(InputError, match=words):
            server.start_server("127.0.0.1", port)
    with pytest.raises(InputError, match="an address of this machine"):
        server.start_server("192.0.2.1", port)
    assert "--port=8080" in str(server._port_error("localhost", 65535, "taken"))


def test_no_browser_makes_the_page_public(viser_server):
    assert viser_server.request_share_url() is None
    assert viser_server._share_tunnel is None


@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here")
def test_the_page_in_a_browser(viser_server, tmp_path):
    page = server.Page(viser_server, Models(), SETTINGS, Workdir(tmp_path / "run"))
    with watch(page, viser_server.get_port(), tmp_path / "browser") as browser:
        model = browser.next_model()
        assert (model.max(axis=-1) > 60).mean() > 0.05
        browser.click_label("Cells of blocks")
        browser.next_model(model)
