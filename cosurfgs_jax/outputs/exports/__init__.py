"""Export formats. A new one is a file beside this one, and an entry here."""

from cosurfgs_jax.errors import InputError
from cosurfgs_jax.outputs.exports.browser import HTML, SOG, SPZ
from cosurfgs_jax.outputs.exports.contours import CONTOURS
from cosurfgs_jax.outputs.exports.dsm import DSM
from cosurfgs_jax.outputs.exports.dtm import DTM
from cosurfgs_jax.outputs.exports.export_format import ExportFormat
from cosurfgs_jax.outputs.exports.las import LAS, LAZ
from cosurfgs_jax.outputs.exports.points import POINTS
from cosurfgs_jax.outputs.exports.splats import SPLATS
from cosurfgs_jax.outputs.exports.textured import TEXTURED

__all__ = ["FORMATS", "ExportFormat", "find_format"]

FORMATS = (SPLATS, HTML, SPZ, SOG, TEXTURED, DSM, DTM, CONTOURS, LAS, LAZ, POINTS)


def find_format(name: str) -> ExportFormat:
    """The format of a name.

    Raises:
        InputError: there is none.
    """
    formats = {form.name: form for form in FORMATS}
    if name not in formats:
        raise InputError(f"--format: expected one of {', '.join(formats)}, got {name!r}")
    return formats[name]
