"""A caller of sid_ray.distill with things of its own, as a notebook has them.

    python -m tests.support.door_caller FOLDER RUN IMAGES [interrupt]

Writes FOLDER/caller.json: what it had before and after, and how the call ended. With ``interrupt``
Ctrl-C comes when the training has begun.
"""

import asyncio
import json
import logging
import os
import random
import signal
import sys
import warnings
from pathlib import Path

import matplotlib
import mlflow
import numpy as np
import ray
import torch

import sid_ray


def on_signal(number, frame):
    raise AssertionError("nobody sends it")


def own_things(folder):
    """A caller's own of everything that a driver changes."""
    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGUSR1, on_signal)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    warnings.filterwarnings("error", category=FutureWarning)
    matplotlib.use("svg")
    mlflow.set_tracking_uri(f"sqlite:///{folder}/mine.db")
    logging.getLogger().addHandler(logging.NullHandler())
    logging.getLogger("ray").setLevel(logging.INFO)
    torch.set_num_threads(1)
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(5)
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)


@ray.remote
class Counter:
    def __init__(self):
        self.count = 0

    def more(self):
        self.count += 1
        return self.count


def snapshot(loggers):
    """All of it, as text by what it is; of the loggers that are named."""
    descriptors = {}
    for path in Path("/proc/self/fd").iterdir():
        target = os.readlink(path) if path.is_symlink() else ""  # noqa: PTH115
        # Not that of the listing; the caller's Ray opens sockets when it likes.
        if target and not target.startswith(("socket:", f"/proc/{os.getpid()}/")):
            descriptors[path.name] = target
    loggers = [logging.getLogger(name) for name in ("", *loggers)]
    heard = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}
    found = {
        "signal handlers": {int(number): signal.getsignal(number) for number in heard},
        "blocked signals": signal.pthread_sigmask(signal.SIG_BLOCK, []),
        "environment": dict(os.environ),
        "file descriptors": descriptors,
        "warnings": warnings.filters,
        "matplotlib": matplotlib.get_backend(),
        "mlflow": mlflow.get_tracking_uri(),
        "logging": {log.name: (log.level, log.handlers, log.disabled) for log in loggers},
        "ray": (ray.is_initialized(), ray.get_runtime_context().get_node_id()),
        "folder": Path.cwd(),
        "import path": sys.path,
        "threads of torch": torch.get_num_threads(),
        "random numbers": hash(random.getstate()),
        "random numbers of numpy": np.random.get_state()[1].sum(),
        "random numbers of torch": torch.get_rng_state().sum(),
        "streams": (sys.stdin, sys.stdout, sys.stderr, sys.excepthook, sys.displayhook),
    }
    return {what: repr(value) for what, value in found.items()}


def call(folder, run, images, interrupt):
    lines = []

    def progress(line):
        lines.append(line)
        # Once: a driver that is interrupted while it tells a line tells it again.
        if interrupt and line.startswith("first step") and lines.count(line) == 1:
            os.kill(os.getpid(), signal.SIGINT)

    settings = {"output__checkpoint_every": 10**6, "output__report_every": 64}
    try:
        result = sid_ray.distill(
            "digits-sid", progress, run=run, images=images, output__folder=folder, num_workers=1,
            evaluation={"every": 0, "final_report": run == "scored", "num_images": 128}, **settings,
        )  # fmt: skip
    except KeyboardInterrupt:
        return {"ended": "interrupted", "lines": lines}
    pictures = result.generator(range(3))
    again = sid_ray.load_generator(Path(folder, run))([2])
    return {
        "ended": "finished",
        "lines": lines,
        "seen": result.images_seen,
        "scores": dict(result.scores),
        "summary": dict(result.summary),
        "weights": result.weights,
        "mlflow": [result.mlflow_uri, result.mlflow_run_id],
        "pictures": [list(pictures.shape), str(pictures.dtype), len(pictures.unique())],
        "same": bool(torch.equal(pictures[2:], again)),
    }


async def cell(*given):
    """As in a notebook, where a loop runs."""
    return call(*given)


def main(folder, run, images, interrupt=""):
    own_things(folder)
    counter = Counter.remote()
    assert ray.get(counter.more.remote()) == 1
    loggers = sorted(logging.root.manager.loggerDict)
    snapshot(loggers)  # what is made when it is first looked at is there then
    before = snapshot(loggers)
    if interrupt:  # a loop of asyncio.run takes the first Ctrl-C for its own
        found = call(folder, run, int(images), True)
    else:
        found = asyncio.run(cell(folder, run, int(images), False))
    after = snapshot(loggers)
    after["ray"] += f" {ray.get(counter.more.remote())}"
    before["ray"] += " 2"
    text = json.dumps({"before": before, "after": after, **found})
    Path(folder, "caller.json").write_text(text)


if __name__ == "__main__":
    main(*sys.argv[1:])
