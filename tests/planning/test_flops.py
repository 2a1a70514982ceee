"""What an iteration computes is the algorithm's bill: no forward or backward pass beyond it."""

import pytest

from sid_ray.planning.flops import forward_flops, iteration_flops
from sid_ray.recipes.known_networks import teacher_of
from sid_ray.recipes.registry import recipe

ENCODER = {"cifar10-uncond-sida": 0.325, "img512-xs-sida": 0.263}  # share of a forward pass


@pytest.mark.parametrize(
    ("name", "passes"),
    [
        ("cifar10-uncond-sid", 11.0),
        ("cifar10-uncond-sida", 11 + 3 * ENCODER["cifar10-uncond-sida"]),
        ("img512-xs-sida", 11 + 3 * ENCODER["img512-xs-sida"]),
        ("emoji-lsg", 18.0),  # less: text has no gradient
    ],
)
def test_an_iteration_computes_no_more_than_the_bill(name, passes):
    config = recipe(name)
    teacher = teacher_of(config)
    forwards = iteration_flops(config, teacher) / forward_flops(config, teacher)
    assert 0.96 * passes < forwards < 1.005 * passes
