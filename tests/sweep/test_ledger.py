"""The ledger: what is told is there after any cut, once; all images are accounted for."""

from hypothesis import given, settings
from hypothesis import strategies as st

from sid_ray.sweep.ledger import Ledger
from sid_ray.sweep.trials import TRIALS, read_trials, spent_of, told_by
from tests.sweep.ledgers import events


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
    assert [(leg.run, leg.from_trial, leg.from_run, leg.began_at) for leg in first.legs] == [
        ("s-000", "", "", 0),
        ("s-000-leg2", "001", "s-001", 100),
    ]
    assert first.images_spent == 100 + 200
    assert (second.state, second.why, second.images_spent) == ("lost", "its driver was killed", 160)
    assert first.scores == {"FID": 4.0}
    assert spent_of(trials.values()) == 460


def test_what_is_told_again_is_written_once(tmp_path):
    ledger = told(tmp_path)
    before = (tmp_path / TRIALS).read_text()
    ledger.segment("001", "s-001", 100, {"FID": 5.0}, 9.0)
    ledger.end("000", "finished", "", 300)
    assert (tmp_path / TRIALS).read_text() == before


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
    assert (trial.state, trial.why, trial.images_spent) == ("running", "", 200)
    assert trial.point == {"objective.alpha": 1.2}


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_a_cut_anywhere_loses_only_the_line_it_falls_in(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("sweep")
    told(folder)
    text = (folder / TRIALS).read_bytes()
    cut = data.draw(st.integers(0, len(text)))
    (folder / TRIALS).write_bytes(text[:cut])
    whole = text[: text.rfind(b"\n", 0, cut) + 1]
    there = events(folder)
    read = read_trials(folder)
    assert read.trials == told_by(whole).trials and read.lines == len(there)
    assert bool(read.notes) == (cut > len(whole))
    Ledger(folder).begin("007", "s-007", {})
    assert (folder / TRIALS).read_bytes().startswith(whole)
    assert events(folder) == [
        *there,
        {"event": "begin", "trial": "007", "run": "s-007", "point": {}},
    ]
    assert not read_trials(folder).notes
