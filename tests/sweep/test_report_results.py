"""A sweep's folder as it is read, and what its trials say together."""

import json
import random

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sid_ray.errors import UserError
from sid_ray.sweep.analysis import ancestry, pareto_front, reached
from sid_ray.sweep.importance import LEAST, domains_of, importance_of
from sid_ray.sweep.results import Segment, Sweep, TrialRecord, read_sweep
from sid_ray.sweep.space import Choice, Metric, Range
from tests.sweep.ledgers import PBT, Ledger, asha_ledger, lsg_ledger, pbt_ledger

FD = "FD-digits-cnn"


def events(ledger: Ledger) -> list[dict]:
    return [json.loads(line) for line in (ledger.folder / "trials.jsonl").read_text().splitlines()]


def test_a_sweep_is_read_as_it_was_written(tmp_path):
    ledger = asha_ledger(tmp_path / "made")
    sweep = read_sweep(ledger.folder)
    told = events(ledger)
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


def test_what_cannot_be_read_is_left_out_with_a_word(tmp_path):
    ledger = asha_ledger(tmp_path / "made", trials=2)
    whole = read_sweep(ledger.folder)
    ledger.tell("future", "00000", what=1)
    ledger.tell("future", "00001", what=1)
    ledger.tell("segment", "00009", images_seen=1)
    with (ledger.folder / "trials.jsonl").open("a") as file:
        file.write('[1]\n\n{"event": "segment", "tri')
    sweep = read_sweep(ledger.folder)
    assert sweep.trials == whole.trials
    notes = " ".join(sweep.notes)
    assert "last line is cut" in notes and "2 lines left out: unknown event 'future'" in notes
    assert "event segment without what it needs" in notes and "not an event" in notes


def test_a_repeated_segment_counts_once_and_images_never_twice(tmp_path):
    ledger = Ledger(tmp_path / "made", PBT, "running")
    ledger.begin("a", {"objective.alpha": 1.0})
    ledger.segment("a", 3_200, 10, FD_digits_cnn=4.0)
    ledger.end("a", "lost", 3_200, "the driver died")
    ledger.begin("a", {"objective.alpha": 1.0})  # the next driver goes on with it
    ledger.segment("a", 3_200, 5, FD_digits_cnn=4.5)
    ledger.segment("a", 6_400, 10, FD_digits_cnn=1e9)
    trial = read_sweep(ledger.folder).trials["a"]
    assert (trial.state, trial.images_spent, trial.seconds) == ("running", 6_400, 25)
    assert trial.scored(FD) == [(3_200, 4.5)]  # what a trial that gave up reports is no score
    ledger.end("a", "diverged", 7_000)
    trial = read_sweep(ledger.folder).trials["a"]
    assert (trial.images_spent, trial.last(FD), trial.best(Metric(FD, "min"))) == (
        7_000,
        None,
        (4.5, 3_200),
    )


def test_lineage_of_exploits(tmp_path):
    sweep = read_sweep(pbt_ledger(tmp_path / "made").folder)
    assert sweep.images_spent == 4 * 12_800  # what was trained and thrown away was spent too
    d, c = sweep.trials["d"], sweep.trials["c"]
    assert d.runs == ["made-d", "made-d-leg2"] and d.run == d.runs[1] and d.point != d.first_point
    assert [s.images_seen for s in d.leg] == [9_600, 12_800]
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
    (tmp_path / "sweep.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        read_sweep(tmp_path)


def sweep_of(scores: list[dict[str, float]], metrics: tuple[Metric, ...], points=None) -> Sweep:
    """Trials with one segment each."""
    trials = {}
    for number, told in enumerate(scores):
        point = points[number] if points else {}
        trial = TrialRecord(str(number), "r", point, point, ["r"], state="finished")
        trial.segments.append(Segment("r", 100, told, 1.0, point))
        trials[trial.name] = trial
    return Sweep(None, "made", "digits-sid", metrics, None, "", "", "finished", trials)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 3)), max_size=12))
def test_the_front_is_that_of_optuna(values):
    """Ties are on the front together."""
    metrics = Metric("FID", "min"), Metric("CLIP", "max"), Metric("KID", "min")
    names = [metric.name for metric in metrics]
    sweep = sweep_of([dict(zip(names, v, strict=True)) for v in values], metrics)
    study = optuna.create_study(directions=["minimize", "maximize", "minimize"])
    study.add_trials([optuna.trial.create_trial(values=v) for v in values])
    front = {trial.name for trial in pareto_front(sweep)}
    assert front == {str(trial.number) for trial in study.best_trials}


def test_the_best_is_one_that_came_to_its_end():
    metrics = (Metric("FID", "min"),)
    sweep = sweep_of([{"FID": 1.0}, {"FID": 2.0}, {"FID": 3.0}, {"FID": 0.5}], metrics)
    for trial, state in zip(sweep.trials.values(), ("stopped", "finished") * 2, strict=True):
        trial.state = state
    assert sweep.best.name == "3"
    sweep.trials["3"].state = "diverged"
    assert sweep.best.name == "1" and [t.name for t in pareto_front(sweep)] == ["1"]
    sweep.trials["1"].state = "failed"
    assert sweep.best.name == "0"


def test_a_trial_without_one_of_the_scores_is_in_no_front():
    metrics = Metric("FID", "min"), Metric("CLIP", "max")
    sweep = sweep_of([{"FID": 1.0}, {"FID": 2.0, "CLIP": 0.3}], metrics)
    assert [trial.name for trial in pareto_front(sweep)] == ["1"]


def test_scores_are_compared_at_equal_images(tmp_path):
    sweep = read_sweep(asha_ledger(tmp_path / "made").folder)
    images, scored = reached(sweep, LEAST)
    first = [t.at(FD, 1_600) for t in sweep.trials.values() if t.segments]
    assert images == 1_600 and [value for _, value in scored] == first
    assert reached(sweep, 4, share=0.2)[0] == 14_400  # as many go to the end
    assert reached(sweep_of([], (Metric(FD, "min"),)), 3) == (0, [])


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
