"""Textured meshes: places in the atlas, colours of photographs that see a place and of no others,
gains undone, and files that another reader understands.
"""

import numpy as np
import pytest
from mesh_cases import two_squares

from cosurfgs_jax.data.images import resample
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.geometry.views import Views
from cosurfgs_jax.settings import Settings
from cosurfgs_jax.settings_file import check
from cosurfgs_jax.surface import atlas, texture, texture_scores
from cosurfgs_jax.surface.mesh import Mesh, vertex_normals
from cosurfgs_jax.surface.textured_files import write_textured_glb, write_textured_obj

open3d = pytest.importorskip("open3d")
ORIGIN = np.array([500_000.0, 5_000_000.0, 100.0])  # float32 has steps of half a metre there
SIDE = 8.0  # of the ground
ROOF = (3.0, 5.0, 2.0)  # from and to, x and y alike; height
HEIGHT = 10.0
SIZE = 120  # pixels along a photograph
FOCAL = 100.0
OWN = (10, 20, 30)  # the colour of all vertices
RED = np.array([200.0, 40.0, 40.0])
UP = np.array([0.0, 0.0, 1.0])


def _square(low, high, z, cells):
    steps = np.linspace(low, high, cells + 1)
    x, y = np.meshgrid(steps, steps)
    vertices = np.stack([x.ravel(), y.ravel(), np.full(x.size, z)], axis=1)
    corner = (np.arange(cells)[:, None] * (cells + 1) + np.arange(cells)).ravel()
    far = cells + 2
    triangles = [
        np.stack([corner, corner + a, corner + b], 1) for a, b in ((1, far), (far, far - 1))
    ]
    return vertices, np.concatenate(triangles)


def _mesh():
    """Ground with a roof that floats above its middle."""
    ground, below = _square(0, SIDE, 0.0, 8)
    roof, above = _square(ROOF[0], ROOF[1], ROOF[2], 2)
    vertices = np.concatenate([ground, roof]) + ORIGIN
    triangles = np.concatenate([below, above + len(ground)]).astype(np.int32)
    colors = np.tile(np.array(OWN, np.uint8), (len(vertices), 1))
    return Mesh(vertices, triangles, colors, vertex_normals(vertices, triangles))


def _pattern(x, y):
    """The colour of the ground, 40 to 200."""
    waves = (np.sin(3 * x), np.cos(2 * y), np.sin(x + 2 * y))
    return 120 + 80 * np.stack(waves, axis=-1)


def _views(centers):
    poses = np.tile(np.eye(4), (len(centers), 1, 1))
    poses[:, :3, :3] = np.diag([1.0, -1.0, -1.0])  # straight down, y north
    poses[:, :3, 3] = -(np.asarray(centers) + ORIGIN) @ np.diag([1.0, -1.0, -1.0])
    lens = np.array([[FOCAL, 0, SIZE / 2], [0, FOCAL, SIZE / 2], [0, 0, 1]])
    count = len(centers)
    return Views(poses, np.tile(lens, (count, 1, 1)), np.full((count, 2), SIZE))


def _photo(center, gains=1.0):
    """What a camera sees of `_mesh` painted with `_pattern` and a red roof."""
    across = (np.arange(SIZE) + 0.5 - SIZE / 2) / FOCAL
    x, y = np.meshgrid(across, -across)
    picture = _pattern(center[0] + x * center[2], center[1] + y * center[2])
    at_roof = [
        base + part * (center[2] - ROOF[2]) for base, part in zip(center, (x, y), strict=False)
    ]
    is_roof = np.all([(ROOF[0] < value) & (value < ROOF[1]) for value in at_roof], axis=0)
    picture[is_roof] = RED
    return np.clip(np.round(picture * gains), 0, 255).astype(np.uint8)


