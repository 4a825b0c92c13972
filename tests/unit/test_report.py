"""Pictures, charts and the report: what is drawn is where it should be, and the page is whole by
itself.
"""

import html.parser
import sys

import numpy as np
import pytest

from cosurfgs_jax import files, host_memory, pictures, report, settings_file
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.geometry.cameras import camera_center
from cosurfgs_jax.geometry.scene_frame import SceneFrame
from cosurfgs_jax.geometry.views import PointCloud, Views
from cosurfgs_jax.partition import build_partition
from cosurfgs_jax.report.charts import WITHOUT_MATPLOTLIB
from cosurfgs_jax.report.curves import Curves
from cosurfgs_jax.report.mesh_picture import draw_mesh
from cosurfgs_jax.report.partition_picture import partition_table
from cosurfgs_jax.report.section import Section
from cosurfgs_jax.report.sections import SECTIONS
from cosurfgs_jax.settings import PartitionSettings, Settings
from cosurfgs_jax.surface import geotiff
from cosurfgs_jax.surface.ground import GroundGrid
from cosurfgs_jax.surface.mesh import Mesh, vertex_normals, write_mesh_ply
from cosurfgs_jax.workdir import Workdir


def brightness(image):
    return image.astype(float).mean(axis=-1)


def test_depth_colours_near_is_bright_and_nothing_is_grey():
    depth = np.array([[1.0, 2.0, 4.0, 8.0, 0.0, np.nan]], np.float32)
    colors = pictures.colorize_depth(depth, (1.0, 8.0))
    values = brightness(colors)[0]
    assert (np.diff(values[:4]) < 0).all()
    assert np.array_equal(colors[0, 4], colors[0, 5]) and np.array_equal(colors[0, 4], [38, 38, 42])
    # Without limits the scale follows the map, whatever its unit.
    assert np.array_equal(pictures.colorize_depth(depth), pictures.colorize_depth(depth * 1000))
    assert pictures.colorize_depth(np.zeros((2, 2))).shape == (2, 2, 3)


def test_normal_colours_are_in_the_frame_of_the_viewer():
    facing = np.zeros((1, 3, 3), np.float32)
    facing[0, 0] = [
        0,
        0,
        -0.8,
    ]  # towards a camera that looks along +z; blended normals are shorter than 1
    facing[0, 1] = [0, -1, 0]  # image up
    colors = pictures.colorize_normals(facing, np.eye(4))
    assert colors[0, 0].tolist() == [128, 128, 255]
    assert colors[0, 1].tolist() == [128, 255, 128]
    assert colors[0, 2].tolist() == [38, 38, 42]
    assert pictures.colorize_normals(facing)[0, 0].tolist() == [128, 128, 0]


def test_hillshade_is_bright_towards_the_north_west():
    """Rows go south. Light of 45 degrees: flat ground has its sine, what faces it has 1."""
    x, y = np.meshgrid(np.arange(8.0), -np.arange(6.0))
    shade = {
        name: pictures.hillshade(0.5 * heights, 0.5)[2:-2, 2:-2]
        for name, heights in (
            ("flat", 0 * x),
            ("facing", (x - y) / np.sqrt(2)),
            ("away", (y - x) / np.sqrt(2)),
            ("north", -y),
            ("south", y),
        )
    }
    assert all(np.ptp(values) == 0 for values in shade.values())
    found = {name: int(values[0, 0, 0]) for name, values in shade.items()}
    assert found == {"flat": 180, "facing": 255, "away": 0, "north": 218, "south": 37}
    holed = np.where((x == 3) & (y == -3), np.nan, 0.0)
    assert pictures.hillshade(holed, 1.0)[3, 3].tolist() == [38, 38, 42]


