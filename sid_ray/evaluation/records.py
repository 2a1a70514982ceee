"""evaluations.jsonl of a run: a line a result, its scores and all that they mean.

The evaluator beside the training, sid-ray evaluate and sweeps add to it, each while no other does.
A driver's lines hold the number of its lease; what one adds that has lost the run to another is
left out. What a resumed run scores again is no second line, and what a killed process left half
written spoils no other line.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sid_ray.run_folder import EVALUATIONS
from sid_ray.storage.durable import json_line, values_in
from sid_ray.storage.fence import lease_of
from sid_ray.storage.store import Store

# What differs where a result is made again.
TIMES = ("seconds", "images_made", "images_per_s", "date", "lease")


def results_in(data: bytes) -> list[dict[str, Any]]:
    """The results of a file's whole lines, in order; what is none is left out."""
    found, newest = [], 0
    for result in values_in(data)[0]:
        number = lease_of(result)
        newest = max(newest, number)
        if isinstance(result, dict) and number in (0, newest):
            found.append(result)
    return found


def add_result(run: Store, result: Mapping[str, Any]) -> None:
    """Adds a line to the file of a run's folder, unless it has the result. Raises OSError."""

    def added(data: bytes) -> bytes:
        if without_times(result) in map(without_times, results_in(data)):
            return data
        whole = data[: len(data) - len(values_in(data)[1])]
        return whole + json_line(dict(result))

    run.change(EVALUATIONS, added)


def merge_results(source: Store, run: Store) -> None:
    """Adds the results of one folder's file to another's, which may have others. Raises OSError.

    They stand in the order of their leases then, as if one file had taken all.
    """
    try:
        ours = results_in(source.read(EVALUATIONS))
    except FileNotFoundError:
        return
    if not ours:
        return

    def merged(data: bytes) -> bytes:
        there = results_in(data)
        known = list(map(without_times, there))
        new = [result for result in ours if without_times(result) not in known]
        if not new:
            return data
        return b"".join(map(json_line, sorted(there + new, key=lease_of)))

    run.change(EVALUATIONS, merged)


def without_times(result: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in result.items() if name not in TIMES}
