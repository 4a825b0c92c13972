"""Settings of what a run reads: photographs with poses, or the generated town."""

import dataclasses

from cosurfgs_jax.settings.declaration import (
    Check,
    SettingsGroup,
    at_least,
    not_negative,
    require,
    setting,
)

_MAX_SIDE = 32_767  # pixels
_MIN_SIDE = 32
MAX_SEED = 2**32 - 1


@dataclasses.dataclass
class DataSettings(SettingsGroup, name="data"):
    """Where the photographs and their poses are, and which of them are kept for testing."""

    path: str = setting(
        "generated",
        'Dataset folder, or "generated" for the built-in town.',
        Check('a dataset folder or "generated"', lambda path: path != ""),
        is_main=True,
    )
    images: str = setting(
        "",
        "Image folder inside the dataset; empty means images, or images_<downscale> where that "
        "exists.",
    )
    model: str = setting(
        "", "COLMAP model folder inside the dataset; empty means the one with the most images."
    )
    downscale: int = setting(
        1,
        "Whole factor by which images are shrunk.",
        at_least(1, "a whole number of at least 1"),
        largest=1024,
        is_main=True,
    )
    split: str = setting(
        "every8",
        'Which views are kept for testing: "every<n>" takes each n-th by name, "all" keeps none, '
        '"folders" takes the folders train and test; else a file that lists their names.',
        is_main=True,
    )
    host_memory_mb: int = setting(
        4096,
        "Host memory in MiB up to which decoded images are cached, as uint8.",
        at_least(64),
        is_main=True,
    )
    device_memory_mb: int = setting(
        -1,
        "Photographs stay on their device if all of its own fit into this many MiB; 0 means never, "
        "-1 a quarter of what is free there, and never on a CPU, whose memory is the host's.",
        at_least(-1, "-1 (from the device), 0 (never) or MiB"),
    )


@dataclasses.dataclass
class GeneratedSettings(SettingsGroup, name="generated"):
    """The built-in town."""

    num_views: int = setting(
        120, "Number of photographs of the town.", at_least(4), largest=100_000
    )
    width: int = setting(640, "Width of a photograph in pixels.", largest=_MAX_SIDE)
    height: int = setting(480, "Height of a photograph in pixels.", largest=_MAX_SIDE)
    size_m: float = setting(
        200.0, "Side of the square town in metres.", at_least(30, "at least 30 metres")
    )
    seed: int = setting(
        0, "Seed of the town's layout and of the flight over it.", not_negative(), largest=MAX_SEED
    )
    exposure_jitter: float = setting(
        0.0,
        "Standard deviation of the exposure of photographs, in stops.",
        not_negative("0 or more stops"),
    )
    embankment_deg: float = setting(
        0.0,
        "Slope in degrees of embankments in the place of all that stands in the town, to see "
        "whether slopes keep it (60 to 80 degrees: the class steep of evaluate); 0 means a town.",
        Check("0, or 15 to 85 degrees", lambda slope: slope == 0 or 15 <= slope <= 85),
    )

    def check_together(self) -> None:
        """Photographs are large enough to train on."""
        size = (self.width, self.height)
        require(min(size) >= _MIN_SIDE, "generated.width, height", f"at least {_MIN_SIDE}", size)
