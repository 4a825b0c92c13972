"""Results of the CPU's kernels, kept in files, to verify other machines' kernels against: no slow
definition is needed there.

scripts/make_gpu_fixtures.py DIR makes the files, scripts/compare_gpu_fixtures.py DIR compares with
them.

Two kinds. *Whole* cases are the small ones of tests/parity/raster_cases.py: their inputs, maps and
gradients are all in the file, and the pixels whose decisions are clear are marked (by the
definition in float64). *Large* cases are the random clouds of scripts/bench_raster.py: their inputs
are drawn anew from a seed (the file has a checksum of them), maps are kept as sums over blocks of
8x8 pixels, gradients as 5,000 random rows and the norm of all.

Both are compared in two tiers. Rounding turns few decisions (the alpha threshold, the stop, the
median), and what it turns jumps: most must agree closely, and the others are counted and their
jumps bounded."""

import dataclasses
import hashlib
import json
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
sys.path += [str(ROOT / "tests" / "parity"), str(ROOT / "scripts")]

import raster_cases as cases  # noqa: E402
from bench_growth import town  # noqa: E402
from bench_raster import Scene, build_scene  # noqa: E402
from test_raster_parity import UNDECIDED_NORMALS  # noqa: E402

FORMAT = 1  # of the files
BLOCK = 8  # pixels, side of what maps are summed over
ROWS = 5000  # of gradients that are kept
_PATTERN = (61, 67)  # pixels after which cotangents repeat: no multiple of a tile
_PER_SURFEL = (*cases.FIELDS, "probe")


@dataclasses.dataclass(frozen=True)
class Large:
    """A random cloud before a camera, and what is special about it."""

    scene: Scene
    image_size: tuple[int, int]
    why: str


# A GPU makes the gradients of a call band by band where there are more than 2^24 pairs of surfel
# and tile. Here every disc covers the whole image: 640 x 32,400 tiles. Pixels stop after some
# seventy of them, which keeps the time on a CPU short.
BANDS = Scene(640, (4000.0, 8000.0), (0.05, 0.2))
LARGE = {
    "town_2k": Large(town(2000, 160), (96, 160), "large in small: sums over blocks, random rows"),
    "town_100k_1080p": Large(
        town(100_000, 1920), (1080, 1920), "sorts of several tiles, grids beyond one wave"
    ),
    "town_1m_4k": Large(town(1_000_000, 3840), (2160, 3840), "a million surfels on 32,400 tiles"),
    "bands_4k": Large(
        BANDS, (2160, 3840), "20.7 million pairs: gradients in bands; every surfel on every tile"
    ),
}
BATCH = "three_cameras"
WHOLE = (*cases.CASES, BATCH)
SHORT = ("random_cloud", "ties", "near_plane", BATCH, "town_2k")  # seconds, for tests
ALL = (*WHOLE, *LARGE)


# Inputs
# ---------------------------------------------------------------------------


