"""Where the processes of a run meet before JAX's runtime starts: that runtime aborts the program
where one is missing, without a sentence.

Process 0 listens at the coordinator's address; the others tell it their number. When all are there
it says so, and leaves the address to JAX. Messages are one line of JSON of at most 1,000 bytes.
"""

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator

from cosurfgs_jax.errors import InputError

_MESSAGE_BYTES = 1000
_RETRY_S = 0.1
_HELLO_S = 2  # in which who connects says who it is; a process of the run tries again


def meet(
    address: str, num_processes: int, process_id: int, *, timeout: float, bound: str | None
) -> None:
    """Returns in every process as soon as all are there.

    Args:
        address: host:port of process 0.
        num_processes, process_id: of this run.
        timeout: seconds to wait.
        bound: where process 0 listens; None: on all interfaces.
    Raises:
        InputError: some did not come in time, with their numbers; or two have one number, or
            another number of processes.
    """
    deadline = time.monotonic() + timeout
    port = int(address.rpartition(":")[2])
    try:
        if process_id == 0:
            _gather(bound or f":{port}", num_processes, deadline)
        else:
            _join(address, num_processes, process_id, deadline)
    except _NotMet as error:
        raise InputError(
            f"--coordinator_address={address}: process {process_id} of {num_processes}: {error}; "
            "start all processes, with one address, one number of processes, and each with a "
            "--process_id of its own"
        ) from error


class _NotMet(Exception):
    """Why they do not meet."""


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _gather(address: str, num_processes: int, deadline: float) -> None:
    there: dict[int, socket.socket] = {}
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(_listening(address))
        problem = ""
        while len(there) < num_processes - 1 and not problem:
            try:
                server.settimeout(max(deadline - time.monotonic(), 0.01))
                client, _ = server.accept()
            except OSError:
                missing = sorted(set(range(1, num_processes)) - set(there))
                numbers = ", ".join(map(str, missing[:10]))
                problem = f"expected all processes in time, but {numbers} did not come"
                break
            stack.enter_context(client)
            problem = _admit(client, there, num_processes)
        answer = json.dumps({"problem": problem}).encode() + b"\n"
        for client in there.values():
            with contextlib.suppress(OSError):
                client.sendall(answer)
        if problem:
            raise _NotMet(problem)


@contextlib.contextmanager
def _listening(address: str) -> Iterator[socket.socket]:
    host, port = _split(address)
    is_dual = not host and socket.has_dualstack_ipv6()  # all interfaces, of both kinds
    family = socket.AF_INET
    if is_dual or ":" in host:
        family = socket.AF_INET6
    try:
        server = socket.create_server(
            (host, port), family=family, backlog=128, dualstack_ipv6=is_dual
        )
    except OSError as error:
        raise _NotMet(f"it cannot listen there ({os.strerror(error.errno or 0)})") from error
    with server:
        yield server


def _admit(client: socket.socket, there: dict[int, socket.socket], num_processes: int) -> str:
    """Notes who has come.

    Returns:
        What is wrong with the run, or "". Who speaks otherwise is no process of it, and ignored.
    """
    client.settimeout(_HELLO_S)
    hello = _receive(client)
    number = hello.get("process")
    if not isinstance(number, int) or "num_processes" not in hello:
        client.close()
        return ""
    if number == 0 or (number in there and not _has_left(there[number])):
        there[-1 - len(there)] = client  # it gets the answer, too
        return f"two processes have --process_id={number}"
    there[number] = client
    if hello["num_processes"] != num_processes:
        return (
            f"process {number} has --num_processes={hello['num_processes']}, process 0 has "
            f"{num_processes}"
        )
    return ""


def _has_left(client: socket.socket) -> bool:
    """Whether a process that had come is gone: it was started again, or has lost its connection."""
    client.setblocking(False)
    try:
        return client.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:  # it is there, and has no more to say
        return False
    except OSError:
        return True
    finally:
        client.settimeout(_HELLO_S)


def _join(address: str, num_processes: int, process_id: int, deadline: float) -> None:
    hello = {"process": process_id, "num_processes": num_processes}
    while True:
        try:
            with socket.create_connection(_split(address), timeout=5) as client:
                client.sendall(json.dumps(hello).encode() + b"\n")
                client.settimeout(max(deadline - time.monotonic(), 0.01) + 5)
                answer = _receive(client)
                if "problem" not in answer:
                    raise ConnectionResetError  # process 0 ended, or something else listens
                break
        except OSError as error:
            if time.monotonic() > deadline:
                reason = error.strerror or "no answer"
                raise _NotMet(f"process 0 could not be reached there in time ({reason})") from error
            time.sleep(_RETRY_S)
    if answer["problem"]:
        raise _NotMet(str(answer["problem"])[:300])


def _receive(client: socket.socket) -> dict:
    """A message; an empty one where something else was sent."""
    data = b""
    try:
        while not data.endswith(b"\n") and len(data) <= _MESSAGE_BYTES:
            block = client.recv(_MESSAGE_BYTES)
            if not block:
                break
            data += block
        message = json.loads(data)
    except (OSError, ValueError, RecursionError):
        return {}
    if isinstance(message, dict):
        return message
    return {}
