"""Curves of training, from the rows of a log."""

Curves = dict[str, dict[str, tuple[list[float], list[float]]]]  # chart -> line -> (steps, values)


def curves_from_rows(rows: list[dict], x_name: str = "step") -> Curves:
    """One chart per number and stage from rows of a log ({"stage": "device", "step": 50, "block":
    0, "loss": 0.1, ...}).

    Names with a slash share a chart: "psnr/train" and "psnr/test" are two lines of "psnr". Each
    block has its own lines.
    """
    charts: Curves = {}
    has_blocks = len({row.get("block") for row in rows}) > 1
    has_stages = len({row.get("stage") for row in rows}) > 1
    for row in rows:
        for name, value in row.items():
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if name in (x_name, "block") or not is_number:
                continue
            chart, _, line = name.partition("/")
            if has_stages:
                chart = f"{chart}, {row.get('stage')}"
            if has_blocks:
                line = f"{line} block {row.get('block')}".strip()
            steps, values = charts.setdefault(chart, {}).setdefault(line or chart, ([], []))
            steps.append(row[x_name])
            values.append(value)
    return charts
