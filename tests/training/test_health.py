"""Faults made up as histories of reports: what trips, when, and what must not."""

from __future__ import annotations

import dataclasses
import json
import math
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sid_ray.config.distill_config import DistillConfig, flatten, replace
from sid_ray.config.sections import HealthConfig
from sid_ray.errors import UserError
from sid_ray.recipes.registry import recipe
from sid_ray.training.health import HISTORY, RULES, Finding, Health

UPDATES, IMAGES = 20.0, 640  # of one report
DEFAULT = HealthConfig()
THRESHOLDS = [field.name for field in dataclasses.fields(DEFAULT) if field.name != "reports"]


def healthy(seed: int = 0) -> Iterator[dict[str, float]]:
    """Reports like those of a SiDA run on digits; the generator's loss goes through zero."""
    rng = random.Random(seed)
    while True:
        yield {
            "fake_loss": rng.uniform(22, 30),
            "generator_loss": rng.gauss(0, 0.3),
            "adversarial_loss": rng.lognormvariate(7, 0.5),
            "discriminator_loss": rng.lognormvariate(5, 0.5),
            "discriminator_accuracy_real": rng.uniform(0.3, 0.7),
            "discriminator_accuracy_fake": rng.uniform(0.3, 0.7),
            "sample_mean": -0.4,
            "sample_std": rng.uniform(0.6, 0.75),
            "sample_spread": rng.uniform(0.4, 0.5),
            "saturated_values": rng.uniform(0.2, 0.4),
            "nonfinite_samples": 0.0,
            "skipped_updates": 0.0,
        }


def run(
    health: Health,
    count: int,
    change: dict[str, float] | None = None,
    start: int = 0,
    seed: int = 0,
) -> list[list[Finding]]:
    """The findings of ``count`` reports after ``start`` images, healthy but for ``change``."""
    reports = healthy(seed)
    return [
        health.see(next(reports) | (change or {}), UPDATES, start + (i + 1) * IMAGES)
        for i in range(count)
    ]


FAULTS = {
    "skipped_share": ({"skipped_updates": 10.0}, 1, "10 of the last 20 updates were not finite"),
    "nonfinite_share": ({"nonfinite_samples": 0.5}, 1, "50% of the samples of the last 20"),
    "nonfinite_metrics": ({"fake_loss": math.inf}, 1, "fake_loss is inf at 13,440 images: lower"),
    "loss_growth": ({"generator_loss": -90.0}, 3, "generator_loss is -90, usual before was 0."),
    "loss_warning": ({"fake_loss": 800.0}, 3, "fake_loss is 800, usual before was 2"),
    "saturation": ({"saturated_values": 0.985}, 3, "98.5% of the values of generated pictures"),
    "sample_std_low": (
        {"sample_std": 0.01},
        3,
        "images are flat: sample_std is 0.01, in 3 reports",
    ),
    "sample_spread_low": ({"sample_spread": 0.0}, 3, "all the same: sample_spread is 0, in 3"),
    "discriminator_accuracy": (
        {"discriminator_accuracy_real": 1.0, "discriminator_accuracy_fake": 0.999},
        3,
        "the discriminator is right on 99.9% of real and generated images, in 3 reports in a row",
    ),
}
WARNINGS = ("loss_warning", "discriminator_accuracy")


def test_every_threshold_has_a_rule_and_a_fault():
    assert RULES.keys() == FAULTS.keys() == set(THRESHOLDS)


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found_when_it_has_lasted_and_says_what_to_do(name):
    change, after, words = FAULTS[name]
    health = Health(DEFAULT)
    assert not any(run(health, 20))
    found = run(health, after, change, start=20 * IMAGES)
    assert not any(found[:-1])
    (finding,) = found[-1]
    assert finding.severity == ("warn" if name in WARNINGS else "unhealthy")
    assert words in finding.text
    assert f"{(20 + after) * IMAGES:,} images" in finding.text
    assert ": lower " in finding.text
    assert "\n" not in finding.text
    if name != "nonfinite_metrics":
        assert f"(health.{name} is " in finding.text
    if finding.severity == "unhealthy":
        assert finding.good_until == 20 * IMAGES


@pytest.mark.parametrize("name", FAULTS)
def test_zero_turns_a_rule_off(name):
    health = Health(dataclasses.replace(DEFAULT, **{name: 0}))
    each = run(health, 20) + run(health, 5, FAULTS[name][0], start=20 * IMAGES)
    found = [finding for findings in each for finding in findings]
    if name == "loss_growth":  # the warning is a rule of its own
        assert [finding.severity for finding in found] == ["warn"]
    else:
        assert found == []


@pytest.mark.parametrize("name", [name for name in FAULTS if FAULTS[name][1] > 1])
def test_one_healthy_report_begins_the_count_anew(name):
    health = Health(DEFAULT)
    found = run(health, 20)
    for _ in range(5):
        found += run(health, 2, FAULTS[name][0]) + run(health, 1)
    assert not any(found)


def test_an_update_that_was_skipped_explains_a_number_that_is_not_finite():
    """The step has left it out already: a warning, until it is in every report."""
    health, change = Health(DEFAULT), {"generator_loss": math.nan, "skipped_updates": 1.0}
    first, second, third = run(health, 3, change)
    assert [f.severity for f in first] == ["warn"]
    assert "generator_loss is nan at 640 images: 1 update skipped" in first[0].text
    assert second == []
    assert [f.severity for f in third] == ["unhealthy"]
    assert "in 3 reports in a row" in third[0].text