def test_the_report_opens_with_the_map(tmp_path):
    pytest.importorskip("rasterio")
    workdir = Workdir(tmp_path / "run")
    grid = GroundGrid(left=0.0, top=100.0, pixel_size=0.5, width=1500, height=40)
    with geotiff.create(workdir.export / "dsm.tif", grid, "height", epsg=32614) as file:
        file.write(np.full((1, 40, 1400), 3, np.float32), 0, 0)
    with geotiff.create(workdir.export / "orthophoto.tif", grid, "color", epsg=32614) as file:
        file.write(np.full((4, 40, 1400), 255, np.uint8), 0, 0)
    text = report.write_report(workdir).read_text()
    assert text.index("<h2>Map</h2>") == text.index("<h2>")
    heights = ", heights 3.0 to 3.0 (of 98 %)"
    for name, word, more in (("orthophoto", "orthophoto", ""), ("dsm", "heights", heights)):
        caption = f"{word}: export/{name}.tif, 1500 x 40 pixels, EPSG:32614{more}"
        assert f"<figcaption>{caption}</figcaption>" in text
    assert "North is up." in text
    reduced = geotiff.read_reduced(workdir.export / "dsm.tif", 500)
    assert reduced.bands.shape == (1, 13, 500) and reduced.pixel_size == 1.5
    assert (reduced.bands[0, :, :460] == 3).all() and reduced.bands[0, 0, 499] == geotiff.NODATA
    assert "dsm.json is missing" in text
    (workdir.export / "dsm.json").write_text('{"step": 30}')
    for step, is_older in ((30, False), (100, True)):
        workdir.point_cloud(step).parent.mkdir(parents=True)
        text = report.write_report(workdir).read_text()
        words = "maps are of step 30, and the newest model is of step 100; run <code>cosurfgs"
        assert (words in text) == is_older and "is missing" not in text
    (workdir.export / "dsm.tif").write_bytes(b"II*")
    text = report.write_report(workdir).read_text()
    assert "dsm.tif: expected a GeoTIFF file of export" in text
    assert "<figcaption>orthophoto" in text and "<figcaption>heights" not in text


def test_error_colours_and_8_bit_images(tmp_path):
    photo = np.zeros((1, 3, 3), np.uint8)
    render = np.array([[[0] * 3, [20] * 3, [200] * 3]], np.uint8)
    assert (np.diff(brightness(pictures.colorize_error(render, photo))[0]) > 0).all()
    image = pictures.to_uint8(np.array([[[-1.0, 0.5, 2.0], [np.nan, np.inf, 1 / 255]]]))
    assert image.tolist() == [[[0, 128, 255], [0, 255, 1]]]
    pictures.write_image(tmp_path / "a" / "b.png", image)
    assert np.array_equal(pictures.read_image(tmp_path / "a" / "b.png"), image)
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["b.png"]
    assert pictures.shrink(np.zeros((60, 200, 3), np.uint8), 50).shape == (15, 50, 3)
    assert pictures.data_url(image, "PNG").startswith("data:image/png;base64,iVBOR")


def slab(height, color, low=0.0, high=1.0, is_flipped=False):
    """A square of two triangles parallel to the ground."""
    vertices = np.array(
        [[low, low, height], [high, low, height], [high, high, height], [low, high, height]]
    )
    triangles = np.array([[0, 1, 2], [0, 2, 3]], np.int32)
    triangles = triangles[:, ::-1] if is_flipped else triangles
    return vertices, triangles, np.tile(np.array(color, np.uint8), (4, 1))


def join(*parts):
    starts = np.cumsum([0] + [len(part[0]) for part in parts])
    vertices = np.concatenate([part[0] for part in parts])
    triangles = np.concatenate(
        [part[1] + start for part, start in zip(parts, starts, strict=False)]
    ).astype(np.int32)
    return Mesh(
        vertices,
        triangles,
        np.concatenate([part[2] for part in parts]),
        vertex_normals(vertices, triangles),
    )


@pytest.mark.parametrize("order", [1, -1])
def test_mesh_from_above_shows_the_top_with_north_up(order):
    red = slab(0.0, (255, 0, 0))
    blue = slab(1.0, (0, 0, 255), low=0.0, high=0.5)
    image, _ = draw_mesh(join(*(red, blue)[::order]), azimuth_deg=-90, elevation_deg=90, width=200)
    assert image.shape == (200, 200, 3)
    is_blue = (image == [0, 0, 255]).all(axis=-1)
    rows, columns = np.nonzero(is_blue)
    # The blue square lies over the quarter of small x (left) and small y (below).
    assert columns.max() < 101 and rows.min() > 98
    assert is_blue.mean() == pytest.approx(0.25 / 1.04**2, abs=0.01)
    assert (image == [255, 0, 0]).all(axis=-1).mean() == pytest.approx(0.75 / 1.04**2, abs=0.02)
    assert (image[0] == 255).all()  # white around


def test_mesh_from_the_side_and_other_up_axes():
    mesh = join(slab(0.0, (255, 0, 0)), slab(1.0, (0, 0, 255)))
    image, _ = draw_mesh(mesh, azimuth_deg=-90, elevation_deg=30, width=120)
    column = image[:, 60]
    blue = np.nonzero((column == [0, 0, 255]).all(-1))[0]
    red = np.nonzero((column == [255, 0, 0]).all(-1))[0]
    assert blue.max() < red.min()  # the higher one is above
    flipped = draw_mesh(mesh, up=(0, 0, -1), azimuth_deg=-90, elevation_deg=30, width=120)[0][:, 60]
    assert (
        np.nonzero((flipped == [255, 0, 0]).all(-1))[0].max()
        < np.nonzero((flipped == [0, 0, 255]).all(-1))[0].min()
    )


