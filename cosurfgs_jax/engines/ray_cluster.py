"""Jobs as tasks of a Ray cluster; those of several processes in a placement group."""

import signal
import socket
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

from cosurfgs_jax.engines.job_process import run_process
from cosurfgs_jax.engines.jobs import Job, log_file
from cosurfgs_jax.engines.tries import MISTAKE, Outcome
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.workdir import Workdir


class Resources(NamedTuple):
    """What Ray sets aside for each process of a job."""

    num_cpus: float
    num_gpus: float | None  # None: one where the cluster has any


class RayCluster:
    """A cluster that this process is a driver of, until `close`."""

    def __init__(self, workdir: Workdir, address: str, resources: Resources):
        """
        Args:
            workdir: of the run, on a file system that all nodes share.
            address: as `ray.init` has it; "": that of the environment, or of a cluster that runs on
                this machine, or a new one of this machine alone.
            resources: of each process.
        Raises:
            InputError: there is no Ray, or no cluster at the address.
        """
        try:
            import ray
        except ImportError as error:
            raise InputError(
                'ray is needed for --engine=ray: pip install "cosurfgs_jax[ray]"'
            ) from error
        self._ray = ray
        self._workdir = workdir
        self._groups: dict[str, Any] = {}
        on_terminate = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(address=address or None, log_to_driver=False, logging_level="warning")
        except (ConnectionError, ValueError) as error:
            raise InputError(
                f"--address={address}: expected a Ray cluster there, got {error}; `ray start "
                "--head` starts one, and `ray status` says whether it is there"
            ) from error
        signal.signal(signal.SIGTERM, on_terminate)  # Ray's own would end with another exit code
        num_gpus = resources.num_gpus
        if num_gpus is None:
            num_gpus = min(1, ray.cluster_resources().get("GPU", 0))
        self._bundle = {"CPU": resources.num_cpus, "GPU": num_gpus}
        # A lost node is an outcome of a try, of which `tries` decides.
        self._options = {
            "num_cpus": resources.num_cpus,
            "num_gpus": num_gpus,
            "max_retries": 0,
        }

    def describe(self) -> str:
        """The nodes, in a line."""
        nodes = [node for node in self._ray.nodes() if node["Alive"]]
        total = self._ray.cluster_resources()
        return (
            f"Ray with {len(nodes)} node(s), {total.get('CPU', 0):g} CPUs, "
            f"{total.get('GPU', 0):g} GPUs; a process takes {self._bundle['CPU']:g} and "
            f"{self._bundle['GPU']:g}"
        )

    def start(self, job: Job, number: int) -> list[Hashable]:
        """See `tries.Cluster`; of several processes it waits until there is room for all."""
        task = self._ray.remote(run_process)
        address = ""
        places = [self._options | {"name": job.name}]
        if job.num_processes > 1:
            address, places = self._gather(job)
        return [
            task.options(**place).remote(
                job.flags_of(process, address),
                log_file(self._workdir, job.log_name(process)),
                number,
                job.held_by(self._workdir, process),
            )
            for process, place in enumerate(places)
        ]

    def _gather(self, job: Job) -> tuple[str, list[dict]]:
        """Room for all processes of a job at once: where process 0 listens, and their options."""
        from ray.exceptions import RayError
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        while True:
            group = self._ray.util.placement_group([self._bundle] * job.num_processes)
            places = [
                self._options
                | {"scheduling_strategy": PlacementGroupSchedulingStrategy(group, index)}
                for index in range(job.num_processes)
            ]
            try:
                self._ray.get(group.ready())
                find = self._ray.remote(_free_address).options(**places[0])
                address = self._ray.get(find.remote())
            except RayError:  # a node of the group was lost meanwhile
                self._ray.util.remove_placement_group(group)
                continue
            self._groups[job.name] = group
            return address, places

    def wait(self, handles: Sequence[Hashable]) -> tuple[Hashable, Outcome]:
        """See `tries.Cluster`."""
        from ray.exceptions import RayError, RayTaskError

        ended, _ = self._ray.wait(list(handles), num_returns=1)
        try:
            return ended[0], Outcome(*self._ray.get(ended[0]))
        except RayTaskError as error:
            if isinstance(error.cause, InputError):
                return ended[0], Outcome(MISTAKE, "", str(error.cause))
            raise  # a mistake of this program
        except RayError as error:
            return ended[0], Outcome(None, "", type(error).__name__)

    def release(self, job: Job) -> None:
        """See `tries.Cluster`."""
        group = self._groups.pop(job.name, None)
        if group is not None:
            self._ray.util.remove_placement_group(group)

    def close(self) -> None:
        """Leaves the cluster: tasks that still run get SIGTERM, and save."""
        self._ray.shutdown()


def _free_address() -> str:
    """host:port of this node, where nobody listens."""
    import ray

    with socket.socket() as free:
        free.bind(("", 0))
        return f"{ray.util.get_node_ip_address()}:{free.getsockname()[1]}"
