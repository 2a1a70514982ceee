"""A look at a worker's kind of GPU before the workers start: what fails there fails in one line."""

from __future__ import annotations

from collections.abc import Callable

import ray

from sid_ray.config.auto import AUTO
from sid_ray.config.distill_config import DistillConfig
from sid_ray.errors import UserError

SOON_S = 10.0  # in which a free GPU answers: torch is loaded there


def gpu_trouble(attention: str, precision: str) -> str:
    """Why a run cannot compute so in this process, in one line; '' where it can."""
    import torch

    from sid_ray.denoisers.attention import check_backend
    from sid_ray.device.found import require_gpu

    try:
        require_gpu()
        check_backend(attention, getattr(torch, precision))
    except UserError as error:
        return str(error)
    return ""


@ray.remote(num_cpus=1, num_gpus=1, max_retries=0)
def probe_gpu(attention: str, precision: str) -> str:
    """``gpu_trouble`` in a worker's place."""
    return gpu_trouble(attention, precision)


def try_attention(config: DistillConfig, tell: Callable[[str], None]) -> None:
    """Raises UserError where attention is another library's that does not work where workers are.

    Ray is there. Waits for a free GPU, and says so by ``tell``.
    """
    attention, precision = config.resources.attention, config.training.precision
    if attention in ("sdpa", AUTO):  # torch's own
        return
    if ray.cluster_resources().get("GPU"):
        asked = probe_gpu.remote(attention, precision)
        if not ray.wait([asked], timeout=SOON_S)[0]:
            tell(f"waiting for a free GPU, to try {attention} on it")
        trouble = ray.get(asked)
    else:
        trouble = gpu_trouble(attention, precision)
    if trouble:
        raise UserError(trouble)
