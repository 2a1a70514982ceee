"""Speed of `sid-ray serve` against a loop in one process, a replica killed under load, memory.

    python -m benchmarks.serving speed runs/digits --seconds 10
    python -m benchmarks.serving kill runs/digits
    python -m benchmarks.serving memory runs/digits --minutes 10

Starts a server of its own on loopback and ends it. Clients are coroutines of this process: each
asks for its next images when it has its last ones.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import psutil

PATIENCE_S = 180
CLIENTS, SIZES = (1, 8, 32), (1, 16)


@dataclass
class Load:
    """What clients saw: seconds of each answered request, and statuses of all."""

    seconds: list[float] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)
    words: Counter[str] = field(default_factory=Counter)
    images: int = 0
    spent_s: float = 0.0

    def line(self) -> str:
        ordered = sorted(self.seconds)
        p50 = statistics.median(ordered)
        p99 = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
        return (
            f"{self.images / self.spent_s:8.1f} images/s  p50 {1000 * p50:7.1f} ms  "
            f"p99 {1000 * p99:7.1f} ms  {dict(self.statuses)}"
        )


@contextlib.contextmanager
def server(runs: list[str], *more: str) -> Iterator[tuple[str, psutil.Process]]:
    """Its address and its process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "sid_ray.cli", "serve", *runs, "--port", str(port), *more]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None
    try:
        for line in process.stdout:
            print(f"  {line.rstrip()}", flush=True)
            if "Ctrl-C" in line:
                break
        threading.Thread(target=process.stdout.read, daemon=True).start()
        yield f"http://127.0.0.1:{port}", psutil.Process(process.pid)
    finally:
        process.terminate()  # SIGINT is ignored below a shell in the background
        process.wait(PATIENCE_S)


async def first_model(address: str) -> dict[str, Any]:
    async with aiohttp.ClientSession() as session, session.get(f"{address}/v1/models") as answer:
        return (await answer.json())["models"][0]


async def load(address: str, clients: int, size: int, seconds: float, pause_s: float = 0.0) -> Load:
    """So many clients for so long, each asking for ``size`` images, with a pause in between."""
    found, model = Load(), await first_model(address)
    prompt = {"prompt": model["examples"][0]} if model["condition"] == "prompt" else {}
    until = time.perf_counter() + seconds

    async def client(session: aiohttp.ClientSession) -> None:
        while time.perf_counter() < until:
            seeds = [random.randrange(2**32) for _ in range(size)]
            body = {"model": model["name"], "seeds": seeds} | prompt
            began = time.perf_counter()
            try:
                async with session.post(f"{address}/v1/images", json=body) as answer:
                    text = await answer.text()
                    status = str(answer.status)
            except aiohttp.ClientError as error:
                status, text = type(error).__name__, ""
            found.statuses[status] += 1
            if status == "200":
                found.seconds.append(time.perf_counter() - began)
                assert len(json.loads(text)["images"]) == size
                found.images += size
                await asyncio.sleep(pause_s)
            else:
                found.words[text[:300]] += 1
                await asyncio.sleep(0.2)

    began = time.perf_counter()
    limit = aiohttp.TCPConnector(limit=0)
    patience = aiohttp.ClientTimeout(total=PATIENCE_S)
    async with aiohttp.ClientSession(connector=limit, timeout=patience) as session:
        await asyncio.gather(*(client(session) for _ in range(clients)))
    found.spent_s = time.perf_counter() - began
    return found


def loop_speed(run: str, size: int, seconds: float, threads: int) -> float:
    """Images per second of the sampler, called in a loop for ``size`` images each."""
    import torch

    from sid_ray.evaluation.subject import find_subject
    from sid_ray.serving.contract import WantedImage
    from sid_ray.serving.described import some_prompts
    from sid_ray.serving.networks_held import HeldNetworks

    held = HeldNetworks(run, size, "cpu", threads)
    held.warm_up()
    assert torch.get_num_threads() == threads
    prompts = some_prompts(find_subject(run).config, held.generator.shape) or [""]
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        seeds = [random.randrange(2**32) for _ in range(size)]
        held.paint([WantedImage("generator", seed, prompts[0]) for seed in seeds])
        count += size
    return count / (time.perf_counter() - began)


