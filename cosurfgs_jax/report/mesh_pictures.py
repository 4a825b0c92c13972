"""The mesh in the report, from above and from the side."""

from cosurfgs_jax import host_memory, pictures
from cosurfgs_jax.report import page
from cosurfgs_jax.report.mesh_picture import draw_mesh
from cosurfgs_jax.report.section import ReportInput
from cosurfgs_jax.surface.mesh import read_mesh_ply

# Bytes to read and draw a mesh per byte of its file; 3.9 measured on 4 million triangles.
_MEMORY_FACTOR = 5
_VIEWS = (("from above", -90.0, 90.0), ("from the side", -60.0, 30.0))


def mesh_pictures(given: ReportInput) -> str:
    """The mesh in its colours and shaded, from two sides; a sentence where memory is short; ""
    without a mesh.
    """
    path = given.workdir.mesh
    if not path.exists():
        return ""
    num_bytes = path.stat().st_size
    memory = host_memory.available_memory()
    if memory is not None and _MEMORY_FACTOR * num_bytes > memory:
        return (
            f"<p>The mesh has {num_bytes / 2**30:.1f} GB, too much to be drawn in the memory of "
            "this machine.</p>"
        )
    mesh = read_mesh_ply(path)
    cells = []
    for title, azimuth, elevation in _VIEWS:
        images = draw_mesh(mesh, up=given.up, azimuth_deg=azimuth, elevation_deg=elevation)
        for kind, image in zip(("colours", "shape"), images, strict=True):
            cells.append(page.figure(pictures.data_url(image), f"{title}, {kind}"))
    return f'<div class="pair">{"".join(cells)}</div>'
