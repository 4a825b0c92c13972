"""Named inputs for the rasterizer's tests, the float64 reference on them, and one adapter to the
kernels.

A case is plain float32 NumPy, so that every backend and the float64 reference get
identical numbers. A new backend is one more entry of RENDERERS. Its tests are skipped where the
package says that it is not available, except for the CPU's, which must always be.
"""

import dataclasses
import functools
import hashlib
import pickle
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from cosurfgs_jax import Camera, Surfels
from cosurfgs_jax.raster import available_backends, native, pallas_tpu, portable, reference
from cosurfgs_jax.raster.options import LOW_PASS, Maps, Static
from cosurfgs_jax.raster.outputs import RawMaps


def renderer(render_views=native.render_views, **changes):
    """A backend's renderer as a function of one draw's options; `changes` are fields of Static."""

    def render(surfels, camera, background, probe, **options):
        height, width = options.pop("image_size")
        maps = Maps[options.pop("maps").upper()]
        orthographic = options.pop("projection", "perspective") == "orthographic"
        static = Static(height, width, maps=maps, orthographic=orthographic, **options)
        return render_views(static._replace(**changes), surfels, camera, background, probe)

    return render


RENDERERS = {
    "cpu": renderer(),
    "cuda": renderer(),
    "portable": renderer(portable.render_views),
    "tpu": renderer(pallas_tpu.render_views),
}  # all called like it
BACKENDS = ("cpu", "portable")  # "tpu" has tests of its own, and "cuda" its turn in tests/gpu
FIELDS = ("means", "quats", "log_scales", "logit_opacities", "sh")
FLOAT_MAPS = (
    "color",
    "transmittance",
    "depth_sum",
    "median_depth",
    "normal_sum",
    "plane_sum",
    "distortion",
)

# Rounding turns a decision (alpha threshold, stop, near plane, median, disc or low-pass) only where
# its two sides are closer than this, relative. The nearest turned ones that were seen are at 2e-6.
SAFE_MARGIN = 1e-4

SIZE = (37, 45)  # no multiple of the 16-pixel tile
COUNT = 96


@dataclasses.dataclass(frozen=True)
class Case:
    """One input of the rasterizer; `camera_from_world` and `intrinsics` may have a leading axis of
    views.
    """

    means: np.ndarray
    quats: np.ndarray
    log_scales: np.ndarray
    logit_opacities: np.ndarray
    sh: np.ndarray
    alive: np.ndarray
    camera_from_world: np.ndarray
    intrinsics: np.ndarray
    background: np.ndarray
    image_size: tuple[int, int] = SIZE
    near: float = 0.05
    sh_degree: int = 3
    projection: str = "perspective"
    low_pass: float = LOW_PASS

    def replace(self, **changes) -> "Case":
        """A copy with some arrays changed, as float32."""
        changes = {name: _float32(value) for name, value in changes.items()}
        return dataclasses.replace(self, **changes)

    def surfels(self) -> Surfels:
        return Surfels(**{name: jnp.asarray(getattr(self, name)) for name in (*FIELDS, "alive")})

    def camera(self) -> Camera:
        return Camera(jnp.asarray(self.camera_from_world), jnp.asarray(self.intrinsics))

    def options(self) -> dict:
        """Keyword arguments of `rasterize` that go with the case."""
        return {
            "image_size": self.image_size,
            "near": self.near,
            "background": jnp.asarray(self.background),
            "sh_degree": self.sh_degree,
            "projection": self.projection,
            "low_pass": self.low_pass,
        }

    def num_views(self) -> int:
        return self.camera_from_world.shape[0] if self.camera_from_world.ndim == 3 else 1

    def view(self, index: int) -> "Case":
        """The case with one of its cameras."""
        return self.replace(
            camera_from_world=self.camera_from_world[index], intrinsics=self.intrinsics[index]
        )


def _float32(value):
    if isinstance(value, np.ndarray) and value.dtype != bool:
        return np.ascontiguousarray(value, np.float32)
    return value


