"""`sid-ray sweep`: what was typed, checked before anything starts; the sweep; its table."""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, ClassVar

from annotated_types import Interval
from tyro.conf import Positional, arg

from sid_ray.commands.arguments import WithConfig, configured, expand_aliases
from sid_ray.commands.checks import SWEEP, Patient, enforce
from sid_ray.config.distill_config import DistillConfig, differences, known_fields, located
from sid_ray.errors import UserError
from sid_ray.recipes.registry import check_supplied, recipe
from sid_ray.run_folder import LOG, only_process, runs_folder
from sid_ray.storage.places import check_file, check_folder
from sid_ray.sweep.arithmetic import cost
from sid_ray.sweep.results import SweepOrder, read_about, write_about
from sid_ray.sweep.shipped import space_file
from sid_ray.sweep.space import Space, config_of
from sid_ray.sweep.space_check import check_space
from sid_ray.sweep.space_file import parse_space, read_space_text
from sid_ray.sweep.trials import read_trials

STOPPED = 130


@dataclass(frozen=True)
class SweepOptions(WithConfig):
    """Runs the trials of a search space, each an ordinary run; the same command goes on with a
    sweep that was stopped. Flags of the config are for all trials; what the space sets may not be
    given.
    """

    first: ClassVar[str] = "a search space first: PROG digits-sida, or a file"

    space: Annotated[str, Positional, arg(metavar="SPACE")]
    """The search space: a file, or the name of one that ships, like digits-sida."""
    recipe: str = ""
    """What the trials start from; empty for the space's own."""
    trials: Annotated[int, Interval(ge=0)] = 0
    """Points to try; 0 for the space's own number."""
    name: str = ""
    """Of the sweep and the beginning of its runs' names; empty for the space's."""
    concurrent: Annotated[int, Interval(ge=1)] = 1
    """Trials at once, each on its share of the CPUs or GPUs."""


def order_of(asked: SweepOptions, flags: Sequence[str]) -> SweepOrder:
    """Raises UserError in one line for anything that is wrong."""
    path = space_file(asked.space)
    text = read_space_text(path)
    if asked.trials:
        text = with_trials(text, asked.trials)
    space = parse_space(text, str(path))
    named = asked.recipe or space.recipe
    if not named:
        raise UserError(f"{path}: names no recipe; give --recipe NAME")
    base = recipe(named)
    check_flags(space, expand_aliases(flags))
    base = configured(flags, f"sid-ray sweep {path}", base, SweepOptions)
    base = fixed_to(base.check(), runs_folder(base.output.folder))
    check_supplied(base)
    check_space(space, base)
    name = asked.name or path.stem
    if set(name) & set('/\\:*?"<>|') or name.startswith("."):
        raise UserError(f"--name {name!r}: it must be a plain folder name")
    return SweepOrder(name, space, text, base, asked.concurrent)


def with_trials(text: str, trials: int) -> str:
    """A space's text with another number of trials, in its place: line numbers stay."""
    changed, found = re.subn(r"(?m)^trials:.*$", f"trials: {trials}", text)
    return changed if found else f"{text.rstrip()}\ntrials: {trials}\n"


def fixed_to(base: DistillConfig, folder: str) -> DistillConfig:
    """With absolute paths: trials have another working directory."""
    base = located(base)
    return replace(base, output=replace(base.output, folder=folder))


def check_flags(space: Space, flags: Sequence[str]) -> None:
    """Raises UserError for a flag whose field the sweep sets itself."""
    names = {name.replace("_", "-"): name for name in known_fields()}
    for typed in flags:
        flag = typed.partition("=")[0].removeprefix("--").replace("_", "-").replace(".no-", ".")
        name = names.get(flag.removeprefix("no-"), "")
        if name in space.names or name in space.fixed:
            line = space.lines.get(name, 0)
            raise UserError(f"--{flag}: {space.source}:{line} sets {name}; change it there")
        if name in ("training.images", "training.seed", "output.run"):
            instead = {"images": "budget.images", "seed": "seeds:", "run": "--name"}
            raise UserError(f"--{flag}: a sweep sets it; use {instead[name.split('.')[1]]}")


def sweep(options: SweepOptions, flags: Sequence[str]) -> int:
    """The command. Returns the exit code; raises UserError before anything starts."""
    order = order_of(options, flags)
    check_folder(order.folder, "output.folder")
    earlier = read_about(order.folder)
    check_same(order, earlier)
    if earlier.get("state") == "finished":
        for line in end_of_sweep(order):
            print(line)
        return 0
    check_trial(order)
    with only_process(order.folder, order.name):
        return run_order(order, earlier)


