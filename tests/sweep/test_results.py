"""A sweep's folder as it is read, and what its trials say together."""

import random

import optuna
import pytest

from sid_ray.errors import UserError
from sid_ray.sweep.importance import LEAST, domains_of, importance_of, reached_scores
from sid_ray.sweep.report_curves import ancestry
from sid_ray.sweep.results import Sweep, read_about, read_sweep, write_about
from sid_ray.sweep.space import Choice, Metric, Range
from tests.sweep.ledgers import asha_ledger, events, lsg_ledger, pbt_ledger, record

FD = "FD-digits-cnn"


def test_a_sweep_is_read_as_it_was_written(tmp_path):
    ledger = asha_ledger(tmp_path / "made")
    sweep = read_sweep(ledger.folder)
    told = events(ledger.folder)
    begins = {e["trial"]: e for e in told if e["event"] == "begin"}
    segments = [e for e in told if e["event"] == "segment"]
    assert not sweep.notes and sweep.state == "finished" and sweep.space == ledger.space
    assert list(sweep.trials) == list(begins)
    assert {name: t.point for name, t in sweep.trials.items()} == {
        name: e["point"] for name, e in begins.items()
    }
    last = {e["trial"]: e["images_seen"] for e in told if "images_seen" in e}
    assert {name: t.images_spent for name, t in sweep.trials.items()} == last
    assert sweep.images_spent == sum(last.values())
    assert sum(t.seconds for t in sweep.trials.values()) == pytest.approx(
        sum(e["seconds"] for e in segments)
    )
    newest = {e["trial"]: e["scores"][FD] for e in segments}
    ended = {e["trial"] for e in told if e.get("state") == "finished"}
    whole = {name: newest[name] for name in ended}
    assert sweep.best.name == min(whole, key=whole.get)
    assert sweep.best.last(FD) == min(whole.values())
    assert sum(sweep.states.values()) == 16 and sweep.states["diverged"] == 1
    assert sweep.trials["00003"].last(FD) is None and "50 times" in sweep.trials["00003"].why


def test_lineage_of_exploits(tmp_path):
    sweep = read_sweep(pbt_ledger(tmp_path / "made").folder)
    assert sweep.images_spent == 4 * 12_800  # what was trained and thrown away was spent too
    d, c = sweep.trials["d"], sweep.trials["c"]
    assert d.runs == ["made-d", "made-d-leg2"] and d.run == d.runs[1] and d.point != d.first_point
    assert [n for n, _ in d.scored(FD, d.run)] == [9_600, 12_800]
    assert ancestry(sweep, d) == [("a", 0, 3_200), ("b", 3_200, 6_400), ("d", 6_400, 12_800)]
    assert ancestry(sweep, c) == [
        ("a", 0, 3_200),
        ("b", 3_200, 6_400),
        ("d", 6_400, 9_600),
        ("c", 9_600, 12_800),
    ]
    assert ancestry(sweep, sweep.trials["a"]) == [("a", 0, 12_800)]


def test_what_is_no_sweep_is_named(tmp_path):
    with pytest.raises(UserError, match="is no sweep"):
        read_sweep(tmp_path)
    for damaged in ("{", "[]"):
        (tmp_path / "sweep.json").write_text(damaged)
        for reader in (read_sweep, read_about, write_about):
            with pytest.raises(UserError, match="cannot be read"):
                reader(tmp_path)


def test_sweep_json(tmp_path):
    assert read_about(tmp_path) == {}
    write_about(tmp_path, name="s", state="running")
    write_about(tmp_path, state="finished")
    assert read_about(tmp_path) == {"name": "s", "state": "finished"}


def sweep_of(scores: list[dict[str, float]], metrics: tuple[Metric, ...], points=None) -> Sweep:
    """Trials with one segment each."""
    trials = {
        str(number): record(str(number), told, point=points[number] if points else {})
        for number, told in enumerate(scores)
    }
    return Sweep(None, "made", "digits-sid", metrics, None, "", "", "finished", trials)


def test_scores_are_compared_at_equal_images(tmp_path):
    sweep = read_sweep(asha_ledger(tmp_path / "made").folder)
    images, scored = reached_scores(sweep, LEAST)
    first = [t.at(FD, 1_600) for t in sweep.trials.values() if t.segments]
    assert images == 1_600 and [value for _, value in scored] == first
    assert reached_scores(sweep, 4, share=0.2)[0] == 14_400  # as many go to the end
    assert reached_scores(sweep_of([], (Metric(FD, "min"),)), 3) == (0, [])


def test_importance_is_optunas():
    rng = random.Random(0)
    points = [{"a": rng.uniform(0, 1), "b": rng.choice([8, 16]), "c": 1.5} for _ in range(12)]
    scores = [{"CLIP": 4 * p["a"] + p["b"] / 16} for p in points]
    found = importance_of(sweep_of(scores, (Metric("CLIP", "max"),), points))
    study = optuna.create_study()
    distributions = {
        name: optuna.distributions.FloatDistribution(
            min(p[name] for p in points), max(p[name] for p in points)
        )
        for name in "ab"
    }
    for point, score in zip(points, scores, strict=True):
        params = {name: point[name] for name in "ab"}
        study.add_trial(
            optuna.trial.create_trial(
                params=params, distributions=distributions, value=score["CLIP"]
            )
        )
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    expected = optuna.importance.get_param_importances(study, evaluator=evaluator)
    assert found.shares == pytest.approx(dict(expected) | {"c": 0.0})
    assert next(iter(found.shares)) == "a" and sum(found.shares.values()) == pytest.approx(1)
    assert (found.trials, found.images_seen, found.logarithm) == (12, 100, False)


def test_fields_that_some_trials_lack_are_weighed_among_the_others(tmp_path):
    sweep = read_sweep(lsg_ledger(tmp_path / "made").folder)
    found = importance_of(sweep)
    have = sum("objective.text_dropout" in trial.point for trial in sweep.trials.values())
    assert LEAST <= have < 24
    assert set(found.shares) == {"guidance.strategy", "guidance.scale", "training.generator_lr"}
    assert found.conditional["objective.text_dropout"][1] == have
    assert max(found.shares, key=found.shares.get) == "guidance.scale" and found.logarithm


def test_too_few_trials_say_nothing_about_fields():
    few = sweep_of([{FD: 1.0}] * (LEAST - 1), (Metric(FD, "min"),))
    assert f"needs {LEAST} trials" in importance_of(few).trouble
    same = sweep_of([{FD: 1.0}] * LEAST, (Metric(FD, "min"),))
    assert "the same score" in importance_of(same).trouble


def test_cases_of_a_field_are_one_axis(tmp_path):
    sweep = read_sweep(lsg_ledger(tmp_path / "made").folder)
    domains = domains_of(sweep)
    assert domains["guidance.scale"] == Range(0.0, 6.0)
    assert domains["guidance.strategy"] == Choice(("long-short", "long", "short"))
    assert domains["training.generator_lr"].log
