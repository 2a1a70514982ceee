"""Whether a run is still worth going on: thresholds on what each progress report measured.

A rule reads the last reports and nothing else, so that all ranks, which see the same reduced means,
decide alike, and a run that is repeated is judged alike. docs/health.md lists the measures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from sid_ray.config.sections import HealthConfig

HISTORY = 100  # reports that are remembered: the past that a loss is compared with
MIN_HISTORY = 10  # reports, and ten times as many updates, before a loss has a past
MIN_UPDATES = 10  # fewer are no ground for anything but a value that is not finite

LOWER_BOTH = "lower the learning rates"
LOWER_GENERATOR = "lower training.generator_lr"


@dataclass(frozen=True)
class Finding:
    """What is wrong with a run.

    Args:
        severity: ``warn`` is for a person to know; after ``unhealthy`` the run must not go on.
        text: one line: what was measured, the threshold, what to do.
        good_until: images seen at the last report before it began, 0 where there was none. A
            checkpoint of later images is of no use.
    """

    severity: Literal["warn", "unhealthy"]
    text: str
    good_until: int = 0


@dataclass(frozen=True)
class ProgressReport:
    """One report: means over the samples since the one before."""

    images_seen: int
    updates: float
    metrics: Mapping[str, float]

    def value(self, name: str) -> float:
        """A metric, NaN (which no threshold is beyond) where it was not measured."""
        return self.metrics.get(name, math.nan)


Reports = Sequence[ProgressReport]
Rule = Callable[[Reports, HealthConfig], Iterator[Finding]]


class Health:
    """The judge of one run: sees its reports in order and says what is wrong with it.

    Which updates were skipped is read from the metric ``skipped_updates``, their number; all other
    metrics are means over samples.
    """

    def __init__(self, settings: HealthConfig) -> None:
        self.settings = settings
        self._reports: list[ProgressReport] = []
        self._told: set[str] = set()

    def see(self, metrics: Mapping[str, float], updates: float, images_seen: int) -> list[Finding]:
        """What is wrong after ``updates`` more updates, up to ``images_seen``; warnings first.

        A kind of warning is given once, ``unhealthy`` each time.
        """
        self._reports.append(ProgressReport(images_seen, updates, dict(metrics)))
        del self._reports[:-HISTORY]
        found = []
        for name, rule in RULES.items():
            for finding in rule(self._reports, self.settings):
                if finding.severity == "unhealthy":
                    found.append(finding)
                elif name not in self._told:
                    self._told.add(name)
                    found.append(finding)
        return sorted(found, key=lambda finding: finding.severity == "unhealthy")

    def reset(self, images_seen: int = 0) -> None:
        """Forgets the reports after ``images_seen``: the run has gone back to there.

        What it was before is kept, or a loss that grows again would have no past to be compared
        with.
        """
        self._reports = [report for report in self._reports if report.images_seen <= images_seen]


# Rules --------------------------------------------------------------------------------------------


def nonfinite_metrics(reports: Reports, settings: HealthConfig) -> Iterator[Finding]:
    """A number that is not finite. The step leaves out updates that are not, and counts them: where
    it did, that is what became of the number, and only its coming back is more than a warning.
    """
    names = not_finite(reports[-1])
    if not settings.nonfinite_metrics or not names:
        return
    last, run = reports[-1], streak(reports, lambda report: bool(not_finite(report)))
    what = f"{names[0]} is {last.value(names[0])} at {last.images_seen:,} images"
    skipped = last.metrics.get("skipped_updates", 0.0)
    if skipped and len(run) < settings.reports:
        text = (
            f"{what}: {counted(skipped, 'update')} skipped; lower the learning rates if it goes on"
        )
        yield Finding("warn", text)
        return
    often = f", and so {in_a_row(run)}" if skipped else ""
    yield Finding("unhealthy", f"{what}{often}: {LOWER_BOTH}", before(reports, run))


def skipped_share(reports: Reports, settings: HealthConfig) -> Iterator[Finding]:
    """Updates that were skipped on all ranks because they were not finite on one."""
    run, limit = recent(reports), settings.skipped_share
    updates, skipped = total_of(run), sum(part.metrics.get("skipped_updates", 0.0) for part in run)
    if updates >= MIN_UPDATES and reached(skipped / updates, limit):
        text = f"{skipped:.0f} of the last {updates:.0f} updates were not finite"
        if skipped >= updates:
            text = f"none of the last {updates:.0f} updates was finite"
        text = worded(run, text, "skipped_share", limit, LOWER_BOTH)
        yield Finding("unhealthy", text, before(reports, run))


def nonfinite_share(reports: Reports, settings: HealthConfig) -> Iterator[Finding]:
    """Samples that contributed nothing because they were not finite."""
    run, limit = recent(reports), settings.nonfinite_share
    updates = total_of(run)
    left_out = sum(part.updates * part.metrics.get("nonfinite_samples", 0.0) for part in run)
    if updates >= MIN_UPDATES and reached(left_out / updates, limit):
        share = f"{left_out / updates:.0%} of the samples"
        text = f"{share} of the last {updates:.0f} updates were not finite"
        text = worded(run, text, "nonfinite_share", limit, LOWER_BOTH)
        yield Finding("unhealthy", text, before(reports, run))


def loss_growth(reports: Reports, settings: HealthConfig) -> Iterator[Finding]:
    """A loss far beyond its own past."""
    limit = settings.loss_growth
    for run, text, ratio in grown(reports, settings):
        if 0 < limit < ratio:
            text = worded(run, text, "loss_growth", limit, LOWER_BOTH)
            yield Finding("unhealthy", text, before(reports, run))


def loss_warning(reports: Reports, settings: HealthConfig) -> Iterator[Finding]:
    """A loss that is on the way there."""
    limit = settings.loss_warning
    for run, text, ratio in grown(reports, settings):
        if 0 < limit < ratio <= (settings.loss_growth or math.inf):
            yield Finding("warn", worded(run, text, "loss_warning", limit, LOWER_BOTH))


def grown(reports: Reports, settings: HealthConfig) -> Iterator[tuple[Reports, str, float]]:
    """For each loss that has a past: the last reports, what to say of them, and how many times the
    loss's usual size the least of theirs is.

    Sizes are compared, not values: SiD's generator loss has either sign and goes through 0. The
    median is unmoved by the rare huge values that losses divided by w have.
    """
    start = recent_start(reports, settings.reports)
    past, run = reports[:start], reports[start:]
    for name in sorted(name for name in reports[-1].metrics if name.endswith("_loss")):
        known = [report for report in past if math.isfinite(report.value(name))]
        sizes = [abs(report.value(name)) for report in run]
        if len(known) < MIN_HISTORY or total_of(known) < MIN_HISTORY * MIN_UPDATES:
            continue
        usual = median(abs(report.value(name)) for report in known)
        if usual > 0 and all(map(math.isfinite, sizes)):
            ratio = min(sizes) / usual
            text = f"{name} is {run[-1].value(name):.3g}, usual before was {usual:.3g}"
            yield run, f"{text}, {ratio:.0f} times that or more {in_a_row(run)}", ratio


def saturation(reports: Reports, settings: HealthConfig) -> Iterator[Finding]:
    """Pictures that have left the range of pictures."""
    limit = settings.saturation
    run = long_enough(
        reports, settings, lambda report: reached(report.value("saturated_values"), limit)
    )
    if run:
        share = f"{run[-1].value('saturated_values'):.1%} of the values of generated pictures"
        text = f"{share} are at or beyond -1 and 1, {in_a_row(run)}"
        text = worded(run, text, "saturation", limit, LOWER_GENERATOR)
        yield Finding("unhealthy", text, before(reports, run))


def sample_std_low(reports: Reports, settings: HealthConfig) -> Iterator[Finding]:
    """Images without contents."""
    yield from _low(reports, settings, "sample_std", "flat")


def sample_spread_low(reports: Reports, settings: HealthConfig) -> Iterator[Finding]:
    """One image for all noise."""
    yield from _low(reports, settings, "sample_spread", "all the same")


def _low(reports: Reports, settings: HealthConfig, name: str, what: str) -> Iterator[Finding]:
    limit: float = getattr(settings, f"{name}_low")
    run = long_enough(reports, settings, lambda report: report.value(name) < limit)
    if run:
        text = f"generated images are {what}: {name} is {run[-1].value(name):.2g}, {in_a_row(run)}"
        text = worded(run, text, f"{name}_low", limit, LOWER_GENERATOR)
        yield Finding("unhealthy", text, before(reports, run))


def discriminator_accuracy(reports: Reports, settings: HealthConfig) -> Iterator[Finding]:
    """A discriminator that is never wrong teaches nothing; SiD's half of the loss still does."""
    limit = settings.discriminator_accuracy
    run = long_enough(reports, settings, lambda report: reached(accuracy(report), limit))
    if run:
        share = f"{accuracy(run[-1]):.1%} of real and generated images"
        text = f"the discriminator is right on {share}, {in_a_row(run)}"
        advice = "lower objective.discriminator_weight or training.fake_score_lr"
        yield Finding("warn", worded(run, text, "discriminator_accuracy", limit, advice))