def test_shape_pictures_show_the_back_in_red_and_survive_odd_meshes():
    front, back = (
        draw_mesh(
            join(slab(0, (0, 0, 0), is_flipped=is_flipped)),
            elevation_deg=90,
            azimuth_deg=-90,
            width=64,
        )[1][32, 32].astype(int)
        for is_flipped in (False, True)
    )
    assert front.max() - front.min() < 20 and back[0] > 1.5 * back[1]
    huge = slab(0, (9, 9, 9), low=-1e4, high=1e4)
    mesh = join(slab(1, (255, 0, 0)), huge)
    mesh.vertices[4, 0] = np.inf
    with np.errstate(invalid="ignore"):
        assert (
            draw_mesh(
                Mesh(
                    mesh.vertices[:4],
                    mesh.triangles[:2],
                    mesh.vertex_colors[:4],
                    mesh.vertex_normals[:4],
                )
            )[0].shape[1]
            == 720
        )
    with pytest.raises(InputError, match="none"):
        draw_mesh(Mesh(mesh.vertices, mesh.triangles[:0], mesh.vertex_colors, mesh.vertex_normals))


class Page(html.parser.HTMLParser):
    """Collects what a browser would fetch and checks that tags are closed."""

    def __init__(self, text):
        super().__init__()
        self.sources = []
        self.open_tags = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.sources += [value for name, value in attributes if name in ("src", "href")]
        if tag not in ("img", "meta"):
            self.open_tags.append(tag)
        if tag != "code":  # which stands in a sentence
            self.text += " "

    def handle_startendtag(self, tag, attributes):
        assert tag in ("line", "polyline", "circle", "rect", "path")

    def handle_endtag(self, tag):
        assert self.open_tags.pop() == tag
        if tag != "code":
            self.text += " "

    def handle_data(self, data):
        self.text += data


def make_workdir(folder):
    generator = np.random.default_rng(0)
    for number in range(6):
        for kind in ("renders", "gt", "depth", "normal"):
            pictures.write_image(
                folder / "test" / "ours_300" / kind / f"{number:05d}.png",
                generator.integers(0, 255, (30, 40, 3)).astype(np.uint8),
            )
    pictures.write_image(
        folder / "test" / "ours_20" / "renders" / "00000.png", np.zeros((5, 5, 3), np.uint8)
    )
    names = {f"{i:05d}.png": f"north/<{i}>.jpg" for i in range(6)}
    files.write_json(folder / "test" / "ours_300" / "views.json", names)
    files.write_json(folder / "per_view.json", {"ours_300": {"PSNR": {"00000.png": 23.456}}})
    files.write_json(
        folder / "metrics.json",
        {
            "format": 1,
            "final": {
                "psnr": 24.321,
                "ssim": 0.81,
                "psnr_color_corrected": 25.5,
                "num_surfels": 123456,
            },
            "stages": [
                {
                    "name": "device",
                    "steps": 300,
                    "seconds": 3725,
                    "num_surfels": [100, 200],
                    "psnr_test": 20.5,
                    "ssim_test": 0.7,
                    "psnr_seam": None,
                    "bytes_model": 3 * 2**19,
                    "bytes_parameters": 5 * 2**20,
                    "bytes_compact": 2**18,
                    "bytes_checkpoint": 40 * 2**20,
                    "bytes_checkpoint_model": 11 * 2**20,
                    "bytes_sent": 1200 * 2**20,
                    "peak_bytes_per_device": 512 * 2**20,
                }
            ],
            "geometry": {
                "thresholds": [
                    {"tau": 0.25, "kind": "given", "precision": 0.5, "recall": 0.25, "f1": 1 / 3}
                ],
                "accuracy": 0.12,
                "completeness": 0.34,
                "unit": "m",
                "crop": "inside 2 images",
                "class_choices": "as the test says",
                "classes": {
                    "walls": {
                        "normal_deg": {"median": 12.25, "p90": 43.5, "median_slope_error": -2.75},
                        "share_of_truth": 0.125,
                        "thresholds": [
                            {"tau": 0.75, "kind": "", "precision": 0.5, "recall": 0.5, "f1": 0.5}
                        ],
                    },
                    "roofs": {
                        "normal_deg": None,
                        "share_of_truth": 0.875,
                        "thresholds": [
                            {"tau": 0.75, "kind": "", "precision": 0.0, "recall": 0.0, "f1": 0.0}
                        ],
                    },
                },
                "confidence": [
                    {"from": 1, "to": 1, "share": 0.375, "median": 0.4375, "p90": 0.9375}
                    | {"tau": 0.25, "precision": 0.3125},
                    {"from": 20, "to": None, "share": 0.625, "median": 0.03125, "p90": 0.1875}
                    | {"tau": 0.25, "precision": 0.8125},
                ],
            },
        },
    )
    settings = Settings()
    settings.train.steps = 300
    settings_file.save(settings, folder / "config.json")
    write_mesh_ply(folder / "mesh" / "mesh.ply", join(slab(0.0, (255, 0, 0))))


