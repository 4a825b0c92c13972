"""Maps as pictures: depth, normals and errors in colours, and image files. The only copy, for
programs and reports.
"""

import base64
import io
import os

import numpy as np
from PIL import Image

from cosurfgs_jax.files import atomic_path, reading

# Colours along [0, 1], dark to bright with steadily rising lightness, so that a grey print still
# reads right.
_RAMP = np.array(
    [
        [0.09, 0.08, 0.22],
        [0.17, 0.19, 0.46],
        [0.15, 0.37, 0.60],
        [0.12, 0.55, 0.60],
        [0.25, 0.71, 0.52],
        [0.58, 0.83, 0.37],
        [0.92, 0.90, 0.33],
        [1.00, 0.98, 0.80],
    ]
)
_EMPTY = np.array([38, 38, 42], np.uint8)  # where a map says nothing


def to_uint8(image: np.ndarray) -> np.ndarray:
    """Rounds an image in [0, 1] to u8, clipping what lies outside and turning NaN into black."""
    image = np.nan_to_num(np.asarray(image, np.float32), nan=0.0, posinf=1.0, neginf=0.0)
    return np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)


def ramp(values: np.ndarray) -> np.ndarray:
    """Colours u8[...,3] of numbers in [0, 1] (clipped)."""
    position = np.clip(np.asarray(values, np.float64), 0, 1)
    knots = np.linspace(0, 1, len(_RAMP))
    return to_uint8(np.stack([np.interp(position, knots, _RAMP[:, c]) for c in range(3)], axis=-1))


def ramp_on_white(values: np.ndarray) -> np.ndarray:
    """Like `ramp`, ending in a strong yellow that is not taken for white paper."""
    return ramp(np.clip(np.asarray(values, np.float64), 0, 1) * (len(_RAMP) - 2) / (len(_RAMP) - 1))


def depth_range(depth: np.ndarray) -> tuple[float, float]:
    """The 1st and 99th percentile of the depths above 0; (0, 1) if there are none."""
    valid = depth[np.isfinite(depth) & (depth > 0)]
    if valid.size == 0:
        return 0.0, 1.0
    low, high = np.percentile(valid, [1, 99])
    return float(low), float(high)


def colorize_depth(depth: np.ndarray, limits: tuple[float, float] | None = None) -> np.ndarray:
    """Depth as colours: near is bright, far is dark, nothing is grey.

    Args:
        depth: f32[H,W], any length unit; 0 or not finite = nothing there.
        limits: nearest and farthest depth of the scale; None = from the map.
    Returns:
        u8[H,W,3]. The scale is linear in 1/depth, which spreads near and far things evenly over a
        perspective image.
    """
    depth = np.asarray(depth, np.float64)
    near, far = limits or depth_range(depth)
    is_valid = np.isfinite(depth) & (depth > 0)
    inverse = 1 / np.where(is_valid, depth, 1.0)
    span = max(1 / max(near, 1e-12) - 1 / max(far, 1e-12), 1e-12)
    colors = ramp((inverse - 1 / max(far, 1e-12)) / span)
    colors[~is_valid] = _EMPTY
    return colors


def colorize_normals(
    normal: np.ndarray, camera_from_dataset: np.ndarray | None = None
) -> np.ndarray:
    """Normals as colours, (n+1)/2 per axis, in the frame that normal maps use: x right, y up, z to
    the viewer.

    Args:
        normal: f32[H,W,3], any length; near zero = nothing there.
        camera_from_dataset: [4,4]; if given, `normal` is in the dataset frame and is turned into
            the camera's.
    Returns:
        u8[H,W,3].
    """
    normal = np.asarray(normal, np.float64)
    if camera_from_dataset is not None:
        normal = normal @ np.asarray(camera_from_dataset, np.float64)[:3, :3].T
        normal = normal * np.array([1.0, -1.0, -1.0])
    length = np.linalg.norm(normal, axis=-1, keepdims=True)
    is_valid = np.isfinite(length[..., 0]) & (length[..., 0] > 0.05)
    colors = to_uint8((normal / np.where(is_valid[..., None], length, 1.0) + 1) / 2)
    colors[~is_valid] = _EMPTY
    return colors


def colorize_error(render: np.ndarray, photo: np.ndarray, largest: float = 0.25) -> np.ndarray:
    """Mean absolute colour difference as colours: dark is equal, bright is `largest` or more (of
    1).

    Args:
        render, photo: u8[H,W,3].
        largest: the top of the scale.
    Returns:
        u8[H,W,3].
    """
    return ramp(
        np.abs(render.astype(np.float32) - photo.astype(np.float32)).mean(axis=-1) / (255 * largest)
    )


def hillshade(heights: np.ndarray, pixel_size: float) -> np.ndarray:
    """Heights as a surface lit from the north-west, 45 degrees high: u8[H,W,3].

    Args:
        heights: f[H,W], north up; NaN where there is none.
        pixel_size: in the unit of the heights.
    """
    down, right = np.gradient(np.pad(heights, 1, mode="edge").astype(np.float64), pixel_size)
    normal = np.stack([-right, down, np.ones_like(down)], axis=-1)[1:-1, 1:-1]
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
    light = normal @ (np.array([-1.0, 1.0, np.sqrt(2)]) / 2)
    is_known = np.isfinite(light) & np.isfinite(heights)
    shade = to_uint8(np.where(is_known, np.clip(light, 0, 1), 0))[..., None]
    return np.where(is_known[..., None], np.repeat(shade, 3, axis=-1), _EMPTY)


def write_image(path: str | os.PathLike, image: np.ndarray) -> None:
    """Writes u8[H,W,3] as PNG or JPEG (by the suffix), atomically."""
    with atomic_path(path) as temporary:
        Image.fromarray(image).save(temporary)


def read_image(path: str | os.PathLike) -> np.ndarray:
    """Reads a PNG or JPEG file that this package wrote as u8[H,W,3]; InputError where it is
    damaged.
    """
    with (
        reading(path, "a picture", "run the program that made it again"),
        Image.open(path, formats=("PNG", "JPEG")) as file,
    ):
        return np.asarray(file.convert("RGB"))


def shrink(image: np.ndarray, max_width: int) -> np.ndarray:
    """The image at most `max_width` pixels wide, u8[h,w,3]."""
    height, width = image.shape[:2]
    if width <= max_width:
        return image
    size = (max_width, max(1, round(height * max_width / width)))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))


def data_url(image: np.ndarray, form: str = "JPEG", quality: int = 85) -> str:
    """The image u8[H,W,3] as a data: URL for HTML."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, form, **({"quality": quality} if form == "JPEG" else {}))
    return f"data:image/{form.lower()};base64," + base64.b64encode(buffer.getvalue()).decode(
        "ascii"
    )
