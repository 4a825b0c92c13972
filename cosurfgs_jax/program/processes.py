"""Devices and processes of a run, made known to JAX before its backend starts."""

import os
import socket
import sys
from typing import NamedTuple

from cosurfgs_jax.errors import InputError
from cosurfgs_jax.program.platform_environment import set_environment
from cosurfgs_jax.program.rendezvous import meet

MAX_VIRTUAL_DEVICES = 16  # of one processor: more only share its cores
_HEARTBEAT_S = 15  # after which a process that is not heard of counts as dead


class _Cluster(NamedTuple):
    """The three flags that describe a run of several processes; all are given or none. One process
    needs no other flag, and is alone whatever the cluster says.
    """

    coordinator_address: str
    num_processes: int
    process_id: int

    @property
    def is_given(self) -> bool:
        return bool(self.coordinator_address)

    @property
    def is_alone(self) -> bool:
        return self.num_processes == 1 and not self.is_given and self.process_id < 0

    def check(self) -> None:
        if self.is_alone:
            return
        given = (bool(self.coordinator_address), self.num_processes > 0, self.process_id >= 0)
        if any(given) and not all(given):
            raise InputError(
                "--coordinator_address, --num_processes, --process_id: expected all three or none, "
                f"got {self.coordinator_address!r}, {self.num_processes}, {self.process_id}"
            )
        _, _, port = self.coordinator_address.rpartition(":")
        if all(given) and not (port.isdigit() and 0 < int(port) < 2**16):
            raise InputError(
                f"--coordinator_address: expected host:port, got {self.coordinator_address!r}"
            )
        if all(given) and self.process_id >= self.num_processes:
            raise InputError(
                f"--process_id: expected 0 to {self.num_processes - 1} for {self.num_processes} "
                f"processes, got {self.process_id}"
            )


def has_peers() -> bool:
    """Whether this process is one of several of a run."""
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized()


def start_devices(
    num_devices: int,
    coordinator_address: str = "",
    num_processes: int = 0,
    process_id: int = -1,
    start_timeout: int = 45,
    *,
    is_alone: bool = False,
) -> None:
    """Makes the devices and processes of a run known to JAX, before its backend starts.

    On a CPU JAX sees one device unless the environment asks for more; where more are wanted they
    are made, up to MAX_VIRTUAL_DEVICES a process.

    Args:
        num_devices: of all processes together; 0 = as many as there are.
        coordinator_address, num_processes, process_id: of a run of several processes; empty, 0 and
            -1 where the cluster sets them, or where there is one process.
        start_timeout: seconds to wait for the other processes.
        is_alone: the other processes that a cluster has started have nothing to do with this one.
    Raises:
        InputError: some of the three are given and others not, or the other processes cannot be
            reached.
    """
    cluster = _Cluster(coordinator_address, num_processes, process_id)
    cluster.check()
    set_environment()
    _make_virtual_devices(-(-num_devices // max(num_processes, 1)))
    if not (is_alone or cluster.is_alone) and (cluster.is_given or _is_in_cluster()):
        _connect(cluster, start_timeout)


def _make_virtual_devices(num_devices: int) -> None:
    """Devices of this process, on a CPU and where the environment has not set their number."""
    import jax

    flags = os.environ.get("XLA_FLAGS", "")
    if "JAX_NUM_CPU_DEVICES" in os.environ or "force_host_platform_device_count" in flags:
        return
    if os.environ.get("JAX_PLATFORMS") == "cpu" and 1 < num_devices <= MAX_VIRTUAL_DEVICES:
        jax.config.update("jax_num_cpu_devices", num_devices)


def _is_in_cluster() -> bool:
    """Whether a scheduler started several processes; JAX finds out the rest by itself."""
    for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"):
        size = os.environ.get(name, "1")
        if size.isdigit() and int(size) > 1:
            return True
    if "," in os.environ.get("TPU_WORKER_HOSTNAMES", ""):
        return True
    return {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= set(os.environ)


def _connect(cluster: _Cluster, start_timeout: int) -> None:
    import jax

    arguments = {}
    if cluster.is_given:
        print(
            f"process {cluster.process_id} of {cluster.num_processes}: waiting up to "
            f"{start_timeout} s for the others at {cluster.coordinator_address}",
            file=sys.stderr,
        )
        arguments = cluster._asdict()
        if cluster.process_id == 0:
            arguments["coordinator_bind_address"] = bind_address(cluster.coordinator_address)
        bound = arguments.get("coordinator_bind_address")
        meet(*cluster, timeout=start_timeout, bound=bound)
    try:
        jax.distributed.initialize(
            **arguments,
            initialization_timeout=start_timeout,
            heartbeat_timeout_seconds=_HEARTBEAT_S,
            shutdown_timeout_seconds=_HEARTBEAT_S,
        )
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0][:200]
        raise InputError(
            f"--coordinator_address={cluster.coordinator_address}: the processes of this run could "
            f"not find each other ({reason}); start all of them, with one address and number of "
            "processes"
        ) from error


def bind_address(coordinator_address: str) -> str | None:
    """Where process 0 listens: only at the address that was given, if it is one of this machine;
    None: JAX's choice, all.

    Anyone who reaches the port can take part in the run: there is no authentication.
    """
    host, _, port = coordinator_address.rpartition(":")
    name = host.removeprefix("[").removesuffix("]")
    if not name or not port.isdigit():
        return None
    try:
        family, kind, _, _, address = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.bind(address)
    except OSError:  # the address of a router, or a name that only the others can resolve
        print(
            f"--coordinator_address={coordinator_address}: it is no address of this machine, which "
            f"therefore listens on all of its interfaces; port {port} has no authentication",
            file=sys.stderr,
        )
        return None
    if family == socket.AF_INET6:
        return f"[{address[0]}]:{port}"
    return f"{address[0]}:{port}"
