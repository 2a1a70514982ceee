"""Seconds to the first step with resources.compile default: without, with and beside a cache.

    python -m benchmarks.compile_cache

Both phases of SiD on a small DDPM++ network, each row a process of its own: cold, again with the
cache, as after an elastic restart, with the phases in the other order, and two cold processes at
once on one empty folder.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SMALL = {"img_resolution": 8, "img_channels": 1, "label_dim": 10, "model_channels": 16}
SMALL |= {"channel_mult": (1,), "channel_mult_emb": 2, "num_blocks": 1, "attn_resolutions": ()}
PHASES = ("fake_loss", "generator_loss")


def child(folder: str, phases: list[str]) -> dict[str, Any]:
    """What one process needs for its first and second pass through the phases."""
    import torch
    from torch._dynamo.utils import counters

    from sid_ray.denoisers.compiled import keep_compiled, set_compile
    from sid_ray.denoisers.edm import EDMDenoiser, EDMNetwork
    from sid_ray.diffusion.rng import GENERATOR, draw_group
    from sid_ray.diffusion.schedules import EDMSchedule
    from sid_ray.objectives.sid import SiD
    from sid_ray.types import Batch, Networks

    torch.set_num_threads(1)
    torch.manual_seed(0)
    keep_compiled(Path(folder))
    networks = Networks(*(EDMDenoiser(EDMNetwork(**SMALL)) for _ in range(3)))
    for network in networks:
        set_compile(network, "default")
    objective, batch = SiD(EDMSchedule()), Batch(torch.eye(10)[:4])
    draw, _ = draw_group(0, GENERATOR, 0, 0, 4, (1, 8, 8))
    trained = {"fake_loss": networks.fake_score, "generator_loss": networks.generator}
    seconds, losses = [], {}
    for _ in range(2):
        began = time.perf_counter()
        for phase in phases:
            for network in networks:
                network.requires_grad_(network is trained[phase])
            loss = getattr(objective, phase)(networks, batch, draw).total
            loss.backward()
            losses[phase] = float(loss.detach())
        seconds.append(time.perf_counter() - began)
    found: dict[str, Any] = {"first_s": seconds[0], "next_s": seconds[1], "losses": losses}
    caches = {"fxgraph_cache": "inductor", "autograd_cache": "aot_autograd"}
    for cache, place in caches.items():
        for kind in ("hit", "miss"):
            found[f"{cache}_{kind}"] = counters[place][f"{cache}_{kind}"]
    return found


def start(folder: Path, phases: tuple[str, ...] = PHASES) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "benchmarks.compile_cache", "--child", str(folder), *phases]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def result(process: subprocess.Popen[str]) -> dict[str, Any]:
    """What a child printed. Raises RuntimeError when it failed."""
    out, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"a process of the benchmark ended with {process.returncode}")
    return json.loads(out.splitlines()[-1])


def measure(folder: Path) -> dict[str, dict[str, Any]]:
    """A row a process; see the module's docstring."""
    rows = {"cold": result(start(folder / "one"))}
    rows["new process with the cache"] = result(start(folder / "one"))
    rows["the same, phases turned round"] = result(start(folder / "one", PHASES[::-1]))
    both = [start(folder / "two") for _ in range(2)]
    for number, process in enumerate(both):
        rows[f"two cold processes at once: {number}"] = result(process)
    rows["new process with their cache"] = result(start(folder / "two"))
    return rows


def print_table(rows: dict[str, dict[str, Any]]) -> None:
    print("| | first step, s | next step, s | Inductor hits / misses | AOTAutograd hits / misses |")
    print("|---|---:|---:|---:|---:|")
    for name, row in rows.items():
        counts = (
            f"{row[f'{cache}_hit']} / {row[f'{cache}_miss']}"
            for cache in ("fxgraph_cache", "autograd_cache")
        )
        print(f"| {name} | {row['first_s']:.1f} | {row['next_s']:.3f} | {' | '.join(counts)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(child(options.child[0], options.child[1:])))
        return
    with tempfile.TemporaryDirectory(prefix="compile_cache_") as folder:
        print_table(measure(Path(folder)))


if __name__ == "__main__":
    main()
