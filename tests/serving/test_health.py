"""Words for what Serve's status says, over statuses that Serve would return."""

import pytest
from ray.serve.schema import (
    ApplicationStatusOverview,
    DeploymentStatusOverview,
    ProxyStatus,
    ServeStatus,
)

from sid_ray.serving.health import cannot_start, last_line, trouble_of_app

ENDED = (
    "A replica's health check failed. This deployment will be UNHEALTHY until the replica "
    "recovers or a new deploy happens."
)
FAILED = (
    "A replica failed to start with exception. Retrying. Error:\nTraceback (most recent call "
    "last):\n  File x\nsid_ray.errors.UserError: /runs/d does not exist\n"
)


def deployment(status="HEALTHY", running=1, message="") -> DeploymentStatusOverview:
    return DeploymentStatusOverview(status, "UNSPECIFIED", {"RUNNING": running}, message)


def status_of(proxy=ProxyStatus.HEALTHY, **deployments) -> ServeStatus:
    found = {f"model-{name}": each for name, each in deployments.items()}
    app = ApplicationStatusOverview("RUNNING", "", 0.0, found)
    return ServeStatus(proxies={"node": proxy} if proxy else {}, applications={"sid-ray": app})


@pytest.mark.parametrize(
    ("found", "lost"),
    [
        (deployment(), False),
        (deployment("UNHEALTHY", 0, ENDED), False),  # the next one is on its way
        (deployment("UNHEALTHY", 0, FAILED), True),
        (deployment("DEPLOY_FAILED", 0, FAILED), True),
        (deployment("UNHEALTHY", 1, FAILED), False),  # one answers
        (deployment("UPDATING", 0, FAILED), False),
    ],
)
def test_a_deployment_is_lost_where_none_is_there_and_none_starts(found, lost):
    assert cannot_start(found) == lost


def test_trouble_is_told_in_words():
    assert trouble_of_app(status_of(d=deployment()), "sid-ray") == ""
    assert trouble_of_app(status_of(), "another") == "the application is gone"
    gone = trouble_of_app(status_of(d=deployment("UNHEALTHY", 0, FAILED)), "sid-ray")
    assert gone == "d: /runs/d does not exist"
    killed = deployment("UNHEALTHY", 0, "A replica failed to start. Error:\nActorDiedError()")
    assert trouble_of_app(status_of(d=killed), "sid-ray") == (
        "d: a new replica ended while it started"
    )
    ended = trouble_of_app(
        status_of(d=deployment(), e=deployment("UNHEALTHY", 1, ENDED)), "sid-ray"
    )
    assert ended == "e: a replica ended or does not answer; another one is started in its place"


@pytest.mark.parametrize("proxy", [ProxyStatus.UNHEALTHY, ProxyStatus.STARTING, None])
def test_a_proxy_that_ended_is_told(proxy):
    assert "HTTP" in trouble_of_app(status_of(proxy, d=deployment()), "sid-ray")


def test_of_a_traceback_the_error_is_told_without_its_class():
    assert last_line("Traceback:\n x\nray.exceptions.RayActorError: it died\n") == "it died"
    assert last_line("ValueError: 3: not a class\n\n") == "3: not a class"
    assert last_line("a file: is missing") == "a file: is missing"
    assert last_line(" \n") == "no reason was given"
