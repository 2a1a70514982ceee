"""A space held against a recipe: what could not run, does nothing, or never holds."""

import pytest

from sid_ray.errors import UserError
from sid_ray.recipes.registry import recipe
from sid_ray.sweep.space import Range, config_of
from sid_ray.sweep.space_check import check_space
from tests.sweep.spaces import HEAD, space_of

ALPHA = "  objective.alpha: {uniform: [0.5, 1.5]}\n"
SIDA = "  objective.name: {choice: [sid, sida]}\n"
WEIGHT = "  objective.adversarial_weight: {uniform: [0, 1]"


def test_a_good_space_passes():
    space = space_of(ALPHA + SIDA + WEIGHT + ", when: {objective.name: sida}}")
    assert check_space(space, recipe("digits-sid")) is space


# (recipe, fields): what the line says.
WRONG = {
    ("digits-sid", WEIGHT + "}"): "5: objective.adversarial_weight has no effect: objective.name "
    "is sid; it needs sida",
    ("digits-sid", WEIGHT + ", when: {objective.name: sida}}"): "5: objective.adversarial_weight "
    "has no effect",
    ("digits-sid", ALPHA + "  schedule.init_timestep: {choice: [1, 2]}"): "6: "
    "schedule.init_timestep has no effect: schedule.kind is edm",
    ("digits-sida", ALPHA + "  objective.logvar: {choice: [true], when: {objective.name: sid}}"):
    "6: objective.logvar: when objective.name is sid never holds: it is sida",
    ("digits-sid", ALPHA + "  training.group_size: {choice: [16, 24]}"): "6: batch size 64 is not "
    "a multiple of group size 24",
    ("digits-sid", ALPHA + "  training.group_size: {choice: [16, 64]}\n"
     "  resources.num_workers: 2"): "6: 2 workers for 1 group",
    # Each alone is right; together they are not.
    ("digits-sid", "  training.batch_size: {choice: [64, 48]}\n"
     "  training.group_size: {choice: [16, 32]}"): "5: batch size 48 is not a multiple of group "
    "size 32",
    ("digits-sid", "  schedule.t_max: {uniform: [0, 1]}"): "5: schedule.t_max is 0",
    ("digits-sid", "  training.beta2: {uniform: [0.9, 1]}"): "5: training.beta2 is 1",
    ("digits-sid", ALPHA + "  evaluation.every: 0"): "1: metric: trials of digits-sid have no "
    "scores",
    ("img64-sid", ALPHA): "1: metric: trials of img64-sid have no scores",
    ("emoji-lsg", "  guidance.scale: {uniform: [1, 2]}"): "5: guidance.scale without guidance.st",
    ("emoji-lsg", "  guidance.strategy: {choice: [long, short]}\n"
     "  objective.kappa1: {uniform: [1, 2]}"): "6: objective.kappa1: guidance.strategy sets it",
    ("emoji-lsg", "  guidance.strategy: {choice: [long, short]}\n"
     "  guidance.scale: {uniform: [1.5, 2]}"): "6: guidance short needs a scale below 1",
    ("digits-sid", "  adapter.rank: {choice: [0, 8]}\n"
     "  adapter.base: {choice: [auto, bfloat16]}"): "5: adapter.base is bfloat16, but adapter.rank "
    "is 0",
    ("emoji-lsg", "  guidance.strategy: {choice: [long, zero]}"): "5: guidance long needs a scale",
}  # fmt: skip


@pytest.mark.parametrize(("name", "fields"), WRONG)
def test_what_cannot_run_is_one_line(name, fields):
    head = HEAD.replace("digits", name.split("-")[0]) if name == "emoji-lsg" else HEAD
    with pytest.raises(UserError) as raised:
        check_space(space_of(fields, head), recipe(name))
    text = str(raised.value)
    wanted = WRONG[name, fields]
    line, _, said = wanted.partition(": ")
    assert text.startswith(f"space.yaml:{line}: "), text
    assert said in text
    assert "\n" not in text


BUDGET = "metric: FD-digits-cnn\nbudget: {images: 9000%s}\ntrials: 8\nscheduler: %s\nfields:\n"
WRONG_SCHEDULES = {
    (", grace: 5", "none"): "2: budget.grace: scheduler none never stops a trial",
    (", interval: 5", "asha"): "2: budget.grace: is missing",
    ("", "pbt"): "2: budget.interval: is missing; scheduler pbt needs it",
    ("", "asha"): "2: budget.grace: is missing; scheduler asha first judges there",
    (", grace: 5, interval: 7", "asha"): "2: budget.interval: scheduler asha has none",
}


