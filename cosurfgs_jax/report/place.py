"""Where the photographs come from and lie: the words of geo.json."""

from cosurfgs_jax.formats.geo_json import read_geo
from cosurfgs_jax.report import page
from cosurfgs_jax.report.section import ReportInput


def place_table(given: ReportInput) -> str:
    """The summary of `prepare` as a table of sentences; "" where there is no geo.json."""
    geo = read_geo(given.workdir.geo)
    if geo is None:
        return ""
    rows = [["found", str(text)] for text in geo.details.get("summary", [])]
    rows += [["suspicious", str(text)] for text in geo.details.get("suspicious", [])]
    versions = geo.details.get("versions", {})
    rows.append(["made with", ", ".join(f"{name} {text}" for name, text in versions.items())])
    return page.table(["", "in words"], rows, "words")
