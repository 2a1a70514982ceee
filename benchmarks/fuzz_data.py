"""Damages sources of data for a given time and prepares them; prints one table.

    python benchmarks/fuzz_data.py --seconds 120

Each try ends in a prepared set or in one line for the person, with nothing left behind. Anything
else (another exception, a line break, a call that takes long) is a finding: its file is kept in
--keep and the exit code is 1. The tests hold some hundred of the same examples, always the same.
"""

from __future__ import annotations

import argparse
import collections
import random
import shutil
import sys
import time
import traceback
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.support.data_damage import corpus, tried
from tests.support.mutate import mutated

SLOW_S = 10.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="names of sources, with commas between")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-findings"))
    options = parser.parse_args()
    rng = random.Random(options.seed)
    counts: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    findings: list[str] = []
    started = time.monotonic()
    with TemporaryDirectory() as folder:
        sources = corpus(Path(folder))
        if options.only:
            sources = {name: sources[name] for name in options.only.split(",")}
        whole = [source.data for source in sources.values()]
        while time.monotonic() < started + options.seconds:
            name = rng.choice(list(sources))
            data = mutated(sources[name].data, whole, rng)
            began = time.perf_counter()
            try:
                outcome = tried(sources[name], data, Path(folder) / "try")
            except BaseException as error:
                outcome = type(error).__name__.upper()
                last = traceback.extract_tb(error.__traceback__)[-1]
                outcome += f" {Path(last.filename).name}:{last.lineno}"
            if time.perf_counter() - began > SLOW_S:
                outcome = "SLOW"
            counts[name][outcome] += 1
            if outcome.isupper() or " " in outcome:
                options.keep.mkdir(parents=True, exist_ok=True)
                kept = options.keep / f"{len(findings)}-{sources[name].file.name}"
                kept.write_bytes(data)
                findings.append(f"{outcome} from {name}: {kept}")
            shutil.rmtree(Path(folder) / "try", ignore_errors=True)
    print(f"{'source':20} {'tries':>9} {'prepared':>9} {'refused':>9} {'other':>6}")
    for name, found in sorted(counts.items()):
        other = found.total() - found["prepared"] - found["refused"]
        print(
            f"{name:20} {found.total():9,} {found['prepared']:9,} {found['refused']:9,} {other:6,}"
        )
    print(f"{sum(c.total() for c in counts.values()):,} tries in {options.seconds:.0f} s")
    print(*findings[:20], sep="\n")
    sys.exit(bool(findings))


if __name__ == "__main__":
    main()