def test_all_updates_skipped_says_none_was_finite():
    (finding,) = run(Health(DEFAULT), 1, {"skipped_updates": 20.0})[0]
    assert finding.text.startswith("none of the last 20 updates was finite, at 640 images")


def test_small_reports_are_judged_together():
    """A report an update: ten of them are the least ground for anything."""
    health = Health(DEFAULT)
    found = [health.see({"skipped_updates": 1.0}, 1.0, i * 32) for i in range(1, 11)]
    assert [bool(f) for f in found] == [False] * 9 + [True]
    health = Health(DEFAULT)
    low = [health.see({"sample_std": 0.0}, 2.0, i * 32) for i in range(1, 6)]
    assert [bool(f) for f in low] == [False] * 4 + [True]


def test_a_loss_needs_a_past_before_it_can_have_grown():
    """A fake score that starts as the teacher has a generator loss of 0 at first."""
    health = Health(DEFAULT)
    for i in range(100):
        loss = 0.0 if i == 0 else 1e-6 * 100.0 ** min(i, 4)
        assert health.see({"generator_loss": loss}, UPDATES, i * IMAGES) == []


def test_growth_without_end_is_found_whatever_its_pace():
    for factor in (1.1, 2.0, 100.0):
        health, loss = Health(DEFAULT), 1.0
        for i in range(1, 500):
            loss = min(loss * factor, 1e300)
            found = health.see({"fake_loss": loss}, UPDATES, i * IMAGES)
            if "unhealthy" in [finding.severity for finding in found]:
                break
        assert i < 200, factor


def test_a_warning_is_given_once_and_unhealthy_each_time():
    health = Health(DEFAULT)
    assert sum(map(len, run(health, 9, FAULTS["discriminator_accuracy"][0]))) == 1
    assert [len(f) for f in run(health, 5, FAULTS["saturation"][0])] == [0, 0, 1, 1, 1]


def test_warnings_come_first():
    changes = {k: v for name in FAULTS for k, v in FAULTS[name][0].items()}
    found = run(Health(DEFAULT), 3, changes | {"sample_mean": math.nan})[-1]
    kinds = [finding.severity for finding in found]
    assert kinds == sorted(kinds, reverse=True)
    assert kinds.count("warn") == 1
    assert kinds.count("unhealthy") == len(FAULTS) - len(WARNINGS) - 1  # the loss has no past


def test_after_a_roll_back_it_is_as_it_was_there():
    """The same fault is found at the same report again: the past of a loss is not lost."""
    change, after, _ = FAULTS["loss_growth"]
    health = Health(DEFAULT)
    run(health, 20)
    first = run(health, after, change, start=20 * IMAGES)
    health.reset(first[-1][0].good_until)
    assert run(health, after, change, start=20 * IMAGES) == first
    health.reset()
    assert not any(run(health, after, change))


def test_memory_is_bounded():
    health = Health(DEFAULT)
    run(health, HISTORY + 50)
    assert len(health._reports) == HISTORY


numbers = st.floats(width=32)
names = st.sampled_from([*sorted(next(healthy())), "discriminator_loss", "a_new_metric"])
reports = st.lists(
    st.tuples(st.dictionaries(names, numbers), st.integers(0, 50).map(float)), max_size=30
)


@settings(max_examples=60, deadline=None)
@given(reports)
def test_any_numbers_are_judged_alike_on_every_rank(history):
    """Order of names, process and repetition change nothing; nothing raises."""
    one, other = Health(DEFAULT), Health(DEFAULT)
    for index, (metrics, updates) in enumerate(history):
        backwards = dict(reversed(metrics.items()))
        found = one.see(metrics, updates, index * IMAGES)
        assert other.see(backwards, updates, index * IMAGES) == found
        assert all("\n" not in finding.text for finding in found)
        bad = any(not math.isfinite(value) for value in metrics.values())
        assert bool(found) or not bad or metrics.get("skipped_updates", 0.0)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5), st.floats(1e-6, 1e6))
def test_healthy_runs_of_any_scale_stay_healthy(seed, packed, scale):
    """Losses have no natural unit, and a report may hold few updates."""
    health, source = Health(DEFAULT), healthy(seed)
    for i in range(150):
        report = next(source)
        metrics = {k: v * scale if k.endswith("_loss") else v for k, v in report.items()}
        assert health.see(metrics, 4.0 * packed, i * IMAGES) == []


def test_the_page_names_every_threshold_with_its_default():
    page = (Path(__file__).parents[2] / "docs" / "health.md").read_text()
    for name in THRESHOLDS:
        default = getattr(DEFAULT, name)
        shown = "on" if default is True else f"{default:g}"
        assert f"\n| `{name}` | {shown} |" in page
    for metric in next(healthy()):
        assert f"`{metric}`" in page


def test_thresholds_are_no_part_of_a_runs_identity():
    config = recipe("digits-sid")
    changed = replace(config, health__loss_growth=3.0, health__nonfinite_metrics=False)
    assert changed.identity() == config.identity()
    assert DistillConfig.from_json(changed.to_json()) == changed
    older = json.loads(changed.to_json())
    del older["health"]
    assert DistillConfig.from_json(json.dumps(older)) == config


@pytest.mark.parametrize("name", [n for n in THRESHOLDS if n != "nonfinite_metrics"] + ["reports"])
def test_thresholds_below_their_least_are_refused(name):
    least = 1 if name == "reports" else 0
    with pytest.raises(UserError, match=f"health.{name} is .*; it must be at least {least}"):
        replace(recipe("digits-sid"), **{f"health__{name}": least - 1}).check()
    assert f"health.{name}" in flatten(DistillConfig())
