"""``sid-ray data prepare`` and ``sid-ray data show``."""

from __future__ import annotations

import sys
import time
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from sid_ray.data.check import check_set
from sid_ray.data.manifest import read_manifest
from sid_ray.data.options import PrepareOptions, ShowOptions
from sid_ray.data.prepare import prepare_data
from sid_ray.data.progress import StoppedError
from sid_ray.data.show import lines_of_set
from sid_ray.errors import UserError
from sid_ray.storage.errors import StoreError
from sid_ray.storage.places import in_words
from sid_ray.storage.s3 import set_endpoint
from sid_ray.storage.store import Store

PLAIN_INTERVAL_S = 10.0  # between two lines where the output is not a terminal


class Meter:
    """Samples done, their rate and the time left: a live line on a terminal, else lines.

    Args:
        doing: what is done. what: of which things. first: said until the first of them is known.
    """

    def __init__(
        self,
        console: Console,
        doing: str = "preparing",
        what: str = "samples",
        first: str = "looking at the source",
    ):
        self.console, self.live = console, console.is_terminal
        self.doing, self.what = doing, what
        self.began = self.printed = time.monotonic()
        self.before = self.calls = 0
        self.bar = Progress(
            TextColumn(doing), BarColumn(bar_width=24), TextColumn("{task.fields[info]}"),
            console=console, transient=True,
        )  # fmt: skip
        self.task = self.bar.add_task("", total=None, info=first)

    def __enter__(self) -> Meter:
        if self.live:
            self.bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self.live:
            self.bar.stop()

    def say(self, text: str) -> None:
        """What is done when the things themselves are."""
        if self.live:
            self.bar.update(self.task, info=text)
        else:
            self.console.print(f"{self.doing}: {text}")

    def tell(self, done: int, total: int) -> None:
        now = time.monotonic()
        if done and self.calls == 0:
            self.console.print(f"going on: {done:,} of {total:,} {self.what} are there")
        self.calls += 1
        if self.calls <= 2:  # the start of processes and the first file are no measure of the rate
            self.before, self.began = done, now
        rate = (done - self.before) / max(now - self.began, 1e-3)
        info = f"{done:,}/{total:,} {self.what}"
        if rate > 0:
            left = timedelta(seconds=round((total - done) / rate))
            info += f"  {rate:,.0f}/s  {left} left"
        if self.live:
            self.bar.update(self.task, completed=done, total=total, info=info)
        elif now - self.printed >= PLAIN_INTERVAL_S:
            self.console.print(f"{self.doing}: {info}")
            self.printed = now


def output_console() -> Console:
    """What a command says goes to the output as it is."""
    return Console(file=sys.stdout, highlight=False, soft_wrap=True, markup=False)


def prepare(options: PrepareOptions) -> int:
    """Prepares a set and says what was made. Raises UserError."""
    console = output_console()
    began = time.monotonic()
    try:
        with Meter(console) as meter:
            outcome = prepare_data(options, meter.tell, console.print)
    except (StoreError, StoppedError) as error:
        raise UserError(f"{error}; what is finished stays, the same command goes on") from None
    except BrokenPipeError:  # nobody reads the output
        raise
    except OSError as error:
        raise UserError(
            f"{options.destination}: {in_words(error)}; what is finished stays, the same command "
            "goes on"
        ) from None
    except KeyboardInterrupt:
        console.print("interrupted: what is finished stays, the same command goes on")
        raise
    manifest = outcome.manifest
    if outcome.resumed == manifest.count:
        console.print(f"{options.destination} is prepared already")
    seconds = time.monotonic() - began
    new = manifest.count - outcome.resumed
    console.print(
        f"{manifest.count:,} samples ({manifest.kind}) in {options.destination}: {new:,} made in "
        f"{seconds:.1f} s; sid-ray data show {options.destination}"
    )
    return 0


def show_set(options: ShowOptions) -> int:
    """Prints what a set holds, draws it, checks it; 1 where something is damaged."""
    set_endpoint(options.endpoint_url, options.region)
    place, out, verify = options.place, options.out, options.verify
    store = Store.at(place)
    try:
        manifest = read_manifest(store)
        for line in lines_of_set(manifest, place):
            print(line)
        if out is not None:
            from sid_ray.data.sheet import draw_sheet

            count = draw_sheet(store, manifest, out, options.decode)
            print(f"{count} samples in {out}")
        findings = check_set(store, deep=True) if verify else []
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UserError(f"{place}: {error}") from None
    for line in findings:
        print(line)
    if verify and not findings:
        print("verified: every file, row group and sample is as the manifest says")
    return 1 if findings else 0