def told_loop(run: str, size: int, seconds: float, threads: int) -> float:
    """``loop_speed`` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.serving", "loop", run]
    command += ["--size", str(size), "--seconds", str(seconds), "--threads", str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout)


def cpu_seconds(process: psutil.Process) -> float:
    """Of all processes of a server so far: what other work on the machine does not change."""
    total = 0.0
    for each in below(process):
        with contextlib.suppress(psutil.Error):
            times = each.cpu_times()
            total += times.user + times.system
    return total


def speed(given: argparse.Namespace) -> None:
    run, more = given.runs[0], given.more.split()
    loops = {
        size: max(told_loop(run, size, given.seconds, threads) for threads in given.threads)
        for size in given.sizes
    }
    with server([run], *more) as (address, process):
        asyncio.run(load(address, 32, 16, given.before))  # replicas come
        for size in given.sizes:
            for clients in given.clients:
                before = cpu_seconds(process)
                found = asyncio.run(load(address, clients, size, given.seconds))
                each = 1000 * (cpu_seconds(process) - before) / found.images
                ratio = found.images / found.spent_s / loops[size]
                cost = f"{ratio:.2f} of the loop, {each:.2f} CPU ms per image"
                print(f"{size:2} images, {clients:2} clients: {found.line()}  {cost}", flush=True)
    for size in given.sizes:
        again = max(told_loop(run, size, given.seconds, threads) for threads in given.threads)
        print(f"{size:2} images, loop:       {loops[size]:8.1f} images/s before, {again:.1f} after")


def below(process: psutil.Process) -> list[psutil.Process]:
    """A server's processes: all of its session, and what has left it."""
    return [process, *process.children(recursive=True)]


def replicas(process: psutil.Process) -> list[psutil.Process]:
    found = []
    for each in below(process):
        with contextlib.suppress(psutil.Error):
            if "ServeReplica" in " ".join(each.cmdline()) and "model-" in " ".join(each.cmdline()):
                found.append(each)
    return found


def kill(given: argparse.Namespace) -> None:
    """kill -9 of a replica, again and again, under load."""
    with server(given.runs, *given.more.split()) as (address, process):
        killed = []

        def killer() -> None:
            for _ in range(given.times):
                time.sleep(given.every)
                for each in replicas(process)[:1]:
                    each.kill()
                    killed.append(each.pid)

        thread = threading.Thread(target=killer)
        thread.start()
        seconds = given.every * (given.times + 2)
        found = asyncio.run(load(address, 16, 4, seconds))
        thread.join()
        print(f"killed {len(killed)} replicas; {found.line()}")
        for words, count in found.words.items():
            print(f"  {count} x {words}")
        print(f"replicas now: {len(replicas(process))}")


def memory(given: argparse.Namespace) -> None:
    """Resident memory of all processes, a line per minute, while 4 clients ask for 4 images,
    some five times per second.
    """
    with server(given.runs, *given.more.split()) as (address, process):
        asyncio.run(load(address, 4, 4, 30, 0.2))
        for minute in range(given.minutes + 1):
            sums: Counter[str] = Counter()
            for each in below(process):
                with contextlib.suppress(psutil.Error):
                    name = each.name() if each.pid != process.pid else "sid-ray serve"
                    line = " ".join(each.cmdline())
                    if "ServeReplica" in line:
                        name = line.rpartition(":")[2][:24].strip()
                    sums[name] += each.memory_info().rss >> 20
            listed = ", ".join(f"{name} {mib}" for name, mib in sorted(sums.items()))
            print(f"minute {minute:2}: {sum(sums.values()):6} MiB  ({listed})", flush=True)
            if minute < given.minutes:
                found = asyncio.run(load(address, 4, 4, 60, 0.2))
        print(found.line())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("speed", "kill", "memory", "loop"))
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--before", type=float, default=15, help="seconds of load before")
    parser.add_argument("--minutes", type=int, default=10)
    parser.add_argument("--every", type=float, default=10)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--clients", type=int, nargs="+", default=CLIENTS)
    parser.add_argument("--size", type=int, default=1)
    parser.add_argument("--threads", type=int, nargs="+", default=(1, 2), help="of the loop")
    parser.add_argument("--more", default="", help="flags of the server")
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the server is ended, too
    if given.what == "loop":
        print(loop_speed(given.runs[0], given.size, given.seconds, given.threads[0]))
    else:
        {"speed": speed, "kill": kill, "memory": memory}[given.what](given)


if __name__ == "__main__":
    main()