CENTERS = [(1.0, 4.0, HEIGHT), (4.0, 4.0, HEIGHT), (7.0, 4.0, HEIGHT)]
GAINS = np.array([[1.0, 1, 1], [0.7, 0.8, 0.9], [1.2, 1.1, 0.8]])


def _sources(photos=None):
    if photos is None:
        photos = [_photo(center, GAINS[i]) for i, center in enumerate(CENTERS)]
    return texture.Sources(_views(CENTERS), np.arange(3), lambda view: photos[view], GAINS)


def _uvs(mesh):
    """The ground in the left part of the picture, the roof in the lower right corner; texels of
    1/16."""
    places = (mesh.vertices - ORIGIN)[:, :2] / 16
    is_roof = mesh.vertices[:, 2] > ORIGIN[2] + 1
    places[is_roof] += 0.6
    return places[mesh.triangles].astype(np.float32)


TEXELS = 256


def _baked(mesh=None, **changes):
    mesh = mesh or _mesh()
    uvs = _uvs(mesh)
    texels = atlas.texels_of(uvs, TEXELS)
    picture, seen = texture.bake(mesh, texels, _sources(**changes), TEXELS)
    return atlas.TexturedMesh(mesh, uvs, picture), texels, seen


def _places(mesh, texels):
    corners = mesh.vertices[mesh.triangles[texels.triangle]] - ORIGIN
    return (corners * texels.weights[:, :, None]).sum(axis=1)


def test_texels_are_where_their_pixel_is_and_none_is_there_twice():
    mesh = _mesh()
    texels = atlas.texels_of(_uvs(mesh), TEXELS)
    assert len(np.unique(texels.pixel)) == len(texels.pixel) == 128**2 + 32**2
    places = _places(mesh, texels)
    ground = places[:, 2] < 1
    row, column = np.divmod(texels.pixel, TEXELS)
    np.testing.assert_allclose(places[ground, 0], (column[ground] + 0.5) / 16, atol=1e-4)
    np.testing.assert_allclose(places[ground, 1], (row[ground] + 0.5) / 16, atol=1e-4)


def test_the_atlas_keeps_triangles_apart():
    mesh = _mesh()
    uvs = atlas.unwrap(mesh, 512)
    assert uvs.shape == (mesh.num_triangles, 3, 2) and uvs.min() >= 0 and uvs.max() <= 1
    one, two = uvs[:, 1] - uvs[:, 0], uvs[:, 2] - uvs[:, 0]
    areas = np.abs(one[:, 0] * two[:, 1] - one[:, 1] * two[:, 0]) / 2
    # Pixels are counted once: overlapping triangles would have fewer than their areas.
    assert len(atlas.texels_of(uvs, 512).pixel) == pytest.approx(areas.sum() * 512**2, rel=0.02)
    assert areas.sum() > 0.4
    assert areas.max() < 1.5 * areas.min()  # all triangles are of one size but for the roof's


@pytest.mark.parametrize("is_turned", [False, True])
def test_fans_are_taken_apart(is_turned):
    """Three triangles on one edge, and two that turn against each other, can be laid flat."""
    vertices = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1.0]])
    triangles = np.array([[0, 1, 2], [1, 0, 3], [0, 1, 4]], np.int32)
    if is_turned:
        triangles = np.array([[0, 1, 2], [0, 1, 3]], np.int32)
    colors = np.arange(15, dtype=np.uint8).reshape(5, 3)
    mesh = Mesh(vertices, triangles, colors, vertex_normals(vertices, triangles))
    apart = atlas.without_fans(mesh)
    np.testing.assert_array_equal(apart.vertices[apart.triangles], vertices[triangles])
    np.testing.assert_array_equal(apart.vertex_colors[apart.triangles], colors[triangles])
    assert len(np.unique(apart.triangles)) == triangles.size
    atlas.unwrap(apart, 128)
    whole = two_squares()
    assert atlas.without_fans(whole) is whole


