"""The ledger: what is told is there after any cut, once; all images are accounted for."""

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from sid_ray.sweep.ledger import TRIALS, Ledger, histories, read_sweep, spent_of, write_sweep


def told(folder):
    ledger = Ledger(folder)
    ledger.begin("000", "s-000", {"objective.alpha": 1.0})
    ledger.begin("001", "s-001", {"objective.alpha": 1.2})
    ledger.segment("000", "s-000", 100, {"FID": 9.0}, 1.0)
    ledger.segment("001", "s-001", 100, {"FID": 5.0}, 1.0)
    ledger.exploit("000", ledger.trials()["001"], 100, "s-000-leg2", {"objective.alpha": 1.1})
    ledger.segment("000", "s-000-leg2", 300, {"FID": 4.0}, 2.0)
    ledger.end("000", "finished", "", 300)
    ledger.end("001", "lost", "its driver was killed", 160)
    return ledger


def test_what_a_ledger_says(tmp_path):
    trials = told(tmp_path).trials()
    first, second = trials["000"], trials["001"]
    assert (first.state, first.images_seen, first.run) == ("finished", 300, "s-000-leg2")
    assert first.point == {"objective.alpha": 1.1}
    assert [(leg.run, leg.from_run, leg.began_at) for leg in first.legs] == [
        ("s-000", "", 0),
        ("s-000-leg2", "s-001", 100),
    ]
    assert first.spent == 100 + 200
    assert (second.state, second.why, second.spent) == ("lost", "its driver was killed", 160)
    assert dict(first.scores) == {"FID": 4.0}
    assert spent_of(trials.values()) == 460


def test_what_is_told_again_is_written_once(tmp_path):
    ledger = told(tmp_path)
    before = (tmp_path / TRIALS).read_text()
    ledger.segment("001", "s-001", 100, {"FID": 5.0}, 9.0)
    ledger.end("000", "finished", "", 300)
    assert (tmp_path / TRIALS).read_text() == before


def test_a_segment_that_ended_before_its_exploit_was_told_is_the_old_runs(tmp_path):
    """Ray decides on an exploit before the callback hears of the segment."""
    events = [
        {"event": "begin", "trial": "0", "run": "a", "point": {}},
        {"event": "exploit", "trial": "0", "from_trial": "1", "from_run": "b",
         "images_seen": 100, "run": "a-leg2", "point": {}},
        {"event": "segment", "trial": "0", "run": "a", "images_seen": 100, "scores": {}},
        {"event": "segment", "trial": "0", "run": "a-leg2", "images_seen": 150, "scores": {}},
    ]  # fmt: skip
    (trial,) = histories(events).values()
    assert [leg.images_seen for leg in trial.legs] == [100, 150]
    assert trial.spent == 150


def test_a_trial_that_ended_and_was_taken_up_again_runs(tmp_path):
    ledger = told(tmp_path)
    ledger.begin("001", "s-001", {"objective.alpha": 1.2})
    assert ledger.trials()["001"].state == "running"
    before = (tmp_path / TRIALS).read_text()
    ledger.begin("001", "s-001", {"objective.alpha": 7.0})  # it runs already
    assert (tmp_path / TRIALS).read_text() == before
    ledger.end("001", "failed", "its node went", 160)
    ledger.segment("001", "s-001", 200, {"FID": 4.5}, 1.0)
    trial = ledger.trials()["001"]
    assert (trial.state, trial.why, trial.spent) == ("running", "", 200)
    assert trial.point == {"objective.alpha": 1.2}


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_a_cut_anywhere_loses_only_the_line_it_falls_in(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("sweep")
    told(folder)
    text = (folder / TRIALS).read_bytes()
    cut = data.draw(st.integers(0, len(text)))
    (folder / TRIALS).write_bytes(text[:cut])
    ledger = Ledger(folder)
    whole = [json.loads(line) for line in text[:cut].split(b"\n")[:-1]]
    assert ledger.events() == whole
    ledger.begin("007", "s-007", {})
    assert ledger.events() == [
        *whole,
        {"event": "begin", "trial": "007", "run": "s-007", "point": {}},
    ]


def test_sweep_json(tmp_path):
    assert read_sweep(tmp_path) == {}
    write_sweep(tmp_path, name="s", state="running")
    write_sweep(tmp_path, state="finished")
    assert read_sweep(tmp_path) == {"name": "s", "state": "finished"}
