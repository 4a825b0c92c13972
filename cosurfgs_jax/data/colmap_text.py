"""COLMAP's text files, as COLMAP and the programs that imitate it write them."""

import logging
import math
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from cosurfgs_jax.data.compared_features import FEATURE, Image, chosen, max_features_of_view
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.files import iter_lines, number, whole_number
from cosurfgs_jax.geometry.distortion import Lens

_COUNT = re.compile(r"#\s*Number of (?:cameras|images|points):\s*(\d+)")
_log = logging.getLogger(__name__)


class _Rows:
    """The lines of a file that are no comments; errors that reading one causes are given its
    number.
    """

    def __init__(self, path: Path, lines: Iterable[str] | None = None):
        self._path = path
        self._lines = iter_lines(path) if lines is None else lines
        self.declared: int | None = None  # how many things the head says there are
        self.line_number = 0

    def __iter__(self) -> Iterator[str]:
        for line in self._lines:
            self.line_number += 1
            if not line.lstrip().startswith("#"):
                yield line
            elif match := _COUNT.match(line.strip()):
                self.declared = int(match[1])

    def damaged(self, error: Exception) -> InputError:
        """The error for what is wrong with the present line."""
        return InputError(
            f"{self._path}: line {self.line_number}: expected a line of a whole COLMAP file, got "
            "one that cannot "
            f"be read ({error}); export the model again"
        )

    def check_count(self, count: int) -> None:
        """Says where a file has another number of things than its head declares."""
        if self.declared not in (None, count):
            _log.warning(
                "%s: its head declares %d, the file has %d", self._path, self.declared, count
            )


def read_cameras(path: Path, lens: Callable[..., Lens]) -> dict[int, Lens]:
    """Camera number -> lens.

    Args:
        path: of cameras.txt.
        lens: makes one of the model's name, width, height, parameters and camera number.
    """
    rows = _Rows(path)
    lenses: dict[int, Lens] = {}
    for line in rows:
        words = line.split()
        if not words:
            continue
        try:
            camera_id = whole_number(words[0])
            width = whole_number(words[2])
            height = whole_number(words[3])
            params = [number(word) for word in words[4:]]
            if camera_id in lenses:
                raise ValueError(f"camera {camera_id} is there twice")
        except (ValueError, IndexError, OverflowError) as error:
            raise rows.damaged(error) from None
        lenses[camera_id] = lens(words[1], width, height, params, camera_id)
    rows.check_count(len(lenses))
    return lenses


def _is_number(word: str) -> bool:
    try:
        number(word)
    except ValueError:
        return False
    return True


def _is_feature_line(words: list[str]) -> bool:
    """Whether a line is x, y and a whole point number, again and again; a pose with three words as
    its name is none.
    """
    if len(words) % 3:
        return False
    return all(word.lstrip("-").isdigit() for word in words[2::3]) and all(map(_is_number, words))


def _features(words: list[str], most: int) -> np.ndarray:
    """Those that are compared, of a line of them."""
    columns = np.array(words, object).reshape(-1, 3)
    columns = columns[chosen(len(columns), most)]
    values = columns.astype("<f8")
    values[:, 2] = columns[:, 2].astype("<i8").view("<f8")
    return values.view(FEATURE).reshape(-1)


def num_images(path: Path) -> int:
    """How many images its head says there are in images.txt; else they are counted."""
    rows = _Rows(path)
    next(iter(rows), None)
    if rows.declared is not None:
        return rows.declared
    return sum(1 for _ in read_images(path))


def read_images(path: Path, lines: Iterable[str] | None = None) -> Iterator[Image]:
    """Every image, with the features of it that are compared.

    Args:
        path: of images.txt.
        lines: of it, where they were read already.
    """
    rows = _Rows(path, lines)
    count = 0
    image: Image | None = None  # whose features may follow
    for line in rows:
        words = line.split()
        # Some programs leave out the line of features where there are none, others write an empty
        # one.
        if image is not None and _is_feature_line(words):
            try:
                # Where the head does not say how many there are, those that were read.
                features = _features(words, max_features_of_view(max(count, rows.declared or 0)))
            except (ValueError, OverflowError) as error:
                raise rows.damaged(error) from None
            yield image._replace(features=features)
            image = None
        elif words:
            if image is not None:
                yield image
            try:
                image = Image(
                    image_id=whole_number(words[0]),
                    pose=[number(word) for word in words[1:8]],
                    camera_id=whole_number(words[8]),
                    name=line.split(None, 9)[9].rstrip(),
                    features=np.empty(0, FEATURE),
                )
            except (ValueError, IndexError, OverflowError) as error:
                raise rows.damaged(error) from None
            count += 1
    if image is not None:
        yield image
    rows.check_count(count)


def _point(line: str, words: list[str]) -> tuple[int, list[float], list[int], float, list[int]]:
    if "_" in line or not line.isascii():
        raise ValueError("expected numbers")
    if len(words) < 7 or (len(words) > 8 and len(words) % 2):
        raise ValueError(
            f"expected id, x, y, z, r, g, b, error and pairs of numbers, got {len(words)} words"
        )
    colors = [whole_number(word) for word in words[4:7]]
    if min(colors) < 0 or max(colors) > 255:
        raise ValueError(f"expected colours from 0 to 255, got {colors}")
    return (
        int(words[0]),
        [float(word) for word in words[1:4]],
        colors,
        float(words[7]) if len(words) > 7 else math.nan,
        [int(word) for word in words[8::2]],
    )


def read_points(path: Path) -> tuple[np.ndarray, ...]:
    """Numbers i64[P], points f64[P,3], colours u8[P,3], errors f32[P] (NaN where there is none),
    lengths of tracks i64[P] and the image numbers in them i64[T].
    """
    ids = []
    points = []
    colors = []
    errors = []
    lengths = []
    track_ids = []
    rows = _Rows(path)
    for line in rows:
        words = line.split()
        if not words:
            continue
        try:
            point_id, position, color, error, track = _point(line, words)
        except (ValueError, OverflowError) as reason:
            raise rows.damaged(reason) from None
        ids.append(point_id)
        points.append(position)
        colors.append(color)
        errors.append(error)
        lengths.append(len(track))
        track_ids.extend(track)
    rows.check_count(len(points))
    return (
        np.array(ids, np.int64),
        np.array(points, np.float64).reshape(-1, 3),
        np.array(colors, np.uint8).reshape(-1, 3),
        np.array(errors, np.float64).astype(np.float32),
        np.array(lengths, np.int64),
        np.array(track_ids, np.int64),
    )
