"""Search spaces out of YAML: what is read, and the line of every mistake."""

import re

import pytest

from sid_ray.errors import UserError
from sid_ray.sweep.space import Choice, FieldCondition, Metric, Range, SweepBudget
from sid_ray.sweep.space_file import parse_space
from tests.sweep.spaces import HEAD, read_space, space_of


def test_a_whole_space_is_read():
    space = parse_space(
        """
recipe: digits-sida
metric: [FID, {name: CLIP-L14, direction: max}, {name: seconds, direction: min}]
budget: {images: 30_000, grace: 1_000, reduction: 3, total: 90_000}
scheduler: asha
searcher: optuna
trials: 16
seeds: [3, 4]
fields:
  objective.name: {choice: [sid, sida]}
  objective.alpha: {uniform: [0.8, 1]}
  training.generator_lr: {loguniform: [1e-5, 1E-3]}
  training.ema_half_life: {quniform: [1_000, 5_000, 500]}
  objective.adversarial_weight: {loguniform: [.001, 0.1], when: {objective.name: sida}}
  objective.logvar: false
  evaluation.every: 5000
""",
        "space.yaml",
    )
    assert space.recipe == "digits-sida"
    assert space.metrics == (
        Metric("FID", "min"), Metric("CLIP-L14", "max"), Metric("seconds", "min")
    )  # fmt: skip
    assert space.budget == SweepBudget(30_000, 1_000, 3.0, 0, 90_000)
    assert (space.scheduler, space.searcher, space.trials) == ("asha", "optuna", 16)
    assert space.seeds == (3, 4)
    domains = {parameter.key: parameter.domain for parameter in space.parameters}
    assert domains == {
        "objective.name": Choice(("sid", "sida")),
        "objective.alpha": Range(0.8, 1.0),
        "training.generator_lr": Range(1e-5, 1e-3, log=True),
        "training.ema_half_life": Range(1000, 5000, step=500, integer=True),
        "objective.adversarial_weight": Range(0.001, 0.1, log=True),
    }
    assert space.parameters[-1].when == (FieldCondition("objective.name", ("sida",)),)
    assert space.fixed == {"objective.logvar": False, "evaluation.every": 5000}
    assert space.lines["objective.logvar"] == 15


def test_a_field_may_have_cases():
    space = space_of(
        """
  guidance.strategy: {choice: [long, short]}
  guidance.scale:
    - {uniform: [1.5, 4], when: {guidance.strategy: long}}
    - {uniform: [0, 0.9], when: {guidance.strategy: short}}
"""
    )
    assert [parameter.key for parameter in space.parameters] == [
        "guidance.strategy", "guidance.scale", "guidance.scale[1]"
    ]  # fmt: skip
    assert space.names == ("guidance.strategy", "guidance.scale")


