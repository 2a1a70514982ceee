"""The Ray Serve application: a deployment per generator, and one that answers HTTP before them.

    client ── proxy ── Door (web.py) ── Dispatcher per model ──┬── replica of the model
                                                               └── replica ...

``sid-ray serve`` runs it, and ``sid_ray.serving.application:build`` makes it of the arguments in a
cluster's file (clusters/kuberay-service.yaml).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import ray
import ray.exceptions
from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle

from sid_ray.config.ranges import lines_of_pydantic
from sid_ray.device.choice import Device
from sid_ray.errors import UserError
from sid_ray.ray_setup.ray_private import most_of_cluster
from sid_ray.serving.contract import BusyError, Limits, Painted, Role, ServedModel, WantedImage
from sid_ray.serving.described import Offer, offers_of, told_model
from sid_ray.serving.dispatch import AHEAD, Dispatcher, GoneError
from sid_ray.serving.figures import RayFigures
from sid_ray.serving.health import cannot_start
from sid_ray.serving.options import TOKEN
from sid_ray.serving.places import (
    Place,
    ReplicaRange,
    batch_of,
    batch_size,
    replica_place,
    teacher_batch,
)

DOOR = "door"
WITHOUT = "no replica of {} is there, and a new one did not start; the server's log says why"
COUNT_S = 1.0  # between two looks at how many replicas there are
QUIET = {"log_level": "ERROR", "enable_access_log": False}
"""Of Serve's processes: their logs are files of Ray's, a line per request would be their bulk."""

DEPLOYED: dict[str, Any] = {  # alike for all deployments
    "health_check_period_s": 2,
    "graceful_shutdown_wait_loop_s": 0.5,
    "graceful_shutdown_timeout_s": 10,
    "max_constructor_retry_count": 2,
    "logging_config": QUIET,
}


class ServeArguments(BaseModel):
    """What an application is made of. The token is not among them: it is in SID_RAY_SERVE_TOKEN of
    the Door's process.
    """

    model_config = ConfigDict(extra="forbid")

    sources: list[str] = Field(min_length=1)
    """RUN or NAME=RUN each, as ``sid-ray serve`` takes them."""
    replicas: str = "auto"
    batch: int | str = "auto"
    device: Device = "auto"
    limits: Limits = Limits()
    hosts: list[str] = ["*"]
    """Names that the server is reached by; * for any."""
    token_needed: bool = True
    """Whether a server without a token refuses to start."""


class PaintingReplica:
    """Holds a generator and makes batches of its images, one at a time.

    While the network works on a batch, the one before it is encoded as PNG.
    """

    def __init__(self, offer: Offer, batch: int, place: Place):
        from sid_ray.serving.networks_held import HeldNetworks

        self.figures = RayFigures(offer.name)
        self.held = HeldNetworks(offer.source, batch, place.device, place.threads)
        self.held.warm_up()
        # A thread each: what the networks hold is for one thread, and batches keep their order.
        self.network = ThreadPoolExecutor(1, "network")
        self.files = ThreadPoolExecutor(1, "png")

    async def paint(self, wanted: Sequence[WantedImage]) -> Sequence[Painted]:
        """Images of one role and one number of steps. Raises UserError."""
        from sid_ray.serving.networks_held import as_files

        loop = asyncio.get_running_loop()
        batch = await loop.run_in_executor(self.network, self.held.paint, wanted)
        self.figures.made(wanted[0].role, len(wanted), batch.network_s)
        return await loop.run_in_executor(self.files, as_files, batch)


class DeployedPainting:
    """``contract.Painting`` over the deployments of models. For one event loop."""

    def __init__(
        self,
        models: Sequence[ServedModel],
        handles: Mapping[str, DeploymentHandle],
        most: Mapping[Role, int],
        limits: Limits,
    ):
        self._models, self._handles = models, handles
        self._running = dict.fromkeys(handles, 0)
        self._lost: set[str] = set()  # without replicas, and those that follow do not start
        self._app = serve.get_replica_context().app_name
        self._looking: asyncio.Task[None] | None = None
        self._dispatchers = {
            name: Dispatcher(
                partial(send_to, handle),
                most,
                limits.queued_images,
                partial(self._running.__getitem__, name),
                RayFigures(name),
            )
            for name, handle in handles.items()
        }

    async def models(self) -> Sequence[ServedModel]:
        return self._models

    async def paint(self, model: str, wanted: Sequence[WantedImage]) -> Sequence[Painted]:
        if self._looking is None:
            self._looking = asyncio.get_running_loop().create_task(self._look())
        return await self._dispatchers[model].paint(wanted)

    async def ready(self) -> Mapping[str, int]:
        await self._count()
        return dict(self._running)

    async def _look(self) -> None:
        """Counts replicas, again and again: they come and go with the load."""
        while True:
            with contextlib.suppress(RayServeException, ray.exceptions.RayError):
                await self._count()
                for name, each in self._dispatchers.items():
                    if name in self._lost:
                        each.stop(WITHOUT.format(name))
                    else:
                        each.wake()
            await asyncio.sleep(COUNT_S)

    async def _count(self) -> None:
        status = await asyncio.get_running_loop().run_in_executor(None, serve.status)
        app = status.applications.get(self._app)
        for name in self._handles:
            found = app.deployments.get(deployment_name(name)) if app else None
            self._running[name] = found.replica_states.get("RUNNING", 0) if found else 0
            (self._lost.add if found and cannot_start(found) else self._lost.discard)(name)


async def send_to(handle: DeploymentHandle, wanted: Sequence[WantedImage]) -> Sequence[Painted]:
    """Has a batch made by a replica. Raises GoneError where it ended, UserError, BusyError."""
    try:
        return await handle.paint.remote(list(wanted))
    except BackPressureError:
        raise BusyError(1) from None
    except ray.exceptions.RayTaskError as error:
        raise (error.cause if isinstance(error.cause, UserError) else error) from None
    except (ray.exceptions.RayActorError, RayServeException) as error:
        raise GoneError("its process is gone") from error


@serve.ingress()
class Door:
    """Answers HTTP."""

    def __init__(
        self,
        models: Sequence[ServedModel],
        handles: Mapping[str, DeploymentHandle],
        most: Mapping[Role, int],
        arguments: ServeArguments,
        token: str | None,
    ):
        self.arguments = arguments
        self.token = os.environ.get(TOKEN, "").strip() if token is None else token
        if arguments.token_needed and not self.token:
            raise UserError(f"{TOKEN} is not set: whoever reaches this server could use it")
        self.painting = DeployedPainting(models, handles, most, arguments.limits)

    def __serve_build_asgi_app__(self) -> Any:
        from sid_ray.serving.web import web_app

        chosen = self.arguments
        return web_app(self.painting, chosen.limits, self.token, chosen.hosts)


def deployment_name(model: str) -> str:
    """Of a model."""
    return f"model-{model}"


def application_of(
    models: Sequence[tuple[Offer, ServedModel]],
    arguments: ServeArguments,
    place: Place,
    token: str | None,
) -> serve.Application:
    """The deployments, bound. ``token`` is None where the Door's environment holds it."""
    batch = batch_of(arguments.batch, place.device)
    most: dict[Role, int] = {"generator": batch, "teacher": teacher_batch(batch)}
    handles = {}
    for offer, _ in models:
        deployment = serve.deployment(
            PaintingReplica,
            name=deployment_name(offer.name),
            # The dispatcher sends AHEAD batches per replica; some room, since it may know of a
            # replica's end later than Serve.
            max_ongoing_requests=AHEAD + 2,
            autoscaling_config={
                "min_replicas": place.least,
                "max_replicas": place.most,
                # AHEAD of each replica are under way where more is asked for than they make.
                "target_ongoing_requests": AHEAD * 0.75,
                "upscale_delay_s": 5,
                "downscale_delay_s": 120,
                "look_back_period_s": 5,
            },
            ray_actor_options={"num_cpus": place.cpus, "num_gpus": place.gpus},
            **DEPLOYED,
        )
        handles[offer.name] = deployment.bind(offer, batch, place)
    door = serve.deployment(
        Door,
        name=DOOR,
        num_replicas=1,  # it knows all that waits
        max_ongoing_requests=4096,
        ray_actor_options={"num_cpus": 0},
        **DEPLOYED,
    )
    return door.bind([told for _, told in models], handles, most, arguments, token)


def offered_by_cluster() -> dict[str, float]:
    """By Ray's names: what its nodes have, or its autoscaler may bring."""
    found = dict(ray.cluster_resources())
    for name, most in most_of_cluster().items():
        found[name] = max(found.get(name, 0), most)
    return found


def cpus_of_nodes() -> list[float]:
    """What each node has."""
    return [node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"]]


def build(args: Mapping[str, Any]) -> serve.Application:
    """For ``import_path`` of Serve's configs, of ServeArguments. Raises UserError."""
    chosen = lines_of_pydantic(lambda: ServeArguments.model_validate(args))
    asked = ReplicaRange.of(chosen.replicas)
    batch_size(chosen.batch)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    models = [(offer, told_model(offer)) for offer in offers_of(chosen.sources)]
    offered = offered_by_cluster()
    if chosen.device == "cuda":  # they may come after this
        offered["GPU"] = max(offered.get("GPU", 0), asked.least * len(models))
    place = replica_place(asked, chosen.device, offered, cpus_of_nodes(), len(models))
    return application_of(models, chosen, place, None)