def test_texels_have_the_colours_of_the_photographs_without_their_gains():
    textured, texels, seen = _baked()
    places = _places(textured.mesh, texels)
    found = textured.picture.reshape(-1, 3)[texels.pixel].astype(float)
    is_roof = places[:, 2] > 1
    is_inner = is_roof & (np.abs(places[:, :2] - SIDE / 2) < 0.85).all(axis=1)
    assert np.abs(found[is_inner] - RED).mean() < 1
    # Beside the roof's outline the colour is that of the roof in some photographs.
    is_clear = ~is_roof & (np.abs(places[:, :2] - SIDE / 2) > 1.6).any(axis=1)
    errors = np.abs(found - _pattern(*places[:, :2].T))[is_clear]
    assert errors.mean() < 2 and np.quantile(errors, 0.99) < 8
    assert 0.9 < seen < 0.97


def test_gains_are_those_of_grey_against_the_usual_photograph():
    exposures = np.tile(np.eye(3, 4), (4, 1, 1))
    exposures[1, :, :3] *= 2
    exposures[2] = [[0.5, 0, 0, 0.25], [0, 0.5, 0, 0], [0, 0, 0.5, 0.75]]
    exposures[3] = 0  # of a photograph that training failed to explain
    gains = texture.relative_gains(exposures, np.array([0, 1]))
    np.testing.assert_allclose(gains[:2] * np.sqrt(2), [[1, 1, 1], [2, 2, 2]])
    np.testing.assert_allclose(gains[2] * np.sqrt(2), [1, 0.5, 2])
    assert (gains[3] > 0).all()


def test_what_the_mesh_hides_has_the_colours_of_vertices_or_of_who_sees_it():
    textured, texels, seen = _baked()
    found = textured.picture.reshape(-1, 3)[texels.pixel].astype(float)
    places = _places(textured.mesh, texels)
    # Under the middle of the roof: hidden from all three cameras.
    is_hidden = (places[:, 2] < 1) & (np.abs(places[:, :2] - SIDE / 2) < 0.2).all(axis=1)
    assert is_hidden.sum() > 20 and (found[is_hidden] == OWN).all()
    # Under its eastern edge: from the east alone.
    x, y = places[:, 0], places[:, 1]
    is_beneath = (places[:, 2] < 1) & (np.abs(x - 4.75) < 0.1) & (np.abs(y - 4) < 0.5)
    assert np.abs(found[is_beneath] - _pattern(x, y)[is_beneath]).mean() < 3


def test_masked_pixels_and_faces_seen_from_behind_are_not_used():
    photos = [
        np.concatenate([_photo(center, GAINS[i]), np.zeros((SIZE, SIZE, 1), np.uint8)], axis=2)
        for i, center in enumerate(CENTERS)
    ]
    textured, texels, seen = _baked(photos=photos)
    assert seen == 0 and (textured.picture == OWN).all()
    mesh = _mesh()
    turned = Mesh(
        mesh.vertices, mesh.triangles[:, ::-1].copy(), mesh.vertex_colors, -mesh.vertex_normals
    )
    assert _baked(turned)[2] == 0


def test_what_only_a_far_photograph_shows_has_its_colour():
    """However little it would count beside others."""
    mesh = _mesh()
    texels = atlas.texels_of(_uvs(mesh), TEXELS)
    views = _views([(30.0, 4.0, 5.0), (31.0, 4.0, 5.0), (4.0, 4.0, 900.0)])
    photo = np.full((SIZE, SIZE, 3), 200, np.uint8)
    sources = texture.Sources(views, np.arange(3), lambda view: photo, np.ones((3, 3)))
    picture, seen = texture.bake(mesh, texels, sources, TEXELS)
    found = picture.reshape(-1, 3)[texels.pixel]
    assert seen > 0.8 and ((found == 200).all(axis=1).mean()) == pytest.approx(seen)


