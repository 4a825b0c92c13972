"""A forecast as lines for people, and as JSON."""

from collections.abc import Sequence
from typing import Any

from cosurfgs_jax.collab.announcement import shown_bytes
from cosurfgs_jax.planning.forecast import Forecast, Memory, short_of
from cosurfgs_jax.planning.remedies import Remedy

_DEVICE_ON_CPU = "a CPU: its memory is that of the process"
_MAX_BLOCKS = 12  # that are listed


def lines_of(found: Forecast, remedies: Sequence[Remedy]) -> list[str]:
    """What `cosurfgs plan` prints."""
    return [
        *_place_lines(found),
        "",
        *_stage_lines(found),
        "",
        *_memory_lines(found),
        "",
        *_disk_lines(found),
        "",
        *_verdict(found, remedies),
    ]


def _place_lines(found: Forecast) -> list[str]:
    subject = found.subject
    scene = subject.partitioned.scene
    height, width = scene.views.image_sizes.max(axis=0)
    lines = [
        f"{scene.name}: {len(scene.train_views)} photographs for training, "
        f"{len(scene.test_views)} for testing, at most {width}x{height}, {len(scene.cloud)} points",
        f"blocks: {subject.sizes.num_blocks} on {subject.sizes.num_devices} device(s)",
    ]
    blocks = subject.partitioned.blocks
    for block in blocks[:_MAX_BLOCKS]:
        lines.append(
            f"  block {block.number}: {len(block.views)} photographs, {len(block.points)} points, "
            f"{block.num_initial:,d} to {block.capacity:,d} surfels"
        )
    if len(blocks) > _MAX_BLOCKS:
        lines.append(f"  and {len(blocks) - _MAX_BLOCKS} more; --json lists all")
    return lines


def _stage_lines(found: Forecast) -> list[str]:
    if found.stages is None:
        stages = found.subject.stages
        settings = found.subject.settings
        return [
            "stages (not timed):",
            *(f"  {spec.name:<12}{spec.num_steps(settings):>7} steps" for spec in stages),
        ]
    lines = ["stages:"]
    for stage in found.stages:
        each = ""
        if stage.num_steps:
            each = f", {1e3 * stage.steps_s[0] / stage.num_steps:.3g} ms a step"
        lines.append(
            f"  {stage.name:<12}{stage.num_steps:>7} steps  {shown_minutes(stage.total_s[0])}{each}"
        )
    lines.append(
        f"  in all {'':<18}{shown_minutes(found.total_s[0])}, {found.total_s[1] / 60:.1f} of "
        "processor time"
    )
    return lines


def shown_minutes(seconds: float) -> str:
    """A time for people: "0.8 min"."""
    return f"{seconds / 60:.1f} min"


def _memory_lines(found: Forecast) -> list[str]:
    memory = found.memory
    machine = found.machine
    sizes = found.subject.sizes
    has = _DEVICE_ON_CPU
    if machine.device_limit is not None:
        has = f"there are {shown_bytes(machine.device_limit)}"
    free = ""
    if machine.host_free is not None:
        free = f", {shown_bytes(machine.host_free)} of them free"
    return [
        f"memory of a device ({machine.device_kind}): {_peak(memory, 'device')}; {has}",
        f"  {sizes.blocks_per_device} block(s) of {shown_bytes(sizes.state_bytes)}, a step "
        f"{shown_bytes(max(memory.programs))}, photographs "
        f"{shown_bytes(memory.held.device_photos)}",
        f"memory of the process: {_peak(memory, 'host')}; there are "
        f"{shown_bytes(machine.host_limit)}{free}",
        f"  of them photographs {shown_bytes(memory.held.host_photos)}, Python and programs "
        f"{shown_bytes(memory.held.base)}",
        f"memory of extract_mesh: {shown_bytes(found.mesh.memory)} besides the process, "
        f"{found.mesh.num_triangles / 1e6:.2g} million triangles",
    ] + _traffic_lines(found)


