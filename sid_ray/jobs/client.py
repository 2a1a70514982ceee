"""Ray's Jobs API as `sid-ray submit` uses it: connect, send, follow to the end."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Mapping
from http.client import HTTPConnection, HTTPException
from typing import Any
from urllib.parse import urlsplit

from sid_ray.errors import UserError
from sid_ray.jobs.cluster import Cluster, of_nodes
from sid_ray.ray_setup.start import check_head
from sid_ray.tracking.mlflow_run import shown_uri

CONNECT_S, ANSWER_S = 3.0, 8.0
PORTS = {"http": 80, "https": 443, "ray": 10001}
AGAIN_S = 2.0
PATIENCE_S = 600.0  # for a connection that is gone while a job is followed
DETACHED = 130
REACH = (
    "`ray dashboard FILE` (a cluster of `ray up`), `kubectl port-forward svc/NAME-head-svc "
    "8265:8265` (KubeRay) or `ray start --head` (this machine) bring one"
)


def connect(address: str, reach: str) -> Any:
    """Ray's client of an address. Raises UserError in one line where nothing answers.

    Args:
        reach: the command that brings the cluster's Jobs API to this machine, if it is known.
    """
    import ray.exceptions
    from ray.job_submission import JobSubmissionClient

    hint = f"run `{reach}` in another terminal first" if reach else REACH
    shown = shown_uri(address)
    try:
        look_for(address)
    except (OSError, ValueError, HTTPException) as error:
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UserError(f"no Jobs API at {shown} ({why}): {hint}") from None
    try:
        return JobSubmissionClient(address)
    except ray.exceptions.AuthenticationError as error:
        raise UserError(
            f"{shown}: {str(error).splitlines()[0]}: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN, "
            "RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token as the cluster has it"
        ) from None
    except (RuntimeError, OSError, ValueError) as error:
        raise UserError(f"no Jobs API at {shown} ({line_of_answer(error)}): {hint}") from None


def look_for(address: str) -> None:
    """Raises OSError, ValueError, HTTPException or UserError where nothing answers within seconds.

    Ray's client would wait for minutes.
    """
    parts = urlsplit(address)
    if parts.scheme in PORTS:
        host, port = parts.hostname or "", parts.port or PORTS[parts.scheme]
        socket.create_connection((host, port), CONNECT_S).close()
        if parts.scheme == "http":
            connection = HTTPConnection(host, port, timeout=ANSWER_S)
            connection.request("GET", f"{parts.path}/api/version")
            connection.getresponse().close()  # what it answers is for Ray's client to judge
            connection.close()
    elif "://" in address:
        raise ValueError("expected http://HOST:8265, ray://HOST:10001, HOST:6379 or auto")
    else:
        check_head(f"--address {address!r}", address, as_member=False)


def live_cluster(client: Any) -> Cluster:
    """The nodes that are there now; none where Ray does not say."""
    from ray.util.state import list_nodes
    from ray.util.state.exception import RayStateApiException

    try:
        nodes = list_nodes(address=client.get_address(), filters=[("state", "=", "ALIVE")])
    except (RayStateApiException, RuntimeError, OSError):
        nodes = []
    return of_nodes(node.resources_total for node in nodes)


def send(client: Any, entry: str, runtime_env: Mapping[str, Any]) -> str:
    """Uploads and submits; the job's id. Raises UserError where the cluster refuses."""
    try:
        return client.submit_job(entrypoint=entry, runtime_env=dict(runtime_env))
    except (RuntimeError, OSError, ValueError, TypeError) as error:
        raise UserError(f"the cluster did not take the job: {line_of_answer(error)}") from None


def line_of_answer(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


def follow_job(client: Any, job: str) -> int:
    """Prints the job's output to its end. 0 when it succeeded, 1 when not, 130 after Ctrl-C."""
    tail = Tail(client, job)
    try:
        status = tail.to_the_end()
    except KeyboardInterrupt:
        print(f"\nthe job {job} goes on", flush=True)
        return DETACHED
    if status is None:
        print(f"the cluster does not answer any more; job {job} may go on", flush=True)
        return 1
    info = client.get_job_info(job)
    code = f", exit code {info.driver_exit_code}" if info.driver_exit_code is not None else ""
    print(f"job {job} {status}{code}", flush=True)
    # What the command itself printed was shown already.
    if status == "FAILED" and info.driver_exit_code is None:
        print(info.message, flush=True)
    return 0 if status == "SUCCEEDED" else 1


class Tail:
    """A job's output, over connections that may break: each starts from its beginning."""

    def __init__(self, client: Any, job: str):
        self.client, self.job, self.printed = client, job, 0

    def to_the_end(self) -> str | None:
        """Prints until the job has ended: its status, or None where the cluster is gone."""
        from aiohttp import ClientError

        answered_at = time.monotonic()
        while time.monotonic() - answered_at < PATIENCE_S:
            try:
                asyncio.run(self.print_more())
                status = self.client.get_job_status(self.job)
                answered_at = time.monotonic()
                if status.is_terminal():
                    return str(status.value)
            except (ClientError, RuntimeError, OSError):
                pass
            time.sleep(AGAIN_S)
        return None

    async def print_more(self) -> None:
        seen = 0
        async for text in self.client.tail_job_logs(self.job):
            new = text[max(0, self.printed - seen) :]
            seen += len(text)
            self.printed = max(self.printed, seen)
            print(new, end="", flush=True)