@dataclass(frozen=True)
class ReportOptions:
    """Writes a page on a sweep: trials, the best of them, plots; CSV and JSON beside it."""

    folder: Annotated[str, Positional, arg(metavar="FOLDER")]
    """The sweep's folder, like runs/digits-sida."""
    out: Path = Path("report.html")
    """The page."""

    def check(self) -> None:
        """Raises UserError where the page cannot be written."""
        check_file(self.out, "--out")


def report(options: ReportOptions) -> int:
    from sid_ray.sweep.report import run_report

    return run_report(options.folder, options.out)


def check_same(order: SweepOrder, earlier: dict) -> None:
    """Raises UserError where a sweep of this name is another one."""
    if not earlier:
        return
    what = f"sweep {order.name!r} exists"
    again = "repeat its command to go on, or choose another --name"
    named = earlier.get("name", order.name)
    if named != order.name:  # its trials' runs have that name, and may be another sweep's
        raise UserError(
            f"{order.folder} is the folder of sweep {named!r}, copied or renamed: give it that "
            "name again, in a folder of runs with its trials' runs, or choose another --name"
        )
    if earlier["space"] != order.text:
        raise UserError(f"{what} with another space or number of trials: {again}")
    changes = list(differences(DistillConfig.from_json(earlier["base"]), order.base))
    if changes:
        raise UserError(f"{what} with another config ({'; '.join(changes)}): {again}")


def check_trial(order: SweepOrder) -> None:
    """Raises UserError where a trial's networks, data or statistics are not there."""
    from sid_ray.storage.s3 import set_endpoint
    from sid_ray.sweep.searcher import spec_of

    set_endpoint(order.base.storage.endpoint_url, order.base.storage.region)
    config = config_of(order.space, order.base, spec_of(order, []).point)
    enforce(Patient(config, config.output.folder), SWEEP)


def run_order(order: SweepOrder, earlier: dict) -> int:
    """The sweep itself; its libraries' output goes to the log. Returns the exit code."""
    from sid_ray.commands.distill import shown_path
    from sid_ray.console import quiet_output
    from sid_ray.sweep.display import SweepDisplay
    from sid_ray.sweep.notes import SweepWatch
    from sid_ray.sweep.parent import after_event
    from sid_ray.sweep.repeats import most_of
    from sid_ray.sweep.runner import run_sweep
    from sid_ray.sweep.searcher import count_of

    space, folder = order.space, order.folder
    note_sweep(order, earlier)
    trials = count_of(space, order.base)
    price = cost(space, trials, order.base.training.batch_size)
    log = folder / LOG
    with quiet_output(log) as console:
        console.print(
            f"{order.name}: {trials} trials of {order.base.recipe}, {space.scheduler} and "
            f"{space.searcher}, {price.least:,} to {price.most:,} images{repeats_in_words(space)}; "
            f"full log: {shown_path(log)}",
            markup=False,
        )
        state = "failed"
        try:
            expected = price.expected + most_of(space) * space.budget.images
            display = SweepDisplay(console, space, folder, expected, trials)
            with display:
                done = run_sweep(order, SweepWatch(display.tell, display.look))
                display.look()
            state = "finished" if done else "stopped"
        except KeyboardInterrupt:
            state, done = "stopped", False
        finally:
            write_about(folder, state=state)
            if trouble := after_event(folder):
                console.print(trouble, markup=False)
        if not done:
            console.print("stopped; the same command goes on: no trial starts again from zero")
            return STOPPED
        for line in end_of_sweep(order):
            console.print(line, markup=False, soft_wrap=True)
    return 0


def repeats_in_words(space: Space) -> str:
    """Of a sweep's first line: what is repeated with other seeds, and for how many images."""
    from sid_ray.sweep.repeats import most_of

    count = most_of(space)
    return f", then {count} runs of {space.budget.images:,} with other seeds" if count else ""


def note_sweep(order: SweepOrder, earlier: dict) -> None:
    """sweep.json, for the start again and for reports."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    metrics = [{"name": m.name, "direction": m.direction} for m in order.space.metrics]
    write_about(
        order.folder,
        name=order.name,
        space=order.text,
        source=order.space.source,
        recipe=order.base.recipe,
        metrics=metrics,
        started=earlier.get("started", now),
        state="running",
        base=order.base.stored(),
    )


def end_of_sweep(order: SweepOrder) -> list[str]:
    from sid_ray.sweep.display import table_of_trials
    from sid_ray.sweep.repeats import lines_of, read_repeats, repeats_of

    space, told = order.space, list(read_trials(order.folder).trials.values())
    repeats = repeats_of(order.name, space, order.base, told, read_repeats(order.folder))
    return [*table_of_trials(space, told), *lines_of(space, repeats)]
