"""The page of a sweep, and its table."""

import csv
import json
import shlex
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from sid_ray.commands.arguments import expand_aliases, parse
from sid_ray.config.distill_config import DistillConfig
from sid_ray.errors import UserError
from sid_ray.recipes.registry import recipe
from sid_ray.sweep import report_curves, report_plots
from sid_ray.sweep.display import short_names
from sid_ray.sweep.importance import Importance
from sid_ray.sweep.report import command_of, json_of, run_report, sweep_page, trials_table
from sid_ray.sweep.results import read_sweep
from sid_ray.sweep.space import config_of
from tests.sweep.ledgers import PBT, Ledger, asha_ledger, lsg_ledger, pbt_ledger, with_seeds

SHARES = Importance({"objective.alpha": 0.7, "training.generator_lr": 0.3}, {"x": (0.2, 9)}, 100, 9)
NONE = Importance({}, {}, trouble="too few <trials>")


class Tags(HTMLParser):
    """Every tag of a page, and what it would load."""

    def __init__(self, text):
        super().__init__()
        self.loaded, self.tags = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.loaded += [v for k, v in attrs if k in ("src", "href", "xlink:href")]


def test_the_page_and_its_files(tmp_path, capsys):
    ledger = asha_ledger(tmp_path / "made", state="running")
    assert run_report(ledger.folder, tmp_path / "out" / "page.html") == 0
    assert "16 trials in" in capsys.readouterr().out
    found = Tags((tmp_path / "out" / "page.html").read_text())
    assert found.tags.count("svg") == 4  # lines, fields, curves, importance
    assert "script" not in found.tags and "link" not in found.tags
    assert all(address.startswith(("#", "data:")) for address in found.loaded)  # all in the page
    rows = list(csv.DictReader((tmp_path / "out" / "page.csv").open()))
    told = json.loads((tmp_path / "out" / "page.json").read_text())
    assert [row["trial"] for row in rows] == [row["trial"] for row in told["trials"]]
    assert rows[0]["trial"] == told["best"] and rows[-1]["state"] == "diverged"
    places = [
        (r["state"] != "finished", -int(r["images_seen"]), float(r["FD-digits-cnn"]))
        for r in rows[:-1]
    ]
    assert places == sorted(places) and rows[-1]["FD-digits-cnn"] == ""
    assert sum(int(row["images_spent"]) for row in rows) == told["images_spent"]
    assert sum(told["importance"]["shares"].values()) == pytest.approx(1)


@pytest.mark.parametrize("made", [asha_ledger, lsg_ledger])
def test_the_command_trains_the_best_point(tmp_path, made):
    sweep = read_sweep(made(tmp_path / "made").folder)
    words = shlex.split(command_of(sweep, sweep.best.point, "again"))
    assert words[:3] == ["sid-ray", "distill", sweep.recipe]
    base = recipe(sweep.recipe)
    typed = parse(DistillConfig, expand_aliases(words[3:]), "sid-ray distill", default=base)
    meant = config_of(sweep.space, base, sweep.best.point)
    assert typed.run_name == "again" and typed.identity() == meant.identity()
    assert typed.training.images == sweep.space.budget.images


def test_the_command_knows_what_the_sweep_was_started_with(tmp_path):
    """Settings of the command line are in task.json, not in the recipe."""
    ledger = asha_ledger(tmp_path / "made", trials=2)
    base = recipe("digits-sid")
    base = replace(base, evaluation=replace(base.evaluation, num_images=512))
    (ledger.folder / "task.json").write_text(json.dumps({"base": base.to_json()}))
    sweep = read_sweep(ledger.folder)
    assert "--evaluation.num-images 512" in command_of(sweep, sweep.best.point, "again")


def test_two_scores_have_a_front(tmp_path):
    sweep = read_sweep(lsg_ledger(tmp_path / "made", trials=9).folder)
    text = sweep_page(sweep, NONE)
    assert "Pareto front" in text and "too few &lt;trials&gt;" in text
    assert Tags(text).tags.count("svg") == 5  # front, lines, fields, two curves
    assert set(json_of(sweep, NONE)["front"]) <= set(sweep.trials)
    # Fields that a trial has not stay empty.
    lacking = [t for t in sweep.trials.values() if "objective.text_dropout" not in t.point]
    assert lacking and trials_table(sweep).count("<td></td>") == len(lacking)


def test_exploits_are_drawn_and_told(tmp_path):
    sweep = read_sweep(pbt_ledger(tmp_path / "made").folder)
    drawn = report_curves.lineage(sweep)
    assert drawn.count("<svg") == 1 and drawn.count("</svg>") == 1
    text = sweep_page(sweep, SHARES)
    assert "weights 1 time: the command" in text
    d = sweep.trials["d"]
    donor = report_curves.donor_point(sweep, d.leg("made-d-leg2"), sweep.metric)
    assert donor == [(6_400, sweep.trials["b"].at("FD-digits-cnn", 6_400))]
    assert report_curves.donor_point(sweep, d.leg("made-d"), sweep.metric) == []


def test_a_sweep_that_has_just_begun_has_a_page(tmp_path):
    ledger = Ledger(tmp_path / "made", PBT, "running")
    assert "No trial has a FD-digits-cnn yet" in sweep_page(read_sweep(ledger.folder), NONE)
    ledger.begin("<b>", {"objective.alpha": 1.0, "training.generator_lr": 1e-4})
    ledger.end("<b>", "failed", 0, 'it "<said>"')
    found = Tags(sweep_page(read_sweep(ledger.folder), NONE))
    assert "svg" not in found.tags and "b" not in found.tags and "said" not in found.tags


def test_every_trial_with_a_score_is_a_line_through_its_fields(tmp_path):
    sweep = read_sweep(lsg_ledger(tmp_path / "made").folder)
    drawn = report_plots.parallel_coordinates(sweep)
    assert all(name in drawn for name in short_names(sweep.fields).values())
    assert "FID" in drawn


def test_fields_have_short_names():
    names = short_names(["a.x", "b.x", "a.y"])
    assert names == {"a.x": "a.x", "b.x": "b.x", "a.y": "y"}


def test_a_page_is_no_table(tmp_path):
    with pytest.raises(UserError, match="numbers lie beside it"):
        run_report(tmp_path, "x.csv")


def test_best_trial_and_recipe_with_other_seeds(tmp_path):
    sweep = read_sweep(with_seeds(tmp_path / "made").folder)
    found = {repeat["run"]: repeat["scores"] for repeat in json_of(sweep, NONE)["repeats"]}
    best = sweep.best
    assert found == {
        best.run: best.scores,
        "made-best-seed1": {"FD-digits-cnn": 7.125},
        "made-best-seed2": {"FD-digits-cnn": 8.125},
        "made-recipe-seed0": {"FD-digits-cnn": 6.125},
        "made-recipe-seed1": {"FD-digits-cnn": 7.125},
        "made-recipe-seed2": {},
    }
    html = sweep_page(sweep, NONE)
    assert "with other seeds" in html and "made-best-seed1" not in sweep_page(
        read_sweep(asha_ledger(tmp_path / "other").folder), NONE
    )
    mean = (best.scores["FD-digits-cnn"] + 7.125 + 8.125) / 3
    assert f"<td>{mean:.2f}</td>" in html and "<td>6.12</td>" in html