RULES: Mapping[str, Rule] = {
    rule.__name__: rule
    for rule in (
        nonfinite_metrics,
        skipped_share,
        nonfinite_share,
        loss_growth,
        loss_warning,
        saturation,
        sample_std_low,
        sample_spread_low,
        discriminator_accuracy,
    )
}


# What rules are made of ---------------------------------------------------------------------------


def before(reports: Reports, run: Reports) -> int:
    """Images seen at the report before ``run``, which are the last of the reports; 0 for none."""
    rest = reports[: len(reports) - len(run)]
    return rest[-1].images_seen if rest else 0


def worded(run: Reports, text: str, name: str, limit: float, advice: str) -> str:
    """The one line about a threshold."""
    return f"{text}, at {run[-1].images_seen:,} images (health.{name} is {limit:g}): {advice}"


def in_a_row(run: Reports) -> str:
    return f"in {counted(len(run), 'report')} in a row" if len(run) > 1 else "in 1 report"


def counted(number: float, what: str) -> str:
    """'1 report', '3 reports'."""
    return f"{number:.0f} {what}{'' if number == 1 else 's'}"


def reached(share: float, limit: float) -> bool:
    """Whether a share is at a limit that is not off; never for NaN."""
    return limit > 0 and share >= limit


def accuracy(report: ProgressReport) -> float:
    """Of the side on which the discriminator is worse."""
    sides = [report.value(f"discriminator_accuracy_{side}") for side in ("real", "fake")]
    return min(sides) if all(map(math.isfinite, sides)) else math.nan


