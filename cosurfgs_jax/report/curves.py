"""Curves of training, from the rows of a log."""

from typing import NamedTuple

Line = tuple[list[float], list[float]]  # steps, values


class Curves(NamedTuple):
    """Curves of all stages, one stage after the other on one axis.

    | field    | content                                                          |
    |----------|------------------------------------------------------------------|
    | `charts` | chart -> (line's name, block or None where there is one) -> line |
    | `starts` | stage -> steps of the stages before it                           |
    """

    charts: dict[str, dict[tuple[str, int | None], Line]]
    starts: dict[str, float]


NO_CURVES = Curves({}, {})


def curves_from_rows(rows: list[dict], x_name: str = "step") -> Curves:
    """One chart per number from rows of a log ({"stage": "device", "step": 50, "block": 0, "loss":
    0.1, ...}), which come stage by stage.

    Names with a slash share a chart: "psnr/train" and "psnr/test" are two lines of "psnr". Each
    block has its own lines.
    """
    charts: dict[str, dict[tuple[str, int | None], Line]] = {}
    has_blocks = len({row.get("block") for row in rows}) > 1
    lengths: dict[str, float] = {}
    for row in rows:
        stage = row.get("stage", "")
        lengths[stage] = max(lengths.get(stage, 0), row[x_name])
    starts = {}
    steps_before = 0
    for stage, length in lengths.items():
        starts[stage] = steps_before
        steps_before += length
    for row in rows:
        for name, value in row.items():
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if name in (x_name, "block") or not is_number:
                continue
            chart, _, line = name.partition("/")
            block = row.get("block") if has_blocks else None
            key = (line or chart, block)
            steps, values = charts.setdefault(chart, {}).setdefault(key, ([], []))
            steps.append(starts[row.get("stage", "")] + row[x_name])
            values.append(value)
    return Curves(charts, starts)
