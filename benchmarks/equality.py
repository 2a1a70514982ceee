"""Every ZeRO stage and world size against one worker of plain torch, float32: one table.

    python -m benchmarks.equality [--worlds 1 2 3 4] [--stages 0 1 2 3] [--rows FILE]

Five iterations of SiD and SiDA on tiny networks, dropout on; five groups, which neither 2, 3 nor 4
workers divide.

    undisturbed   five iterations in one go
    resumed       new processes of the same number and stage, from the checkpoint after the second
                  iteration: to the bit the same as undisturbed
    resized A:B   written by A workers, gone on with by B, at the next stage (3 is followed by 0)
    killed A:B    a worker of A is killed (SIGKILL) in the second iteration after
                  the checkpoint: B workers repeat what was lost, at the same stage
    plain         plain torch with its groups split over two passes: what float32, and Adam with
                  beta1 = 0, make of another order of summation

Printed are relative errors, the larger of the two roles and the largest over stages: of all tensors
of a kind as one vector, and of the worst tensor; then how many tensors miss 1e-5 by themselves. The
keys' third of EDM's qkv.bias is left out: its true gradient is zero, its own only rounding.
"""

from __future__ import annotations

import argparse
import os
import signal
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from sid_ray.distributed import deepspeed_role
from sid_ray.distributed.roles import Trainee
from sid_ray.weights.folder import ModelDescription
from tests.support.checkpoints import load_checkpoint, write_checkpoint
from tests.support.trajectories import (
    CASES,
    COLUMNS,
    GROUP,
    ITERATIONS,
    MICRO_BATCH,
    errors,
    outcome,
    plain_outcome,
    sharded_trainee,
    spawn,
    tensor_errors,
    train,
)

SAVED_AFTER, LIMIT = 2, 1e-5


class Run(NamedTuple):
    """One training, or its second part: where its checkpoint is and how it goes on."""

    what: str
    case: str
    before: int  # workers that write the checkpoint
    stage_before: int
    workers: int
    stage: int

    @property
    def checkpoint(self) -> str:
        first = "killed" if self.what == "killed" else "undisturbed"
        return f"{first}-{self.case}-{self.before}-{self.stage_before}"


class Row(NamedTuple):
    """What came of a run. ``identical``: to the undisturbed one, where both are of one size."""

    run: Run
    errors: dict[str, float]
    tensors: dict[str, float]
    identical: bool | None


def checkpoint(trainee: Trainee, folder: str, write: bool) -> None:
    """Writes a checkpoint or takes one up. A collective."""
    roles = {"fake_score": trainee.fake_score, "generator": trainee.generator}
    if write:
        description = ModelDescription("edm", {}, {"sigma": 2.5})  # nobody generates from it
        write_checkpoint(Path(folder), trainee, roles, description, "{}")
    else:
        load_checkpoint(Path(folder), trainee, roles)
    torch.distributed.barrier()


def built(run: Run, world_size: int) -> Trainee:
    stage = run.stage
    return sharded_trainee(CASES[run.case], stage, stage, 3 * (stage == 3), world_size, GROUP)


def to_the_end(rank: int, world_size: int, folder: str, runs: Sequence[Run], persist: int) -> None:
    """Whole runs and second parts, all in one start of the processes; rank 0 writes the rows."""
    deepspeed_role.PERSISTENT = persist
    rows = []
    for run in runs:
        trainee, case = built(run, world_size), CASES[run.case]
        if run.what == "undisturbed":
            train(case, trainee, rank, world_size, SAVED_AFTER, GROUP)
        checkpoint(trainee, f"{folder}/{run.checkpoint}", write=run.what == "undisturbed")
        train(case, trainee, rank, world_size, ITERATIONS - SAVED_AFTER, GROUP)
        found = outcome(trainee)  # a collective
        if rank == 0:
            rows.append(compared(run, found, folder))
    if rank == 0:
        torch.save(rows, f"{folder}/rows.pt")


def compared(run: Run, found: dict[str, Tensor], folder: str) -> Row:
    expected = torch.load(f"{folder}/{run.case}.pt")
    whole = f"{folder}/outcome-{run.case}-{run.workers}-{run.stage}.pt"
    identical = None
    if run.what == "undisturbed":
        torch.save(found, whole)
    elif (run.before, run.stage_before) == (run.workers, run.stage):
        undisturbed = torch.load(whole)
        identical = all(torch.equal(found[name], value) for name, value in undisturbed.items())
    return Row(run, errors(found, expected), tensor_errors(found, expected), identical)


def to_the_kill(rank: int, world_size: int, folder: str, runs: Sequence[Run], persist: int) -> None:
    """First parts, an iteration beyond their checkpoints; the last worker dies in the next."""
    deepspeed_role.PERSISTENT = persist
    for run in runs:
        trainee = built(run._replace(stage=run.stage_before), world_size)
        train(CASES[run.case], trainee, rank, world_size, SAVED_AFTER, GROUP)
        checkpoint(trainee, f"{folder}/{run.checkpoint}", write=True)
        train(CASES[run.case], trainee, rank, world_size, 1, GROUP)
    if rank == world_size - 1:
        trainee.generator.backward = lambda loss: os.kill(os.getpid(), signal.SIGKILL)
    train(CASES[run.case], trainee, rank, world_size, 1, GROUP)


