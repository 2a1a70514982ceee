"""Blocks of images on Ray Data: an elastic pool of actors, each with a network of its own.

The pool begins with what the cluster has and grows when nodes come. A block whose actor or node is
gone is made again. Each finished block comes to the driver at once, in the order they finish.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from typing import Any

import ray
import ray.data
import ray.exceptions
import torch

from sid_ray.data.pipeline import quieten, silent_errors, start_ray_for_data
from sid_ray.data.progress import StoppedError
from sid_ray.errors import UserError
from sid_ray.evaluation.blocks import Job
from sid_ray.evaluation.judge import Look
from sid_ray.evaluation.picture_blocks import PictureJob
from sid_ray.storage.shared import host_name
from sid_ray.weights.over_base import tensors_of


class Looker:
    """What an actor does with a block. The user's errors come back as text, not as tracebacks.

    Args:
        held: one reference to the network's weights, in a list so that Ray hands it over as it is;
            they are empty where there is no network.
        driver, key: the driver's node, and the digest of what numbers depend on there.
    """

    def __init__(self, job: Job | PictureJob, held: list[Any], driver: str, key: str):
        self.trouble = ""
        device = "cuda" if ray.get_gpu_ids() else "cpu"
        try:
            self.bench = job.bench(ray.get(held[0]), device, lambda text: None)
            elsewhere = ray.get_runtime_context().get_node_id() != driver
            if elsewhere and self.bench.key(device) != key:
                raise UserError(
                    "the data set, a network beside the weights, or torch is another one than on "
                    "the driver's host: bring the same files to every host, or use s3:// or a path "
                    "that all hosts share"
                )
        except UserError as error:  # another node than the driver's: what it lacks
            self.trouble = f"{error} (on {host_name(ray.util.get_node_ip_address())})"

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        start, stop = int(batch["start"][0]), int(batch["stop"][0])
        look, trouble = b"", self.trouble
        try:
            if not trouble:
                look = pickle.dumps(self.bench.look(range(start, stop)))
        except UserError as error:
            trouble = str(error)
        return {"start": [start], "stop": [stop], "look": [look], "trouble": [trouble]}


def looks_on_ray(
    job: Job | PictureJob,
    network: torch.nn.Module | None,
    todo: Sequence[range],
    actors: int,
    use_gpu: bool,
    key: str,
) -> Iterator[tuple[range, Look]]:
    """Blocks with their seeds, as they are finished, without what Ray prints.

    ``actors`` is the most that work at once, 0 for as many as there is room for; ``key`` is
    Bench.key here. Raises UserError for what an actor's node lacks, StoppedError where Ray fails.
    """
    with silent_errors():
        yield from found_looks(job, network, todo, actors, use_gpu, key)


def found_looks(
    job: Job | PictureJob,
    network: torch.nn.Module | None,
    todo: Sequence[range],
    actors: int,
    use_gpu: bool,
    key: str,
) -> Iterator[tuple[range, Look]]:
    """``looks_on_ray`` with them."""
    try:
        gpus = max(1, actors or torch.cuda.device_count()) if use_gpu else 0
        own = start_ray_for_data(actors, gpus)
    except (OSError, ConnectionError, RuntimeError, ray.exceptions.RayError) as error:
        raise StoppedError(f"Ray: {cause_of(error)}") from error
    try:
        if use_gpu and not ray.cluster_resources().get("GPU"):
            raise UserError("--device cuda: the cluster has no GPU")
        context = ray.data.DataContext.get_current()
        quieten(context)
        context.execution_options.preserve_order = False
        weights = tensors_of(network) if network is not None else {}
        driver = ray.get_runtime_context().get_node_id()
        rows = [{"start": seeds.start, "stop": seeds.stop} for seeds in todo]
        done = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            Looker,
            fn_constructor_args=(job, [ray.put(weights)], driver, key),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(
                min_size=1, max_size=min(actors or len(rows), len(rows))
            ),
            num_gpus=1 if use_gpu else None,
            num_cpus=1,
        )
        for row in done.iter_batches(batch_size=1, prefetch_batches=0):
            if trouble := str(row["trouble"][0]):
                raise UserError(trouble)
            yield range(int(row["start"][0]), int(row["stop"][0])), pickle.loads(row["look"][0])
    except ray.exceptions.RayError as error:
        raise StoppedError(f"Ray: {cause_of(error)}") from error
    finally:
        if own:
            ray.shutdown()


def cause_of(error: BaseException) -> str:
    """What a Ray error says last, which is its cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{lines[-1] if lines else type(error).__name__:.300}"
