"""Outputs by shards against those of one process, with the programs."""

from pathlib import Path

from run_programs import expect_sentence, run

_OUTPUTS = {
    "extract_mesh": ("mesh/mesh.ply", "mesh/mesh.json"),
    "evaluate": ("metrics.json", "results.json", "per_view.json", "test"),
}
# What machines may differ in.
_OTHER = {"extract_mesh": ["--config.surface.memory_mb=64"], "evaluate": []}
# The call that joins the shards.
_WHOLE = {"extract_mesh": ["--format=glb"], "evaluate": []}


def compare_shards(workdir: Path) -> None:
    """Runs programs by shards, and compares what they write with what is there.

    Args:
        workdir: of a run that has ended, with open3d and a test view, its mesh as a GLB file too,
            and its scores.
    """
    # A new mesh takes the scores of the old one away, so everything is read at first.
    whole = {name: _bytes_of(workdir, outputs) for name, outputs in _OUTPUTS.items()}
    for name, expected in whole.items():
        for flags in (["--shard=1/2"], ["--shard=0/2", *_OTHER[name]], _WHOLE[name]):
            result = run(name, workdir, *flags)
            assert result.returncode == 0, result.stderr
            if flags == ["--shard=1/2"]:
                expect_sentence(run(name, workdir), "expected all 2 shards", "got all but 0/2")
        got = _bytes_of(workdir, _OUTPUTS[name])
        assert sorted(got) == sorted(expected) and len(expected) > 1
        changed = [path for path in expected if got[path] != expected[path]]
        assert not changed, changed
    assert not (workdir / "shards").exists()
    expect_sentence(run("evaluate", workdir, "--shard=2/2"), "--shard: expected a part i/n")
    expect_sentence(
        run("export", workdir, "--shard=0/2", "--format=dsm"), "expected a format that shards can"
    )


def _bytes_of(workdir: Path, outputs: tuple[str, ...]) -> dict[str, bytes]:
    """The content of files, and of all files below folders."""
    places = [workdir / output for output in outputs]
    files = [path for place in places for path in (place, *place.rglob("*")) if path.is_file()]
    return {str(path.relative_to(workdir)): path.read_bytes() for path in files}
