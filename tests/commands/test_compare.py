"""The page with runs side by side."""

import re
from html.parser import HTMLParser

import pytest

from sid_ray.commands.compare import (
    Compared,
    best_value,
    compare_page,
    curve,
    differences_table,
    find_run,
    is_logarithmic,
    results_table,
    score_names_of,
    work_seconds,
    worker_seconds,
)
from sid_ray.config.distill_config import replace
from sid_ray.errors import UserError
from sid_ray.recipes.registry import recipe
from sid_ray.run_folder import RunRecord, write_record
from sid_ray.storage.store import Store
from sid_ray.tracking.history import Point

PNG = b"\x89PNG made up"


def history(scores, workers=2.0, step=64, every_s=10.0):
    """Scores, and reports of as many workers, one every ten seconds."""
    at = [(step * (i + 1), every_s * i) for i in range(len(scores))]
    return {
        "eval/FD-x": [Point(n, v, t) for (n, t), v in zip(at, scores, strict=True)],
        "workers": [Point(n, workers, t) for n, t in at],
        "images_per_s": [Point(n, 100.0 + i, t) for i, (n, t) in enumerate(at)],
    }


@pytest.fixture
def runs():
    one = recipe("digits-sid")
    other = replace(one, objective__alpha=1.2, output__run="other", output__folder="elsewhere")
    return [
        Compared(
            "alpha 1.0", "runs/a", one, history([9.0, 4.0, 5.0]), {"interruptions": [{}]}, [PNG]
        ),
        Compared(
            "<script>x</script>", "runs/b", other, history([8.0, 6.0, 3.5]), {}, [], "no <GPU>"
        ),
    ]


class Tags(HTMLParser):
    """Every tag of a page, opened and closed, and what it would load."""

    def __init__(self, text):
        super().__init__()
        self.open, self.loaded, self.tags = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.loaded += [v for k, v in attrs if k in ("src", "href", "xlink:href")]


def test_the_page_needs_nothing_beside_it(runs):
    found = Tags(compare_page(runs, [0]))
    assert found.tags.count("svg") == 3  # scores over images and over time, speed
    assert "script" not in found.tags and "link" not in found.tags
    assert all(address.startswith(("data:image/png;base64,", "#")) for address in found.loaded)
    assert found.tags.count("img") == 1


def test_the_best_score_is_shown_with_its_place(runs):
    cells = re.findall(r"<td>(.*?)</td>", results_table(runs[:1]))
    assert cells[2:6] == ["192", "<b>4.000</b>", "128", "5.000"]
    assert cells[6] == "0:20" and cells[9] == "1"


def test_settings_that_differ_and_no_others(runs):
    text = differences_table(runs)
    assert re.findall(r"<code>(.*?)</code>", text) == ["objective.alpha"]
    assert "<td>1.0</td><td>1.2</td>" in text
    assert "the same settings" in differences_table(runs[:1] * 2)


def test_a_name_is_text_wherever_it_stands(runs):
    text = compare_page(runs, [0])
    assert "<script>" not in text and "no <GPU>" not in text and "no &lt;GPU&gt;" in text


def test_gaps_are_no_work_and_cost_nothing():
    found = history([3.0, 2.0, 1.0])
    late = {name: [p._replace(at=p.at + 1000) for p in points] for name, points in found.items()}
    both = {name: found[name] + late[name] for name in found}
    assert work_seconds(both) == 40
    assert worker_seconds(both) == 80
    assert work_seconds({}) == worker_seconds({}) == 0


def test_a_metric_that_no_run_has_is_left_out(runs):
    assert curve(runs, "fake_loss", "x") == ""
    assert "<svg" in curve(runs, "eval/FD-x", "x")


def test_every_score_has_a_curve_and_its_own_direction(runs):
    for run, values in zip(runs, ([0.2, 0.5, 0.4], [0.1, 0.1, float("nan")]), strict=True):
        points = [Point(64 * i, value, 10.0 * i) for i, value in enumerate(values)]
        run.history["eval/precision-x"] = run.history["eval/CLIP"] = points
        run.history["eval/KD-x_deviation"] = points
    assert score_names_of(runs) == ["eval/FD-x", "eval/CLIP", "eval/precision-x"]
    assert Tags(compare_page(runs, [0])).tags.count("svg") == 5
    assert best_value("eval/CLIP", runs[0].history["eval/CLIP"]).value == 0.5
    assert best_value("eval/CLIP", runs[1].history["eval/CLIP"]).images_seen == 0
    assert best_value("eval/FD-x", [Point(0, float("nan"), 0.0)]) is None
    assert "best FD-x" in results_table(runs)


def test_only_distances_have_logarithms():
    assert is_logarithmic("eval/FD-x", [3.0, 1.0])
    assert not is_logarithmic("eval/KD-x", [3.0, -0.1])
    assert not is_logarithmic("eval/IS-x", [3.0]) and not is_logarithmic("fake_loss", [3.0])


def test_what_is_no_run_is_named(tmp_path):
    with pytest.raises(UserError, match="is no run"):
        find_run(str(tmp_path))
    with pytest.raises(UserError, match="is no run"):
        find_run(str(tmp_path / "none"))
    assert not (tmp_path / "none").exists()
    write_record(Store.at(tmp_path), RunRecord(recipe("digits-sid").to_json()))
    with pytest.raises(UserError, match="no MLflow run yet"):
        find_run(str(tmp_path))
