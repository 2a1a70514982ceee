"""Rungs that outlive the driver: a scheduler taken up again decides as one that never stopped."""

import pickle
import uuid
from types import SimpleNamespace

from hypothesis import given, settings
from hypothesis import strategies as st

from sid_ray.sweep.schedulers import LastingAsha
from sid_ray.sweep.space import Metric, SweepBudget
from tests.support.sweeps import Asha

BUDGET, FID = SweepBudget(900, 100, 3.0), Metric("FID", "min")
POINTS = (100, 300, 900)


def tune_trial(name):
    """As Tune has one; its own id is another after each start."""
    spec = {"trial": name, "run": f"s-{name}", "point": {}}
    return SimpleNamespace(trial_id=uuid.uuid4().hex, config={"spec": spec})


def decided(scheduler, name, images_seen, score):
    return scheduler.on_trial_result(
        None, tune_trial(name), {"images_seen": images_seen, "FID": score}
    )


def added(scheduler, names):
    for name in names:
        scheduler.on_trial_add(None, tune_trial(name))
    return scheduler


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=2, max_size=12), st.data())
def test_a_killed_driver_changes_no_decision(tmp_path_factory, scores, data):
    ledger = tmp_path_factory.mktemp("sweep") / "scores.jsonl"
    names = [f"t{number}" for number in range(len(scores))]
    reports = [
        (name, at, float(score)) for at in POINTS for name, score in zip(names, scores, strict=True)
    ]
    begun = LastingAsha(BUDGET, FID, ledger)
    saved = pickle.dumps(begun)  # what tuner.pkl holds
    scheduler, whole, stopped = added(begun, names), Asha(BUDGET, FID), set()
    told: list = []
    kill_at = data.draw(st.integers(0, len(reports)))
    for number, (name, at, score) in enumerate(reports):
        if number == kill_at:
            with ledger.open("a") as file:
                file.write('["t0", 3')  # killed while it wrote
            scheduler = added(pickle.loads(saved), names)
            if told:  # Tune had not noted it: the trial is there again, and tells it again
                assert decided(scheduler, *told[-1][0]) == told[-1][1]
        if name in stopped:
            continue
        decision = decided(scheduler, name, at, score)
        assert decision == whole.decide(name, at, score)
        told.append(((name, at, score), decision))
        if decision == "STOP":
            stopped.add(name)


def test_without_the_ledger_rays_own_would_let_the_next_go_on(tmp_path):
    ledger = tmp_path / "scores.jsonl"
    first = LastingAsha(BUDGET, FID, ledger)
    saved = pickle.dumps(first)
    assert decided(added(first, ["a"]), "a", 100, 5.0) == "CONTINUE"
    again = added(pickle.loads(saved), ["a", "b"])
    assert decided(again, "b", 100, 9.0) == "STOP"
    ledger.unlink()
    forgetful = added(pickle.loads(saved), ["a", "b"])
    assert decided(forgetful, "b", 100, 9.0) == "CONTINUE"
