"""sid-ray weights fuse: the weights are the sum, and the generator stays one."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
pytest.importorskip("peft")

from sid_ray.cli import main
from sid_ray.commands.generate import OneStepNetwork
from sid_ray.denoisers import flow_prompts
from sid_ray.denoisers.adapters import merged_weights
from sid_ray.denoisers.edm2 import EDM2Denoiser
from sid_ray.evaluation.samplers import Inputs, seeded_latents
from sid_ray.types import Condition
from sid_ray.weights.description import ModelDescription, read_description, save_model
from sid_ray.weights.folder import load_model
from sid_ray.weights.networks import load_path
from sid_ray.weights.sources import resolve_source
from tests.denoisers.tiny_flow import write_flow_pipeline
from tests.denoisers.tiny_pipeline import write_pipeline
from tests.support.networks import TINY_EDM2, tiny_edm2
from tests.weights.adapters import write_adapter

SEEDS = (3, 4)
WEIGHTS = Path("unet") / "diffusion_pytorch_model.safetensors"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SID_RAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(flow_prompts, "instruction", lambda: "longer: ")


@pytest.fixture
def base(tmp_path) -> Path:
    write_pipeline(tmp_path / "base")
    return tmp_path / "base"


def fuse(*arguments: object) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["weights", "fuse", *map(str, arguments)])
    assert ended.value.code == 0


def refused(capsys, *arguments: object) -> str:
    """The line that the user has to mend."""
    with pytest.raises(SystemExit) as ended:
        main(["weights", "fuse", *map(str, arguments)])
    assert ended.value.code == 2
    found = capsys.readouterr().err.strip()
    assert len(found.splitlines()) == 1, found
    return found


@torch.no_grad()
def images(source: Path, prompt: str = "a red cat") -> torch.Tensor:
    net = OneStepNetwork(source, 2)
    if net.family.reads_text:
        cond = net.conditions(None, [prompt])(SEEDS)
    else:
        cond = Condition(torch.eye(max(net.label_dim, 2))[:2] if net.label_dim else None)
    return net.sampler[0](Inputs(seeded_latents(SEEDS, net.shape), cond))


@pytest.mark.parametrize("name", ["stable-diffusion", "sana", "edm", "edm2"])
def test_a_fused_generator_makes_the_adapters_images(name, tmp_path):
    """To rounding: the sum is rounded once, the adapter's product is added in each pass."""
    base = tmp_path / "base"
    if name == "edm":
        base = resolve_source("builtin:digits-teacher")
    elif name == "edm2":  # whose layers normalise the sum
        save_model(base, tiny_edm2().state_dict(), ModelDescription("edm2", TINY_EDM2.to_json()))
    elif name == "sana":
        write_flow_pipeline(base, name)
    else:
        write_pipeline(base)
    network = write_adapter(tmp_path / "run" / "model", base)
    fuse(base, tmp_path / "run" / "model", tmp_path / "fused")
    whole, description = load_model(tmp_path / "fused")
    own = read_description(tmp_path / "run" / "model")
    assert description.adapter is None and description.one_step == own.one_step
    expected, found = merged_weights(network), whole.state_dict()
    for key, value in found.items():
        torch.testing.assert_close(value, expected[key], rtol=1.2e-7, atol=1e-9)
    one, other = images(tmp_path / "run" / "model"), images(tmp_path / "fused")
    assert (one - other).abs().max() < 1e-5 * one.abs().max()


def test_a_diffusers_folder_stays_one(base, tmp_path):
    """With its own parts, in which nothing but the network has changed."""
    import diffusers

    write_adapter(tmp_path / "model", base)
    fuse(base, tmp_path / "model", tmp_path / "fused", "--dtype", "float16")
    files = {p.relative_to(base) for p in base.rglob("*") if p.is_file()}
    made = {
        p.relative_to(tmp_path / "fused") for p in (tmp_path / "fused").rglob("*") if p.is_file()
    }
    assert made == files | {Path("model.json")}
    same = [f for f in files if (base / f).read_bytes() == (tmp_path / "fused" / f).read_bytes()]
    assert {f for f in files if f not in same} <= {WEIGHTS, Path("unet/config.json")}
    unet = diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "fused" / "unet")
    network, _ = load_model(tmp_path / "fused")
    assert all(torch.equal(v, unet.state_dict()[n]) for n, v in network.unet.state_dict().items())
    stored = load_file(tmp_path / "fused" / WEIGHTS)
    assert {value.dtype for value in stored.values()} == {torch.float16}
    net = OneStepNetwork(tmp_path / "fused", 2)
    assert net.components.text == net.components.vae == tmp_path / "fused"


def test_over_a_fine_tune_it_is_the_fine_tune_with_the_change(base, tmp_path, capsys):
    write_adapter(tmp_path / "model", base)
    tuned = Path(shutil.copytree(base, tmp_path / "tuned"))
    weights = load_file(tuned / WEIGHTS)
    save_file({name: value + 0.5 for name, value in weights.items()}, tuned / WEIGHTS)
    fuse(base, tmp_path / "model", tmp_path / "one")
    assert "has other weights" not in capsys.readouterr().out
    fuse(tuned, tmp_path / "model", tmp_path / "two.safetensors")
    assert "has other weights than those that it was distilled over" in capsys.readouterr().out
    one, two = load_file(tmp_path / "one" / WEIGHTS), load_file(tmp_path / "two.safetensors")
    for name, value in one.items():
        torch.testing.assert_close(two[f"unet.{name}"], value + 0.5, rtol=0, atol=1e-6)
    assert read_description(tmp_path).notes["teacher"] == str(tuned)


