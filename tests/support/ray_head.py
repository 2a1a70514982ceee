"""A real Ray head with the Jobs API on this machine, on ports and in a folder of its own."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import requests

from tests.support.waiting import wait_for

RAY = str(Path(sys.executable).parent / "ray")
PORTS = (
    "port", "node-manager-port", "object-manager-port", "ray-client-server-port",
    "dashboard-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port",
    "runtime-env-agent-port", "metrics-export-port",
)  # fmt: skip
# What one Ray would take from another, or a person's shell from this one.
FOREIGN = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_JOB_HEADERS", "MLFLOW_TRACKING_URI")


@dataclass
class Head:
    """Its address for jobs, the environment to talk to it with, and where Ray keeps its logs."""

    url: str
    environment: dict[str, str]
    folder: Path
    process: subprocess.Popen

    @property
    def logs(self) -> Path:
        return self.folder / "session_latest"

    def get(self, path: str) -> requests.Response:
        token = self.environment["RAY_AUTH_TOKEN"]
        return requests.get(
            self.url + path, headers={"Authorization": f"Bearer {token}"}, timeout=30
        )


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on, all different."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@contextmanager
def ray_head(settings: Mapping[str, str], cpus: int = 2) -> Iterator[Head]:
    """`ray start --head` with token authentication; ended with all that it has started.

    Args:
        settings: environment of the head, and so of every job and worker on it.
    """
    environment = {k: v for k, v in os.environ.items() if k not in FOREIGN} | {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",
        "OMP_NUM_THREADS": "1",
        # Stated on both sides: else `ray start` takes up a token file that a client does not read.
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(24),
        **settings,
    }
    # A socket's path has at most 107 characters: pytest's folders are too deep.
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as name:
        ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
        flags = [f"--{port}={number}" for port, number in ports.items()]
        log = Path(name) / "head.txt"
        with log.open("w") as out:
            process = subprocess.Popen(
                [
                    RAY, "start", "--head", "--block", "--node-ip-address=127.0.0.1",
                    "--dashboard-host=127.0.0.1", "--include-dashboard=true",
                    f"--num-cpus={cpus}", "--object-store-memory=200000000",
                    f"--temp-dir={name}/ray", *flags,
                ],
                stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                env=environment, cwd=name, start_new_session=True,
            )  # fmt: skip
        head = Head(
            f"http://127.0.0.1:{ports['dashboard-port']}",
            environment,
            Path(name) / "ray",
            process,
        )
        try:
            wait_for(lambda: answers(head) or process.poll() is not None, "the head", 180)
            assert process.poll() is None, log.read_text()
            yield head
        finally:
            end(process)


def answers(head: Head) -> bool:
    try:
        return head.get("/api/jobs/").ok
    except requests.RequestException:
        return False


def end(process: subprocess.Popen) -> None:
    """Ends a process and all that it has started, by their ids."""
    family = []
    if process.poll() is None:
        family = psutil.Process(process.pid).children(recursive=True)
        process.kill()
    process.wait()
    for member in family:
        if member.is_running():
            member.kill()
    psutil.wait_procs(family, timeout=30)