# Fields that are wrong, and what the line says. The first field is in line 5.
WRONG_FIELDS = {
    "  objective.alhpa: {uniform: [0, 1]}": "5: no field 'objective.alhpa' in the config. "
    "Did you mean objective.alpha",
    "  alpha: {uniform: [0, 1]}": "5: no field 'alpha' in the config. Did you mean",
    "  objective.alpha: {unifrm: [0, 1]}": "5: objective.alpha has no 'unifrm'. "
    "Did you mean uniform",
    "  objective.alpha: {uniform: [1, 1]}": "5: objective.alpha: uniform [1, 1] is empty; low must",
    "  objective.alpha: {uniform: [2, 1]}": "5: objective.alpha: uniform [2, 1] is empty",
    "  objective.alpha: {uniform: [1]}": "5: objective.alpha: uniform has 1 values; expected [low,",
    "  objective.alpha: {uniform: 1}": "5: objective.alpha: uniform: expected a list",
    "  objective.alpha:\n    uniform: [a, 1]": "6: objective.alpha is 'a'; expected a number",
    "  objective.alpha: {uniform: [true, 1]}": "5: objective.alpha is True; expected a number",
    "  objective.alpha: {uniform: [.nan, 1]}": "5: objective.alpha is '.nan'; expected a number",
    "  objective.alpha: {loguniform: [0, 1]}": "5: objective.alpha: loguniform from 0; it must",
    "  objective.alpha: {quniform: [0, 1, 0]}": "5: objective.alpha: quniform step 0 must be",
    "  objective.alpha: {choice: []}": "5: objective.alpha: choice is empty",
    "  objective.alpha: {choice: [1, 1.0]}": "5: objective.alpha: choice has a value twice",
    "  objective.alpha: {uniform: [0, 1], choice: [1]}": "5: objective.alpha: expected one of",
    "  objective.alpha: {when: {objective.name: sida}}": "5: objective.alpha: expected one of",
    "  objective.alpha: ": "5: objective.alpha is None; expected a number",
    "  objective.name: {choice: [sid, sdia]}": "5: objective.name is 'sdia'; expected one of lsg, "
    "sid, sida, vsd. Did you mean sida",
    "  objective.name: {uniform: [0, 1]}": "5: objective.name: uniform needs a number, use choice",
    "  objective.logvar: {choice: [yes, no]}": "5: objective.logvar is 'yes'; expected true or fal",
    "  training.group_size: {choice: [16, 1.5]}": "5: training.group_size is 1.5; expected a whole",
    "  output.run: {choice: [a, b]}": "5: output.run may not vary: the sweep names runs",
    "  output.run: a": "5: output.run may not stand here: the sweep names runs",
    "  resources.num_workers: {choice: [1, 2]}": "5: resources.num_workers may not vary: it "
    "changes speed",
    "  teacher.source: {choice: [a, b]}": "5: teacher.source may not vary: scores of different",
    "  training.images: 5": "5: training.images may not stand here: set budget.images",
    "  training.seed: {choice: [1, 2]}": "5: training.seed may not vary: set seeds:",
    "  objective.alpha: {uniform: [0, 1]}\n  objective.alpha: 1": "6: objective.alpha stands "
    "twice, first in line 5",
    "  objective.logvar: true": "5: fields: nothing varies",
    "  objective.alpha: {uniform: [0, 1], when: {objective.nme: sida}}": "5: no field "
    "'objective.nme' in the config. Did you mean objective.name",
    "  objective.alpha: {uniform: [0, 1], when: {objective.name: sidda}}": "5: objective.name is "
    "'sidda'",
    "  objective.alpha: {uniform: [0, 1], when: {objective.alpha: 1}}": "5: objective.alpha: when "
    "speaks of objective.alpha itself",
    "  objective.alpha: {uniform: [0, 1], when: {}}": "5: objective.alpha: when is empty",
    "  objective.alpha: {uniform: [0, 1], when: {objective.name: sida}}\n"
    "  objective.name: {choice: [sid, sida]}": "5: objective.alpha: when speaks of objective.name: "
    "put that field above",
    "  objective.alpha: {uniform: [0, 1]}\n"
    "  schedule.t_max: {uniform: [0.5, 1], when: {objective.alpha: 1}}": "6: schedule.t_max: when "
    "objective.alpha has a value, but that varies over a range",
    "  objective.alpha: {uniform: [0, 1], whn: 3}": "5: objective.alpha has no "
    "'whn'. Did you mean when?",
    "  objective.alpha: {uniform: [0, 1], when: {objective.name: []}}": "5: objective.name is emp",
    "  objective.alpha: [[1]]": "5: objective.alpha: expected one of uniform",
    "  &a objective.alpha: {choice: [[1, 2], 3]}": "5: objective.alpha: choice: expected one value",
    "  ? [1, 2]\n  : 3": "5: no field '?'",
}  # fmt: skip


@pytest.mark.parametrize("fields", WRONG_FIELDS)
def test_a_wrong_field_is_one_line(fields):
    with pytest.raises(UserError) as raised:
        space_of(fields)
    text = str(raised.value)
    assert text.startswith("space.yaml:" + WRONG_FIELDS[fields])
    assert "\n" not in text