def pose(rotation_vector, translation) -> np.ndarray:
    """camera_from_world f64[4,4] from an axis-angle vector and a translation."""
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_rotvec(rotation_vector).as_matrix()
    matrix[:3, 3] = translation
    return matrix


def intrinsics(fx=40.0, fy=44.0, cx=22.1, cy=18.7) -> np.ndarray:
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])


POSE = pose([0.4, -0.7, 0.2], [0.3, -0.4, 0.6])


def _world(camera_from_world, camera_points) -> np.ndarray:
    return (camera_points - camera_from_world[:3, 3]) @ camera_from_world[:3, :3]


def _logit(opacity):
    return np.log(opacity / (1 - np.asarray(opacity)))


def random_cloud(seed=0, count=COUNT, **changes) -> Case:
    """Surfels of mixed size, opacity and direction in the view, a turned camera, colours of degree
    3.
    """
    rng = np.random.default_rng(seed)
    matrix = changes.get("intrinsics", intrinsics())
    camera = changes.get("camera_from_world", POSE)
    depth = rng.uniform(1.2, 4, count)
    pixels = rng.uniform(-0.1, 1.1, (count, 2)) * np.array(changes.get("image_size", SIZE))[::-1]
    points = (
        np.concatenate([(pixels - matrix[:2, 2]) / np.diag(matrix)[:2], np.ones((count, 1))], -1)
        * depth[:, None]
    )
    fields = {
        "means": _world(camera, points),
        "quats": rng.normal(size=(count, 4)),
        "log_scales": rng.uniform(-3.5, -1, (count, 2)),
        "logit_opacities": rng.uniform(-3, 3, count),
        "sh": rng.normal(size=(count, 16, 3)) * 0.3,
        "alive": rng.uniform(size=count) < 0.9,
        "camera_from_world": camera,
        "intrinsics": matrix,
        "background": np.array([0.9, 0.1, 0.4]),
    }
    return Case(**{name: _float32(value) for name, value in {**fields, **changes}.items()})


def _along_rays(camera_from_world, camera_points) -> np.ndarray:
    """Quaternions (wxyz) of surfels at points of the camera frame; their first axis lies along the
    ray to them.
    """
    rays = camera_points / np.linalg.norm(camera_points, axis=-1, keepdims=True)
    helper = np.cross(rays, [0.0, 1.0, 0.0])
    helper /= np.linalg.norm(helper, axis=-1, keepdims=True)
    axes = np.stack([rays, helper, np.cross(rays, helper)], axis=-1)
    return Rotation.from_matrix(camera_from_world[:3, :3].T @ axes).as_quat()[:, [3, 0, 1, 2]]


def edge_on(degrees: float) -> Case:
    """Planes that hold the ray to their centre up to this angle (and up to rounding for 0)."""
    case = random_cloud(1)
    rng = np.random.default_rng(1)
    quats = _along_rays(POSE, case.means @ POSE[:3, :3].T + POSE[:3, 3])
    tilt = np.zeros((COUNT, 3))
    tilt[:, 1] = np.radians(degrees) * rng.choice(
        [-1, -0.5, 0.5, 1], COUNT
    )  # about the other axis in the plane
    quats = (Rotation.from_quat(quats[:, [1, 2, 3, 0]]) * Rotation.from_rotvec(tilt)).as_quat()[
        :, [3, 0, 1, 2]
    ]
    return case.replace(quats=quats, log_scales=rng.uniform(-2.5, -0.7, (COUNT, 2)))


def near_plane() -> Case:
    """Centres from behind the camera to beyond the near plane, discs large enough to cross it."""
    rng = np.random.default_rng(2)
    case = random_cloud(2, near=0.5)
    depth = rng.uniform(-1.5, 2, COUNT)
    points = np.stack([rng.uniform(-0.8, 0.8, COUNT), rng.uniform(-0.6, 0.6, COUNT), depth], -1)
    return case.replace(means=_world(POSE, points), log_scales=rng.uniform(-2, 0.5, (COUNT, 2)))


