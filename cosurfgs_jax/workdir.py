"""The folder of a run: which files lie where, metrics.json, and how far the run has come.

No other module spells a name of this table.

| file or folder                                    | content                                      |
|---------------------------------------------------|----------------------------------------------|
| `config.json`                                     | settings of the run                          |
| `given_up.json`                                   | settings changed for lack of memory, if any  |
| `geo.json`                                        | place of the dataset on the map, if known    |
| `plan.json`                                       | blocks and stages of the run, and their steps|
| `partition.json`                                  | cells of the blocks, and their fingerprint   |
| `place/<state>/`                                  | the dataset in blocks, as it was opened once |
| `data/`                                           | the generated dataset, if it is used         |
| `checkpoints/<stage>/<step>/`                     | training state (orbax)                       |
| `checkpoints/settings.json`                       | settings that they were made with            |
| `teachers/<stage>/`                               | maps of the teachers while a stage distils   |
| `compact/<stage>.npz`                             | in a block's folder: its model, compact      |
| `before/<number>.png`                             | test views before the first step             |
| `history.jsonl`, `history.<process>.jsonl`        | curves: a JSON object a line                 |
| `tensorboard/`, `tensorboard/process_<n>/`        | the same for TensorBoard                     |
| `metrics.json`                                    | format, stages, final, geometry              |
| `timings.json`                                    | seconds of evaluation and mesh extraction    |
| `runs.json`                                       | programs: commands, times, versions, devices |
| `point_cloud/iteration_<step>/point_cloud.ply`    | merged surfels, dataset frame                |
| `cameras.json`                                    | cameras, for viewers of 3DGS models          |
| `results.json`, `per_view.json`                   | scores in the form of 3DGS tools             |
| `test/ours_<step>/{renders,gt,depth,normal}/`     | pictures of the test views                   |
| `test/ours_<step>/views.json`                     | picture name -> photograph                   |
| `mesh/mesh.ply`, `mesh/mesh.json`                 | mesh in the dataset frame, and its choices   |
| `mesh/error.ply`, `completeness.ply`, `error.json`| distances to and from ground truth           |
| `export/`                                         | exported formats                             |
| `renders/`                                        | pictures that `render` writes                |
| `report.html`                                     | report                                       |
| `blocks/<number>/`                                | a block that a job of its own trains         |
| `shards/<what>/<i>-of-<n>/`                       | parts of outputs (`shard_folders`)           |
| `logs/<job>.log`                                  | what the jobs of `launch` print              |
| `.locks/`                                         | who writes here now (`Workdir.writing`)      |
| `.scratch/`                                       | temporary files of who does                  |
"""

import contextlib
import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cosurfgs_jax import ended, files, locks, metrics_json
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.locks import Output

RENDERS = "renders"  # this and the next three: folders of pictures below `Workdir.test`
PHOTOGRAPHS = "gt"
DEPTHS = "depth"
NORMALS = "normal"
TEST_NAMES = "views.json"  # beside them: picture name -> photograph
UNFINISHED_CHECKPOINT = ".orbax-checkpoint-tmp"
_HISTORY = re.compile(r"history(?:\.(\d+))?\.jsonl")
_POINT_CLOUD = re.compile(r"iteration_(\d+)")
_TEST = re.compile(r"ours_(\d+)")

TRAINING = Output("training", "a training run", "a job that trains single blocks")
BLOCK = Output("training", "the training of this block")  # in the block's folder
SCORES = Output("scores", "an evaluation", "a shard of an evaluation")
MESH = Output("mesh", "the extraction of a mesh, or its evaluation,", "a shard of a mesh")
PICTURES = Output("renders", "a render of views")
EXPORTS = Output("export", "an export", "a shard of an export")


