"""Why depth was dropped on the way to a mesh, as words for logs and errors."""

# What drops depth pixels, in words, and what to do where it drops all of them.
_DROPS = {
    "invalid": (
        "had no depth",
        "the model shows no opaque surface there: train longer (config.train.steps), or look at it "
        "with `cosurfgs render`",
    ),
    "out_of_range": (
        "were outside the depth range of the SfM points",
        "the model's surface is not where the SfM points are: check the poses, or train longer",
    ),
    "grazing": ("were seen edge-on", "set a larger config.surface.max_angle_deg"),
    "unconfirmed": (
        "were not confirmed by enough neighbours",
        "train longer, use photographs that overlap more, or set "
        "config.surface.min_neighbor_views=1 or 0",
    ),
}


def explain_counts(counts: dict[str, int] | None) -> str:
    """How many depth pixels there were and which check dropped how many, as words for a message."""
    if not counts:
        return "nothing is known of what was dropped before"
    parts = [f"{counts[key]} {text}" for key, (text, _) in _DROPS.items() if counts.get(key)]
    return f"of {counts['pixels']} depth pixels {', '.join(parts) or 'none was dropped'}"


def suggest_cure(counts: dict[str, int] | None) -> str:
    """What to do about the check that dropped most. Much of an image may well show nothing: that is
    blamed last.
    """
    counts = counts or {}
    others = {key: counts.get(key, 0) for key in _DROPS if key != "invalid"}
    if sum(others.values()) < 0.1 * counts.get("pixels", 1):
        return _DROPS["invalid"][1]
    return _DROPS[max(others, key=others.__getitem__)][1]


def explain_empty(voxel_size: float, min_views: int, counts: dict[str, int] | None) -> str:
    """The message for depth that gave no surface."""
    return (
        f"mesh: the fused depth has no surface seen by {min_views} views at voxel size "
        f"{voxel_size:.4g} ({explain_counts(counts)}); {suggest_cure(counts)}; or set "
        "config.surface.voxel_size to another length in the unit of the dataset, 0 takes it from "
        "the data"
    )


def explain_no_depth(counts: dict[str, int] | None) -> str:
    """The message where no depth is left to be fused."""
    return f"mesh: there is no depth to fuse: {explain_counts(counts)}; {suggest_cure(counts)}"