def ties() -> Case:
    """Surfels in four planes of equal depth before an untilted camera, some of them at one and the
    same place.
    """
    rng = np.random.default_rng(3)
    case = random_cloud(3, camera_from_world=np.eye(4))
    means = np.stack(
        [
            rng.uniform(-1, 1, COUNT),
            rng.uniform(-0.8, 0.8, COUNT),
            1.5 + 0.5 * (np.arange(COUNT) % 4),
        ],
        -1,
    )
    means[40:48] = means[40]
    return case.replace(
        means=means,
        quats=np.tile([1.0, 0, 0, 0], (COUNT, 1)),
        log_scales=rng.uniform(-2.5, -1, (COUNT, 2)),
    )


def opaque_stack() -> Case:
    """Walls of high opacity behind each other: every pixel meets the stop and the clamp
    of alpha.
    """
    rng = np.random.default_rng(4)
    case = random_cloud(4)
    return case.replace(
        log_scales=rng.uniform(-1, 0.5, (COUNT, 2)), logit_opacities=rng.uniform(1, 7, COUNT)
    )


def one_tile() -> Case:
    """10,000 faint surfels on one tile; most pixels stop before the last."""
    count = 10_000
    rng = np.random.default_rng(5)
    case = random_cloud(5, count, image_size=(16, 16), intrinsics=intrinsics(30, 30, 8, 8))
    return case.replace(
        log_scales=rng.uniform(-3, -2, (count, 2)),
        logit_opacities=_logit(rng.uniform(0.003, 0.03, count)),
    )


def alpha_threshold() -> Case:
    """Large flat surfels at pixel centres, half of them within rounding of opacity 1/255: every hit
    is a decision.
    """
    rng = np.random.default_rng(6)
    opacity = (1 + np.where(np.arange(COUNT) % 2, 2e-7, 5e-3) * rng.uniform(-1, 1, COUNT)) / 255
    pixels = rng.integers(0, np.array(SIZE)[::-1], (COUNT, 2)) + 0.5
    rays = np.concatenate(
        [(pixels - intrinsics()[:2, 2]) / np.diag(intrinsics())[:2], np.ones((COUNT, 1))], -1
    )
    return random_cloud(6).replace(
        means=_world(POSE, rays * rng.uniform(1.2, 4, (COUNT, 1))),
        logit_opacities=_logit(opacity),
        log_scales=rng.uniform(2, 3, (COUNT, 2)),
    )


def extreme_scales() -> Case:
    """Standard deviations from far below a pixel to far beyond the view, and needles of both at
    once.
    """
    rng = np.random.default_rng(7)
    log_scales = rng.choice([-12.0, -7.0, -3.0, -1.0, 1.0, 3.0], (COUNT, 2)) + rng.uniform(
        -0.3, 0.3, (COUNT, 2)
    )
    return random_cloud(7).replace(log_scales=log_scales, logit_opacities=rng.uniform(-3, 0, COUNT))


def three_cameras() -> Case:
    """One cloud, three cameras with their own intrinsics."""
    case = random_cloud(8)
    poses = [
        POSE,
        pose([0, 0.15, 0.05], [-0.3, 0.05, 0.1]) @ POSE,
        pose([0.1, -0.1, 1.2], [0.2, 0.1, 0.5]) @ POSE,
    ]
    cameras = [intrinsics(), intrinsics(36, 41, 20, 21), intrinsics(55, 50, 25, 17)]
    return case.replace(camera_from_world=np.stack(poses), intrinsics=np.stack(cameras))


def seen_in_parallel(case: Case, matrix: np.ndarray | None = None) -> Case:
    """A case drawn with parallel rays: at its middle depth, 2.6, about as large as in
    perspective.
    """
    matrix = intrinsics(15.5, 17, 22.1, 18.7) if matrix is None else matrix
    return dataclasses.replace(case.replace(intrinsics=matrix), projection="orthographic")