def test_pieces_of_colours_are_those_of_the_whole(monkeypatch):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (20, 30, 3), np.uint8)
    places = rng.uniform(0, 30, (1000, 2)).astype(np.float32)
    whole = resample(image, places[None])[0]
    np.testing.assert_array_equal(texture.sampled(image, places), whole)
    monkeypatch.setattr(texture, "_AT_ONCE", 7)
    sizes = []
    monkeypatch.setattr(
        texture, "resample", lambda image, at: sizes.append(at.shape) or resample(image, at)
    )
    np.testing.assert_array_equal(texture.sampled(image, places), whole)
    assert set(sizes) == {(1, 7, 2), (1, 6, 2)}


def test_gaps_between_charts_have_the_nearest_colour():
    textured, texels, _ = _baked()
    picture = textured.picture
    np.testing.assert_array_equal(picture[:100, 128], picture[:100, 127])
    np.testing.assert_array_equal(picture[:60, 160], picture[:60, 127])


def test_a_texture_fits_other_views_better_than_vertices_do():
    textured, _, _ = _baked()
    views = _views([(2.5, 4.5, 9.0)])
    photo = _photo((2.5, 4.5, 9.0))
    sources = texture.Sources(views, np.arange(1), lambda view: photo, np.ones((1, 3)))
    scores = texture_scores.scores(textured, sources)
    assert scores["psnr"] > 28 and scores["psnr"] > scores["psnr_vertex_colors"] + 10
    assert scores["psnr_color_corrected"] > 28
    away = texture.Sources(
        _views([(900.0, 0.0, 9.0)]), np.arange(1), lambda view: photo, np.ones((1, 3))
    )
    assert texture_scores.scores(textured, away) == {}


def test_files_are_read_by_another_program(tmp_path):
    trimesh = pytest.importorskip("trimesh")
    textured, _, _ = _baked()
    write_textured_glb(tmp_path / "t.glb", textured, UP)
    write_textured_obj(tmp_path / "t.obj", textured)
    mesh = textured.mesh
    corners = mesh.vertices[mesh.triangles]
    glb = trimesh.load(tmp_path / "t.glb")
    (name,) = glb.geometry
    turned = glb.graph.get(glb.graph.nodes_geometry[0])[0]
    part = glb.geometry[name]
    placed = trimesh.transform_points(part.vertices, turned)[part.faces]
    # y up: (x, z, -y).
    np.testing.assert_allclose(placed, corners[..., [0, 2, 1]] * [1, 1, -1], atol=1e-3)
    obj = trimesh.load(tmp_path / "t.obj", process=False)
    np.testing.assert_allclose(obj.vertices[obj.faces], corners, atol=1e-4)
    for read, picture in (
        (part, part.visual.material.baseColorTexture),
        (obj, obj.visual.material.image),
    ):
        # trimesh counts upwards in both.
        places = read.visual.uv[read.faces] * [1, -1] + [0, 1]
        np.testing.assert_allclose(places, textured.uvs, atol=1e-5)
        difference = np.asarray(picture.convert("RGB"), float) - textured.picture
        assert np.abs(difference).mean() < 2


@pytest.mark.parametrize("name, value", [("size", 5), ("size", 20_000), ("triangles", -1)])
def test_settings_of_textures_are_checked(name, value):
    settings = Settings()
    setattr(settings.texture, name, value)
    with pytest.raises(InputError, match=f"config.texture.{name}: expected"):
        check(settings)


def test_a_failed_obj_leaves_the_old_three_files(tmp_path, monkeypatch):
    """Charts lie elsewhere in each picture: an old OBJ with a new one shows nonsense."""
    names = ("t.jpg", "t.mtl", "t.obj")
    for name in names:
        (tmp_path / name).write_bytes(b"old")
    textured, _, _ = _baked()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savetxt", full)
    with pytest.raises(InputError, match="No space left on device"):
        write_textured_obj(tmp_path / "t.obj", textured)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == dict.fromkeys(
        names, b"old"
    )
