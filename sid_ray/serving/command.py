"""``sid-ray serve``: opens generators, says where they answer, and ends in order."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from sid_ray.commands.ui import check_free
from sid_ray.data.command import Meter, output_console
from sid_ray.data.pipeline import silent_errors
from sid_ray.device.choice import on_gpu
from sid_ray.errors import UserError
from sid_ray.ray_setup.environment import joins_cluster, set_ray_environment, unheard
from sid_ray.ray_setup.start import check_ray, with_ray
from sid_ray.serving.contract import Limits, ServedModel
from sid_ray.serving.described import Offer, offers_of, told_model
from sid_ray.serving.health import last_line, trouble_of_app
from sid_ray.serving.options import ServeOptions
from sid_ray.storage.places import expanded, one_line
from sid_ray.storage.schemes import is_path
from sid_ray.weights.address import parse_source

APP = "sid-ray"
WATCH_S = 2.0  # between two looks at how it is
SPARE_STARTS = 6  # of Serve's own processes
SERVE_ENVIRONMENT = {"RAY_SERVE_LOG_TO_STDERR": "0"}
Tell = Callable[[str], None]


def serve_command(options: ServeOptions) -> int:
    """Serves until Ctrl-C. Returns the exit code; raises UserError."""
    token = options.token()
    if not joins_cluster():
        check_free(options.host.strip("[]"), options.port)
        on_gpu(options.device)  # refuses one that is not there
    console = output_console()
    with Meter(console, "serving", "generators", "looking at the generators") as meter:
        models = [(offer, told_model(offer)) for offer in map(everywhere, offers_of(options.runs))]
        check_ray()
        meter.say("starting Ray")
        set_ray_environment()
        for name, value in SERVE_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        with nothing_said():
            server = Server(options, models, token)
            try:
                server.start()
                meter.say(f"opening {', '.join(offer.name for offer, _ in models)}")
                server.open()
            except BaseException:
                server.end()
                raise
    for line in server.lines():
        console.print(line)
    with nothing_said():
        try:
            server.watch(console.print)
        except KeyboardInterrupt:
            console.print("ending: requests under way are answered first")
        finally:
            server.end()
    return 0


def everywhere(offer: Offer) -> Offer:
    """The same, whatever the working folder of the process that opens it."""
    if not is_path(offer.source) or parse_source(offer.source).kind != "path":
        return offer
    return Offer(offer.name, str(expanded(offer.source).absolute()))


class Server:
    """A Ray of this machine, or a cluster that is joined, and Serve on it."""

    def __init__(
        self, options: ServeOptions, models: Sequence[tuple[Offer, ServedModel]], token: str
    ):
        self.options, self.models, self.token = options, models, token
        self.limits = Limits(images=options.images, queued_images=options.queue)
        self.joined = joins_cluster()
        self.began = False

    def start(self) -> None:
        """Ray, and Serve with its HTTP proxy. Raises UserError."""
        for name in ("ray", "ray.serve"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        import ray
        from ray import serve

        from sid_ray.actors.own_ray import STARTS, environment
        from sid_ray.ray_setup.ray_private import without_needless_services
        from sid_ray.serving.application import QUIET

        def begin() -> None:
            starts = {STARTS: str(len(self.models) + SPARE_STARTS)}
            # `timeout` and supervisors tell a whole process group; Serve ends in order.
            with (
                environment(**starts),
                without_needless_services(),
                unheard(signal.SIGTERM),
            ):
                ray.init(
                    address="local",  # a bare init would attach to any cluster on the machine
                    include_dashboard=False,
                    logging_level="critical",
                    log_to_driver=False,
                )

        join_quietly = {"logging_level": "critical", "log_to_driver": False}
        with_ray(start=begin, join=lambda: ray.init(**join_quietly))
        self.began = not self.joined
        if self.joined and serve.status().proxies:
            raise UserError(
                "that cluster runs Ray Serve already, for which one address and port are set: add "
                "the application to its config (clusters/README.md), or `serve shutdown` ends it"
            )
        self.began = True
        serve.start(
            proxy_location="HeadOnly",
            http_options={
                "host": self.options.host.strip("[]"),
                "port": self.options.port,
            },
            logging_config=QUIET,
        )

    def open(self) -> None:
        """The generators; returns when they answer. Raises UserError."""
        from ray import serve

        from sid_ray.serving.application import (
            QUIET,
            ServeArguments,
            application_of,
            cpus_of_nodes,
            offered_by_cluster,
        )
        from sid_ray.serving.places import ReplicaRange, replica_place

        options = self.options
        self.place = replica_place(
            ReplicaRange.of(options.replicas), options.device, offered_by_cluster(),
            cpus_of_nodes(), len(self.models),
        )  # fmt: skip
        arguments = ServeArguments(
            sources=[offer.source for offer, _ in self.models],
            batch=options.batch,
            limits=self.limits,
            hosts=options.hosts(),
            token_needed=False,
        )
        application = application_of(self.models, arguments, self.place, self.token)
        try:
            serve.run(application, name=APP, route_prefix="/", logging_config=QUIET)
        except RuntimeError as error:
            raise UserError(self.trouble() or one_line(str(error))[:300]) from None

    def lines(self) -> list[str]:
        """What is told once it answers."""
        place, host = self.place, self.options.host
        names = ", ".join(offer.name for offer, _ in self.models)
        threads = "a thread" if place.threads == 1 else f"{place.threads} threads"
        where = "a GPU each" if place.device == "cuda" else f"{threads} each"
        count = f"{place.least}" if place.least == place.most else f"{place.least} to {place.most}"
        count += " replica" if place.most == 1 else " replicas"
        count += " of each" if len(self.models) > 1 else ""
        shown = f"[{host}]" if ":" in host and not host.startswith("[") else host
        secret = "; clients send the token" if self.token else ""
        return [
            f"{names}: {count}, {where}{secret}",
            f"figures  {metrics_address()}",
            f"http://{shown}:{self.options.port}/   (Ctrl-C ends it)",
        ]

    def trouble(self) -> str:
        """Why generators do not answer; empty where they do."""
        from ray import serve

        return trouble_of_app(serve.status(), APP)

    def watch(self, tell: Tell) -> None:
        """Says what goes wrong, and when it is well again. Raises UserError where Ray ended."""
        import ray.exceptions

        before = ""
        while True:
            time.sleep(WATCH_S)
            try:
                now = self.trouble()
            except (ray.exceptions.RayError, ConnectionError, RuntimeError) as error:
                raise UserError(f"Ray ended: {last_line(str(error))}") from None
            if now != before:
                tell(now or "all generators answer again")
            before = now

    def end(self) -> None:
        """Serve, and a Ray that is this command's own."""
        import ray
        from ray import serve

        if self.began and ray.is_initialized():
            with contextlib.suppress(Exception):  # whatever is gone already
                serve.shutdown()
        ray.shutdown()


@contextlib.contextmanager
def nothing_said() -> Iterator[None]:
    """What Ray prints on either stream leads nowhere; a console that was made before still speaks.

    What goes wrong comes as an exception, or by ``Server.trouble``.
    """
    with (
        silent_errors(),
        Path(os.devnull).open("w") as nowhere,
        contextlib.redirect_stdout(nowhere),
    ):
        yield


def metrics_address() -> str:
    """Where Ray exports this node's figures."""
    import ray

    own = ray.get_runtime_context().get_node_id()
    node = next(each for each in ray.nodes() if each["NodeID"] == own)
    return f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
