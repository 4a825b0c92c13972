"""Processes of a run meet before JAX's runtime starts, or say in a sentence who is missing."""

import concurrent.futures
import socket
import struct
import threading
import time

import pytest

from cosurfgs_jax.errors import InputError
from cosurfgs_jax.program.rendezvous import meet


def _address() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def _connected(address: str) -> socket.socket:
    host, port = address.split(":")
    for _ in range(100):
        try:
            return socket.create_connection((host, int(port)), timeout=5)
        except OSError:
            time.sleep(0.05)
    raise AssertionError("nobody listens")


def _meet(address: str, calls: list[tuple[int, int]], timeout: float = 10.0) -> list[str]:
    """What each of (number of processes, its number) is told, "" where all met."""

    def one(call):
        try:
            meet(address, *call, timeout=timeout, bound=address)
        except InputError as error:
            return str(error)
        return ""

    with concurrent.futures.ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(one, calls))


def test_all_meet_and_leave_the_address_free():
    address = _address()
    for _ in range(3):
        assert _meet(address, [(3, 2), (3, 0), (3, 1)]) == [""] * 3


def test_who_is_missing_is_named_to_all_in_time():
    began = time.monotonic()
    found = _meet(_address(), [(4, 0), (4, 2)], timeout=0.5)
    assert time.monotonic() - began < 5
    assert all("expected all processes in time, but 1, 3 did not come" in text for text in found)


def test_a_missing_first_process_is_named():
    (text,) = _meet(_address(), [(2, 1)], timeout=0.3)
    assert "process 1 of 2: process 0 could not be reached there in time" in text


def test_two_of_one_number_are_told():
    found = _meet(_address(), [(3, 0), (3, 1), (3, 1)])
    assert all("two processes have --process_id=1" in text for text in found)


@pytest.mark.parametrize("how", ["ends", "is reset"])
def test_a_process_that_is_started_again_is_the_same_one(how):
    """It waits with the others for the third."""
    address = _address()
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(_meet, address, [(3, 0)])]
        with _connected(address) as client:
            client.sendall(b'{"process": 1, "num_processes": 3}\n')
            time.sleep(0.3)  # it is admitted
            if how == "is reset":
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        waiting.append(pool.submit(_meet, address, [(3, 1)]))
        time.sleep(0.3)
        assert _meet(address, [(3, 2)]) == [""]
        assert [each.result() for each in waiting] == [[""], [""]]


def test_other_numbers_of_processes_are_told():
    found = _meet(_address(), [(2, 0), (3, 1)])
    assert all("--num_processes=3, process 0 has 2" in text for text in found)


def test_an_address_in_use_is_told():
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        (text,) = _meet(address, [(2, 0)])
    assert "cannot listen there (Address already in use)" in text


@pytest.mark.parametrize(
    "noise", [b"GET / HTTP/1.1\r\n\r\n", b"[" * 5000, b'{"process": "x"}\n', b"\xff\n", b"7\n"]
)
def test_what_is_no_process_is_ignored(noise):
    address = _address()

    def disturb():
        with _connected(address) as client:
            client.sendall(noise)

    thread = threading.Thread(target=disturb)
    first = threading.Timer(0.3, lambda: meet(address, 2, 1, timeout=10, bound=None))
    thread.start()
    first.start()
    assert _meet(address, [(2, 0)]) == [""]
    thread.join()
    first.join()
