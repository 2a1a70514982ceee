"""What training.optimizer and training.weights go with."""

import pytest

from sid_ray.config.distill_config import replace, stages_for
from sid_ray.errors import UserError
from sid_ray.planning.fit import stage_variants
from sid_ray.recipes.registry import recipe
from sid_ray.training.assemble import adam_of, check_weights

EIGHT = {"training__optimizer": "adam8bit"}
HALVES = {"training__weights": "bfloat16", "training__precision": "bfloat16"}


@pytest.mark.parametrize(
    ("fields", "stages"), [({}, (0, 1, 2, 3)), (EIGHT, (0,)), (HALVES, (2, 3))]
)
def test_several_workers_have_the_stages_that_keep_such_state(fields, stages):
    config = replace(recipe("digits-sid"), **fields).check()
    assert stages_for(config.training) == stages
    assert {name[0] for name in stage_variants(config, 4)} == set(map(str, stages))
    for stage in range(4):
        own = replace(config, resources__zero_stage=stage, resources__num_workers=4)
        if stage in stages:
            own.check()
        else:
            with pytest.raises(UserError, match="zero-stage auto"):
                own.check()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"training__weights": "bfloat16"}, "training.precision bfloat16"),
        (EIGHT | HALVES, "choose one"),
        (EIGHT | {"resources__offload_optimizer": True}, "no-offload-optimizer"),
        (HALVES | {"resources__offload_optimizer": True}, "no-offload-optimizer"),
    ],
)
def test_what_does_not_go_together_is_said_in_one_line(fields, message):
    with pytest.raises(UserError, match=message) as error:
        replace(recipe("digits-sid"), **fields).check()
    assert "\n" not in str(error.value)


def test_a_rule_on_weights_needs_float32():
    config = replace(recipe("digits-sid"), **HALVES)
    check_weights(config, "edm")
    with pytest.raises(UserError, match="set --training"):
        check_weights(config, "edm2")
    check_weights(replace(config, training__normalize_weights=False), "edm2")


def test_both_are_a_run_s_identity():
    config = replace(recipe("digits-sid"), **HALVES)
    assert {"training.weights", "training.optimizer"} <= config.identity().keys()
    assert adam_of(config, "generator").half_weights


@pytest.mark.parametrize("roles", ["both", "fake", "generator"])
def test_adapters_stay_float32_and_may_have_moments_in_8_bits(roles):
    config = replace(recipe("digits-sid"), adapter__rank=4, adapter__roles=roles)
    with pytest.raises(UserError, match=r"set --training\.weights float32") as error:
        replace(config, **HALVES).check()
    assert "\n" not in str(error.value)
    assert adam_of(replace(config, **EIGHT).check(), "generator").eight_bits