FIELD = "fields:\n  objective.alpha: {uniform: [0, 1]}\n"
WRONG_HEADS = {
    "metrc: FID\n": "1: a search space has no 'metrc'. Did you mean metric?",
    "metric: goodness\nbudget: {images: 5}\n": "1: metric goodness: say which way is better",
    "metric: {direction: min}\nbudget: {images: 5}\n": "1: metric.name: is missing",
    "metric: [FID, FID]\nbudget: {images: 5}\n": "1: metric has a value twice",
    "metric: 5\nbudget: {images: 5}\n": "1: metric: expected a score's name, like FID, found 5",
    "metric: FID\nbudget: {image: 5}\n": "2: budget has no 'image'. Did you mean images?",
    "metric: FID\nbudget: {grace: 5}\n": "2: budget.images: is missing",
    "metric: FID\nbudget: {images: 1e6}\n": "2: budget.images is 1000000.0; expected a whole",
    "metric: FID\nbudget: {images: 9, grace: 9}\n": "2: budget.grace is 9; it must be below budget",
    "metric: FID\nbudget: {images: 9, reduction: 1}\n": "2: budget.reduction is 1; expected a numb",
    "metric: FID\nbudget: {images: 9, total: 8}\n": "2: budget.total is 8, less than one trial's 9",
    "metric: FID\nbudget: 9\n": "2: budget: expected names with values",
    "metric: FID\nbudget: {images: 9}\nscheduler: ahsa\n": "3: scheduler: no 'ahsa'. Did you mean "
    "asha?",
    "metric: FID\nbudget: {images: 9}\nsearcher: bayes\n": "3: searcher: no 'bayes'. There are: "
    "random, optuna, grid",
    "metric: FID\nbudget: {images: 9}\ntrials: 0\n": "3: trials is 0; expected a whole number of",
    "metric: FID\nbudget: {images: 9}\nseeds: [1, 1]\n": "3: seeds has a value twice",
    "metric: []\nbudget: {images: 9}\n": "1: metric is empty; give at least one value",
    "metric: FID\nbudget: {images: 9}\nscheduler: pb2\n": "3: scheduler: no 'pb2'. Did you mean",
    "recipe: 5\nmetric: FID\nbudget: {images: 9}\n": "1: recipe is 5; expected a text",
    "metric: FID\n": " budget: is missing",
    "metric: FID\nbudget: {images: 9\n": "3: not YAML",
}


@pytest.mark.parametrize("head", WRONG_HEADS)
def test_a_wrong_head_is_one_line(head):
    with pytest.raises(UserError) as raised:
        space_of(FIELD, head)
    text = str(raised.value)
    assert text.startswith("space.yaml:" + WRONG_HEADS[head]), text
    assert "\n" not in text


@pytest.mark.parametrize("text", ["", "- 1\n", "text", "!!python/object/apply:os.getcwd []"])
def test_what_is_no_mapping_is_refused(text):
    with pytest.raises(UserError, match="expected names with values"):
        parse_space(text, "space.yaml")


def test_a_tag_is_not_obeyed():
    with pytest.raises(UserError, match="is 'print'; expected a number"):
        space_of("  objective.alpha: !!python/name:builtins.print print")


def test_an_alias_to_itself_ends():
    with pytest.raises(UserError, match="expected one value"):
        space_of("  objective.alpha: {choice: &a [*a]}")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=re.escape(f"{tmp_path}/none.yaml: No such file")):
        read_space(tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not UTF-8"):
        read_space(tmp_path / "binary.yaml")


def test_numbers_as_people_write_them():
    space = space_of("  training.generator_lr: {choice: [1e-5, 2.5E-4, .001, 1_000]}")
    domain = space.parameters[0].domain
    assert domain == Choice((1e-5, 2.5e-4, 0.001, 1000.0))
    assert "images: 6400" in HEAD
    assert space.budget.images == 6400
