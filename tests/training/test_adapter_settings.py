"""What a config with adapters means for updates, and how the base is held."""

from __future__ import annotations

from typing import Any

import pytest

from sid_ray.config.distill_config import DistillConfig, replace
from sid_ray.denoisers.family import leave_weight
from sid_ray.errors import UserError
from sid_ray.training.adapter_settings import (
    base_precision,
    check_adapted_layers,
    noted_base,
    run_adapter,
)
from sid_ray.training.assemble import rules_of
from sid_ray.weights.description import ModelDescription
from tests.support.networks import TINY_EDM2


def config_of(**changes: Any) -> DistillConfig:
    return replace(DistillConfig(recipe="r"), adapter__rank=4, **changes)


@pytest.mark.parametrize("compat", ["none", "official"])
def test_forced_normalisation_is_of_whole_networks_alone(compat):
    rules = rules_of(config_of(adapter__roles="fake", objective__compat=compat), "edm2")
    assert rules["fake_score"].constrain is leave_weight
    assert not rules["fake_score"].constrain_first
    assert rules["generator"].constrain is not leave_weight
    whole = rules_of(replace(DistillConfig(recipe="r"), objective__compat=compat), "edm2")
    assert whole["generator"] == rules["generator"]


CASES = [
    # family, training.precision, adapter.base -> held, noted
    ("sd3", "bfloat16", "auto", "bfloat16", "float32"),
    ("sd3", "float32", "auto", "float32", "float32"),
    ("sd3", "float32", "bfloat16", "bfloat16", "bfloat16"),
    ("sd3", "bfloat16", "bfloat16", "bfloat16", "float32"),
    ("sd3", "bfloat16", "8bit", "8bit", "8bit"),
    ("edm2", "float16", "auto", "float32", "float32"),
]


@pytest.mark.parametrize(("family", "precision", "base", "held", "noted"), CASES)
def test_how_a_base_is_held_and_what_is_noted_of_it(family, precision, base, held, noted):
    config = config_of(training__precision=precision, adapter__base=base)
    assert base_precision(config, family) == held
    assert noted_base(config, family) == noted


def test_a_base_that_a_family_cannot_hold_is_refused():
    with pytest.raises(UserError, match=r"adapter.base is 4bit.*float32"):
        base_precision(config_of(adapter__base="4bit"), "edm2")


def test_targets_that_leave_out_a_head_which_is_trained_are_refused():
    teacher = ModelDescription("edm2", TINY_EDM2.to_json())

    def check(**changes: Any) -> None:
        config = config_of(objective__logvar=True, **changes)
        adapter = run_adapter(config, teacher.family)
        assert adapter is not None
        check_adapted_layers(config, teacher, adapter)

    check()
    check(adapter__targets="attn_qkv,logvar_linear")
    check(adapter__targets="conv_res0", adapter__roles="generator")
    with pytest.raises(UserError, match=r"adapter.targets conv_res0 leave .* add logvar_linear"):
        check(adapter__targets="conv_res0")
