"""Settings of `prepare`: from photographs to a dataset. They are flags of that program, and no part
of a run's `Settings`.
"""

import dataclasses

from cosurfgs_jax.errors import InputError
from cosurfgs_jax.settings.declaration import (
    at_least,
    declaration_of,
    not_negative,
    one_of,
    setting,
)

MATCHING = ("auto", "gps", "sequential", "exhaustive")
MAPPERS = ("incremental", "global")
GPS = ("auto", "ignore", "require")
FOCAL = ("auto", "refine", "fix")
LENSES = ("SIMPLE_RADIAL", "RADIAL", "OPENCV", "FULL_OPENCV", "OPENCV_FISHEYE")


def _choice(names: tuple[str, ...]):
    return one_of(names, f"one of {', '.join(names)}")


@dataclasses.dataclass
class PrepareSettings:
    """How photographs become a dataset."""

    matching: str = setting(
        "auto",
        'Which photographs are compared: "gps" (with the nearest ones), "sequential" (with those '
        'before and behind by name), "exhaustive" (all with all); "auto" is by GPS where most '
        "have it, else exhaustive up to 100 photographs, else sequential.",
        _choice(MATCHING),
    )
    neighbors: int = setting(
        20,
        "Nearest photographs that each is compared with, by GPS; half as many in sequence.",
        at_least(2),
        largest=10_000,
    )
    mapper: str = setting(
        "incremental",
        'How poses are found: "incremental", one photograph after the other, or "global", all at '
        "once, which is faster with thousands.",
        _choice(MAPPERS),
    )
    lens: str = setting("RADIAL", "Camera model of COLMAP for all cameras.", _choice(LENSES))
    focal: str = setting(
        "auto",
        'Whether the focal length of the EXIF data is kept ("fix") or refined ("refine"); "auto" '
        "keeps it where all photographs look straight down at flat ground, which cannot tell it "
        "from the height.",
        _choice(FOCAL),
    )
    focal_px: float = setting(
        0.0,
        "Focal length of a calibration, in pixels of the photographs as they are; of the usual "
        "size, where there are several, and other cameras keep theirs. 0 means from the EXIF data.",
        not_negative("0 (from the EXIF data) or a number of pixels"),
        largest=1_000_000,
    )
    max_image_size: int = setting(
        2400,
        "Longer side in pixels to which photographs are shrunk to find features.",
        at_least(200),
    )
    max_features: int = setting(
        8192, "Features of a photograph, at most.", at_least(100), largest=1_000_000
    )
    gps: str = setting(
        "auto",
        'Whether scale, vertical and place come from GPS: "auto" where it is there, "require" '
        'stops without it, "ignore" does without it. Else where the GPS is that EXIF data lack: a '
        "file of positions, as OpenDroneMap has it (a coordinate system, then lines of photograph, "
        "east, north and height), or a folder with the original photographs.",
    )
    epsg: int = setting(
        0,
        "EPSG number of the projected system in metres that the map coordinates are in; 0 is that "
        "of the ground control points, or the UTM zone.",
        not_negative("0 (the UTM zone) or the EPSG number of a projected system"),
    )
    cameras: str = setting(
        "",
        "File with the poses that another program has found, which are kept: cameras of Metashape "
        "(.xml), camera parameters of RealityScan (.csv, or a folder of XMP files), or the params "
        "folder of Pix4D.",
    )
    gcp: str = setting(
        "",
        "File of ground control points, as OpenDroneMap has it: a coordinate system, then lines of "
        "east, north, height, column, row, photograph and name; scale, vertical and place are by "
        "them, and no longer by GPS.",
    )
    check_points: str = setting(
        "",
        "Ground control points that are compared with and not used: their names, with commas "
        'between, or "every4" for every fourth of the file.',
    )

    @property
    def gps_path(self) -> str:
        """File or folder of positions; "" = those of the photographs."""
        return "" if self.gps in GPS else self.gps

    @property
    def needs_gps(self) -> bool:
        """Whether there is no going on without GPS."""
        return bool(self.gps == "require" or self.gps_path or self.epsg)

    def validate(self) -> None:
        """Checks each setting.

        Raises:
            InputError: names the flag, what was expected and what was got.
        """
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            declaration = declaration_of(field)
            check = declaration.check
            if check is not None and not check.accepts(value):
                raise InputError(f"--{field.name}: expected {check.expected}, got {value!r}")
            if declaration.largest is not None and value > declaration.largest:
                raise InputError(
                    f"--{field.name}: expected at most {declaration.largest}, got {value!r}"
                )
        if self.check_points and not self.gcp:
            raise InputError(
                "--check_points: expected a file of ground control points beside it, got none; "
                "give --gcp=FILE"
            )
