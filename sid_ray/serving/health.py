"""What Serve's status says of an application's health, in words for a terminal.

Nothing here loads Ray: statuses are those that ``serve.status()`` returns.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from sid_ray.storage.places import one_line

if TYPE_CHECKING:
    from ray.serve.schema import DeploymentStatusOverview, ServeStatus

ILL = ("UNHEALTHY", "DEPLOY_FAILED")
NOT_STARTED = "failed to start"  # in Serve's messages of a replica whose start failed
CLASS_NAME = re.compile(r"^(?:[\w.]*\.)?\w*(?:Error|Exception): *")

WITHOUT_WORDS = re.compile(r"\w*(?:Error|Exception)\(\)")  # ActorDiedError(), of a kill


def cannot_start(found: DeploymentStatusOverview) -> bool:
    """Whether a deployment is without replicas, and one that was started in their place failed.

    A replica that ended is none of these: the next one is on its way, and worth waiting for.
    """
    running = found.replica_states.get("RUNNING", 0)
    return found.status in ILL and not running and NOT_STARTED in found.message


def trouble_of_app(status: ServeStatus, app: str) -> str:
    """Why an application does not answer; empty where it does."""
    found = status.applications.get(app)
    if found is None:
        return "the application is gone"
    troubles = [
        f"{name.removeprefix('model-')}: {said_of(each)}"
        for name, each in found.deployments.items()
        if each.status in ILL
    ]
    if "HEALTHY" not in status.proxies.values():
        troubles.append("HTTP: what listens at the port ended; it is started again")
    return "; ".join(troubles)


def said_of(found: DeploymentStatusOverview) -> str:
    """Of a deployment that is ill."""
    if NOT_STARTED in found.message:
        why = last_line(found.message)
        return "a new replica ended while it started" if WITHOUT_WORDS.fullmatch(why) else why
    return "a replica ended or does not answer; another one is started in its place"


def last_line(text: str) -> str:
    """Of a traceback, its error without the class's name; at most 300 characters."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return one_line(CLASS_NAME.sub("", lines[-1]))[:300] if lines else "no reason was given"
