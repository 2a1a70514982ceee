"""Units of work on Ray Data: a pool of actors, each with its own encoders, makes one file each.

The results come in the order of the units, so that the first bad sample is the one that is named.
"""

from __future__ import annotations

import hashlib
import logging
import os
import pickle
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from sid_ray.data.layout import Unit, Work
from sid_ray.data.progress import PROGRESS, FileReport, StoppedError
from sid_ray.data.samples import Samples
from sid_ray.data.write import build_patiently
from sid_ray.errors import UserError
from sid_ray.ray_setup.environment import joins_cluster, set_ray_environment
from sid_ray.ray_setup.start import with_ray
from sid_ray.storage.errors import StoreError
from sid_ray.storage.shared import Token, answer, host_name, not_same, not_shared
from sid_ray.storage.store import Store

T = TypeVar("T")
ASK_S = 60.0  # for the answers of the nodes


class Builder:
    """What an actor does with a batch of one unit. Errors come back as text, not as tracebacks."""

    def __init__(self, work: Work, token: Token | None = None):
        self.work = work
        # A node that came later than the others were asked: finished files stay.
        self.trouble = ""
        if token is not None and not token.seen():
            self.trouble = f"{work.destination}: {os.uname().nodename} does not share this folder"

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        unit: Unit = pickle.loads(batch["unit"][0])
        kind, text = "report", ""
        if self.trouble:
            return {"kind": ["storage"], "text": [self.trouble]}
        try:
            text = build_patiently(unit, self.work).to_json()
        except UserError as error:
            kind, text = "input", str(error)
        except OSError as error:
            kind, text = "storage", str(error)
        return {"kind": [kind], "text": [text]}


def start_ray_for_data(workers: int, gpus: int) -> bool:
    """Joins the cluster of RAY_ADDRESS or starts Ray here; whether it was this that started it."""
    set_ray_environment()
    logging.getLogger("ray").setLevel(logging.ERROR)
    import ray

    if ray.is_initialized():
        return False
    with_ray(
        start=lambda: ray.init(
            address="local",  # a bare init would attach to any cluster on the machine
            num_cpus=max(workers, os.cpu_count() or 1),
            num_gpus=gpus or None,
            include_dashboard=False,
            logging_level="error",
            log_to_driver=False,
        ),
        join=lambda: ray.init(logging_level="error"),
    )
    return True


def ask_nodes(ask: Callable[[], T]) -> dict[str, T]:
    """What the other nodes on which workers may be find, by their hosts' names.

    A node that gives no answer is left out: the work itself will say what is wrong with it.
    """
    import ray
    import ray.exceptions
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    @ray.remote(num_cpus=0, max_retries=0)
    def there(ask: Callable[[], T]) -> T:
        return ask()

    own, asked = ray.get_runtime_context().get_node_id(), {}
    for node in ray.nodes():
        works = node["Resources"].get("CPU") or node["Resources"].get("GPU")
        if node["Alive"] and works and node["NodeID"] != own:
            place = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            name = f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
            asked[name] = there.options(scheduling_strategy=place).remote(ask)
    if asked:
        ray.wait(list(asked.values()), num_returns=len(asked), timeout=ASK_S)
    found = {}
    for name, coming in asked.items():
        with suppress(ray.exceptions.RayError):
            found[name] = ray.get(coming, timeout=0)
    return found


def own_node_address() -> str:
    """This node's, as Ray knows it."""
    import ray

    return ray.util.get_node_ip_address()


def check_shared(store: Store, place: str, what: str) -> Token | None:
    """A token of this host in the folder; None where nothing is to be proven.

    Raises NotSharedError where one of the other nodes does not see what this one writes, or this
    one what that one does. ``place``, ``what``: what a person calls the folder, and sets it by.
    """
    if not joins_cluster():
        return None
    token = Token.new(store)
    if token.write():
        return None  # the work itself will say why
    me = host_name(own_node_address())
    found = ask_nodes(lambda: answer(token, "node", me))
    trouble = []
    for host, (wrong, theirs) in found.items():
        if theirs is not None:
            wrong = wrong if theirs.seen() else f"writes what {me} does not see"
            theirs.remove()
        if wrong:
            trouble.append(f"{host} {wrong}")
    if trouble:
        token.remove()
        raise not_shared(place, trouble, what)
    return token


def check_source(units: list[Unit]) -> None:
    """Raises NotSharedError where another node does not find the source's samples as they are here.

    The first and the last are looked at.
    """
    if not joins_cluster():
        return
    first, last = units[0].samples, units[-1].samples
    samples = [first.part(0, 1), last.part(last.count - 1, last.count)]
    expected = samples_digest(samples)
    found = ask_nodes(lambda: samples_digest(samples))
    trouble = [
        f"{host} {'has other samples' if not wrong else f'finds none ({wrong})'}"
        for host, (digest, wrong) in found.items()
        if (digest, wrong) != expected
    ]
    if trouble and not expected[1]:
        raise not_same(first.source, trouble)


def samples_digest(samples: list[Samples]) -> tuple[str, str]:
    """(of what is read, why it cannot be read), one of them empty."""
    digest = hashlib.sha256()
    try:
        for one in samples:
            if one.reader is not None:
                read = one.read(0)
                digest.update(read if isinstance(read, bytes) else read.tobytes())
    except (UserError, OSError) as error:
        return "", str(error)
    return digest.hexdigest(), ""


@contextmanager
def silent_errors() -> Iterator[None]:
    """File descriptor 2 leads nowhere: Ray's C++ writes warnings of its inner workings there.

    What goes wrong comes as an exception.
    """
    sys.stderr.flush()
    saved = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(saved, 2)
        os.close(saved)


def quieten(context: Any) -> None:
    """Ray Data prints plans, bars and metrics; progress here is the command's."""
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.preserve_order = True
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def run_on_ray(units: list[Unit], work: Work, workers: int, gpus: int) -> Iterator[FileReport]:
    """``reports`` without what Ray prints."""
    with silent_errors():
        yield from reports(units, work, workers, gpus)


def reports(units: list[Unit], work: Work, workers: int, gpus: int) -> Iterator[FileReport]:
    """Reports in the order of the units.

    Raises UserError for the first bad sample, StoreError where the storage fails for long,
    StoppedError where Ray does.
    """
    import ray
    import ray.data
    import ray.exceptions

    try:
        own = start_ray_for_data(workers, gpus)
    except UserError as error:  # not the input's fault: finished files stay
        raise StoppedError(str(error)) from error
    try:
        if gpus and (found := ray.cluster_resources().get("GPU", 0)) < gpus:
            raise StoppedError(f"--gpus {gpus}: Ray has {found:.0f} here")
        check_source(units)
        token = check_shared(work.destination / PROGRESS, str(work.destination), "the destination")
        quieten(ray.data.DataContext.get_current())
        size = gpus or workers
        rows = [{"unit": pickle.dumps(unit)} for unit in units]
        done = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            Builder,
            fn_constructor_args=(work, token),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=min(size, len(units))),
            num_gpus=1 if gpus else None,
            num_cpus=1,
        )
        for row in done.iter_batches(batch_size=1, prefetch_batches=0):
            kind, text = str(row["kind"][0]), str(row["text"][0])
            if kind == "input":
                raise UserError(text)
            if kind == "storage":
                raise StoreError(text)
            yield FileReport.from_json(text)
    except ray.exceptions.RayError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise StoppedError(f"Ray: {lines[-1] if lines else type(error).__name__:.300}") from error
    finally:
        if own:
            ray.shutdown()
