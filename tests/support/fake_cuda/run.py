"""Rehearses cases in a process of its own: ``rehearse(cases)`` starts it, ``main`` is it."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.support.fake_cuda.cases import Case, Rehearsed
from tests.support.fake_cuda.guard import build_guard, load_guard

ROOT = Path(__file__).parents[3]


def rehearse(cases: Sequence[Case], timeout_s: float = 840) -> list[Rehearsed]:
    """Every case, in its order, all in one process: its imports take seconds.

    Cases of several ranks must all have as many.

    Raises RuntimeError where the process fails as a whole.
    """
    build_guard()
    with tempfile.TemporaryDirectory() as folder:
        given, found = Path(folder, "cases.json"), Path(folder, "found.json")
        given.write_text(json.dumps([case.to_json() for case in cases]))
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "tests.support.fake_cuda.run", str(given), str(found)]
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout_s
        )
        if not found.exists():
            raise RuntimeError(f"the rehearsal failed:\n{done.stderr[-4000:]}")
        return [Rehearsed.from_json(values) for values in json.loads(found.read_text())]


def main(given: str, found: str) -> None:
    load_guard()
    # These load torch: behind the guard.
    from tests.support.fake_cuda.paths import rehearsed

    gc.freeze()  # what libraries have made would be looked through again and again
    gc.disable()
    cases = [Case(**values) for values in json.loads(Path(given).read_text())]
    # What needs a process group comes last: it stays for the process.
    order = sorted(range(len(cases)), key=lambda index: cases[index].shares)
    outcomes = {index: rehearsed(cases[index]) for index in order}
    Path(found).write_text(json.dumps([outcomes[index] for index in range(len(cases))]))
    sys.stdout.flush()
    os._exit(0)  # whatever threads a path has left behind


if __name__ == "__main__":
    main(*sys.argv[1:])