@pytest.mark.parametrize(("more", "scheduler"), WRONG_SCHEDULES)
def test_a_scheduler_has_what_it_needs(more, scheduler):
    with pytest.raises(UserError) as raised:
        check_space(space_of(ALPHA, BUDGET % (more, scheduler)), recipe("digits-sid"))
    assert str(raised.value).startswith("space.yaml:" + WRONG_SCHEDULES[more, scheduler])


POPULATION = BUDGET % (", interval: 1000", "pbt")
WRONG_POPULATIONS = {
    "  objective.alpha: {uniform: [1, 2], when: {objective.name: sid}}": "6: objective.alpha: "
    "scheduler pbt varies every field in every trial",
    SIDA: "6: objective.name: pbt cannot change it while a trial runs",
    "  adapter.rank: {choice: [4, 16]}": "6: adapter.rank: pbt cannot change it while a trial "
    "runs: a trial goes on from another's adapters",
}


@pytest.mark.parametrize("fields", WRONG_POPULATIONS)
def test_a_population_varies_what_it_can(fields):
    with pytest.raises(UserError) as raised:
        check_space(space_of(fields, POPULATION), recipe("digits-sid"))
    assert str(raised.value).startswith("space.yaml:" + WRONG_POPULATIONS[fields])


def test_a_population_has_no_settings_to_repeat():
    with pytest.raises(UserError, match=r"space.yaml:3: seeds: pbt changes settings on the way"):
        check_space(
            space_of(ALPHA, POPULATION.replace("trials", "seeds: [0, 1]\ntrials")),
            recipe("digits-sid"),
        )


def test_searchers_get_what_they_can_draw():
    grid = "  objective.alpha: {grid: [1.0, 1.2]}"
    with pytest.raises(UserError, match=r"5: objective.alpha: grid needs searcher: grid"):
        check_space(space_of(grid), recipe("digits-sid"))
    head = HEAD.replace("trials: 8", "searcher: grid")
    with pytest.raises(UserError, match=r"5: objective.alpha: searcher grid needs choice"):
        check_space(space_of(ALPHA, head), recipe("digits-sid"))
    check_space(space_of(grid, head), recipe("digits-sid"))
    with pytest.raises(UserError, match="trials: searcher grid tries every point"):
        check_space(space_of(grid, "searcher: grid\n" + HEAD), recipe("digits-sid"))
    with pytest.raises(UserError, match="trials: is missing"):
        check_space(space_of(ALPHA, HEAD.replace("trials: 8\n", "")), recipe("digits-sid"))
    few = POPULATION.replace("trials: 8", "trials: 3")
    with pytest.raises(UserError, match="is a population; at least 4"):
        check_space(space_of(ALPHA, few), recipe("digits-sid"))


def test_a_score_is_measured():
    fields, base = ALPHA, recipe("digits-sid")
    for metric, said in {
        "FID": "1: metric FID is measured in Inception, but evaluation.feature_space is digits-cnn",
        "FD-Lite0": "1: metric FD-Lite0 is measured in Lite0, but",
        "KD-digits-cnn": "1: metric KD-digits-cnn: evaluation.metrics is fd; put "
        "evaluation.metrics: fd,kid under fields",
        "CLIP": "1: metric CLIP: evaluation.metrics is fd; put",
    }.items():
        with pytest.raises(UserError) as raised:
            check_space(space_of(fields, HEAD.replace("FD-digits-cnn", metric)), base)
        assert str(raised.value).startswith("space.yaml:" + said)
    own = HEAD.replace("FD-digits-cnn", "{name: my_score, direction: max}")
    check_space(space_of(fields, own), base)


def test_a_trials_config_is_recipe_fixed_values_and_point():
    base = recipe("emoji-lsg")
    space = space_of("  guidance.strategy: {choice: [long]}\n  objective.alpha: 1.1\n")
    config = config_of(space, base, {"guidance.strategy": "short", "guidance.scale": 0.5})
    objective = config.objective
    assert (objective.kappa1, objective.kappa2, objective.kappa3, objective.kappa4) == (
        0.5, 1.0, 1.0, 1.0
    )  # fmt: skip
    assert objective.alpha == 1.1
    assert (config.training.images, config.training.seed) == (6400, 0)
    assert config.evaluation == base.evaluation


def test_values_are_clamped_to_what_a_range_allows():
    assert Range(0.5, 1.5).clamped(1.8) == 1.5
    assert Range(1000, 4000, step=500, integer=True).clamped(2300) == 2500
    assert Range(1.0, 2.2, step=0.5).clamped(2.2) == 2.0
    whole = Range(1, 10, integer=True).clamped(3.6)
    assert whole == 4
    assert isinstance(whole, int)
