"""Points of a space: whoever draws them, they are within it and make a config, or are refused."""

import functools
import random
from collections import Counter

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sid_ray.config.distill_config import DistillConfig
from sid_ray.errors import UserError
from sid_ray.recipes.registry import recipe
from sid_ray.sweep.sampling import (
    draw_value,
    grid_points,
    keyed,
    random_point,
    recipe_point,
    suggest,
)
from sid_ray.sweep.space import Range, Space, config_of, walk
from tests.sweep.spaces import HEAD, space_of

optuna.logging.set_verbosity(optuna.logging.ERROR)
DIGITS, EMOJI = recipe("digits-sida"), recipe("emoji-lsg")
CONDITIONS = """
  objective.name: {choice: [sid, sida]}
  objective.alpha: {uniform: [0.8, 1.2]}
  training.ema_half_life: {loguniform: [10, 1000]}
  training.batch_size: {quniform: [32, 128, 32]}
  objective.adversarial_weight: {loguniform: [1e-3, 0.1], when: {objective.name: sida}}
  objective.generator_start: {choice: [0, 500], when: {objective.name: sida}}
  objective.adversarial_start:
    - {quniform: [0, 100, 50], when: {objective.generator_start: 0, objective.name: sida}}
    - {quniform: [500, 900, 100], when: {objective.generator_start: 500, objective.name: sida}}
"""
GUIDED = """
  guidance.strategy: {choice: [long-short, short, zero]}
  guidance.scale:
    - {uniform: [1.1, 4], when: {guidance.strategy: long-short}}
    - {uniform: [0, 0.9], when: {guidance.strategy: short}}
"""


def within(space: Space, base: DistillConfig, point: dict) -> None:
    """The point has each active field once, in order, with a value of its own case."""
    drawn = keyed(space, base, point)
    domains = {parameter.key: parameter.domain for parameter in space.parameters}
    assert all(domains[key].holds(value) for key, value in drawn.items())
    assert len(drawn) == len(point)
    config = config_of(space, base, point)
    assert DistillConfig.from_json(config.to_json()) == config


SPACES = [(CONDITIONS, DIGITS), (GUIDED, EMOJI)]


@pytest.mark.parametrize(("fields", "base"), SPACES)
def test_points_of_all_searchers_are_in_the_space(fields, base):
    space = space_of(fields)
    for number in range(15):
        within(space, base, random_point(space, base, 7, number))
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0, n_startup_trials=3))
    for _ in range(6):
        trial = study.ask()
        point = walk(space, base, functools.partial(suggest, trial))
        within(space, base, point)
        assert trial.params == keyed(space, base, point)  # nothing but what is active
        study.tell(trial, len(point))


def test_conditions_switch_fields_on():
    space = space_of(CONDITIONS)
    seen = Counter(
        (point["objective.name"],
         "objective.adversarial_weight" in point,
         point.get("objective.generator_start"),
         point.get("objective.adversarial_start", -1) >= 500)
        for point in (random_point(space, DIGITS, 0, number) for number in range(200))
    )  # fmt: skip
    assert set(seen) == {
        ("sid", False, None, False), ("sida", True, 0, False), ("sida", True, 500, True)
    }  # fmt: skip


def test_a_condition_sees_the_recipe_and_what_is_fixed():
    fields = "  objective.alpha: {choice: [2.0], when: {objective.name: sida}}\n"
    assert walk(space_of(fields), DIGITS, lambda p: 2.0) == {"objective.alpha": 2.0}
    assert walk(space_of(fields + "  objective.name: sid"), DIGITS, lambda p: 2.0) == {}


def test_a_random_point_is_a_function_of_seed_and_number():
    space = space_of(CONDITIONS)
    points = [random_point(space, DIGITS, 1, number) for number in range(20)]
    assert points == [random_point(space, DIGITS, 1, number) for number in range(20)]
    assert points[0] != random_point(space, DIGITS, 2, 0)
    # One field more leaves what the others draw.
    more = space_of(CONDITIONS + "  training.beta2: {uniform: [0.9, 0.99]}")
    drawn = random_point(more, DIGITS, 1, 3)
    drawn.pop("training.beta2")
    assert drawn == points[3]


ranges = st.builds(
    lambda low, width, log, whole: (
        Range(low, low + width, log=log, integer=True)
        if whole
        else Range(float(low), low + width / 7, log=log)
    ),
    st.integers(1, 1000), st.integers(1, 1000), st.booleans(), st.booleans(),
)  # fmt: skip


@settings(max_examples=50)
@given(ranges, st.integers(0, 2**32))
def test_draws_are_in_their_range(domain, seed):
    value = draw_value(domain, random.Random(seed))
    assert domain.holds(value)
    assert isinstance(value, int) == domain.integer


def test_draws_are_even_in_the_logarithm_and_reach_both_ends():
    generator = random.Random(0)
    values = [draw_value(Range(1e-5, 1e-1, log=True), generator) for _ in range(2000)]
    below = sum(value < 1e-3 for value in values) / 2000
    assert below == pytest.approx(0.5, abs=0.05)
    whole = Counter(draw_value(Range(1, 4, integer=True), generator) for _ in range(2000))
    assert all(count == pytest.approx(500, rel=0.2) for count in whole.values())
    assert set(whole) == {1, 2, 3, 4}
    stepped = Counter(draw_value(Range(0.0, 1.0, step=0.25), generator) for _ in range(2000))
    assert set(stepped) == {0, 0.25, 0.5, 0.75, 1.0}


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.sampled_from([8, 16, 24, 32, 64]), min_size=1, max_size=4, unique=True),
    st.tuples(st.integers(1, 8), st.integers(1, 8)),
    st.floats(-1, 2),
    st.integers(0, 1000),
)
def test_a_point_makes_a_config_or_is_refused_in_one_line(groups, batches, low, number):
    """Whatever a space says: no other error than UserError ever comes out of it."""
    first, more = batches
    text = f"""
  training.group_size: {{choice: {groups}}}
  training.batch_size: {{quniform: [{32 * first}, {32 * (first + more)}, 32]}}
  training.beta2: {{uniform: [{low}, {low + 0.5}]}}
  schedule.t_max: {{uniform: [{low}, {low + 1}]}}
"""
    space = space_of(text)
    try:
        config = config_of(space, DIGITS, random_point(space, DIGITS, 0, number))
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert config.check() is config
        assert config.group_plan(1)


def test_a_grid_has_every_point_once():
    grid = """
  objective.name: {choice: [sid, sida]}
  objective.alpha: {grid: [1.0, 1.2]}
  objective.adversarial_weight: {grid: [0.01, 0.1], when: {objective.name: sida}}
"""
    space = space_of(grid, HEAD.replace("trials: 8", "searcher: grid"))
    points = grid_points(space, DIGITS)
    assert len(points) == 2 + 4
    assert points[0] == {"objective.name": "sid", "objective.alpha": 1.0}
    assert points[-1]["objective.adversarial_weight"] == 0.1
    with pytest.raises(UserError, match=r"objective.alpha varies over a range"):
        grid_points(space_of("  objective.alpha: {uniform: [0, 1]}"), DIGITS)


def test_the_recipes_own_point_goes_first():
    space = space_of("  objective.alpha: {uniform: [0.5, 1.5]}\n  objective.name: {choice: [sida]}")
    point = recipe_point(space, DIGITS)
    assert point == {"objective.alpha": 1.0, "objective.name": "sida"}
    assert recipe_point(space_of("  objective.alpha: {uniform: [2, 3]}"), DIGITS) == {}
