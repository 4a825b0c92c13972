"""Who may know whom: layers, circles, and what one place alone touches."""

import ast
import re

from package_tree import MODULES, TEXTS, TREES, broken, imported_modules, imports

# Imports point down only, and modules of one layer do not import each other; files in one folder
# may.
LAYERS = [
    {"ended", "errors", "host_memory", "storage"},
    {"files", "types", "settings", "part"},
    {"native", "photograph", "locks", "metrics_json", "open3d_library", "shard_folders"},
    {"workdir"},
    {"geometry"},
    {"settings_file", "metrics", "pictures", "run_status", "run_record"},
    {"formats"},
    {"raster"},
    {"losses", "model", "data", "partition"},
    {"surface", "sfm"},
    {"report"},
    {"distributed"},
    {"training"},
    {"collab"},
    {"planning"},
    {"outputs"},
    {"api", "viewer", "engines"},
    {"program"},
]
PROGRAMS = {
    "train",
    "launch",
    "evaluate",
    "extract_mesh",
    "render",
    "view",
    "prepare",
    "plan",
    "status",
    "doctor",
    "export",
}
OPTIONAL = {"open3d", "trimesh", "pycolmap", "viser", "rasterio", "laspy", "pyproj", "ray"}
OPTIONAL |= {"lazrs", "matplotlib", "mpl_toolkits"}
OPTIONAL |= {"contourpy", "shapely", "pyogrio"}


def _layer(name: str) -> int:
    if name in PROGRAMS:
        return len(LAYERS)
    matches = [i for i, names in enumerate(LAYERS) if name.split(".")[0] in names]
    assert matches, f"{name} is in no layer: put it into LAYERS"
    return matches[0]


def test_imports_point_down():
    def rule(name):
        sentences = []
        for other in imported_modules(name):
            same_folder = name not in PROGRAMS and name.split(".")[0] == other.split(".")[0]
            if not other:
                sentences.append("imports the package itself instead of its parts")
            elif not same_folder and _layer(other) >= _layer(name):
                sentences.append(f"imports {other}, which is not below it")
        return sentences

    assert not broken(rule)


def test_no_modules_import_each_other_in_a_circle():
    """What is imported inside functions counts, too: it only hides the circle."""
    below = {name: sorted(imported_modules(name) - {name, ""}) for name in MODULES if name}
    done, path = set(), []

    def walk(name):
        if name in path:
            circle = " -> ".join([*path[path.index(name) :], name])
            raise AssertionError(f"imports go round in a circle: {circle}")
        if name not in done:
            path.append(name)
            for other in below[name]:
                walk(other)
            path.pop()
            done.add(name)

    for name in below:
        walk(name)


def test_optional_packages_are_imported_only_where_they_are_used():
    def rule(name):
        defined = ast.FunctionDef | ast.ClassDef
        top = [node for node in TREES[name].body if not isinstance(node, defined)]
        found = {item.split(".")[0] for item in imports(ast.Module(top, []))} & OPTIONAL
        return [f"import {item} inside the function that uses it" for item in found]

    assert not broken(rule)


def test_only_the_bridge_touches_the_ffi():
    def rule(name):
        named = [
            node
            for node in ast.walk(TREES[name])
            if isinstance(node, ast.Attribute) and ast.unparse(node) == "jax.ffi"
        ]
        is_imported = any(item.startswith("jax.ffi") for item in imports(TREES[name]))
        return ["jax.ffi belongs into native/ffi.py"] if named or is_imported else []

    assert not broken(rule, but=("native.ffi",))


def test_only_programs_read_flags_and_environment():
    forbidden = {"os.environ", "os.getenv", "sys.argv"}

    def rule(name):
        names = imports(TREES[name])
        attributes = [node for node in ast.walk(TREES[name]) if isinstance(node, ast.Attribute)]
        found = forbidden & {*names, *(ast.unparse(node) for node in attributes)}
        found |= {item.split(".")[0] for item in names} & {"absl", "ml_collections", "argparse"}
        return [f"{item} is for programs" for item in found]

    assert not broken(rule, but=("program", *PROGRAMS))


def test_nothing_outside_native_knows_cpp():
    """Neither files of C++ and libraries nor the names of their symbols."""

    def rule(name):
        constants = [node.value for node in ast.walk(TREES[name]) if isinstance(node, ast.Constant)]
        documented = ast.Module | ast.ClassDef | ast.FunctionDef
        nodes = [node for node in ast.walk(TREES[name]) if isinstance(node, documented)]
        docs = {ast.get_docstring(node, clean=False) for node in nodes}
        texts = [value for value in constants if isinstance(value, str) and value not in docs]
        pattern = r"\.(so|h|cc|cu|cuh)\b|csrc|Cosurfgs[A-Z]\w+|\bcsrc/"
        return [f"{text!r}" for text in texts if re.search(pattern, text)]

    assert not broken(rule, but=("native",))


def test_only_their_reader_imports_the_town():
    def rule(name):
        return [item for item in imported_modules(name) if item.startswith("data.town")]

    assert not broken(rule, but=("data.town", "data.generated"))


# Names of files in a workdir, and of its folders; a dataset has files of some of these names.
WORKDIR_FILES = {
    "config.json",
    "partition.json",
    "history.jsonl",
    "metrics.json",
    "timings.json",
    "runs.json",
    "cameras.json",
    "results.json",
    "per_view.json",
    "views.json",
    "point_cloud.ply",
    "mesh.ply",
    "mesh.json",
    "error.ply",
    "completeness.ply",
    "error.json",
    "report.html",
}
WORKDIR_FOLDERS = {
    "checkpoints",
    "teachers",
    "before",
    "tensorboard",
    "point_cloud",
    "test",
    "renders",
    "gt",
    "mesh",
    "export",
    "data",
}


def test_only_workdir_spells_the_names_of_its_files():
    def rule(name):
        found = []
        for node in ast.walk(TREES[name]):
            value = getattr(node, "value", None)
            if isinstance(node, ast.Constant) and isinstance(value, str):
                if value in WORKDIR_FILES or re.match(r"ours_|iteration_|history\.", value):
                    found.append(value)
            if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
                folder = getattr(node.right, "value", None)
                if isinstance(folder, str) and folder in WORKDIR_FOLDERS:
                    found.append(folder)
        return [f"use a property of Workdir for {item!r}" for item in found]

    assert not broken(rule, but=("workdir", "data"))


def test_only_the_table_of_stages_spells_their_names():
    stages = {"lmc_device", "lmc_edge", "cloud"}  # "device" and "edge" are axes of the mesh too

    def spelled(name):
        nodes = ast.walk(TREES[name])
        return stages & {
            node.value
            for node in nodes
            # fmt: skip
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }

    assert spelled("collab.stages") == stages
    assert not broken(lambda name: sorted(spelled(name)), but=("collab.stages",))


def test_poses_of_a_dataset_are_not_called_those_of_the_world():
    """The world is the frame of training; poses in the dataset's are camera_from_dataset."""

    def rule(name):
        if name.split(".")[0] not in ("data", "surface", "metrics", "formats"):
            return []
        return re.findall(r"camera_from_world|world_from_camera", TEXTS[name])

    assert not broken(rule)


def test_one_file_says_what_a_mask_means():
    """photograph.py decodes masks, weights and brightness."""
    pattern = r"photo\[\.\.\., 3\]|>= 128\b|> 127\b|0\.587"
    assert not broken(lambda name: re.findall(pattern, TEXTS[name]), but=("photograph",))