def _peak(memory: Memory, kind: str) -> str:
    peak = getattr(memory, kind)
    return f"{shown_bytes(peak.num_bytes)} at its peak ({peak.moment})"


def _traffic_lines(found: Forecast) -> list[str]:
    return [
        f"traffic of a step of {name}: {shown_bytes(cost.bytes_moved)} come to each device"
        for name, cost in found.measured.distillation.items()
    ]


def _disk_lines(found: Forecast) -> list[str]:
    parts = ", ".join(f"{what} {shown_bytes(size)}" for what, size in found.disk.items())
    total = sum(found.disk.values())
    return [
        f"disk: {shown_bytes(total)} ({parts}); {shown_bytes(found.machine.disk_free)} are free",
        f"  extract_mesh: {shown_bytes(found.mesh.file)}, and {shown_bytes(found.mesh.scratch)} "
        "while it runs",
    ]


def _verdict(found: Forecast, remedies: Sequence[Remedy]) -> list[str]:
    if found.fits:
        return ["it fits"]
    short = short_of(found.memory, found.machine)
    lines = []
    if sum(found.disk.values()) > found.machine.disk_free:
        lines.append("it does not fit on the disk: make room, or use another --workdir")
    if short:
        words = "; with" if remedies else ", and no setting that was tried makes it fit"
        lines.append(f"it does not fit into the memory of the {' and the '.join(short)}{words}")
    for remedy in remedies:
        flags = " ".join(f"--config.{name}={value}" for name, value in remedy.changes.items())
        words = "it fits"
        if not remedy.fits:
            words = "it still does not fit"
        lines.append(
            f"  {flags}: device {shown_bytes(remedy.memory.device.num_bytes)}, process "
            f"{shown_bytes(remedy.memory.host.num_bytes)}: {words}"
        )
    return lines


def to_json(found: Forecast, remedies: Sequence[Remedy]) -> dict[str, Any]:
    """What `--json` writes: bytes and seconds."""
    subject = found.subject
    scene = subject.partitioned.scene
    table: dict[str, Any] = {
        "photographs": {
            "train": len(scene.train_views),
            "test": len(scene.test_views),
            "largest": scene.views.image_sizes.max(axis=0).tolist(),
        },
        "blocks": [
            {
                "views": len(block.views),
                "points": len(block.points),
                "surfels_first": block.num_initial,
                "surfels_last": block.capacity,
            }
            for block in subject.partitioned.blocks
        ],
        "num_devices": subject.sizes.num_devices,
        "stages": _stages_json(found),
        "memory": _memory_json(found.memory),
        "disk": found.disk,
        "mesh": found.mesh._asdict(),
        "traffic_per_step": {
            name: cost.bytes_moved for name, cost in found.measured.distillation.items()
        },
        "machine": found.machine._asdict(),
        "fits": found.fits,
        "remedies": [
            {
                "settings": remedy.changes,
                "memory": _memory_json(remedy.memory),
                "fits": remedy.fits,
            }
            for remedy in remedies
        ],
    }
    if found.stages is not None:
        table["seconds"] = float(found.total_s[0])
        table["processor_seconds"] = float(found.total_s[1])
    return table


def _memory_json(memory: Memory) -> dict[str, Any]:
    return {
        "device": memory.device._asdict(),
        "host": memory.host._asdict(),
        "programs": memory.programs._asdict(),
        "held": memory.held._asdict(),
    }


def _stages_json(found: Forecast) -> list[dict[str, Any]]:
    if found.stages is None:
        settings = found.subject.settings
        return [
            {"name": spec.name, "steps": spec.num_steps(settings)} for spec in found.subject.stages
        ]
    return [
        {
            "name": stage.name,
            "steps": stage.num_steps,
            "seconds": float(stage.total_s[0]),
            "processor_seconds": float(stage.total_s[1]),
            "seconds_of_steps": float(stage.steps_s[0]),
        }
        for stage in found.stages
    ]