def test_report_is_one_whole_page(tmp_path):
    make_workdir(tmp_path)
    rows = [
        {"step": 10 * i, "loss": 1 / (i + 1), "psnr/train": 20.0 + i, "note": "x"} for i in range(5)
    ]
    rows.append({"step": 50, "psnr/test": 19.0, "surfels": 7})
    path = report.write_report(
        Workdir(tmp_path),
        title="A & B",
        curves=report.curves_from_rows(rows),
        timings={"mesh": 61.0},
        num_views=3,
    )
    page = Page(path.read_text(encoding="utf-8"))
    assert page.open_tags == []
    assert len(page.sources) == 3 * 5 + 4 + 3 and all(
        source.startswith("data:image/") for source in page.sources
    )
    assert path.read_text().count("data:image/svg+xml") == 3
    for text in (
        "A & B",
        "24.32 dB",
        "25.50 dB",
        "0.810",
        "123k",
        "F1 at 0.25 m",
        "0.12 m",
        "1:02:05",
        "1:01",
        "300 in 2 blocks",
        "1.5 MB",
        "5.0 MB",
        "0.2 MB",
        "40 MB (11 MB stay)",
        "1,200 MB",
        "512 MB",
        "north/<0>.jpg",
        "23.46 dB",
        "0.3333",
        "config.train.steps",
        "7000",
        "inside 2 images",
        "walls, 12%",
        "12.2",
        "-2.75",
        "roofs, 88%",
        "as the test says",
        "20 or more",
        "0.4375",
        "precision at 0.25",
        "0.8125",
    ):
        assert text in page.text, text
    assert "north/<1>.jpg" not in page.text  # three of six views, evenly: 0, 2 or 3, 5
    assert "north/<5>.jpg" in page.text
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "config.json",
        "mesh",
        "metrics.json",
        "per_view.json",
        "report.html",
        "test",
    ]


def test_a_mesh_larger_than_memory_is_not_drawn(tmp_path, monkeypatch):
    make_workdir(tmp_path)
    size = (tmp_path / "mesh" / "mesh.ply").stat().st_size
    for available, num_pictures in ((4 * size, 0), (6 * size, 4), (None, 4)):
        monkeypatch.setattr(host_memory, "available_memory", lambda size=available: size)
        page = Page(report.write_report(Workdir(tmp_path), num_views=0).read_text())
        assert len(page.sources) == num_pictures
        assert ("too much to be drawn" in page.text) == (num_pictures == 0)


def test_report_of_an_unfinished_run_leaves_out_what_is_not_there(tmp_path):
    page = Page(report.write_report(Workdir(tmp_path / "run")).read_text())
    assert page.open_tags == [] and page.sources == []
    assert "Mesh" not in page.text and "Test views" not in page.text
    (tmp_path / "run" / "metrics.json").write_text("{")
    with pytest.raises(InputError, match="metrics.json"):
        report.write_report(Workdir(tmp_path / "run"))


def test_texts_that_are_none_do_not_stop_the_report(tmp_path):
    make_workdir(tmp_path)
    files.write_json(tmp_path / "test" / "ours_300" / "views.json", {"00000.png": "a\udc80b.jpg"})
    assert "a?b.jpg" in report.write_report(Workdir(tmp_path)).read_text(encoding="utf-8")


def test_report_shows_the_partition(tmp_path):
    points = np.random.default_rng(0).uniform(-1, 1, (500, 3))
    poses = np.tile(np.diag([1.0, -1.0, -1.0, 1.0]), (8, 1, 1))
    poses[:, :3, 3] = np.array([[np.cos(i), np.sin(i), 1.0] for i in range(8)]) * [-1, 1, 1]
    intrinsics = np.tile([[40.0, 0, 20], [0, 40, 15], [0, 0, 1]], (8, 1, 1))
    limits = PartitionSettings(num_blocks=3, min_views=1, min_points=1)
    partition = build_partition(
        PointCloud.without_tracks(points),
        Views(poses, intrinsics, np.full((8, 2), (30, 40))),
        SceneFrame(1.0, np.eye(3), np.zeros(3)),
        np.arange(8),
        limits,
    )
    table = partition_table(partition, points, camera_center(poses), np.zeros(8, bool))
    files.write_json(tmp_path / "partition.json", {"fingerprint": partition.fingerprint(), **table})
    page = Page(report.write_report(Workdir(tmp_path)).read_text())
    assert page.open_tags == [] and "Partition" in page.text and "3 blocks in 1 edge" in page.text