@dataclasses.dataclass(frozen=True)
class Workdir:
    """The folder of a run.

    Attributes:
        root: the folder; it may be missing.
    """

    root: Path

    def __str__(self) -> str:
        return str(self.root)

    @property
    def config(self) -> Path:
        """Settings of the run."""
        return self.root / "config.json"

    @property
    def given_up(self) -> Path:
        """Settings that have other values than in `config`, for lack of memory; mostly missing."""
        return self.root / "given_up.json"

    @property
    def geo(self) -> Path:
        """Where the dataset lies on the map; missing where that is not known."""
        return self.root / "geo.json"

    @property
    def partition(self) -> Path:
        """Cells of the blocks."""
        return self.root / "partition.json"

    @property
    def place(self) -> Path:
        """Folder of what is kept of the opened dataset, by the state that it was opened in."""
        return self.root / "place"

    @property
    def plan(self) -> Path:
        """What the run is going to do."""
        return self.root / "plan.json"

    @property
    def data(self) -> Path:
        """Folder of the generated dataset."""
        return self.root / "data"

    def checkpoints(self, stage: str) -> Path:
        """Folder of a stage's checkpoints."""
        return self.root / "checkpoints" / stage

    @property
    def made_with(self) -> Path:
        """Settings that the checkpoints were made with: `config` may be edited."""
        return self.root / "checkpoints" / "settings.json"

    def teachers(self, stage: str) -> Path:
        """Folder of the maps that a stage's teachers show; deleted when the stage is done."""
        return self.root / "teachers" / stage

    def compact(self, stage: str) -> Path:
        """A block's model of a stage in the compact form."""
        return self.root / "compact" / f"{stage}.npz"

    def block(self, number: int) -> "Workdir":
        """The folder of a block that a job of its own trains."""
        return Workdir(self.root / "blocks" / str(number))

    def blocks(self) -> dict[int, "Workdir"]:
        """Number of a block -> its existing folder, in order."""
        names = [path.name for path in (self.root / "blocks").glob("*")]
        numbers = sorted(int(name) for name in names if re.fullmatch(r"0|[1-9][0-9]*", name))
        return {number: self.block(number) for number in numbers}

    def blocks_at_work(self) -> list[int]:
        """The blocks that jobs of their own train now."""
        blocks = self.blocks()
        if not blocks:
            return []
        with locks.hold_briefly(self.lock("blocks")):
            return [
                number
                for number, folder in blocks.items()
                if locks.is_held(folder.lock(BLOCK.name))
            ]

    def newest_step(self, stage: str) -> int | None:
        """The last saved step of a stage; None where none is saved."""
        names = [path.name for path in self.checkpoints(stage).glob("*")]
        return max((int(name) for name in names if name.isdecimal()), default=None)

    @property
    def before(self) -> Path:
        """Folder of the test views before the first step."""
        return self.root / "before"

    def history(self, process: int = 0) -> Path:
        """Curves that a process writes."""
        return self.root / (f"history.{process}.jsonl" if process else "history.jsonl")

    def histories(self) -> dict[int, Path]:
        """Number of a process -> its existing file of curves, in order."""
        paths = self.root.glob("history*.jsonl")
        matches = [(_HISTORY.fullmatch(path.name), path) for path in paths]
        return dict(sorted((int(match[1] or 0), path) for match, path in matches if match))

    def tensorboard(self, process: int = 0) -> Path:
        """Folder of a process's curves for TensorBoard."""
        folder = self.root / "tensorboard"
        return folder / f"process_{process}" if process else folder

    @property
    def metrics(self) -> Path:
        """Scores of the stages, of the model and of its mesh."""
        return self.root / "metrics.json"

    @property
    def timings(self) -> Path:
        """Seconds of what is done after training."""
        return self.root / "timings.json"

    @property
    def runs(self) -> Path:
        """Which programs made the run, when, with what (`run_record`)."""
        return self.root / "runs.json"

    def point_cloud(self, step: int) -> Path:
        """The merged surfels after `step` steps of all stages."""
        return self.root / "point_cloud" / f"iteration_{step}" / "point_cloud.ply"

    def newest_point_cloud(self) -> int | None:
        """The steps of the newest merged surfels; None without any."""
        steps = [
            int(match[1])
            for path in (self.root / "point_cloud").glob("*")
            if (match := _POINT_CLOUD.fullmatch(path.name))
        ]
        return max(steps, default=None)

    @property
    def cameras(self) -> Path:
        """Cameras, for viewers."""
        return self.root / "cameras.json"

    @property
    def results(self) -> Path:
        """Mean scores, as 3DGS tools write them."""
        return self.root / "results.json"

    @property
    def per_view(self) -> Path:
        """Scores of every test view, as 3DGS tools write them."""
        return self.root / "per_view.json"

    def test(self, step: int) -> Path:
        """Folder of the test views after `step` steps; its name is the key in `results`."""
        return self.root / "test" / f"ours_{step}"

    def newest_test(self) -> Path | None:
        """The `test` folder of the most steps that has renders; None without any."""
        steps = [
            int(match[1])
            for path in (self.root / "test").glob("*")
            if (match := _TEST.fullmatch(path.name)) and (path / RENDERS).is_dir()
        ]
        return self.test(max(steps)) if steps else None

    @property
    def mesh(self) -> Path:
        """The mesh."""
        return self.root / "mesh" / "mesh.ply"

    @property
    def mesh_choices(self) -> Path:
        """What was chosen to extract the mesh."""
        return self.mesh.with_name("mesh.json")

    @property
    def mesh_error(self) -> Path:
        """The mesh with the distance of each vertex to ground truth."""
        return self.mesh.with_name("error.ply")

    @property
    def truth_error(self) -> Path:
        """Ground truth with the distance of each point to the mesh."""
        return self.mesh.with_name("completeness.ply")

    @property
    def error_scale(self) -> Path:
        """The top of the colour scale of the two."""
        return self.mesh.with_name("error.json")

    @property
    def export(self) -> Path:
        """Folder of exported formats."""
        return self.root / "export"

    @property
    def renders(self) -> Path:
        """Folder of rendered views."""
        return self.root / "renders"

    @property
    def report(self) -> Path:
        """The report."""
        return self.root / "report.html"

    def lock(self, name: str) -> Path:
        """File of a lock."""
        return self.root / ".locks" / name

    def scratch(self, name: str) -> Path:
        """Folder for temporary files of who holds a lock, each in one of its own."""
        return self.root / ".scratch" / name

    def own_scratch(self, output: Output) -> Path:
        """What `writing` gives; who writes without the lock has to make and delete it."""
        return self.scratch(output.name) / ended.own_name()

    @contextlib.contextmanager
    def writing(self, output: Output) -> Iterator[Path]:
        """Holds the lock of one kind of output, and deletes what a killed program has left.

        Programs that write other kinds, and all that only read, go on beside it.

        Yields:
            A folder for temporary files, removed at the end.
        Raises:
            InputError: another process writes the same, with its number, machine and start.
        """
        scratch = self.own_scratch(output)
        with locks.hold(self.lock(output.name), output.writer, scratch, output.together):
            files.clear_unfinished(self.root)
            yield scratch

    def clear_unfinished_training(self, is_ended: bool) -> None:
        """Deletes checkpoints, of blocks too, and a generated dataset that a killed run was writing
        or deleting; for who holds the lock of training.

        Args:
            is_ended: whether that run has certainly ended; else only what is old is deleted.
        """
        unfinished = list(self.root.glob(f"checkpoints/*/*{UNFINISHED_CHECKPOINT}*"))
        for folder in [*unfinished, *self.data.glob(".*-unfinished-*")]:
            ended.delete_folder(folder, is_ended)
        for block in self.blocks().values():  # a job of one may not have ended
            is_left = is_ended and locks.has_last_ended(block.lock(BLOCK.name))
            block.clear_unfinished_training(is_left)
            ended.delete_folder(block.scratch(BLOCK.name).parent, is_left)

    def has_begun(self, stage: str = "*") -> bool:
        """Whether a step of a stage, or of any, is saved. Before that the settings bind nobody: the
        first try may have failed early.

        Args:
            stage: name, of the blocks together; "*" = any, of one block too.
        """
        saved = self.checkpoints(stage).parent.glob(f"{stage}/*")
        return any(path.name.isdigit() for path in saved) or (
            stage == "*" and any(block.has_begun() for block in self.blocks().values())
        )

    def is_complete(self, step: int) -> bool:
        """Whether a run of `step` steps has written all that it writes."""
        written = (self.point_cloud(step), self.metrics, self.cameras)
        return all(path.exists() for path in written)

    def read_metrics(self) -> dict[str, Any]:
        """The content of metrics.json; without a file, that of an empty one.

        Raises:
            InputError: a file of another format.
        """
        return metrics_json.read_metrics(self.metrics)

    def merge_metrics(self, **parts: Any) -> dict[str, Any]:
        """Updates metrics.json: parts that are given replace the old ones, the others stay.

        Args:
            **parts: "stages" (list), "final" (dict or None), "geometry" (dict or None).
        Returns:
            The content as written.
        Raises:
            InputError: an unknown part, or a file of another format.
        """
        unknown = set(parts) - set(metrics_json.PARTS)
        if unknown:
            raise InputError(
                f"metrics.json: expected the parts stages, final, geometry, got {sorted(unknown)}"
            )
        with locks.hold_briefly(self.lock("metrics")):
            content = self.read_metrics() | parts
            files.write_json(self.metrics, content)
        return content

    def write_stage(self, name: str, **numbers: Any) -> None:
        """Adds a stage to metrics.json, or replaces the one of this name where it stands.

        Args:
            name: of the stage.
            **numbers: the other fields of its object.
        """
        stages = {stage["name"]: stage for stage in self.read_metrics()["stages"]}
        stages[name] = {"name": name, **numbers}  # only training writes this part
        self.merge_metrics(stages=list(stages.values()))
