"""The page, by viser: its controls, and the loop that draws what its cameras see."""

import logging
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from cosurfgs_jax.data.images import ImageStore
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.raster import RasterOptions
from cosurfgs_jax.settings import Settings
from cosurfgs_jax.surface import Mesh, read_mesh_ply, simplify
from cosurfgs_jax.viewer import shown_mesh, surroundings
from cosurfgs_jax.viewer.drawing import KINDS, PageCamera, draw
from cosurfgs_jax.viewer.models import NEWEST, Models, Shown
from cosurfgs_jax.workdir import Workdir

_LARGEST_PORT = 65535
_MOVING_S = 0.3  # since the camera's last change: until then pictures are coarse
_COARSE = 0.4  # of the long side
_FOLLOW_S = 5.0  # between two looks for a newer model
_MAX_CAMERAS = 400  # that are shown; of more, evenly chosen ones
_MAX_TRIANGLES = 500_000  # that a browser turns smoothly
_FRUSTUM = 0.03  # length of a camera, world
_PHOTO_PIXELS = 200
_FIRST_PLACE = (0.0, -0.9, 0.7)  # of the page's camera, world: the place is about 1 in size
_FIRST_FOV = 0.8  # radians
_NEAR = 0.001  # world
_CAMERA_COLOR = (40, 40, 40)
_EDGE_COLORS = ((230, 120, 30), (40, 130, 220), (60, 170, 90), (190, 70, 160), (200, 180, 40))
_log = logging.getLogger(__name__)


def import_viser():
    """The viser module.

    Raises:
        InputError: it is not installed.
    """
    try:
        import viser
    except ModuleNotFoundError as error:
        raise InputError(
            'viser is needed for the page: pip install "cosurfgs_jax[view]"'
        ) from error
    return viser


def start_server(host: str, port: int) -> Any:
    """A viser.ViserServer that listens there, and that no browser can make public.

    Raises:
        InputError: viser is not installed, another program listens there, or the address is none of
            this machine.
    """
    viser = import_viser()
    _check_port(host, port)
    server = viser.ViserServer(host=host, port=port, verbose=False)
    if server.get_port() != port:  # it was taken meanwhile
        server.stop()
        raise _port_error(host, port, "another program uses it")
    server.scene.set_up_direction("+z")
    server.gui.configure_theme(show_share_button=False)
    # Every browser, also on a foreign page, may ask for a public address.
    server.request_share_url = lambda *_, **__: None
    return server


def _check_port(host: str, port: int) -> None:
    """viser would take another port."""
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, address in addresses:
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
    except OSError as error:
        raise _port_error(host, port, error.strerror or str(error)) from error


def _port_error(host: str, port: int, reason: str) -> InputError:
    return InputError(
        f"--host, --port: expected an address of this machine and a free port, got {host}:{port} "
        f"({reason}); give another one, e.g. --port={port + 1 if port < _LARGEST_PORT else 8080}"
    )