def test_without_matplotlib_there_is_a_report_that_says_so(tmp_path, monkeypatch):
    files.write_json(tmp_path / "metrics.json", {"format": 1, "final": {"psnr": 24.321}})
    curves = report.curves_from_rows([{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}])
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    page = Page(report.write_report(Workdir(tmp_path), curves=curves).read_text())
    said = WITHOUT_MATPLOTLIB.replace("`", "")
    assert said in page.text and "24.32 dB" in page.text
    assert page.sources == []
    # Nothing is missed where there was nothing to draw.
    assert said not in Page(report.write_report(Workdir(tmp_path)).read_text()).text


def test_the_report_leads_to_the_model_in_three_dimensions(tmp_path):
    workdir = Workdir(tmp_path)
    workdir.point_cloud(30).parent.mkdir(parents=True)
    page = Page(report.write_report(workdir).read_text())
    assert page.sources == []
    for words in ("cosurfgs export --format=html", "--format=textured", "cosurfgs view"):
        assert words in page.text
    workdir.export.mkdir()
    (workdir.export / "model.html").write_bytes(bytes(2_000_000))
    page = Page(report.write_report(workdir).read_text())
    assert page.sources == ["export/model.html"]
    assert "2.0 MB" in page.text and "--format=html" not in page.text
    (workdir.export / "textured.glb").write_bytes(b"")
    page = Page(report.write_report(workdir).read_text())
    assert page.sources == ["export/model.html", "export/textured.glb"]
    (workdir.export / "textured.glb").unlink()
    (workdir.export / "textured").mkdir()
    for name, size in (("tileset.json", 10), ("0_0.glb", 2_000_000), ("0_1.glb", 3_000_000)):
        (workdir.export / "textured" / name).write_bytes(bytes(size))
    page = Page(report.write_report(workdir).read_text())
    assert page.sources == ["export/model.html", "export/textured/tileset.json"]
    assert "5.0 MB" in page.text


def test_curves_have_a_chart_per_number_and_a_line_per_block():
    rows = [
        {"stage": stage, "step": step, "block": block, "loss": 0.5, "psnr/train": 20.0 + block}
        for stage in ("device", "cloud")
        for step in (10, 20)
        for block in (0, 1)
    ]
    rows.append({"stage": "device", "step": 20, "block": 1, "psnr/test": 19.0})
    curves = report.curves_from_rows(rows)
    assert curves.starts == {"device": 0, "cloud": 20}
    assert list(curves.charts) == ["loss", "psnr"]
    assert curves.charts["psnr"] == {
        ("train", 0): ([10, 20, 30, 40], [20.0] * 4),
        ("train", 1): ([10, 20, 30, 40], [21.0] * 4),
        ("test", 1): ([20], [19.0]),
    }
    assert list(curves.charts["loss"]) == [("loss", 0), ("loss", 1)]
    of_one = report.curves_from_rows([row for row in rows if row["block"] == 0])
    assert of_one.charts["loss"] == {("loss", None): ([10, 20, 30, 40], [0.5] * 4)}


def test_curves_from_rows_group_by_the_name_before_the_slash():
    curves = report.curves_from_rows(
        [{"step": 1, "psnr/a": 2.0}, {"step": 3, "psnr/a": 4, "psnr/b": 5, "ok": True}]
    )
    lines = {("a", None): ([1, 3], [2.0, 4]), ("b", None): ([3], [5])}
    assert curves == Curves({"psnr": lines}, {"": 0})


def test_a_section_is_one_entry_of_a_list(tmp_path, monkeypatch):
    given = []

    def content(of):
        given.append(of)
        return "<p>of its own</p>"

    monkeypatch.setattr(report, "SECTIONS", [Section("Mine", content, "Said < of it.")])
    text = report.write_report(Workdir(tmp_path), timings={"mesh": 2.0}).read_text()
    assert "<h2>Mine</h2>" in text and "<p>of its own</p>" in text and "Said &lt; of it." in text
    assert "Stages" not in text and given[0].timings == {"mesh": 2.0}
    titles = [section.title for section in SECTIONS]
    assert len(set(titles)) == len(titles) == 18