def edge_on_in_parallel(degrees: float) -> Case:
    """Planes that hold the direction of parallel rays up to this angle."""
    case = random_cloud(21)
    rng = np.random.default_rng(21)
    upright = Rotation.from_matrix(POSE[:3, :3].T) * Rotation.from_rotvec([np.pi / 2, 0, 0])
    tilt = np.radians(degrees) * rng.choice([-1, -0.5, 0.5, 1], COUNT)
    turns = Rotation.from_rotvec(
        np.stack([np.zeros(COUNT), rng.uniform(-np.pi, np.pi, COUNT), np.zeros(COUNT)], -1)
    )
    tilts = Rotation.from_rotvec(np.stack([tilt, np.zeros(COUNT), np.zeros(COUNT)], -1))
    quats = (upright * turns * tilts).as_quat()[:, [3, 0, 1, 2]]
    return seen_in_parallel(
        case.replace(quats=quats, log_scales=rng.uniform(-2.5, -0.7, (COUNT, 2)))
    )


ORTHOGRAPHIC: dict[str, Callable[[], Case]] = {
    "parallel_cloud": lambda: seen_in_parallel(random_cloud(20)),
    "parallel_low_degree": lambda: seen_in_parallel(random_cloud(22, sh_degree=1)),
    # A tile of a large map: the camera's axis is far outside the image.
    "parallel_far_tile": lambda: seen_in_parallel(
        random_cloud(23).replace(
            means=random_cloud(23).means + np.float32([8, -5, 0]) @ np.float32(POSE[:3, :3])
        ),
        intrinsics(15.5, 17, 22.1 - 8 * 15.5, 18.7 + 5 * 17),
    ),
    "parallel_edge_on": lambda: edge_on_in_parallel(2.0),
    "parallel_near_plane": lambda: seen_in_parallel(near_plane(), intrinsics(30, 25, 22, 19)),
    # Moved a little: else a pixel's centre lies on the line of a needle to within 6e-5 pixels, the
    # needle's width.
    "parallel_extreme_scales": lambda: seen_in_parallel(
        extreme_scales(), intrinsics(15.5, 17, 22.4, 18.9)
    ),
    "parallel_opaque_stack": lambda: seen_in_parallel(opaque_stack()),
    "parallel_ties": lambda: seen_in_parallel(ties()),
    "parallel_no_surfels": lambda: seen_in_parallel(random_cloud(24, 0)),
}

CASES: dict[str, Callable[[], Case]] = {
    "random_cloud": random_cloud,
    "whole_tiles": lambda: random_cloud(9, image_size=(32, 48)),
    "off_centre": lambda: random_cloud(10, intrinsics=intrinsics(30, 55, 3.2, 44.9)),
    # A crop far from the principal point: pixel coordinates and centre cancel.
    "far_crop": lambda: random_cloud(11, intrinsics=intrinsics(400, 400, 190, -150)).replace(
        log_scales=np.random.default_rng(11).uniform(-5, -2.5, (COUNT, 2))
    ),
    "low_degree": lambda: random_cloud(12, sh_degree=1),
    "edge_on": lambda: edge_on(2.0),
    "exactly_edge_on": lambda: edge_on(0.0),
    "near_plane": near_plane,
    # As if every second pixel were drawn; most surfels are no wider than the filter.
    "dilated": lambda: dataclasses.replace(
        random_cloud(15).replace(
            log_scales=np.random.default_rng(15).uniform(-5, -2.5, (COUNT, 2))
        ),
        low_pass=4 * LOW_PASS,
    ),
    "no_surfels": lambda: random_cloud(13, 0),
    "all_dead": lambda: random_cloud(14).replace(alive=np.zeros(COUNT, bool)),
    "one_tile": one_tile,
    "alpha_threshold": alpha_threshold,
    "extreme_scales": extreme_scales,
    "ties": ties,
    "opaque_stack": opaque_stack,
    **ORTHOGRAPHIC,
}

# One surfel of the random cloud with one bad number; every one of these surfels is visible before
# it is broken.
BROKEN = 57
BAD_NUMBERS = [(field, value) for field in FIELDS for value in (np.nan, np.inf, -np.inf)] + [
    ("quats", 0.0)
]