def killed(world_size: int, *arguments: object) -> None:
    """Runs to_the_kill. Raises RuntimeError when nobody was killed."""
    try:
        spawn(to_the_kill, world_size, *arguments)
    except torch.multiprocessing.ProcessExitedException:
        return
    except torch.multiprocessing.ProcessRaisedException as error:
        if "Connection" not in str(error):  # another worker's word of the one that died
            raise
        return
    raise RuntimeError("no worker was killed")


def pairs(texts: Sequence[str]) -> list[tuple[int, int]]:
    return [(int(before), int(after)) for before, after in (text.split(":") for text in texts)]


def planned(given: argparse.Namespace) -> list[Run]:
    """Every run, each behind the one that writes its checkpoint."""
    both = [(case, stage) for case in given.cases for stage in given.stages]
    runs = [Run(w, c, n, s, n, s) for w in ("undisturbed", "resumed") for n in given.worlds
            for c, s in both]  # fmt: skip
    for a, b in pairs(given.resize):
        following = {
            s: given.stages[(i + 1) % len(given.stages)] for i, s in enumerate(given.stages)
        }
        runs += [Run("resized", c, a, s, b, following[s]) for c, s in both]
    for a, b in pairs(given.kill):
        runs += [Run("killed", c, a, s, b, s) for c, s in both]
    return runs


def measure(runs: Sequence[Run], folder: str, persist: int) -> list[Row]:
    """A start of processes for each world size: whole runs, kills, second parts."""
    rows: list[Row] = []

    def start(chosen: list[Run]) -> None:
        for workers in sorted({run.workers for run in chosen}):
            mine = [run for run in chosen if run.workers == workers]
            spawn(to_the_end, workers, folder, mine, persist)
            rows.extend(torch.load(f"{folder}/rows.pt", weights_only=False))

    start([run for run in runs if run.what == "undisturbed"])
    dying = {run.checkpoint: run for run in runs if run.what == "killed"}.values()
    for workers in sorted({run.before for run in dying}):
        killed(workers, folder, [run for run in dying if run.before == workers], persist)
    start([run for run in runs if run.what != "undisturbed"])
    return rows


def show(case: str, what: str, workers: str, found: dict[str, float], identical: str) -> None:
    numbers = " | ".join(f"{found[column]:.1e}" for column in COLUMNS)
    print(f"| {case} | {what} | {workers} | {numbers} | {identical} |", flush=True)


def show_rows(case: str, rows: Sequence[Row]) -> None:
    """A line for each number of workers of undisturbed runs, and one for each other kind."""
    lines = defaultdict(list)
    for row in rows:
        workers = row.run.workers if row.run.what == "undisturbed" else 0
        lines[row.run.what, workers].append(row)
    for (what, _), mine in lines.items():
        worst = {column: max(row.errors[column] for row in mine) for column in COLUMNS}
        sizes = dict.fromkeys((row.run.before, row.run.workers) for row in mine)
        names = [f"{a}:{b}" if what in ("resized", "killed") else str(b) for a, b in sizes]
        same = [row.identical for row in mine if row.identical is not None]
        show(case, what, " ".join(names), worst, f"{sum(same)} of {len(same)}" if same else "")


def kind_of(tensor: str) -> str:
    """ "G exp_avg" of "G model.enc.conv.weight/exp_avg"."""
    role, _, rest = tensor.partition(" ")
    return role if role == "EMA" else f"{role} {rest.rpartition('/')[2]}"


def show_tensors(rows: Sequence[Row], plain: dict[str, dict[str, float]]) -> None:
    """How many tensors of a kind miss LIMIT in any row, and the worst; beside plain torch's own."""
    print(f"\n| case | kind | above {LIMIT:.0e} | plain | worst | its error | plain |")
    print("|---" * 7 + "|")
    for case, own in plain.items():
        mine = [row.tensors for row in rows if row.run.case == case]
        largest = {name: max(tensors[name] for tensors in mine) for name in own}
        for kind in dict.fromkeys(map(kind_of, own)):
            names = [name for name in own if kind_of(name) == kind]
            many, its = (sum(e[name] > LIMIT for name in names) for e in (largest, own))
            worst = max(names, key=largest.__getitem__)
            if many or its:
                counts = f"{many} of {len(names)} | {its} | {worst}"
                print(f"| {case} | {kind} | {counts} | {largest[worst]:.1e} | {own[worst]:.1e} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worlds", type=int, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument("--stages", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--resize", nargs="*", default=["1:2", "2:3", "3:4", "4:1"])
    parser.add_argument("--kill", nargs="*", default=["2:2", "3:2"])
    parser.add_argument("--persistent", type=int, default=0, help="elements; stage 3")
    parser.add_argument("--rows", help="file for every single row, tab-separated")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        plain, other = {}, {}
        for case in given.cases:
            expected, again = plain_outcome(case, GROUP), plain_outcome(case, MICRO_BATCH)
            torch.save(expected, f"{folder}/{case}.pt")
            plain[case], other[case] = errors(again, expected), tensor_errors(again, expected)
        rows = measure(planned(given), folder, given.persistent)
    print(f"| case | run | workers | {' | '.join(COLUMNS)} | identical |")
    print("|---" * (len(COLUMNS) + 4) + "|")
    for case in given.cases:
        show(case, "plain", "1", plain[case], "")
        show_rows(case, [row for row in rows if row.run.case == case])
    show_tensors(rows, other)
    if given.rows:
        lines = [
            "\t".join(map(str, (*row.run, *row.errors.values(), row.identical))) for row in rows
        ]
        Path(given.rows).write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
