"""Damages weights files for a given time and loads them; prints one table.

    python benchmarks/fuzz_loader.py --seconds 120

Each load ends in tensors and plain values or in one UserError. Anything else (another exception,
an audit event of something executed, a call that takes long, memory beyond four times the file and
32 MiB) is a finding: its file is kept in --keep and the exit code is 1.
"""

from __future__ import annotations

import argparse
import collections
import random
import resource
import sys
import time
import tracemalloc
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from sid_ray.errors import UserError
from sid_ray.weights.formats import read_weights
from tests.support import hostile, mutate

MIB = 1 << 20
SLOW_S = 5.0
MEASURED = 20  # every so many loads the memory is measured, which is slow


def corpus() -> dict[str, bytes]:
    """Small files of every container, and hostile ones."""
    files = mutate.small_files()
    canary = Path("canary-of-the-fuzzer")
    hostiles = hostile.payloads(canary) | hostile.nested_payloads(canary)
    return files | {"hostile": b"".join(hostiles.values())}


class Fuzzer:
    def __init__(self, folder: Path, keep: Path, seed: int):
        self.path, self.keep, self.rng = folder / "file.pkl", keep, random.Random(seed)
        self.watch = mutate.Watch()
        self.counts: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
        self.findings: list[str] = []
        self.slowest_s, self.highest = 0.0, 0.0

    def load(self, name: str, data: bytes, measure: bool = False) -> None:
        self.path.write_bytes(data)
        if measure:
            tracemalloc.start()
        start = time.perf_counter()
        try:
            with self.watch.watching():
                read_weights(self.path)
            outcome = "loaded"
        except UserError:
            outcome = "refused"
        except MemoryError:
            outcome = "MEMORY"
        except BaseException as error:
            outcome = type(error).__name__.upper()
        taken = time.perf_counter() - start
        if measure:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            self.highest = max(self.highest, peak / MIB)
            if peak > 4 * len(data) + 32 * MIB:
                outcome = "SWOLLEN"
        else:
            self.slowest_s = max(self.slowest_s, taken)
            if taken > SLOW_S:
                outcome = "SLOW"
        self.watch.seen.clear()
        self.counts[name][outcome] += 1
        if outcome.isupper():
            self.found(name, outcome, data)

    def found(self, name: str, outcome: str, data: bytes) -> None:
        self.keep.mkdir(parents=True, exist_ok=True)
        path = self.keep / f"{outcome}-{len(self.findings)}.pkl"
        path.write_bytes(data)
        self.findings.append(f"{outcome} from {name}: {path}")

    def flips(self, name: str, data: bytes, deadline: float) -> bool:
        """Every bit flipped once, while there is time."""
        for index in range(len(data)):
            if time.monotonic() > deadline:
                return False
            for bit in range(8):
                flipped = bytes([data[index] ^ (1 << bit)])
                self.load(name + ", bits", data[:index] + flipped + data[index + 1 :])
        return True


def table(fuzzer: Fuzzer, seconds: float, size: int) -> str:
    lines = [f"{'file':32} {'loads':>9} {'loaded':>9} {'refused':>9} {'other':>6}"]
    total: collections.Counter = collections.Counter()
    for name, counts in sorted(fuzzer.counts.items()):
        total += counts
        lines.append(row(name, counts))
    lines.append(row("all", total))
    lines.append(
        f"{seconds:.0f} s, {total.total() / seconds:.0f} loads/s, "
        f"slowest {fuzzer.slowest_s:.2f} s; "
        f"largest file {size / MIB:.2f} MiB, highest Python peak {fuzzer.highest:.1f} MiB, "
        f"torch {torch.__version__}"
    )
    return "\n".join(lines + fuzzer.findings[:20])


def row(name: str, counts: collections.Counter) -> str:
    other = counts.total() - counts["loaded"] - counts["refused"]
    return f"{name:32} {counts.total():9,} {counts['loaded']:9,} {counts['refused']:9,} {other:6,}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path("fuzz-findings"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    files = corpus()
    started = time.monotonic()
    with TemporaryDirectory() as folder:
        fuzzer = Fuzzer(Path(folder), options.keep, options.seed)
        for name, data in files.items():  # what is imported on first use is not the file's
            fuzzer.path.write_bytes(data)
            if name != "hostile":
                read_weights(fuzzer.path)
        soft = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (16 << 30, soft))
        complete = fuzzer.flips("snapshot", files["snapshot"], started + options.seconds / 3)
        others, largest = list(files.values()), 0
        while time.monotonic() < started + options.seconds:
            name = fuzzer.rng.choice(list(files))
            data = mutate.mutated(files[name], others, fuzzer.rng)
            largest = max(largest, len(data))
            fuzzer.load(name, data, fuzzer.rng.randrange(MEASURED) == 0)
        print(table(fuzzer, time.monotonic() - started, largest))
    print(f"every bit of a snapshot flipped: {'yes' if complete else 'as far as time went'}")
    sys.exit(bool(fuzzer.findings))


if __name__ == "__main__":
    main()