def broken_cloud(field: str, value: float) -> Case:
    """The random cloud with one surfel spoilt: one component of a field, or the whole quaternion
    for zero.
    """
    case = random_cloud()
    array = getattr(case, field).copy()
    array[BROKEN : BROKEN + 1].reshape(-1)[-1] = value
    if value == 0:
        array[BROKEN] = 0
    return case.replace(**{field: array}, alive=np.ones(COUNT, bool))


@functools.cache
def build(name: str) -> Case:
    return CASES[name]()


# The reference in float64
# ---------------------------------------------------------------------------


def remembered(function):
    """A function that looks up what it has given for the same numbers before: each backend is
    compared with the same results. Their arrays cannot be written.
    """
    known = {}

    @functools.wraps(function)
    def remember(*arguments, **options):
        key = hashlib.sha256(pickle.dumps((arguments, options))).digest()
        if key not in known:
            known[key] = function(*arguments, **options)
        return known[key]

    return remember


def _operands(case: Case, dtype) -> tuple[Surfels, Camera, jax.Array]:
    def array(name):
        x = getattr(case, name)
        return jnp.asarray(x if x.dtype == bool else x.astype(dtype))

    surfels = Surfels(**{name: array(name) for name in (*FIELDS, "alive")})
    return surfels, Camera(array("camera_from_world"), array("intrinsics")), array("background")


@functools.cache
def _reference_function(image_size, sh_degree, projection, low_pass):
    def render(near, *operands):
        options = {
            "image_size": image_size,
            "near": near,
            "sh_degree": sh_degree,
            "projection": projection,
            "low_pass": low_pass,
        }
        return (
            reference.render(*operands, **options),
            reference.decision_margins(*operands, **options),
        )

    return jax.jit(render)


@functools.cache
def _reference_gradient_function(image_size, sh_degree, low_pass):
    def loss(floats, alive, camera_intrinsics, near, cotangents):
        fields, pose, background = floats
        maps = reference.render(
            fields.replace(alive=alive),
            Camera(pose, camera_intrinsics),
            background,
            image_size=image_size,
            near=near,
            sh_degree=sh_degree,
            low_pass=low_pass,
        )
        return sum(
            (getattr(maps, name) * cotangent).sum() for name, cotangent in cotangents.items()
        )

    return jax.jit(jax.grad(loss))


@remembered
def reference_maps(case: Case, dtype=np.float64) -> tuple[RawMaps, np.ndarray]:
    """All raw maps of a one-camera case and the margins of its pixels, as NumPy arrays."""
    with jax.enable_x64(dtype == np.float64):
        render = _reference_function(
            case.image_size, case.sh_degree, case.projection, case.low_pass
        )
        result = render(jnp.asarray(case.near, dtype), *_operands(case, dtype))
        return jax.tree.map(np.asarray, result)


@remembered
def reference_gradients(
    case: Case, cotangents: dict[str, np.ndarray], dtype=np.float64
) -> dict[str, np.ndarray]:
    """Gradient of sum(map * cotangent) over all float maps, to the fields, the pose and the
    background.
    """
    cotangents = {name: np.zeros(shape) for name, shape in map_shapes(case).items()} | cotangents
    with jax.enable_x64(dtype == np.float64):
        surfels, camera, background = _operands(case, dtype)
        fields, pose, background = _reference_gradient_function(
            case.image_size, case.sh_degree, case.low_pass
        )(
            (surfels.replace(alive=None), camera.camera_from_world, background),
            surfels.alive,
            camera.intrinsics,
            jnp.asarray(case.near, dtype),
            {name: jnp.asarray(value, dtype) for name, value in cotangents.items()},
        )
        gradient = {name: getattr(fields, name) for name in FIELDS}
        gradient |= {"camera_from_world": pose, "background": background}
        return {name: np.asarray(value) for name, value in gradient.items()}