def test_scale_0_is_the_base_and_2_twice_the_change(base, tmp_path):
    write_adapter(tmp_path / "model", base)
    made = []
    for scale in (0, 1, 2):
        fuse(base, tmp_path / "model", tmp_path / str(scale), "--scale", str(scale))
        made.append(load_file(tmp_path / str(scale) / WEIGHTS))
    for name, value in load_file(base / WEIGHTS).items():
        assert torch.equal(made[0][name], value)
        torch.testing.assert_close(made[2][name] + value, 2 * made[1][name], rtol=0, atol=1e-5)


@pytest.mark.parametrize("held", ["bfloat16", "8bit"])
def test_over_a_rounded_base_the_sum_is_of_its_numbers(held, base, tmp_path, capsys):
    """It makes the adapter's images, which the change added to the whole numbers does not."""
    model = tmp_path / "model"
    network = write_adapter(model, base)
    own = read_description(model)
    assert own.adapter is not None
    fuse(base, model, tmp_path / "whole")
    assert "is rounded" not in capsys.readouterr().out
    save_model(model, network.state_dict(), replace(own, adapter=own.adapter | {"base": held}))
    fuse(base, model, tmp_path / "fused")
    assert f"is rounded as in {held}, over which" in capsys.readouterr().out
    torn = replace(own, adapter=own.adapter | {"base": "sum"})
    save_model(tmp_path / "torn", network.state_dict(), torn)
    line = refused(capsys, base, tmp_path / "torn", tmp_path / "no")
    assert "records a base held in 'sum', which no such network is" in line
    one = images(model)
    far, near = ((one - images(tmp_path / name)).abs().max() for name in ("whole", "fused"))
    assert near < 1e-5 * one.abs().max() < far / 10


def test_a_base_without_the_heads_of_training_is_refused(tmp_path, capsys):
    """The file would be of a network with a head whose weights nothing has."""
    save_model(
        tmp_path / "base", tiny_edm2().state_dict(), ModelDescription("edm2", TINY_EDM2.to_json())
    )
    write_adapter(tmp_path / "model", tmp_path / "base")
    bare = replace(TINY_EDM2, logvar=False)
    save_model(
        tmp_path / "bare",
        EDM2Denoiser(bare).state_dict(),
        ModelDescription("edm2", bare.to_json()),
    )
    line = refused(capsys, tmp_path / "bare", tmp_path / "model", tmp_path / "new")
    assert "logvar True" in line and "name a base of the same network as BASE" in line


def test_a_whole_network_is_no_adapter(base, tmp_path, capsys):
    """In whatever form it is: BASE and ADAPTER are easily taken for each other."""
    write_adapter(tmp_path / "run" / "model", base)
    network, own = load_path(base)
    save_model(tmp_path / "folder", network.state_dict(), own)
    file = tmp_path / "folder" / "model.safetensors"
    for whole in (base, base / "unet", tmp_path / "folder", file):
        line = refused(capsys, tmp_path / "run" / "model", whole, tmp_path / "new")
        assert f"{whole} is a whole network, no adapter: BASE comes first" in line
    line = refused(capsys, base, "builtin:digits", tmp_path / "new")
    assert "builtin:digits is no adapter: builtin: names whole networks" in line


def test_a_dst_that_is_there_is_refused_before_anything_is_read(tmp_path, capsys):
    (tmp_path / "new").mkdir()
    line = refused(capsys, tmp_path / "nowhere", tmp_path / "none", tmp_path / "new")
    assert "new exists; choose another name" in line


def test_what_does_not_fit_is_refused(base, tmp_path, capsys):
    model, new = tmp_path / "run" / "model", tmp_path / "new"
    write_adapter(model, base)
    assert "is an adapter of a stable-diff" in refused(capsys, "builtin:digits-teacher", model, new)
    assert "is an adapter, no base" in refused(capsys, model, model, new)
    assert "does not exist" in refused(capsys, base, tmp_path / "nowhere", new)
    write_pipeline(tmp_path / "wide", block_out_channels=(8, 24))
    assert "with block_out_channels [8, 24]: name" in refused(capsys, tmp_path / "wide", model, new)
    assert "a finite number" in refused(capsys, base, model, new, "--scale", "nan")
    assert ".safetensors, or a folder, is expected" in refused(capsys, base, model, f"{new}.pkl")
    assert not new.exists()
    fuse(base, model, new)
    assert "exists" in refused(capsys, base, model, new)
    fuse(base, model, new, "--force")
    other = tmp_path / "other"
    other.mkdir()
    (other / "mine.txt").write_text("mine")
    assert "something other than a network" in refused(capsys, base, model, other, "--force")


def test_a_change_of_a_text_encoder_needs_a_folder(base, tmp_path, capsys):
    name = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
    halves = {
        f"{name}.lora_A.weight": torch.ones(1, 24),
        f"{name}.lora_B.weight": torch.ones(24, 1),
    }
    save_file(halves, tmp_path / "style.safetensors")
    line = refused(capsys, base, tmp_path / "style.safetensors", tmp_path / "n.safetensors")
    assert "changes text_encoder, too: DST must be a folder" in line
    fuse(base, tmp_path / "style.safetensors", tmp_path / "new")
    file = Path("text_encoder") / "model.safetensors"
    was, found = load_file(base / file), load_file(tmp_path / "new" / file)
    changed = {key for key, value in was.items() if not torch.equal(found[key], value)}
    assert len(changed) == 1 and changed.pop().endswith("layers.0.self_attn.q_proj.weight")
    assert json.loads((tmp_path / "new" / "model.json").read_text()).get("one_step") is None
