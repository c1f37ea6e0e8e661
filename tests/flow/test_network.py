"""Processes open no unexpected connections: no telemetry, no updates (P5)."""

import threading
from ipaddress import ip_address
from pathlib import Path

import psutil

from tests.support.pictures import picture
from tests.support.stack import Stack, until


def test_processes_connect_only_to_each_other(tmp_path: Path, colour_bundle: Path) -> None:
    with Stack(tmp_path, colour_bundle) as stack:
        seen: set[tuple[str, str, int]] = set()
        over = threading.Event()
        served = {stack.api_port, stack.worker_port}

        def watch() -> None:
            while not over.is_set():
                for name, process in stack.processes.items():
                    seen.update(_outgoing(name, psutil.Process(process.pid), served))

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            for seed in range(10):
                files = {"img": picture(seed)}
                assert stack.api.post("/what/slow", files=files).json()["status"] == "success"
            until(lambda: any(name == "queue" for name, _, _ in seen), "a push of the queue")
        finally:
            over.set()
            watcher.join()
        assert all(ip_address(host).is_loopback for _, host, _ in seen), seen
        assert {(name, port) for name, _, port in seen} == {("queue", stack.worker_port)}


def _outgoing(name: str, process: psutil.Process, served: set[int]) -> set[tuple[str, str, int]]:
    """The name, remote address and port of each connection that a process or a child has opened.

    Connections to the ports `served` were opened by others.
    """
    found = set()
    try:
        for each in (process, *process.children(recursive=True)):
            for connection in each.net_connections(kind="inet"):
                if connection.raddr and connection.laddr.port not in served:
                    found.add((name, connection.raddr.ip, connection.raddr.port))
    except psutil.NoSuchProcess:
        pass
    return found
