"""The GPU's side of the checks of `sid-ray doctor --device` on fake CUDA tensors.

    python -m tests.support.device_rehearsal

Prints a line of JSON: check -> what went wrong, or "".

Numbers are made up, so that only devices, types and calls are seen. In a process of its own: the
guard must be there before torch is.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from unittest import mock

from tests.support.fake_cuda.guard import load_guard


def rehearsals() -> dict[str, Callable[[], object]]:
    """Check -> what of it runs on one GPU, on tiny networks."""
    import torch

    from sid_ray.actors import build
    from sid_ray.commands.device import compiling, kernels, memory_plan, snapshots, speed, steps
    from sid_ray.commands.device.random_nets import Sized
    from sid_ray.commands.device.rows import Rig
    from sid_ray.commands.device.vectors import outcome_of, precisions_of, read_cases
    from sid_ray.recipes.known_networks import teacher_of
    from sid_ray.training import assemble
    from sid_ray.weights.folder import load_model
    from sid_ray.weights.sources import resolve_source

    rig, device = Rig("cuda", 1, 80 << 30, 600.0), torch.device("cuda", 0)
    # Files are read before tensors are fake.
    cases, latents = read_cases()[0], speed.small_latents()
    loaded = load_model(resolve_source("builtin:digits-teacher"))
    tiny = Sized("digits-sid").on(rig, micro_batch=16)

    def numbers() -> None:
        for case in cases:
            for precision in precisions_of(case):
                outcome_of(case, device, precision)

    def attention() -> None:
        for dtype in kernels.BOUNDS:
            kernels.attention_error("sdpa", kernels.SMALL_SHAPES[0], dtype, device)
            kernels.attention_seconds("sdpa", kernels.SMALL_SHAPES[0], dtype, device)

    def generating() -> None:
        with (
            mock.patch.object(speed, "teacher_of", lambda config: latents),
            mock.patch.object(speed, "small_latents", lambda: latents),
            mock.patch.object(speed, "VAE", speed.SMALL_VAE),
        ):
            list(speed.generated(rig))

    def with_teacher(run: Callable[[], object]) -> None:
        with (
            mock.patch.object(build, "load_model", lambda folder, **like: loaded),
            mock.patch.object(assemble, "describe", lambda folder: loaded[1]),
        ):
            run()

    return {
        "numbers": numbers,
        "steps": lambda: with_teacher(lambda: steps.after_one("digits-sida", device)),
        "memory": lambda: memory_plan.peak_on_gpu(tiny, device),
        "snapshot": lambda: snapshots.snapshots_of(tiny, teacher_of(tiny), device),
        "snapshot's bandwidth": lambda: snapshots.bandwidth_to_host(device, 1 << 16),
        "attention": attention,
        "compile off": lambda: with_teacher(
            lambda: compiling.losses_of("digits-sid", "off", rig, "")
        ),
        "speed": generating,
    }


def main() -> None:
    load_guard()
    import torch

    from tests.support.fake_cuda.machine import rehearsal

    names = ("empty_cache", "reset_peak_memory_stats", "set_device")
    numbers = ("memory_allocated", "max_memory_allocated", "max_memory_reserved")
    said = {name: lambda *a, **n: None for name in names} | {n: lambda *a: 0 for n in numbers}
    found = {}
    for name, run in rehearsals().items():
        try:
            with rehearsal(), mock.patch.multiple(torch.cuda, create=True, **said):
                run()
            found[name] = ""
        except Exception as error:
            traceback.print_exc()
            found[name] = f"{type(error).__name__}: {error}"
    print(json.dumps(found))
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
