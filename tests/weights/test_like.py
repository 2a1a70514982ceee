"""Bare state dicts of SiDA's training states: which network they are of is borrowed, and what their
own tensors say is believed. The advice of the messages is taken as it stands.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
from pathlib import Path

import pytest
import torch

from sid_ray.cli import main
from sid_ray.config.distill_config import replace
from sid_ray.denoisers.edm2 import EDM2Denoiser
from sid_ray.errors import UserError
from sid_ray.recipes.registry import recipe
from sid_ray.training.assemble import find_start
from sid_ray.weights.networks import describe, load
from tests.support import weights_writer as writer
from tests.support.networks import TINY_EDM2, tiny_network

ARGUMENTS = {k: v for k, v in TINY_EDM2.to_json().items() if k != "logvar"}


def edm2(logvar: bool, seed: int) -> EDM2Denoiser:
    torch.manual_seed(seed)
    return EDM2Denoiser(dataclasses.replace(TINY_EDM2, logvar=logvar))


def snapshot(path: Path, network: torch.nn.Module, class_name: str) -> Path:
    module = writer.persistent(network, class_name, ARGUMENTS)
    path.write_bytes(writer.pickled({"ema": module}))
    return path


@pytest.fixture
def state(tmp_path) -> Path:
    """A training-state.pt of SiDA on EDM2: generators without the log-variance head."""
    values = {
        "fake_score_state": edm2(True, 1).state_dict(),
        "G_state": edm2(False, 2).state_dict(),
        "G_ema_state": edm2(False, 3).state_dict(),
    }
    path = tmp_path / "training-state.pt"
    path.write_bytes(writer.torch_saved(values))
    return path


@pytest.fixture
def lenders(tmp_path) -> dict[str, Path]:
    return {
        "teacher": snapshot(tmp_path / "teacher.pkl", edm2(True, 4), "Precond"),
        "generator": snapshot(tmp_path / "g.pkl", edm2(False, 5), "EDM_2_Precond_Generator"),
    }


@pytest.mark.parametrize(("part", "logvar", "seed"), [
    ("ema", False, 3), ("G", False, 2), ("fake_score", True, 1),
])  # fmt: skip
@pytest.mark.parametrize("lender", ["teacher", "generator"])
def test_teacher_and_generator_lend_to_every_part(state, lenders, lender, part, logvar, seed):
    model, description = load(str(state), part, str(lenders[lender]))
    assert description.network["logvar"] == logvar
    expected = edm2(logvar, seed).state_dict()
    assert all(torch.equal(model.state_dict()[n], v) for n, v in expected.items())


def test_augmentation_labels_are_the_tensors_own(tmp_path):
    """EDM's teachers read them; what was trained without them lends and borrows all the same."""
    plain, augmented = tiny_network(), tiny_network(augment_dim=9)
    module = writer.persistent(augmented, "EDMPrecond", augmented.net.to_json())
    (tmp_path / "teacher.pkl").write_bytes(writer.pickled({"ema": module}))
    (tmp_path / "state.pt").write_bytes(writer.torch_saved({"G_state": plain.state_dict()}))
    model, description = load(str(tmp_path / "state.pt"), None, str(tmp_path / "teacher.pkl"))
    assert description.network["augment_dim"] == 0
    assert all(torch.equal(model.state_dict()[n], v) for n, v in plain.state_dict().items())


def test_the_advice_of_the_refusal_can_be_taken(state, lenders, tmp_path, capsys):
    with pytest.raises(UserError) as caught:
        describe(state)
    line = re.search(r"sid-ray (weights convert .*? --like TEACHER)", str(caught.value))
    assert line, str(caught.value)
    made = tmp_path / "new.safetensors"
    command = line[1].replace("NEW.safetensors", str(made))
    with pytest.raises(SystemExit) as stop:
        main(shlex.split(command.replace("TEACHER", str(lenders["teacher"]))))
    assert not stop.value.code
    assert describe(made).network["logvar"] is False


def test_distill_borrows_an_initial_generator_from_its_teacher(state, lenders):
    config = replace(
        recipe("digits-sid"),
        teacher__source=str(lenders["teacher"]),
        teacher__initial_generator=str(state),
    )
    assert find_start(config).generator == state


def test_distill_says_what_to_do_with_a_bare_teacher(state):
    config = replace(recipe("digits-sid"), teacher__source=str(state))
    with pytest.raises(UserError, match=r"weights convert .*training-state\.pt NEW\.safetensors"):
        find_start(config)