def not_finite(report: ProgressReport) -> list[str]:
    return sorted(name for name, value in report.metrics.items() if not math.isfinite(value))


def total_of(reports: Reports) -> float:
    return sum(report.updates for report in reports)


def recent_start(reports: Reports, at_least: int) -> int:
    """Where the last reports begin: ``at_least`` so many, and of MIN_UPDATES updates."""
    start, updates = len(reports), 0.0
    while start and (updates < MIN_UPDATES or len(reports) - start < at_least):
        start -= 1
        updates += reports[start].updates
    return start


def recent(reports: Reports) -> Reports:
    """The last reports, enough of them for MIN_UPDATES updates, or all there are."""
    return reports[recent_start(reports, 1) :]


def streak(reports: Reports, beyond: Callable[[ProgressReport], bool]) -> Reports:
    """The reports at the end that are all beyond something."""
    start = len(reports)
    while start and beyond(reports[start - 1]):
        start -= 1
    return reports[start:]


def long_enough(
    reports: Reports, settings: HealthConfig, beyond: Callable[[ProgressReport], bool]
) -> Reports:
    """The streak, or nothing where it is shorter than the settings ask for."""
    run = streak(reports, beyond)
    return run if len(run) >= settings.reports and total_of(run) >= MIN_UPDATES else []
