"""The spaces that ship: each fits its recipe, and others of its family."""

from pathlib import Path

import pytest

from sid_ray.recipes.registry import RECIPES, recipe
from sid_ray.sweep.arithmetic import cost, decision_points
from sid_ray.sweep.sampling import grid_points, keyed, random_point, recipe_point
from sid_ray.sweep.space import config_of
from sid_ray.sweep.space_check import check_space
from tests.sweep.spaces import read_space

FOLDER = Path(__file__).parents[2] / "tune_spaces"
FILES = {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}
FAMILIES = {
    "digits-sida": ("digits-sida",),
    "edm-sid": ("cifar10-cond-sid", "ffhq64-sid", "img64-sid"),
    "edm-sida": ("cifar10-cond-sida", "ffhq64-sida", "img64-sid2a"),
    "edm2-sida": ("img512-s-sida", "img512-m-sid2a"),
    "emoji-lora": ("emoji-lsg",),
    "sd-lsg": ("sd21-base-lsg-kappa4.5",),
}


def test_one_ships_for_each_system():
    assert set(FILES) == set(FAMILIES)


@pytest.mark.parametrize("name", FILES)
def test_a_shipped_space_can_be_run(name):
    space = read_space(FILES[name])
    base = recipe(space.recipe)
    check_space(space, base)
    for number in range(20):
        config = config_of(space, base, random_point(space, base, 0, number))
        assert config.training.images == space.budget.images
    own = recipe_point(space, base)
    # Guidance strategies are no fields of a config, and whole networks have no rank of an adapter,
    # so these recipes have no point there.
    assert bool(own) == (name not in ("sd-lsg", "emoji-lora"))
    assert not own or keyed(space, base, own)


@pytest.mark.parametrize("name", FILES)
def test_a_shipped_space_fits_its_family(name):
    space = read_space(FILES[name])
    for other in FAMILIES[name]:
        assert other in RECIPES
        check_space(space, recipe(other))


def test_the_small_one_is_small():
    """16 trials for about as many images as six whole ones see."""
    space = read_space(FILES["digits-sida"])
    base = recipe(space.recipe)
    points = decision_points(space.budget, space.scheduler, base.training.batch_size)
    assert points == (1728, 5056, 15_040)
    assert cost(space, space.trials, base.training.batch_size).expected < 100_000
    assert space.searcher == "optuna"
    with pytest.raises(Exception, match="varies over a range"):
        grid_points(space, base)
