"""Configs go to JSON and back, know what they are, and refuse what makes no sense."""

import dataclasses
import typing

import pytest

from sid_ray.config.chosen import left_open
from sid_ray.config.distill_config import (
    DistillConfig,
    differences,
    flags,
    flatten,
    replace,
    unknown_field,
    with_plain_resources,
)
from sid_ray.errors import UserError
from sid_ray.recipes.registry import recipe

DIGITS = recipe("digits-sid")


def test_every_field_has_a_default_and_an_explanation():
    import ast
    import inspect

    import sid_ray.config.distill_config as module

    tree = ast.parse(inspect.getsource(module))
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name.endswith("Config"):
            body = node.body
            for index, item in enumerate(body):
                if isinstance(item, ast.AnnAssign) and node.name != "DistillConfig":
                    following = body[index + 1]
                    assert isinstance(following, ast.Expr), f"{node.name}.{item.target.id}"
    sections = [f.name for f in dataclasses.fields(DistillConfig) if f.name != "recipe"]
    assert typing.get_type_hints(DistillConfig).keys() >= set(sections)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"training__batch_size": 100}, "not a multiple of group size"),
        ({"training__generator_lr": 0.0}, "training.generator_lr is 0.0; it must be above 0"),
        ({"training__beta2": 1.0}, "training.beta2 is 1.0; it must be below 1$"),
        ({"training__images": 0}, "training.images is 0; it must be at least 1"),
        ({"resources__num_workers": 9}, "use 1 to 4 workers"),
        ({"teacher__source": ""}, "teacher.source is empty"),
        ({"output__run": "../escape"}, "must be a plain folder name"),
        ({"output__run": ".hidden"}, "must be a plain folder name"),
        ({"training__generator_lr": float("nan")}, "must be a finite number"),
        ({"teacher__dropout": 1.0}, "teacher.dropout is 1.0; it must be below 1"),
        ({"training__images": "many"}, "training.images is 'many'; it must be a whole number"),
        ({"teacher__dropout": float("nan")}, "teacher.dropout is nan; it must be a finite number"),
        ({"adapter__rank": -1}, "adapter.rank is -1; it must be at least 0"),
        (
            {"adapter__rank": 8, "adapter__alpha": -1.0},
            "adapter.alpha is -1.0; it must be at least",
        ),
        (
            {"adapter__base": "4bit"},
            "adapter.base is 4bit, but adapter.rank is 0.*--adapter.rank 64",
        ),
        ({"adapter__alpha": 2.0}, "adapter.alpha is 2.0, but adapter.rank is 0"),
        ({"adapter__rank": 8, "adapter__targets": " ,"}, "adapter.targets is ' ,'; it must be end"),
    ],
)
def test_nonsense_is_refused_by_name(change, words):
    with pytest.raises(UserError, match=words):
        replace(DIGITS, **change).check()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"trainnig": {}}', "trainnig"),
        ('{"training": {"seed": "x"}}', "training.seed is 'x'; it must be a whole number"),
        ('{"training": {"images": 0}}', "training.images is 0; it must be at least 1"),
        ('{"training": {"epsilon": NaN}}', "training.epsilon is nan; it must be a finite number"),
        ('{"training": 3}', "training is 3; it must be a section with fields"),
        ('{"training": {"bach_size": 3}}', "Did you mean training.batch_size"),
        (
            '{"resources": {"use_gpu": "y!"}}',
            "resources.use_gpu is 'y!'; it must be true or false, or auto$",
        ),
        (
            '{"resources": {"zero_stage": 7}}',
            "resources.zero_stage is 7; it must be 0, 1, 2 or 3, or auto$",
        ),
        (
            '{"resources": {"num_workers": 0}}',
            "resources.num_workers is 0; it must be at least 1, or auto$",
        ),
        ('{"resources": {"micro_batch": "x"}}', "must be a whole number, or auto$"),
        ("{", "its text"),
    ],
)
def test_json_that_is_no_config_names_the_field(text, words):
    with pytest.raises(UserError, match=words):
        DistillConfig.from_json(text)


ADAPTERS = replace(DIGITS, adapter__rank=8)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"resources__zero_stage": 3},
            "fake_score is an adapter .*--resources.zero-stage 2",
        ),
        ({"resources__generator_zero_stage": 3}, "generator is an adapter .* ZeRO stage 3"),
        ({"resources__teacher_zero_stage": 3}, "base of adapters .*teacher_zero_stage is 3"),
    ],
)
def test_what_adapters_share_is_on_each_worker_whole(change, words):
    replace(DIGITS, **change).check()
    with pytest.raises(UserError, match=words):
        replace(ADAPTERS, **change).check()
    # The other network is whole, and may be shared out.
    if "generator" in words:
        replace(ADAPTERS, **change, adapter__roles="fake").check()