def map_shapes(case: Case) -> dict[str, tuple[int, ...]]:
    size = case.image_size
    return {name: (*size, 3) if name in ("color", "normal_sum") else size for name in FLOAT_MAPS}


@functools.cache
def _probe_function(image_size, sh_degree, low_pass):
    def probe(cotangents, near, *operands):
        return reference.screen_gradients(
            cotangents,
            *operands,
            image_size=image_size,
            near=near,
            sh_degree=sh_degree,
            low_pass=low_pass,
        )

    return jax.jit(probe)


@remembered
def reference_probe(case: Case, cotangents: dict[str, np.ndarray]) -> np.ndarray:
    """The gradient probe of sum(map * cotangent) by its definition, in float64."""
    with jax.enable_x64(True):
        maps = RawMaps(*[jnp.asarray(cotangents[name]) for name in FLOAT_MAPS], None, None)
        return np.asarray(
            _probe_function(case.image_size, case.sh_degree, case.low_pass)(
                maps, jnp.asarray(case.near, np.float64), *_operands(case, np.float64)
            )
        )


# The kernels
# ---------------------------------------------------------------------------


def require(backend: str) -> None:
    """Skips the test where the backend is not available; the CPU's always has to be."""
    reason = available_backends()[backend]
    if reason and backend != "cpu":
        pytest.skip(reason)


@functools.cache
def _kernel_function(backend, image_size, near, sh_degree, maps, projection, low_pass):
    def render(floats, alive, camera_intrinsics):
        surfels = Surfels(**{name: floats[name] for name in FIELDS}, alive=alive)
        camera = Camera(floats["camera_from_world"], camera_intrinsics)
        return RENDERERS[backend](
            surfels,
            camera,
            floats["background"],
            floats["probe"],
            image_size=image_size,
            near=near,
            sh_degree=sh_degree,
            maps=maps,
            with_contributions=True,
            projection=projection,
            low_pass=low_pass,
        )

    def loss(floats, alive, camera_intrinsics, cotangents):
        raw = render(floats, alive, camera_intrinsics)
        return sum((getattr(raw, name) * cotangent).sum() for name, cotangent in cotangents.items())

    return jax.jit(render), jax.jit(jax.grad(loss))


def _floats(case: Case) -> dict[str, jax.Array]:
    floats = {
        name: jnp.asarray(getattr(case, name))
        for name in (*FIELDS, "camera_from_world", "background")
    }
    return {**floats, "probe": jnp.zeros((case.means.shape[0], 4), jnp.float32)}


def kernel_maps(backend: str, case: Case, maps: str = "all") -> RawMaps:
    """All raw maps of a backend, as NumPy arrays; views in front if the case has them."""
    render, _ = _kernel_function(
        backend, case.image_size, case.near, case.sh_degree, maps, case.projection, case.low_pass
    )
    return jax.tree.map(
        np.asarray, render(_floats(case), jnp.asarray(case.alive), jnp.asarray(case.intrinsics))
    )


def kernel_gradients(
    backend: str, case: Case, cotangents: dict[str, np.ndarray], maps: str = "all"
) -> dict[str, np.ndarray]:
    """Gradient of sum(map * cotangent) to the fields, the pose, the background, and the probe."""
    _, gradient = _kernel_function(
        backend, case.image_size, case.near, case.sh_degree, maps, case.projection, case.low_pass
    )
    cotangents = {name: jnp.asarray(value, jnp.float32) for name, value in cotangents.items()}
    return jax.tree.map(
        np.asarray,
        gradient(_floats(case), jnp.asarray(case.alive), jnp.asarray(case.intrinsics), cotangents),
    )


def random_cotangents(case: Case, keep: np.ndarray, seed=0) -> dict[str, np.ndarray]:
    """Normal random numbers for every float map, zero at the pixels that are not kept."""
    rng = np.random.default_rng(seed)
    return {
        name: rng.normal(size=shape) * keep.reshape(keep.shape + (1,) * (len(shape) - 2))
        for name, shape in map_shapes(case).items()
    }
