"""Settings: what is declared, checked, saved and loaded."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cosurfgs_jax import settings_file
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.program import load_config_file
from cosurfgs_jax.settings import Settings, SettingsGroup, iter_help, settings_reference
from cosurfgs_jax.settings.declaration import at_least, number, require, setting
from cosurfgs_jax.workdir import Workdir


def test_defaults_are_valid():
    settings_file.check(Settings())


@pytest.mark.parametrize(
    "name, value",
    [
        ("train.steps", 0),
        ("data.downscale", 0),
        ("surfels.sh_degree", 4),
        ("surfels.init_opacity", 1.0),
        ("loss.ssim_weight", 1.5),
        ("density.start", 0.9),
        ("surface.depth_map", "nearest"),
        ("optim.quats", 0.0),
        ("raster.near", -1.0),
        ("data.path", ""),
        ("partition.num_blocks", 0),
        ("partition.num_edges", 2),
        ("partition.min_coverage", 0.0),
        ("mesh.num_devices", -1),
        ("lmc.prune_ratio", 1.0),
        ("lmc.recovery", 1.5),
        ("mas.teacher_weight", 2.0),
        ("mas.max_partners", 0),
        ("surface.truncation_voxels", 0.0),
        ("surface.max_angle_deg", -1.0),
        ("surface.min_cluster_share", 2.0),
        ("surface.min_neighbor_views", -1),
        ("raster.background", 7.0),
        ("appearance.learning_rate", -1.0),
        ("loss.transparency_weight", -0.1),
    ],
)
def test_bad_value_is_named(name, value):
    settings = Settings()
    settings_file.set_value(settings, name, value)
    with pytest.raises(InputError, match=rf"config\.{name}.*expected"):
        settings_file.check(settings)


NUMBERS = [
    (name, kind) for name, kind, _ in settings_file.leaves(Settings()) if kind in (int, float)
]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 1e30, -1e30, 10**400])
def test_numbers_that_no_setting_can_have_are_refused_by_name(value):
    assert len(NUMBERS) > 70
    for name, kind in NUMBERS:
        if kind is int and value != value // 1:
            continue
        settings = Settings()
        settings_file.set_value(settings, name, int(value) if kind is int else value)
        with pytest.raises(InputError, match=rf"config\.{name}: expected .*, got"):
            settings_file.check(settings)


@pytest.mark.parametrize(
    "name, value",
    [
        ("density.gradient_threshold", 0.0),
        ("density.prune_opacity", -0.1),
        ("density.opacity_reset_every", -0.1),
        ("train.sh_degree_every", 0.0),
        ("train.test_every", -5),
        ("seed", -1),
        ("generated.seed", -3),
        ("geo.offset", "1e30,0,0"),
        ("geo.offset", "nan,0,0"),
        ("data.path", "a\0b"),
    ],
)
def test_settings_that_would_fail_later_are_refused_by_name(name, value):
    settings = Settings()
    settings_file.set_value(settings, name, value)
    with pytest.raises(InputError, match=rf"config\.{name}: expected"):
        settings_file.check(settings)


@pytest.mark.parametrize(
    "name, value, words",
    [
        ("train.steps", 10.5, "a whole number"),
        ("train.steps", True, "a whole number"),
        ("train.steps", "10", "a whole number"),
        ("optim.quats", "fast", "a number"),
        ("density.enabled", 1, "true or false"),
        ("data.path", None, "a text"),
    ],
)
def test_wrong_type_is_named(name, value, words):
    settings = Settings()
    settings_file.set_value(settings, name, value)
    with pytest.raises(InputError, match=rf"config\.{name}: expected {words}, got"):
        settings_file.check(settings)


def test_whole_number_is_accepted_as_a_number():
    settings = Settings()
    settings.surface.voxel_size = 1
    settings_file.check(settings)


def test_group_of_the_wrong_type_is_named():
    settings = Settings()
    settings.train = {"steps": 3}
    with pytest.raises(InputError, match=r"config\.train: expected TrainSettings"):
        settings_file.check(settings)


def test_unknown_name_suggests_near_ones():
    with pytest.raises(
        InputError,
        match=r"config\.train\.setps: no such setting; did you mean config\.train\.steps",
    ):
        settings_file.check_name("train.setps")
    with pytest.raises(InputError, match=r"did you mean config\.train\.steps"):
        settings_file.check_name("steps")
    with pytest.raises(InputError, match="--helpfull lists all"):
        settings_file.check_name("qqqqqqqq")
    with pytest.raises(InputError, match="expected one setting, got a group"):
        settings_file.check_name("train")


def test_save_and_load_give_the_same_settings(tmp_path):
    settings = Settings(seed=7)
    settings.optim.means_start = 1 / 3
    settings.data.path = "/photos/Größe"
    settings_file.save(settings, tmp_path / "config.json")
    assert settings_file.load(tmp_path / "config.json") == settings


def test_load_fills_in_defaults(tmp_path):
    (tmp_path / "config.json").write_text('{"train": {"steps": 12}}')
    assert settings_file.load(tmp_path / "config.json").train == dataclasses.replace(
        Settings().train, steps=12
    )


@pytest.mark.parametrize(
    "text, words",
    [
        ('{"train": {"steps": ', "damaged"),
        ('{"train": {"stepz": 3}}', "did you mean config.train.steps"),
        ("[]", "an object"),
        ('{"train": 3}', "an object"),
        ('{"train": {"steps": "3"}}', "a whole number"),
        ('{"nothing": 3}', "no such setting"),
    ],
)
def test_damaged_file_is_one_sentence(tmp_path, text, words):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(InputError, match=words) as caught:
        settings_file.load(path)
    assert str(path) in str(caught.value)


def _begin(workdir):
    (workdir / "checkpoints" / "device" / "100").mkdir(parents=True)


def _changed(**values):
    settings = Settings()
    for name, value in values.items():
        settings_file.set_value(settings, name.replace("__", "."), value)
    return settings


def test_settings_bind_once_a_step_is_saved(tmp_path):
    settings_file.save(_changed(train__steps=9), tmp_path / "config.json")
    settings_file.check_fits(Settings(), Workdir(tmp_path))
    _begin(tmp_path)
    with pytest.raises(
        InputError, match=r"config\.train\.steps: .* was made with 9, got 7000.*another --workdir"
    ):
        settings_file.check_fits(Settings(), Workdir(tmp_path))
    settings_file.check_fits(_changed(train__steps=9), Workdir(tmp_path))


@pytest.mark.parametrize("is_removed", [False, True])
def test_what_the_checkpoints_were_made_with_counts(tmp_path, is_removed):
    """Not a config.json that was edited since, or removed."""
    workdir = Workdir(tmp_path)
    _begin(tmp_path)
    settings_file.save(_changed(train__steps=9), workdir.made_with)
    if not is_removed:
        settings_file.save(_changed(train__steps=8), workdir.config)
    with pytest.raises(InputError, match=r"config\.train\.steps: .* was made with 9, got 8"):
        settings_file.check_fits(_changed(train__steps=8), workdir)
    settings_file.check_fits(_changed(train__steps=9), workdir)


def test_free_settings_may_change_later(tmp_path):
    settings_file.save(Settings(), tmp_path / "config.json")
    _begin(tmp_path)
    settings_file.check_fits(
        _changed(
            train__log_every=3,
            train__checkpoint_every=7,
            data__host_memory_mb=100,
            surface__voxel_size=0.5,
            data__path="/elsewhere",
        ),
        Workdir(tmp_path),
    )
    other_backend = _changed(raster__backend="reference")
    with pytest.raises(InputError, match=r"config\.raster\.backend"):
        settings_file.check_fits(other_backend, Workdir(tmp_path))
    settings_file.check_fits(other_backend, Workdir(tmp_path), settings_file.FREE_AFTER_TRAINING)


def test_every_free_name_is_a_setting():
    names = [name for name, _, _ in settings_file.leaves(Settings())]
    for free in settings_file.FREE_AFTER_TRAINING:
        assert free in names or any(
            free.endswith(".") and name.startswith(free) for name in names
        ), free


def test_paths_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "test_views.txt").write_text("a.jpg\n")
    settings = Settings()
    settings.data.path = "photos"
    settings.data.split = "test_views.txt"
    absolute = settings_file.with_absolute_paths(settings)
    assert absolute.data.path == str(tmp_path / "photos")
    assert absolute.data.split == str(tmp_path / "test_views.txt")
    assert settings_file.with_absolute_paths(Settings()) == Settings()


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[2] / "configs").glob("*.py")), ids=lambda path: path.stem
)
def test_config_files_are_valid(path):
    settings_file.check(load_config_file(str(path)))
    assert f"configs/{path.name}" in path.read_text(), "a config file opens with its command"


def _help_lines():
    return list(iter_help())


def test_every_setting_has_help():
    names = [name for name, _, _ in settings_file.leaves(Settings())]
    assert [item.name for item in _help_lines()] == names and len(names) > 90
    for item in _help_lines():
        words = item.help_text.split()
        assert len(words) >= 3, f"{item.name}: {item.help_text}"
        assert item.help_text[0].isupper() and item.help_text.endswith("."), item.name


def test_help_does_not_repeat_the_default():
    for item in _help_lines():
        assert "default" not in item.help_text, item.name
        if item.kind in (int, float) and item.default not in (-1, 0, 1):  # those have meanings
            numbers = re.findall(r"(?<![\w.])\d+(?:\.\d+)?(?![\w.]\d)", item.help_text)
            assert item.default not in [float(number) for number in numbers], item.name


def test_groups_are_named_as_their_fields():
    for field in dataclasses.fields(Settings):
        if dataclasses.is_dataclass(field.type):
            assert field.type.group_name == field.name


def test_reference_has_every_setting_in_one_row():
    text = settings_reference()
    for item in _help_lines():
        assert text.count(f"| `{item.name}` |") == 1 + item.is_main
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 6 for row in rows)


@dataclasses.dataclass
class _ToySettings(SettingsGroup, name="toy"):
    size: int = setting(2, "Size of the toy.", at_least(1))
    hue: float = setting(0.5, "Hue of the toy.", number("above 0, at most 1", above=0, at_most=1))
    name: str = setting("ball", "Name of the toy.")

    def check_together(self) -> None:
        require(self.size * self.hue < 3, "toy.size, hue", "a dull toy", (self.size, self.hue))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"size": 0}, "config.toy.size: expected at least 1, got 0"),
        ({"hue": 0.0}, "config.toy.hue: expected above 0, at most 1, got 0.0"),
        ({"hue": float("nan")}, "config.toy.hue: expected above 0, at most 1, got nan"),
        ({"size": 4, "hue": 1.0}, "config.toy.size, hue: expected a dull toy, got (4, 1.0)"),
    ],
)
def test_a_declared_setting_is_checked(changes, message):
    _ToySettings(hue=1.0).validate()
    with pytest.raises(InputError) as caught:
        _ToySettings(**changes).validate()
    assert str(caught.value) == message


def test_a_largest_value_is_part_of_the_declaration():
    settings_file.check(_changed(data__downscale=1024))
    with pytest.raises(InputError, match=r"config\.data\.downscale: .* of at most 1024, got 1025"):
        settings_file.check(_changed(data__downscale=1025))


def test_settings_need_no_jax():
    code = (
        "import sys, types, importlib.util; "
        "root = importlib.util.find_spec('cosurfgs_jax').submodule_search_locations; "
        "package = types.ModuleType('cosurfgs_jax'); package.__path__ = root; "
        "sys.modules['cosurfgs_jax'] = package; import cosurfgs_jax.settings; "
        "print('jax' in sys.modules, 'numpy' in sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == ["False", "False"]
