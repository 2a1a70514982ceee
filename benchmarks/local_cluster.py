"""Several Ray nodes on one machine, each with a temporary folder of its own, and runs on them.

The head has no CPU, so that every worker is on a node that can be killed; the driver is a process
of its own (the same command as a person's), with the cluster's RAY_ADDRESS.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import yaml

HEALTH = {  # a dead node is noticed within 3 s
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 3,
}
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
    "OMP_NUM_THREADS": "1",
    "RAY_AUTH_MODE": "disabled",  # `ray start` would want a token that the driver does not send
}


class LocalCluster:
    """Use as a context manager, in the main thread: Ray wants that."""

    def __init__(self, folder: Path):
        self.folder, self.nodes = folder, 0

    def __enter__(self) -> LocalCluster:
        os.environ.update(QUIET)
        from ray.cluster_utils import Cluster

        self.cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 0,
                "include_dashboard": False,
                "_system_config": HEALTH,
                "object_store_memory": 200 * 2**20,
            },
        )
        return self

    def __exit__(self, *_: object) -> None:
        self.cluster.shutdown()

    @property
    def address(self) -> str:
        return self.cluster.address

    def add(self) -> Any:
        """A node with one CPU and a disk of its own."""
        self.nodes += 1
        disk = self.folder / f"node{self.nodes}"
        disk.mkdir(parents=True, exist_ok=True)
        before = os.environ.get("TMPDIR")
        os.environ["TMPDIR"] = str(disk)
        try:
            node = self.cluster.add_node(num_cpus=1, object_store_memory=200 * 2**20)
        finally:
            os.environ.pop("TMPDIR")
            if before is not None:
                os.environ["TMPDIR"] = before
        node.disk = disk
        return node

    def kill(self, node: Any) -> None:
        """As when the machine is gone: no process of the node has time for anything."""
        self.cluster.remove_node(node, allow_graceful=False)

    def drain(self, node: Any, deadline_s: int) -> None:
        """What a cloud does before it takes a spot machine back."""
        subprocess.run(
            [
                str(Path(sys.executable).parent / "ray"), "drain-node",
                "--address", self.address, "--node-id", node.node_id,
                "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot",
                "--deadline-remaining-seconds", str(deadline_s),
            ],
            check=True, capture_output=True,
        )  # fmt: skip

    def processes(self, node: Any) -> list[psutil.Process]:
        """Ray Train workers on a node."""
        raylets = [p.process.pid for p in node.all_processes["raylet"]]
        children = [c for pid in raylets for c in psutil.Process(pid).children(recursive=True)]
        return [child for child in children if "RayTrainWorker" in " ".join(child.cmdline())]


class Run:
    """One `sid-ray distill` on a cluster, followed by its output."""

    def __init__(
        self,
        folder: Path,
        name: str,
        flags: list[str],
        address: str,
        settings: dict[str, str] | None = None,
    ):
        self.folder, self.name = folder / name, name
        self.lines: list[tuple[float, str]] = []
        environment = os.environ | {"RAY_ADDRESS": address, "MLFLOW_TRACKING_URI": ""}
        environment |= settings or {}
        command = [
            sys.executable, "-m", "sid_ray.cli", "distill", "digits-sid", "--run", name,
            "--output.folder", str(folder), "--evaluation.every", "0",
            "--evaluation.no-final-report", *flags,
        ]  # fmt: skip
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append((time.time(), line.rstrip()))

    def said(self, text: str) -> list[str]:
        return [line for _, line in self.lines if text in line]

    def wait(self, what: Callable[[], Any], patience_s: float = 240) -> Any:
        """Waits for something to be true. Raises RuntimeError with the run's output if not."""
        deadline = time.monotonic() + patience_s
        while time.monotonic() < deadline:
            found = what()
            if found:
                return found
            if self.process.poll() is not None:
                found = what()
                if found:
                    return found
                break
            time.sleep(0.05)
        raise RuntimeError(f"{self.name}: it did not happen; output:\n{self.output()}")

    def finish(self, patience_s: float = 400) -> dict[str, Any]:
        """The run's summary. Raises RuntimeError when it did not end well."""
        code = self.process.wait(patience_s)
        self._reader.join()
        if code:
            raise RuntimeError(f"{self.name} ended with {code}:\n{self.output()}")
        return json.loads((self.folder / "summary.json").read_text())

    def output(self) -> str:
        return "\n".join(line for _, line in self.lines)

    def kill(self) -> None:
        """kill -9 of the driver."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


CLUSTERS = Path(__file__).parents[1] / "clusters"


class LocalAutoscaler:
    """clusters/local-elastic.yaml, started by clusters/local-elastic.sh as a person would.

    Where its port is taken, a copy of the file with another one is used. Its processes are known
    by the cluster's address: other Rays on the machine are left alone.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def __enter__(self) -> LocalAutoscaler:
        config = CLUSTERS / "local-elastic.yaml"
        self.address = yaml.safe_load(config.read_text())["provider"]["gcs_address"]
        port = int(self.address.split(":")[1])
        if not is_free(port):
            text = config.read_text().replace(f":{port}", f":{free_port()}")
            config = self.folder / config.name
            config.write_text(text)
            self.address = yaml.safe_load(text)["provider"]["gcs_address"]
        os.environ.update(QUIET)
        os.environ |= {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # as in the script: or 127.0.0.1 is replaced
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }
        port = free_port()
        self.jobs = f"http://127.0.0.1:{port}"
        self._process = subprocess.Popen(
            [str(CLUSTERS / "local-elastic.sh"), str(config)],
            env=os.environ | {"DASHBOARD_PORT": str(port)}, start_new_session=True,
            stdout=(self.folder / "head.txt").open("w"), stderr=subprocess.STDOUT,
        )  # fmt: skip
        deadline = time.monotonic() + 240
        while "Ray runtime started" not in (self.folder / "head.txt").read_text():
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise RuntimeError((self.folder / "head.txt").read_text())
            time.sleep(0.1)
        return self

    def raylets(self) -> list[psutil.Process]:
        """Raylets of the nodes that the autoscaler started, oldest first."""
        found: dict[str, psutil.Process] = {}
        for process in sorted(self._own(), key=lambda p: p.pid):
            with contextlib.suppress(psutil.Error):
                words = process.cmdline()
                if words and words[0].endswith("/raylet") and "--head" not in words:
                    found.setdefault(node_of(words), process)  # not its child before it execs
        return list(found.values())

    def drain(self, raylet: psutil.Process, deadline_s: int) -> subprocess.Popen[bytes]:
        """What a machine's notice or a pod's preStop hook starts: clusters/drain.sh."""
        return subprocess.Popen(
            [str(CLUSTERS / "drain.sh"), str(deadline_s), "spot machine taken back"],
            env=os.environ | {"RAY_NODE_ID": node_of(raylet.cmdline())},
        )

    def _own(self) -> list[psutil.Process]:
        """Processes of this cluster that know its address."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if f"--gcs-address={self.address}" in " ".join(process.cmdline()).split():
                    found.append(process)
        return found

    def __exit__(self, *_: object) -> None:
        left = psutil.Process(self._process.pid).children(recursive=True) + self._own()
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(15)
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        self._process.kill()
        self._process.wait()


def node_of(words: list[str]) -> str:
    """The node of a raylet's command line."""
    return next(text.split("=")[1] for text in words if text.startswith("--node_id="))


def is_free(port: int) -> bool:
    with socket.socket() as found:
        return found.connect_ex(("127.0.0.1", port)) != 0


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
