"""Units of work on Ray Data: a pool of actors, each with its own encoders, makes one file each.

The results come in the order of the units, so that the first bad sample is the one that is named.
"""

from __future__ import annotations

import logging
import os
import pickle
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sid_ray.data.layout import Unit, Work
from sid_ray.data.progress import Report, StoppedError
from sid_ray.data.write import build_patiently
from sid_ray.errors import UserError
from sid_ray.ray_environment import joins_cluster, set_ray_environment
from sid_ray.store_errors import StoreError


class Builder:
    """What an actor does with a batch of one unit. Errors come back as text, not as tracebacks."""

    def __init__(self, work: Work):
        self.work = work

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        unit: Unit = pickle.loads(batch["unit"][0])
        kind, text = "report", ""
        try:
            text = build_patiently(unit, self.work).to_json()
        except UserError as error:
            kind, text = "input", str(error)
        except OSError as error:
            kind, text = "storage", str(error)
        return {"kind": [kind], "text": [text]}


def start_ray(workers: int, gpus: int) -> bool:
    """Joins the cluster of RAY_ADDRESS or starts Ray here; whether it was this that started it."""
    set_ray_environment()
    logging.getLogger("ray").setLevel(logging.ERROR)
    import ray

    if ray.is_initialized():
        return False
    if joins_cluster():
        ray.init(logging_level="error")
    else:
        ray.init(
            address="local",  # a bare init would attach to any cluster on the machine
            num_cpus=max(workers, os.cpu_count() or 1),
            num_gpus=gpus or None,
            include_dashboard=False,
            logging_level="error",
            log_to_driver=False,
        )
    return True


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
    for name in ("ray.data", "ray.data._internal"):
        logging.getLogger(name).setLevel(logging.ERROR)


def run_on_ray(units: list[Unit], work: Work, workers: int, gpus: int) -> Iterator[Report]:
    """``reports`` without what Ray prints."""
    with silent_errors():
        yield from reports(units, work, workers, gpus)


def reports(units: list[Unit], work: Work, workers: int, gpus: int) -> Iterator[Report]:
    """Reports in the order of the units.

    Raises UserError for the first bad sample, StoreError where the storage fails for long,
    StoppedError where Ray does.
    """
    import ray
    import ray.data
    import ray.exceptions

    own = start_ray(workers, gpus)
    try:
        if gpus and (found := ray.cluster_resources().get("GPU", 0)) < gpus:
            raise StoppedError(f"--gpus {gpus}: Ray has {found:.0f} here")
        quieten(ray.data.DataContext.get_current())
        size = gpus or workers
        rows = [{"unit": pickle.dumps(unit)} for unit in units]
        done = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            Builder,
            fn_constructor_args=(work,),
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
            yield Report.from_json(text)
    except ray.exceptions.RayError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise StoppedError(f"Ray: {lines[-1] if lines else type(error).__name__:.300}") from error
    finally:
        if own:
            ray.shutdown()
