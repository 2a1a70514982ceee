"""Several processes that compute together, a GPU each: started, joined and brought home."""

from __future__ import annotations

import datetime
import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.multiprocessing

from sid_ray.commands.device.rows import DeviceRow, Rig
from sid_ray.storage.durable import append_line, read_values

HOST, LOOK_S = "127.0.0.1", 0.2
FAILURES = (
    torch.multiprocessing.ProcessRaisedException,
    torch.multiprocessing.ProcessExitedException,
)
Tell = Callable[[DeviceRow], None]
Work = Callable[[Rig, int, torch.device, Tell], None]


def rows_of_ranks(work: Work, rig: Rig, backend: str) -> Iterator[DeviceRow]:
    """What rank 0 of ``rig.world`` processes tells, each of them work(rig, rank, device, tell).

    They are joined by ``backend``, "nccl" or "gloo". Raises RuntimeError where one of them fails,
    behind the rows that were told before.
    """
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.jsonl"
        given = (work, rig, backend, free_port(), str(rows))
        processes = torch.multiprocessing.spawn(joined_rank, given, nprocs=rig.world, join=False)
        seen, over = 0, False
        failed: Exception | None = None
        while not over:
            try:
                over = processes.join(timeout=LOOK_S)
            except FAILURES as error:
                failed, over = error, True
            found = read_values(rows)
            yield from (DeviceRow(**values) for values in found[seen:])
            seen = len(found)
        if failed is not None:
            raise last_line_of(failed)


def free_port() -> int:
    with socket.socket() as free:
        free.bind((HOST, 0))
        return int(free.getsockname()[1])


def last_line_of(error: Exception) -> RuntimeError:
    """The last line of a failed process' traceback, which says what went wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return RuntimeError(lines[-1] if lines else type(error).__name__)


def joined_rank(rank: int, work: Work, rig: Rig, backend: str, port: int, rows: str) -> None:
    """One process: on its own GPU, in the process group."""
    from sid_ray.device.numerics import set_numerics

    # What DeepSpeed and torch read; all ranks are on this machine.
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(rig.world)}
    os.environ |= {"MASTER_ADDR": HOST, "MASTER_PORT": str(port)}
    set_numerics()
    device = torch.device(rig.device, rank) if rig.device == "cuda" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(1)
    torch.distributed.init_process_group(
        backend,
        rank=rank,
        world_size=rig.world,
        # A collective that hangs is an error, and a row, before the check's own time is over.
        timeout=datetime.timedelta(seconds=max(rig.left_s, 10.0)),
        device_id=device if backend == "nccl" else None,
    )

    def tell(row: DeviceRow) -> None:
        if rank == 0:
            append_line(Path(rows), row.to_values(), sync=False)

    work(rig, rank, device, tell)
    torch.distributed.destroy_process_group()
    # Now and then torch 2.13 aborts behind this, when the interpreter is gone already: a C++
    # thread that nobody joined. All is written.
    os._exit(0)