def test_identity_is_what_is_computed_not_where():
    moved = replace(
        DIGITS,
        resources__num_workers=1,
        output__run="other",
        evaluation__every=7,
        training__images=5,
        output__report_every=1,
        resources__zero_stage=0,
    )
    assert list(differences(DIGITS, moved)) == []
    other = replace(DIGITS, training__seed=1, objective__alpha=1.1)
    assert list(differences(DIGITS, other)) == [
        "objective.alpha: 1.0 -> 1.1",
        "training.seed: 0 -> 1",
    ]


def test_unknown_names_come_with_the_nearest():
    assert "training.batch_size" in str(unknown_field("training.bach_size"))
    assert "objective.alpha" in str(unknown_field("alpa"))
    with pytest.raises(UserError, match="Did you mean digits-sid"):
        recipe("digit-sid")


def test_flags_say_what_differs_and_are_understood():
    from sid_ray.commands.arguments import expand_aliases, parse

    changed = replace(
        DIGITS, training__seed=3, objective__generator_dropout=False, teacher__source="a b",
        training__generator_lr=3e-5,
    )  # fmt: skip
    found = flags(DIGITS, changed)
    assert "--objective.no-generator-dropout" in found
    understood = parse(DistillConfig, expand_aliases(found), "sid-ray", default=DIGITS)
    assert list(differences(changed, understood)) == []
    assert flags(DIGITS, DIGITS) == []


@pytest.mark.parametrize("name", ["use_gpu", "offload_optimizer", "overlap_comm"])
def test_a_switch_that_may_be_auto_is_still_a_switch(name):
    from sid_ray.commands.arguments import configured

    flag, field = f"--resources.{name.replace('_', '-')}", f"resources__{name}"
    typed = {
        (flag,): True,
        (flag, "--seed", "1"): True,
        (flag.replace("resources.", "resources.no-"),): False,
        (flag, "auto"): "auto",
        (f"{flag}=False",): False,
        (): "auto",
    }
    for args, value in typed.items():
        found = configured(args, "sid-ray distill digits-sid", DIGITS)
        assert getattr(found.resources, name) == value, args
    for value in (True, False):  # and what is told to a person is understood
        told = flags(DIGITS, replace(DIGITS, **{field: value}))
        found = configured(told, "sid-ray distill digits-sid", DIGITS)
        assert getattr(found.resources, name) is value
        assert flags(replace(DIGITS, **{field: value}), DIGITS) == [flag, "auto"]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--workers", "fast"], "--resources.num-workers 'fast': expected a whole number or auto"),
        (["--resources.zero-stage", "7"], "'7': expected one of 0, 1, 2, 3, auto"),
        (["--resources.no-use-gpus"], "Did you mean --resources.no-use-gpu"),
    ],
)
def test_what_is_wrong_beside_auto_is_one_line(args, words):
    from sid_ray.commands.arguments import configured

    with pytest.raises(UserError) as refused:
        configured(args, "sid-ray distill digits-sid", DIGITS)
    assert words in str(refused.value) and "\n" not in str(refused.value)


def test_nothing_computes_with_a_field_that_is_auto():
    """Each alone: a value must stand in its place before anything reads it."""
    whole = with_plain_resources(DIGITS)
    assert whole.chosen.stage_of("generator") == 1
    for name in left_open(DIGITS.resources):
        with pytest.raises(ValueError, match=rf"resources\.{name} is auto"):
            _ = replace(whole, **{f"resources__{name}": "auto"}).chosen


def test_flat_names_are_dotted():
    assert flatten(DIGITS)["training.seed"] == 0


def test_offload_needs_something_that_is_shared_out():
    config = replace(DIGITS, resources__offload_optimizer=True, resources__zero_stage=2)
    config.check()
    with pytest.raises(UserError, match="generator is at stage 0"):
        replace(config, resources__generator_zero_stage=0).check()


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"zero_stage": 3}, "fake_score is at stage 3: set resources.fake_score_zero_stage"),
        ({"teacher_zero_stage": 3}, "teacher is at stage 3: set resources.teacher_zero_stage"),
        (
            {"compile": "cudagraphs", "use_gpu": False},
            "needs GPUs: set --resources.use-gpu",
        ),
        (
            {"compile": "cudagraphs", "use_gpu": True, "activation_checkpointing": True},
            "set --resources.no-activation-checkpointing",
        ),
    ],
)
def test_compile_is_refused_where_it_cannot_work(fields, text):
    resources = {f"resources__{name}": value for name, value in fields.items()}
    with pytest.raises(UserError, match=text):
        replace(DIGITS, **({"resources__compile": "default"} | resources)).check()
    assert replace(DIGITS, resources__compile="default").check()


def test_every_number_is_finite_and_no_whole_number_overflows():
    for name, value in flatten(DIGITS).items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            continue
        wrong = 10**19 if isinstance(value, int) else float("inf")
        with pytest.raises(UserError, match=name.replace(".", r"\.")):
            replace(DIGITS, **{name.replace(".", "__"): wrong}).check()
