"""Features, matches and poses, with a stand-in for pycolmap: what is asked of it, in which
portions, and which of its answers are taken.
"""

import contextlib
import types

import numpy as np
import pytest

from cosurfgs_jax.errors import InputError
from cosurfgs_jax.geometry.distortion import lens_from_params
from cosurfgs_jax.settings import PrepareSettings
from cosurfgs_jax.sfm import database as database_file
from cosurfgs_jax.sfm import mapping
from cosurfgs_jax.sfm.georeference import Reconstructed

NAMES = [f"{number:02d}.jpg" for number in range(20)]


class Options:
    """Takes any attribute, and makes those that are asked for."""

    def __getattr__(self, name):
        setattr(self, name, Options())
        return getattr(self, name)


class Bars:
    """Remembers each bar's name, length and steps."""

    def __init__(self):
        self.shown = []

    @contextlib.contextmanager
    def __call__(self, name, total):
        steps = []
        self.shown.append((name, total, steps))
        yield types.SimpleNamespace(update=steps.append)


class Database:
    """Photographs number 1 to 20; some have features, or are compared."""

    def __init__(self, done=(), compared=()):
        self.done = done
        self.compared = compared

    def read_all_images(self):
        return [
            types.SimpleNamespace(name=name, image_id=number + 1)
            for number, name in enumerate(NAMES)
        ]

    def exists_keypoints(self, number):
        return number in self.done

    def exists_two_view_geometry(self, first, second):
        return (first, second) in self.compared


@pytest.fixture
def job(tmp_path, monkeypatch):
    """A job whose database is a `Database`."""
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(database_file, "quoted_names", contextlib.nullcontext)
    return mapping.Job(
        database=tmp_path / "database.db",
        root=tmp_path,
        names=NAMES,
        scratch=tmp_path / "scratch",
        settings=PrepareSettings(max_image_size=1234, max_features=567),
        progress=Bars(),
    )


def stand_in(monkeypatch, database, **functions):
    """A pycolmap with some functions, and options of any kind."""
    kinds = ("FeatureExtractionOptions", "ImportedPairingOptions")
    kinds += ("IncrementalPipelineOptions", "GlobalPipelineOptions")
    module = types.SimpleNamespace(has_cuda=False, **dict.fromkeys(kinds, Options), **functions)
    monkeypatch.setattr(mapping, "import_pycolmap", lambda: module)
    monkeypatch.setattr(database_file, "opened", lambda _: contextlib.nullcontext(database))


def test_features_of_photographs_that_have_none(job, monkeypatch):
    asked = []

    def extract(database, root, *, image_names, extraction_options):
        assert (database, root) == (job.database, job.root)
        sizes = extraction_options.max_image_size, extraction_options.sift.max_num_features
        assert sizes == (1234, 567)
        asked.append(image_names)

    stand_in(monkeypatch, Database(done={1, 3}), extract_features=extract)
    mapping.extract_features(job)
    wanted = [NAMES[1], *NAMES[3:]]
    assert asked == [wanted[:8], wanted[8:16], wanted[16:]]
    assert job.progress.shown == [("features", 18, [8, 16, 18])]
    stand_in(monkeypatch, Database(done=set(range(1, 21))), extract_features=pytest.fail)
    mapping.extract_features(job)
    assert len(job.progress.shown) == 1


def test_pairs_that_have_not_been_compared(job, monkeypatch):
    lists = []

    def match(database, *, pairing_options):
        assert database == job.database
        lists.append(pairing_options.match_list_path.read_text().splitlines())

    pairs = [(first, second) for second in NAMES for first in NAMES if first < second][:131]
    numbers = {name: number + 1 for number, name in enumerate(NAMES)}
    compared = {(numbers[first], numbers[second]) for first, second in pairs[:1]}
    stand_in(monkeypatch, Database(compared=compared), match_image_pairs=match)
    mapping.match_features(job, pairs)
    lines = [f"{first} {second}" for first, second in pairs[1:]]
    assert lists == [lines[:64], lines[64:128], lines[128:]]
    assert job.progress.shown == [("matches", 130, [64, 128, 130])]
    stand_in(monkeypatch, Database(compared=compared), match_image_pairs=pytest.fail)
    mapping.match_features(job, pairs[:1])
    assert len(job.progress.shown) == 1


def model(num_photographs, num_points=9, *, is_flat=True):
    """A model of cameras that look down from one height (which tells no focal length), or from
    two.
    """
    poses = np.tile(np.diag([1.0, -1, -1, 1]), (num_photographs, 1, 1))
    for number, pose in enumerate(poses):
        height = 10 + 6 * (number % 2) * (not is_flat)
        pose[:3, 3] = -pose[:3, :3] @ [number, 0, height]
    images = {
        number: types.SimpleNamespace(
            name=NAMES[number],
            has_pose=True,
            cam_from_world=lambda pose=pose: types.SimpleNamespace(matrix=lambda: pose[:3]),
        )
        for number, pose in enumerate(poses)
    }
    points = {number: types.SimpleNamespace(xyz=(number, 0, 0)) for number in range(num_points)}
    return types.SimpleNamespace(
        images=images,
        points3D=points,
        num_reg_images=lambda: num_photographs,
        num_points3D=lambda: num_points,
    )


