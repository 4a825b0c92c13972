"""The table of export formats."""

from cosurfgs_jax.outputs import exports


def test_maps_and_meshes_are_in_the_report():
    in_report = {form.name for form in exports.FORMATS if form.is_in_report}
    assert in_report == {"html", "textured", "dsm", "dtm", "contours"}