def build_large(name: str) -> tuple[cases.Case, dict[str, np.ndarray]]:
    """A large case and the cotangents of its maps."""
    large = LARGE[name]
    arrays = build_scene(large.scene, large.image_size)
    case = cases.Case(**arrays, background=np.float32([0.9, 0.1, 0.4]), image_size=large.image_size)
    rng = np.random.default_rng(7)
    cotangents = {}
    for map_name, shape in cases.map_shapes(case).items():
        pattern = rng.normal(size=(*_PATTERN, *shape[2:])).astype(np.float32)
        repeats = [-(-size // step) for size, step in zip(shape, _PATTERN, strict=False)]
        tiled = np.tile(pattern, (*repeats, *(1,) * len(shape[2:])))
        cotangents[map_name] = tiled[: shape[0], : shape[1]]
    return case, cotangents


def build_whole(name: str) -> tuple[cases.Case, np.ndarray, dict[str, np.ndarray]]:
    """A small case, which of its pixels are clear, and cotangents that are zero at the others.

    With a leading axis of views if the case has it.
    """
    if name != BATCH:
        case = cases.build(name)
        safe = cases.reference_maps(case)[1] > cases.SAFE_MARGIN
        has_gradient = case.projection != "orthographic" and name != UNDECIDED_NORMALS
        return case, safe, cases.random_cotangents(case, safe) if has_gradient else {}
    case = cases.three_cameras()
    views = [case.view(i) for i in range(case.num_views())]
    safe = np.stack([cases.reference_maps(view)[1] > cases.SAFE_MARGIN for view in views])
    parts = [cases.random_cotangents(view, safe[i], seed=i) for i, view in enumerate(views)]
    cotangents = {key: np.stack([part[key] for part in parts]) for key in cases.FLOAT_MAPS}
    return case, safe, cotangents


def _arrays(case: cases.Case) -> dict[str, np.ndarray]:
    return {key: value for key, value in vars(case).items() if isinstance(value, np.ndarray)}


def checksum(case: cases.Case, cotangents: dict[str, np.ndarray]) -> str:
    """Of the bits of all inputs: another NumPy, or another processor's logarithm, may draw other
    ones.
    """
    digest = hashlib.sha256()
    for array in (*_arrays(case).values(), *cotangents.values()):
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()


# Results
# ---------------------------------------------------------------------------


def block_sums(image: np.ndarray) -> np.ndarray:
    """Sums over blocks of BLOCK x BLOCK pixels, f32; the blocks at the edges may be smaller."""
    sums = image.astype(np.float64)
    for axis in (0, 1):
        sums = np.add.reduceat(sums, np.arange(0, image.shape[axis], BLOCK), axis=axis)
    return sums.astype(np.float32)


def compute(
    backend: str, case: cases.Case, cotangents: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Maps, contributions and gradients of one backend, whole."""
    maps = cases.kernel_maps(backend, case)
    results = {f"map/{name}": getattr(maps, name) for name in cases.FLOAT_MAPS}
    results |= {"contributions": maps.contributions, "num_invalid": maps.num_invalid}
    if cotangents:
        gradients = cases.kernel_gradients(backend, case, cotangents)
        results |= {f"gradient/{name}": value for name, value in gradients.items()}
    return results


def reduce(results: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What is kept of a large case: sums over blocks, some rows, and the norm of everything."""
    count = results["contributions"].shape[0]
    rows = np.sort(np.random.default_rng(3).permutation(count)[:ROWS])
    kept = {"num_invalid": results["num_invalid"]}
    for name, value in results.items():
        if name.startswith("map/"):
            kept[name] = block_sums(value)
        elif name == "contributions" or name.removeprefix("gradient/") in _PER_SURFEL:
            kept[name] = value[rows]
            kept[f"norm/{name}"] = np.linalg.norm(value.astype(np.float64))
        elif name.startswith("gradient/"):
            kept[name] = value
    return kept


# Files
# ---------------------------------------------------------------------------


def path_of(folder: Path, name: str) -> Path:
    """Where the results of a case are kept."""
    return folder / f"{name}.npz"


def store(name: str, folder: Path) -> None:
    """Computes a case with the CPU's kernels and writes its file."""
    if name in LARGE:
        case, cotangents = build_large(name)
        content = reduce(compute("cpu", case, cotangents))
        content["checksum"] = np.str_(checksum(case, cotangents))
    else:
        case, safe, cotangents = build_whole(name)
        content = compute("cpu", case, cotangents) | {"safe": safe}
        arrays = _arrays(case)
        options = {key: value for key, value in vars(case).items() if key not in arrays}
        content["options"] = np.str_(json.dumps(options))
        content |= {f"case/{key}": value for key, value in arrays.items()}
        content |= {f"cotangent/{key}": np.float32(value) for key, value in cotangents.items()}
    np.savez_compressed(path_of(folder, name), format=FORMAT, **content)


def load(name: str, folder: Path) -> dict[str, np.ndarray]:
    """The content of a case's file.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is of another format.
    """
    with np.load(path_of(folder, name)) as file:
        content = dict(file)
    if content.pop("format") != FORMAT:
        raise ValueError(
            f"{path_of(folder, name)}: expected format {FORMAT}; make it anew: "
            f"python scripts/make_gpu_fixtures.py {folder}"
        )
    return content


def _group(content: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {
        key.removeprefix(prefix): value for key, value in content.items() if key.startswith(prefix)
    }


def inputs(name: str, content: dict[str, np.ndarray]) -> tuple[cases.Case, dict[str, np.ndarray]]:
    """The inputs that belong to a file.

    Raises:
        ValueError: they cannot be drawn again on this machine.
    """
    if name not in LARGE:
        options = json.loads(str(content["options"]))
        options["image_size"] = tuple(options["image_size"])
        return cases.Case(**_group(content, "case/"), **options), _group(content, "cotangent/")
    case, cotangents = build_large(name)
    if checksum(case, cotangents) != str(content["checksum"]):
        raise ValueError(
            f"NumPy {np.__version__} on this processor draws other random numbers than where the "
            "results were made; make them here: python scripts/make_gpu_fixtures.py DIR "
            f"--only={name}"
        )
    return case, cotangents
