"""What a measurement found, as a table and as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.markup import escape
from rich.table import Table

from sid_ray.commands.benching.search import Found, Row
from sid_ray.commands.benching.short import PASSES
from sid_ray.commands.plan import plain_table
from sid_ray.planning.profile import Profile

TERA = 1e12


@dataclass(frozen=True)
class Measurement:
    """Everything that is shown.

    ``flop``: of one image's iteration, the algorithm's bill. ``ceiling``: FLOP/s of all ranks at
    once, by what was multiplied; {} where it was not measured.
    """

    recipe: str
    batch_size: int
    flop: int
    ceiling: Mapping[str, float]
    rows: Sequence[Row]
    profile: Profile

    def images_s(self, found: Found) -> float:
        return self.batch_size / found.seconds

    def flops(self, found: Found) -> float:
        """Model FLOP/s of all ranks."""
        return self.flop * self.images_s(found)

    def share(self, found: Found) -> float | None:
        """Of the measured ceiling."""
        top = max(self.ceiling.values(), default=0.0)
        return self.flops(found) / top if top else None


def lines_above(measured: Measurement) -> list[str]:
    profile = measured.profile
    workers = "worker" if profile.gpus == 1 else "workers"
    if profile.machine == "cpu":
        where = f"{profile.gpus} {workers} on a CPU"
    else:
        where = f"{profile.gpus} x {profile.machine}"
    versions = ", ".join(f"{name} {value}" for name, value in profile.versions.items())
    lines = [
        f"{measured.recipe} on {where}, {profile.precision}; batches of "
        f"{measured.batch_size:,} images; {versions}",
        f"{measured.flop / 1e9:,.1f} GFLOP an image (both phases, forward and backward, without "
        "what is computed again)",
    ]
    if measured.ceiling:
        rates = (f"{name} {rate / TERA:.3g}" for name, rate in measured.ceiling.items())
        lines.append(f"ceiling of all {profile.gpus} at once, TFLOP/s: {', '.join(rates)}")
    return lines


def bench_table(measured: Measurement) -> Table:
    """A row for each change that was tried."""
    table = plain_table("One change at a time from the best so far")
    table.add_column("setting")
    for column in ("s/iteration", "images/s", "s / best's", "GiB", "TFLOP/s", "of ceiling"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("", overflow="fold")
    for row in measured.rows:
        table.add_row(row.change, *cells(measured, row.found), escape(remark(row)))
    table.caption = (
        "s/iteration: of the whole batch. Where it has more than "
        f"{PASSES} passes a rank and phase, {PASSES} of each phase and both updates\n"
        "were measured whole, and the others count as the first. s / best's: median over turns, "
        "smallest to largest.\nGiB: the most of a rank; on a CPU of its process. TFLOP/s: the "
        "algorithm's bill, of all ranks"
    )
    return table


def cells(measured: Measurement, found: Found | None) -> list[str]:
    if found is None:
        return ["-"] * 6
    ratio = "-"
    if found.ratios:
        ratio = f"{found.ratio:.3f} ({min(found.ratios):.3f}-{max(found.ratios):.3f})"
        if len(found.ratios) == 1:
            ratio = f"{found.ratio:.3f} (one turn)"
    share = measured.share(found)
    return [
        f"{found.seconds:.4g}",
        f"{measured.images_s(found):.4g}",
        ratio,
        f"{found.peak_gib:.2f}",
        f"{measured.flops(found) / TERA:.3g}",
        "-" if share is None else f"{share:.0%}",
    ]


def remark(row: Row) -> str:
    """Whether it was kept, and what else is to be known."""
    kept = "kept" if row.kept and row.found and row.found.ratios else ""
    return "; ".join(filter(None, (kept, row.note)))


def values_of(measured: Measurement, path: str) -> dict[str, Any]:
    """For a file: all that the table has, with every turn. ``path``: where the profile lies."""
    rows = []
    for row in measured.rows:
        found = row.found
        values: dict[str, Any] = {"change": row.change, "kept": row.kept, "note": row.note}
        if found is not None:
            values |= {
                "seconds": found.seconds,
                "images_s": measured.images_s(found),
                "peak_gib": found.peak_gib,
                "ratio": found.ratio if found.ratios else None,
                "ratios": list(found.ratios),
                "flops": measured.flops(found),
                "share_of_ceiling": measured.share(found),
            }
        rows.append(values)
    return {
        "recipe": measured.recipe,
        "batch_size": measured.batch_size,
        "flop_an_image": measured.flop,
        "ceiling_flops": dict(measured.ceiling),
        "rows": rows,
        "profile": dataclasses.asdict(measured.profile) | {"file": path},
        "flags": measured.profile.flags,
    }