class Mapper:
    """Gives models, and remembers whether it was to keep the focal length."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.kept = []
        self.options = None

    def incremental(self, database, root, **given):
        self.options = given["options"]
        self.kept.append(not self.options.ba_refine_focal_length)
        given["initial_image_pair_callback"]()
        given["next_image_callback"]()
        return dict(enumerate(self.answers.pop(0)))

    def whole(self, database, root, out, options):
        assert out.is_dir()
        self.options = options
        self.kept.append(not options.mapper.bundle_adjustment.refine_focal_length)
        return dict(enumerate(self.answers.pop(0)))


def poses(job, monkeypatch, program, has_focal=True, **settings):
    stand_in(
        monkeypatch,
        Database(),
        incremental_mapping=program.incremental,
        global_mapping=program.whole,
    )
    contents = types.SimpleNamespace(has_focal=has_focal)
    monkeypatch.setattr(database_file, "read_contents", lambda *_: contents)
    return mapping.find_poses(job._replace(settings=PrepareSettings(**settings)))


def test_the_largest_model_is_taken(job, monkeypatch):
    largest = model(6, is_flat=False)
    mapper = Mapper([model(3), largest, model(1), model(4, num_points=0), model(2)])
    found = poses(job, monkeypatch, mapper)
    assert found == (largest, [6, 3, 2], False, True, "")
    assert mapper.options.image_names == NAMES and mapper.kept == [False]
    # Two photographs to begin with, one more, and those of the model in the end.
    assert job.progress.shown == [("poses", 20, [3, 6])]


@pytest.mark.parametrize(
    "is_flat, has_focal, focal, again, kept, answer",
    [
        (True, True, "auto", 9, [False, True], (9, True)),
        (True, True, "auto", 8, [False, True], (10, False)),  # too many are lost
        (True, True, "refine", 10, [False], (10, False)),
        (True, True, "fix", 10, [True], (10, True)),
        (True, False, "auto", 10, [False], (10, False)),
        (False, True, "auto", 10, [False], (10, False)),
    ],
)
def test_focal_lengths_that_photographs_do_not_tell_are_kept(
    job, monkeypatch, is_flat, has_focal, focal, again, kept, answer
):
    mapper = Mapper([model(10, is_flat=is_flat)], [model(again, is_flat=is_flat)])
    found = poses(job, monkeypatch, mapper, has_focal, focal=focal)
    assert mapper.kept == kept
    assert (found.model.num_reg_images(), found.keeps_focal) == answer
    assert found.tells_focal == (not is_flat)


def test_all_at_once_and_nothing_at_all(job, monkeypatch):
    mapper = Mapper([model(5, is_flat=False)])
    found = poses(job, monkeypatch, mapper, mapper="global", focal="fix")
    assert found.group_sizes == [5] and mapper.kept == [True]
    assert mapper.options.image_names == NAMES
    with pytest.raises(InputError, match="photographs that overlap, got 20 in"):
        poses(job, monkeypatch, Mapper([model(1)]))


def test_the_counter_shows_the_largest_model_so_far():
    steps = []
    counter = mapping._Counter(types.SimpleNamespace(update=steps.append), 5)
    for number in (4, 1, 5):
        counter.begin()
        for _ in range(number):
            counter.advance()
    assert steps == [3, 4, 5, 5, 5, 5, 5, 5, 5, 5]


def looking(tilt_deg=0.0, thickness=0.0, spread=0.0):
    """Cameras 10 above the ground that lean half to the left and half to the right; points from the
    ground up to a height; heights of cameras that differ.
    """
    tilt = np.deg2rad(tilt_deg) * np.where(np.arange(20) % 2, 1, -1)
    poses = np.tile(np.eye(4), (20, 1, 1))
    poses[:, :3, :3] = [
        [[1, 0, 0], [0, -np.cos(angle), np.sin(angle)], [0, -np.sin(angle), -np.cos(angle)]]
        for angle in tilt
    ]
    centers = np.zeros((20, 3))
    centers[:, 2] = 10 + np.linspace(-0.5, 0.5, 20) * spread
    poses[:, :3, 3] = -np.einsum("vij,vj->vi", poses[:, :3, :3], centers)
    points = np.zeros((201, 3))
    points[:, 2] = np.linspace(0, thickness, 201)
    return Reconstructed(NAMES, poses, points)


def test_the_limits_of_what_tells_a_focal_length():
    assert not mapping.tells_focal(looking(tilt_deg=9.9))
    assert mapping.tells_focal(looking(tilt_deg=10.1))
    # 90 % of the heights within a quarter of the distance: 0.9 h > (10 - h / 2) / 4.
    assert not mapping.tells_focal(looking(thickness=2.42))
    assert mapping.tells_focal(looking(thickness=2.46))
    assert not mapping.tells_focal(looking(spread=2.5 / 0.9 - 0.05))
    assert mapping.tells_focal(looking(spread=2.5 / 0.9 + 0.05))


def test_a_model_is_written_in_the_place_of_an_older_one(tmp_path):
    target = tmp_path / "sparse" / "0"
    for text in ("first", "second"):
        model = types.SimpleNamespace(
            write_binary=lambda folder, text=text: (folder / "images.bin").write_text(text)
        )
        mapping.write_model(model, tmp_path / "scratch" / "model", target)
        assert [path.name for path in target.iterdir()] == ["images.bin"]
        assert (target / "images.bin").read_text() == text
    assert not any((tmp_path / "scratch").iterdir())


def test_the_focal_length_of_a_known_lens_is_believed(monkeypatch):
    pycolmap = types.SimpleNamespace(Camera=types.SimpleNamespace)
    monkeypatch.setattr(database_file, "import_pycolmap", lambda: pycolmap)
    lens = lens_from_params("SIMPLE_RADIAL", 30, 40, [50.0, 20.0, 15.0, 0.1])
    camera = database_file.camera_of(lens)
    assert camera.has_prior_focal_length and (camera.width, camera.height) == (40, 30)
    assert (camera.model, camera.params) == ("SIMPLE_RADIAL", [50.0, 20.0, 15.0, 0.1])
