"""What the host does in an iteration on a GPU, counted without one (docs/rehearsal.md).

    python -m benchmarks.rehearsal paths                 waits, launches and copies by path
    python -m benchmarks.rehearsal paths --all           the full product of what is combined there
    python -m benchmarks.rehearsal recipes               whole iterations of two recipes on one GPU
    python -m benchmarks.rehearsal recipes --before benchmarks/rehearsal_before.json

``--save FILE`` keeps the counts; ``--before FILE`` puts those of an earlier commit beside. Counts
are of the project's own code on fake tensors (tests/support/fake_cuda). Host milliseconds are
measured: benchmarks/rehearsal_host.py says how, and what they are not.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sid_ray.denoisers.registry import families
from sid_ray.objectives.spec import objective_specs
from tests.support.fake_cuda.cases import ITERATION, PASS_PARTS, Case, Rehearsed
from tests.support.fake_cuda.run import rehearse
from tests.test_rehearsal import OTHERS, PLAIN, RANKS, SHARED

ROOT = Path(__file__).parents[1]
HOURS_S = 4 * 3600
SHARE = 0.45  # of an H100's peak, at which the GPU's time is estimated
PEAK = {"float32": 67e12, "float16": 989e12, "bfloat16": 989e12}  # FLOP/s, SXM, dense, no TF32


def product() -> list[Case]:
    """Every objective, precision and split of every family, and every ZeRO stage."""
    found = []
    for name, family in families().items():
        specs = [s for s in objective_specs() if family.reads_text or "text" not in s.needs]
        ways = itertools.product(specs, family.precisions, ("one", "two", "halves"), (False, True))
        found += [
            Case("train", name, objective=spec.name, precision=precision, passes=passes,
                 recompute=recompute)
            for spec, precision, passes, recompute in ways
        ]  # fmt: skip
        for stage, offload in (
            (0, False),
            (1, False),
            (2, False),
            (3, False),
            (2, True),
            (3, True),
        ):
            found.append(
                Case("train", name, world_size=RANKS, stage=stage, offload=offload, iterations=2,
                     teacher_stage=3 if stage == 3 else 0)
            )  # fmt: skip
    return [*found, *OTHERS]


def row(found: Rehearsed) -> dict[str, Any]:
    parts = [name for name in found.parts if name != "build"]
    own = [name for name in ITERATION if name in found.parts] or parts
    return {
        "in passes": sum(found.waits(*PASS_PARTS).values()),
        "waits": sum(found.waits(*own).values()),
        "launches": found.total("launches", *own),
        "copies": found.total("to_device", *own),
        "KiB": round(found.total("to_device_bytes", *own) / 1024),
        "wrong": found.error or "; ".join(found.faults),
    }


def show_paths(found: dict[str, dict[str, Any]], before: dict[str, dict[str, Any]]) -> None:
    names = ("in passes", "waits", "launches", "copies", "KiB")
    heads = [f"{name}{' before' if old else ''}" for old in ((1, 0) if before else (0,))
             for name in names]  # fmt: skip
    print(f"| path | {' | '.join(heads)} |\n|---|{'---:|' * len(heads)}")
    for name, values in found.items():
        cells = [f"{values[key]:,}" for key in names]
        if before:
            old = before.get(name)
            cells = [f"{old[key]:,}" if old else "" for key in names] + cells
        print(f"| {name} | {' | '.join(cells)} |")
        if values["wrong"]:
            print(f"| | {values['wrong']} |")


# Whole iterations of recipes ----------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """A recipe on one GPU at a micro-batch, and its network with the same layers and little in
    them, on which the host's time for an operation is measured.
    """

    recipe: str
    micro_batches: tuple[int, ...]  # the group, and the largest that fits 80 GB
    small: dict[str, Any]


RECIPES = (
    Measured(
        "cifar10-uncond-sid",
        (16, 256),
        {"img_resolution": 4, "attn_resolutions": [2], "model_channels": 8},
    ),
    Measured(
        "img512-xs-sid",
        (64, 256),
        {"img_resolution": 8, "attn_resolutions": [2, 1], "model_channels": 16,
         "channels_per_head": 16},
    ),
)  # fmt: skip


def of_recipes() -> dict[str, dict[str, Any]]:
    """Counts of an iteration by "recipe micro-batch", and the host's seconds for them."""
    found = {}
    for chosen in RECIPES:
        host = host_of(chosen)
        for micro_batch in chosen.micro_batches:
            name = f"{chosen.recipe} {micro_batch}"
            found[name] = whole_iteration(chosen.recipe, micro_batch, host)
    return found


def host_of(chosen: Measured) -> dict[str, Any]:
    """Operations of 1, 2 and 3 passes and the host's seconds for one, of a process of its own."""
    command = [sys.executable, "-m", "benchmarks.rehearsal_host", chosen.recipe]
    command.append(json.dumps(chosen.small))
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def whole_iteration(name: str, micro_batch: int, host: dict[str, Any]) -> dict[str, Any]:
    """Passes are alike but for a single one, which makes frozen weights ready as it goes."""
    from sid_ray.planning.flops import iteration_flops
    from sid_ray.recipes.known_networks import teacher_of
    from sid_ray.recipes.registry import recipe

    config = recipe(name)
    passes = config.training.batch_size // micro_batch
    one, two, three = host["operations"]
    launches = one if passes == 1 else two + (passes - 2) * (three - two)
    flop = config.training.batch_size * iteration_flops(config, teacher_of(config))
    return {
        "precision": config.training.precision,
        "passes": passes,
        "a pass": three - two,
        "launches": launches,
        "host us": round(host["seconds"] * 1e6, 1),
        "host ms": round(launches * host["seconds"] * 1e3),
        "gpu ms": round(flop / (SHARE * PEAK[config.training.precision]) * 1e3),
    }


def show_recipes(found: dict[str, dict[str, Any]], before: dict[str, dict[str, Any]]) -> None:
    names = ("passes", "a pass", "launches", "host us", "host ms", "gpu ms")
    print(f"| recipe, micro-batch | | {' | '.join(names)} | host / GPU |")
    print(f"|---|---|{'---:|' * (len(names) + 1)}")
    for name, values in found.items():
        for word, side in (("before", before.get(name)), ("after" if before else "", values)):
            if side:
                cells = " | ".join(f"{side[key]:,}" for key in names)
                share = side["host ms"] / side["gpu ms"]
                print(f"| {name} | {word} | {cells} | {share:.0%} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("paths", "recipes"))
    parser.add_argument("--all", action="store_true", help="the full product of paths")
    parser.add_argument("--before", type=Path, help="counts of an earlier commit")
    parser.add_argument("--save", type=Path, help="where to keep these counts")
    given = parser.parse_args()
    before = json.loads(given.before.read_text())[given.what] if given.before else {}
    if given.what == "recipes":
        found = of_recipes()
        show_recipes(found, before)
    else:
        cases = product() if given.all else [*PLAIN, *SHARED, *OTHERS]
        seen = rehearse(cases, HOURS_S)
        found = {case.name: row(one) for case, one in zip(cases, seen, strict=True)}
        show_paths(found, before)
    if given.save:
        kept = json.loads(given.save.read_text()) if given.save.exists() else {}
        given.save.write_text(json.dumps(kept | {given.what: found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
