"""What a flow-matching teacher's own sampler takes where nobody says it: shift and guidance."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers")

from sid_ray.commands.evaluate import protocol_of
from sid_ray.denoisers.registry import family_of
from sid_ray.errors import UserError
from sid_ray.evaluation.options import EvaluateOptions
from sid_ray.evaluation.result import table_of_scores
from sid_ray.evaluation.subject import Subject, schedule_config
from sid_ray.weights.description import ModelDescription

FLUX_DEV = {
    "shift": 3.0,
    "use_dynamic_shifting": True,
    "base_image_seq_len": 256,
    "base_shift": 0.5,
    "max_image_seq_len": 4096,
    "max_shift": 1.15,
}


def subject(folder: Path, family: str, **network: object) -> Subject:
    return Subject("a teacher", folder, ModelDescription(family, network), "")


def write_scheduler(folder: Path, **values: object) -> None:
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(values))


@pytest.mark.parametrize("kind", [{}, {"time_shift_type": "linear"}])
@pytest.mark.parametrize("network", [{}, {"latent_size": 128}, {"latent_size": 32}])
def test_the_shift_is_that_of_the_images_tokens(network, kind, tmp_path):
    """The times are those of diffusers' pipeline and scheduler at that size."""
    from diffusers import FlowMatchEulerDiscreteScheduler
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    write_scheduler(tmp_path, **FLUX_DEV, **kind)
    found = schedule_config(subject(tmp_path, "flux", **network))
    tokens = (network.get("latent_size", 64) // 2) ** 2
    scheduler = FlowMatchEulerDiscreteScheduler(**FLUX_DEV, **kind)
    times = torch.linspace(1, 0.25, 4)
    scheduler.set_timesteps(sigmas=times.tolist(), mu=calculate_shift(tokens))
    shift = found.teacher_shift
    torch.testing.assert_close(shift * times / (1 + (shift - 1) * times), scheduler.sigmas[:-1])


def test_a_shift_that_is_one_number_stays(tmp_path):
    write_scheduler(tmp_path, **FLUX_DEV | {"use_dynamic_shifting": False})
    assert schedule_config(subject(tmp_path, "flux")).teacher_shift == 3.0


def test_points_that_make_no_shift_are_named(tmp_path):
    write_scheduler(tmp_path, **FLUX_DEV | {"max_image_seq_len": 256})
    with pytest.raises(UserError, match="no shift of the times follows from base_image_seq_len"):
        schedule_config(subject(tmp_path, "flux"))
    assert math.isclose(family_of("flux").noise.of_network(Path("none"), {}, 8).teacher_shift, 3)


@pytest.mark.parametrize(
    ("family", "network", "expected"),
    [
        ("flux", {"guidance_embeds": True}, 3.5),
        ("flux", {"guidance_embeds": False}, 1),  # schnell
        ("sd3", {}, 7),
        ("sd3", {"in_channels": 3}, 1),  # a small one of pixels
        ("sana", {}, 4.5),
        ("stable-diffusion", {}, 1),
    ],
)
def test_guidance_is_what_is_usual_where_nobody_gives_one(family, network, expected):
    teacher = subject(Path("none"), family, **network)
    assert protocol_of(EvaluateOptions("x"), teacher).teacher_guidance == expected
    assert protocol_of(EvaluateOptions("x", guidance=2.0), teacher).teacher_guidance == 2


def test_the_printed_line_says_it():
    result = {"source": "a", "images_seen": None, "num_images": 64, "sampler": "euler"}
    result |= {"trials": [{}], "scores": {}, "guidance": 3.5}
    assert table_of_scores(result).title == "a: 64 images of euler, guidance 3.5"