class Page:
    """Controls and pictures of one server, for all browsers that look at it.

    viser calls back from threads of its own; they only wake the loop of `run`, which does
    everything.
    """

    def __init__(self, server: Any, models: Models, settings: Settings, workdir: Workdir):
        """
        Args:
            server: a viser.ViserServer.
            models: of the run.
            settings, workdir: of the run.
        """
        self._server = server
        self._models = models
        self._workdir = workdir
        self._options = RasterOptions.from_settings(settings.raster)
        self._shown: Shown = models.first()
        self._saved = models.saved_at_first
        self._version = 0
        self._drawn: dict[int, tuple] = {}  # by client: what its picture shows
        self._wake = threading.Event()
        self._looked = -np.inf  # when a newer model was looked for
        self._followed = NEWEST
        self._frusta: dict[int, Any] = {}  # by view
        self._without_photo: list[int] = []
        self._looked_through: list[tuple[Any, int]] = []  # clients, and the views they clicked
        self._are_shown = (False, False)  # cameras, photographs in them
        self._mesh: Mesh | None = None  # world
        self._mesh_time = 0.0
        self._mesh_nodes: dict[str, Any] = {}  # by kind
        self._add_controls()
        self._add_cells()
        first = server.initial_camera
        first.position = _FIRST_PLACE
        first.look_at = (0.0, 0.0, 0.0)  # the middle of the ground
        first.fov = _FIRST_FOV
        first.near = _NEAR
        server.on_client_connect(self._greet)
        server.on_client_disconnect(lambda client: self._drawn.pop(client.client_id, None))

    def run(self, until: Callable[[], bool] = lambda: False) -> None:
        """Draws what changes until it is interrupted.

        Args:
            until: asked after each round, several times a second.
        """
        # Each photograph is needed once.
        with ImageStore(self._models.partitioned.scene, host_memory_mb=0) as images:
            while not until():
                self._wake.wait(_MOVING_S / 2)
                self._wake.clear()
                self._follow()
                self._surround()
                clients = list(self._server.get_clients().values())
                is_moving = [self._draw_for(client) for client in clients]
                if self._without_photo and not any(is_moving):
                    self._show_photograph(images, self._without_photo.pop(0))

    def _add_controls(self) -> None:
        gui = self._server.gui
        self._text = gui.add_markdown("")
        stages = [NEWEST, *self._models.stages()]
        self._choice = gui.add_dropdown("Model", stages, initial_value=NEWEST)
        self._kind = gui.add_dropdown("Show", self._kinds(), initial_value=KINDS[0])
        self._legend = gui.add_html("", visible=False)
        self._pixels = gui.add_slider("Pixels", min=240, max=1920, step=80, initial_value=960)
        self._cells = gui.add_checkbox("Cells of blocks", False)
        self._cameras = gui.add_checkbox("Cameras", False)
        self._photographs = gui.add_checkbox("Photographs in cameras", False)
        for control in (
            self._choice,
            self._kind,
            self._pixels,
            self._cells,
            self._cameras,
            self._photographs,
        ):
            control.on_update(lambda _: self._wake.set())
        self._say()

    def _kinds(self) -> list[str]:
        return [*KINDS, *shown_mesh.KINDS] if self._workdir.mesh.exists() else list(KINDS)

    def _say(self, problem: str = "") -> None:
        num = int(np.asarray(self._shown.surfels.alive).sum())
        text = f"**{num:,d} surfels**, stage {self._shown.stage}, step {self._shown.steps}"
        text = f"{text}\n\n{problem}" if problem else text
        if self._text.content != text:
            self._text.content = text

    def _greet(self, client: Any) -> None:
        client.camera.on_update(lambda _: self._wake.set())
        self._wake.set()

    def _follow(self) -> None:
        """Loads what is chosen where that is another model, or has a newer state."""
        choice = self._choice.value
        now = time.monotonic()
        if choice == self._followed and now - self._looked <= _FOLLOW_S:
            return
        self._followed = choice
        self._looked = now
        stages = self._models.stages()
        if not stages:
            self._say(f"there are no checkpoints in {self._workdir} any more")
            return
        for control, options in ((self._choice, [NEWEST, *stages]), (self._kind, self._kinds())):
            if list(control.options) != options:
                control.options = options
        saved = self._models.saved(choice)
        if saved != self._saved:
            try:
                self._shown = self._models.load(choice)
            except Exception as error:  # replaced or deleted meanwhile: the next look tells
                self._say(f"{choice} cannot be loaded: {error}")
                return
            self._saved = saved
            self._version += 1
        self._say()

    def _surround(self) -> None:
        """Cells, cameras and mesh as the controls want them."""
        if self._cell_lines.visible != self._cells.value:
            self._cell_lines.visible = self._cells.value
        self._surround_with_cameras()
        self._surround_with_mesh(self._kind.value)

    def _surround_with_mesh(self, kind: str) -> None:
        if kind in shown_mesh.KINDS:
            self._load_mesh()
            self._add_mesh(kind)
        for each, node in self._mesh_nodes.items():
            if node.visible != (each == kind):
                node.visible = each == kind
        has_legend = kind == shown_mesh.CONFIDENCE and kind in self._mesh_nodes
        if self._legend.visible != has_legend:
            self._legend.visible = has_legend

    def _surround_with_cameras(self) -> None:
        has_photographs = self._photographs.value
        is_wanted = self._cameras.value or has_photographs
        if is_wanted and not self._frusta:
            self._add_cameras()
        if self._are_shown != (is_wanted, has_photographs):
            self._are_shown = (is_wanted, has_photographs)
            self._without_photo = list(self._frusta) if has_photographs else []
            for frustum in self._frusta.values():
                frustum.visible = is_wanted
                if not has_photographs:
                    frustum.image = None
        while self._looked_through:
            self._look_through(*self._looked_through.pop(0))

    def _add_cells(self) -> None:
        partition = self._models.partitioned.partition
        sides = surroundings.cell_sides(partition)
        edges = np.repeat(partition.edge_of_block, len(sides) // partition.num_blocks)
        colors = np.array(_EDGE_COLORS, np.uint8)[edges % len(_EDGE_COLORS)]
        self._cell_lines = self._server.scene.add_line_segments(
            "/cells",
            points=sides.astype(np.float32),
            colors=np.repeat(colors[:, None], 2, axis=1),
            thickness=0.003,
            visible=False,
        )

    def _add_cameras(self) -> None:
        partitioned = self._models.partitioned
        views = partitioned.scene.views
        number = min(len(views), _MAX_CAMERAS)
        for view in np.linspace(0, len(views) - 1, number).round().astype(int).tolist():
            camera = surroundings.page_camera(views, partitioned.frame, view)
            frustum = self._server.scene.add_camera_frustum(
                f"/cameras/{view}",
                fov=camera.fov,
                aspect=camera.aspect,
                scale=_FRUSTUM,
                thickness=_FRUSTUM / 30,
                color=_CAMERA_COLOR,
                wxyz=camera.wxyz,
                position=camera.position,
            )
            frustum.on_click(lambda event, view=view: self._clicked(event.client, view))
            self._frusta[view] = frustum

    def _clicked(self, client: Any, view: int) -> None:
        self._looked_through.append((client, view))
        self._wake.set()

    def _look_through(self, client: Any, view: int) -> None:
        """Looks as a photograph does. Its frustum is in the way, and is hidden until cameras are
        switched on again.
        """
        partitioned = self._models.partitioned
        camera = surroundings.page_camera(partitioned.scene.views, partitioned.frame, view)
        self._frusta[view].visible = False
        with client.atomic():
            client.camera.wxyz = camera.wxyz
            client.camera.position = camera.position
            client.camera.look_at = surroundings.looked_at(camera)
            client.camera.fov = camera.fov

    def _show_photograph(self, images: ImageStore, view: int) -> None:
        try:
            photo = Image.fromarray(np.ascontiguousarray(images.load(view)[..., :3]))
        except InputError as error:
            self._say(str(error))
            return
        photo.thumbnail((_PHOTO_PIXELS, _PHOTO_PIXELS))
        self._frusta[view].image = np.asarray(photo)
        self._wake.set()  # the next one

    def _load_mesh(self) -> None:
        """The mesh of the workdir, where it is another one than on the page."""
        try:
            written = self._workdir.mesh.stat().st_mtime
            if written == self._mesh_time:
                return
            self._mesh_time = written
            mesh = simplify.decimate(read_mesh_ply(self._workdir.mesh), _MAX_TRIANGLES)
        except (InputError, OSError) as error:
            self._say(str(error))
            return
        self._mesh = surroundings.mesh_in_world(mesh, self._models.partitioned.frame)
        while self._mesh_nodes:
            self._mesh_nodes.popitem()[1].remove()

    def _add_mesh(self, kind: str) -> None:
        """Sends the mesh to the browsers as a kind wants it, where they have not got it."""
        if self._mesh is None or kind in self._mesh_nodes:
            return
        try:
            data = shown_mesh.glb_of(self._mesh, kind)
            if kind == shown_mesh.CONFIDENCE:
                self._legend.content = shown_mesh.legend(self._mesh)
        except InputError as error:
            self._say(str(error))
            return
        self._mesh_nodes[kind] = self._server.scene.add_glb(f"/{kind}", data)

    def _draw_for(self, client: Any) -> bool:
        """Draws anew for a browser whose picture is not what it should show; whether its camera
        moves.
        """
        try:
            return self._draw_camera(client)
        except Exception as error:  # a window without height, too little memory: others go on
            self._say(f"the picture cannot be drawn: {error}")
            return False

    def _draw_camera(self, client: Any) -> bool:
        camera = client.camera
        kind = self._kind.value
        is_moving = time.time() - camera.update_timestamp < _MOVING_S
        long_side = round(self._pixels.value * (_COARSE if is_moving else 1.0))
        wanted = (camera.update_timestamp, kind, long_side, self._version)
        if self._drawn.get(client.client_id) == wanted:
            return is_moving
        self._drawn[client.client_id] = wanted
        if kind in shown_mesh.KINDS:
            client.scene.set_background_image(None)
            return is_moving
        seen = PageCamera(camera.wxyz, camera.position, camera.fov, camera.aspect)
        size = seen.image_size(long_side)
        picture, depth = draw(
            self._shown.surfels, seen.camera(size), size, kind=kind, options=self._options
        )
        client.scene.set_background_image(picture, format="jpeg", jpeg_quality=90, depth=depth)
        return is_moving


def serve(settings: Settings, workdir: Workdir, host: str, port: int) -> None:
    """Serves the page of a run until it is interrupted.

    Args:
        settings, workdir: of the run; nothing in its folder is written.
        host, port: where it listens.
    Raises:
        InputError: nothing is trained, viser is missing, or the port is taken.
    """
    server = start_server(host, port)
    try:
        page = Page(server, Models(settings, workdir), settings, workdir)
        shown_host = f"[{host}]" if ":" in host else host
        _log.info("open http://%s:%d in a browser; Ctrl-C ends it", shown_host, port)
        page.run()
    finally:
        server.stop()
