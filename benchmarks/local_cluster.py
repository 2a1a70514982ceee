"""Several Ray nodes on one machine, each with a temporary folder of its own, and runs on them.

The head has no CPU, so that every worker is on a node that can be killed; the driver is a process
of its own (the same command as a person's), with the cluster's RAY_ADDRESS.
"""

from __future__ import annotations

import contextlib
import json
import os
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


def autoscaler_config(nodes: int, address: str) -> dict[str, Any]:
    """For Ray's fake provider; ray.cluster_utils.AutoscalingCluster wants a file no wheel has."""
    node = {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": nodes}
    head = {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}
    lists = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray")
    return {
        "cluster_name": "fake_multinode",
        "max_workers": nodes,
        "provider": {
            "type": "fake_multinode",
            "gcs_address": address,
            "use_node_id_as_ip": True,  # all have one address
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "available_node_types": {"ray.head.default": head, "spot": node},
        "head_node_type": "ray.head.default",
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": 5,
        "auth": {},
        "file_mounts": {},
        "cluster_synced_files": [],
        "file_mounts_sync_continuously": False,
        "rsync_exclude": [],
        "rsync_filter": [],
        **{f"{name}_commands": [] for name in (*lists, "worker_start_ray")},
    }


class LocalAutoscaler:
    """A head without CPU and Ray's fake autoscaler, which starts nodes of one CPU when asked.

    Its processes are known by their session: other Rays on the machine are left alone.
    """

    def __init__(self, folder: Path, nodes: int):
        self.folder, self.nodes = folder, nodes

    def __enter__(self) -> LocalAutoscaler:
        from ray._private.services import get_node_ip_address

        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"{get_node_ip_address()}:{free.getsockname()[1]}"
        config = self.folder / "autoscaler.json"
        config.write_text(json.dumps(autoscaler_config(self.nodes, self.address)))
        os.environ.update(QUIET)
        settings = {"AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_FAKE_CLUSTER": "1"}
        self._before = {process.pid for process in psutil.process_iter()}
        self._process = subprocess.Popen(
            [
                str(Path(sys.executable).parent / "ray"), "start", "--head", "--block",
                "--port", self.address.split(":")[1], "--num-cpus", "0",
                "--object-store-memory", str(200 * 2**20), "--include-dashboard", "false",
                "--autoscaling-config", str(config),
                "--system-config", json.dumps(HEALTH),
            ],
            env=os.environ | settings, start_new_session=True,
            stdout=(self.folder / "head.txt").open("w"), stderr=subprocess.STDOUT,
        )  # fmt: skip
        deadline = time.monotonic() + 60
        while "Ray runtime started" not in (self.folder / "head.txt").read_text():
            if time.monotonic() > deadline:
                raise RuntimeError((self.folder / "head.txt").read_text())
            time.sleep(0.1)
        return self

    def raylets(self) -> list[psutil.Process]:
        """Raylets of the nodes that the autoscaler started, oldest first."""
        found = [p for p in self._own() if p.name() == "raylet"]
        return sorted(found, key=lambda p: p.create_time())[1:]

    def _own(self) -> list[psutil.Process]:
        """Processes of this cluster: they were started since, and know its address."""
        port, found = self.address.split(":")[1], []
        for process in psutil.process_iter():
            if process.pid in self._before:
                continue
            with contextlib.suppress(psutil.Error):
                if f":{port}" in " ".join(process.cmdline()) or self._is_child(process):
                    found.append(process)
        return found

    def _is_child(self, process: psutil.Process) -> bool:
        return any(parent.pid == self._process.pid for parent in process.parents())

    def __exit__(self, *_: object) -> None:
        left = self._own()
        for process in left:
            with contextlib.suppress(psutil.Error):
                left += process.children(recursive=True)
        for process in [psutil.Process(self._process.pid), *left]:
            with contextlib.suppress(psutil.Error):
                process.kill()
        self._process.wait()
