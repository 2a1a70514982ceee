"""A LoRA merged into a teacher: W + scale * alpha / r * B A, under every kind of names."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace as changed
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from sid_ray.commands.fuse import fuse
from sid_ray.commands.fuse_options import FuseOptions
from sid_ray.config.distill_config import replace
from sid_ray.denoisers.clip_text import load_encoder
from sid_ray.denoisers.registry import family_of
from sid_ray.errors import UserError
from sid_ray.recipes.registry import recipe
from sid_ray.run_folder import RunRecord, check_same_lora
from sid_ray.training.assemble import find_start, generator_description
from sid_ray.weights import networks
from sid_ray.weights.components import Named, find_components
from sid_ray.weights.fused import find_lora, fused
from sid_ray.weights.teacher import lora_fingerprint
from tests.denoisers.tiny_pipeline import write_pipeline
from tests.support import ldm_files as ldm
from tests.support.fake_cuda.cases import NETWORKS

RANK, ALPHA, SCALE = 2, 3.0, 0.7
CHANGED = ("to_q", "to_out.0", "conv1", "proj_in", "ff.net.2", "time_emb_proj", "conv_in",
           "downsamplers.0.conv", "conv_shortcut", "time_embedding.linear_1")  # fmt: skip
TEXT = "text_model.encoder.layers.0.self_attn.q_proj", "text_model.encoder.layers.1.mlp.fc1"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SID_RAY_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "pipeline"
    write_pipeline(folder)
    return folder


@pytest.fixture(scope="module")
def halves(base):
    """By module: A and B of a few linear layers and convolutions."""
    return halves_of(weights_of(base), CHANGED)


def weights_of(folder: Path) -> dict:
    return load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")


def halves_of(weights, endings) -> dict:
    torch.manual_seed(3)
    found = {}
    for name, weight in weights.items():
        module = name.removesuffix(".weight")
        if name.endswith(".weight") and module.endswith(endings):
            down = torch.randn(RANK, *weight.shape[1:])
            up = torch.randn(weight.shape[0], RANK, *([1, 1] if weight.ndim == 4 else []))
            found[module] = down, up
    return found


def expected(weight, down, up, alpha=ALPHA, scale=SCALE):
    """The definition, in float64: a layer's output is W x + scale * alpha / r * B (A x)."""
    if weight.ndim == 2:
        product = up.double() @ down.double()
    else:
        product = torch.stack(
            [sum(up[o, r, 0, 0].double() * down[r].double() for r in range(RANK))
             for o in range(len(up))]
        )  # fmt: skip
    return (weight.double() + scale * alpha / RANK * product).float()


def close(found, value) -> None:
    """But for the last bit of float32: factors of the sum may be multiplied in another order."""
    torch.testing.assert_close(found, value, rtol=1.2e-7, atol=0)


def peft(halves, front="unet."):
    return {
        f"{front}{module}.lora_{letter}.weight": half
        for module, pair in halves.items()
        for letter, half in zip("AB", pair, strict=True)
    }


def with_alphas(tensors, halves, front="unet."):
    return tensors | {f"{front}{module}.alpha": torch.tensor(ALPHA) for module in halves}


def old_diffusers(halves):
    found = {}
    for module, pair in halves.items():
        head, _, last = module.rpartition(".")
        name = f"unet.{module}.lora"
        if last == "to_q":
            name = f"unet.{head}.processor.to_q_lora"
        if module.endswith("to_out.0"):
            name = f"unet.{module.removesuffix('.to_out.0')}.processor.to_out_lora"
        found |= {f"{name}.{side}.weight": h for side, h in zip(("down", "up"), pair, strict=True)}
    return found


def kohya(halves, name=lambda module: module.replace(".", "_"), front="lora_unet_"):
    found = {}
    for module, (down, up) in halves.items():
        own = front + name(module)
        found |= {f"{own}.lora_down.weight": down, f"{own}.lora_up.weight": up}
        found[f"{own}.alpha"] = torch.tensor(ALPHA)
    return found


def first_code(module: str) -> str:
    """What kohya's trainers call a module that they know under the first code's names."""
    return ldm._unet_name(module + ".weight").removesuffix(".weight").replace(".", "_")


SETTINGS = {"r": RANK, "lora_alpha": ALPHA, "peft_type": "LORA"}


def written(kind: str, halves, folder: Path) -> Path:
    """A LoRA's file or folder."""
    folder.mkdir()
    file = folder / "pytorch_lora_weights.safetensors"
    if kind == "PEFT's folder":
        (folder / "adapter_config.json").write_text(json.dumps(SETTINGS))
        bare = peft(halves, "base_model.model.")
        save_file(bare, folder / "adapter_model.safetensors")
        return folder
    if kind == "diffusers' folder":
        metadata = {f"unet.{name}": value for name, value in SETTINGS.items()}
        save_file(peft(halves), file, {"lora_adapter_metadata": json.dumps(metadata)})
        return folder
    if kind == "pickled":
        torch.save(with_alphas(peft(halves), halves), folder / "lora.bin")
        return folder / "lora.bin"
    tensors = {
        "alphas": lambda: with_alphas(peft(halves), halves),
        "kohya": lambda: kohya(halves),
        "half": lambda: {n: v.half() for n, v in kohya(halves).items()},
    }[kind]()
    save_file(tensors, file)
    return file


def merged_unet(base: Path, source: Path, scale: float = SCALE) -> dict:
    return networks.load(str(fused(base, find_lora(str(source), scale), "base")))[
        0
    ].unet.state_dict()


@pytest.mark.parametrize(
    "kind", ["alphas", "PEFT's folder", "diffusers' folder", "pickled", "kohya", "half"]
)
def test_weights_are_the_sum(kind, base, halves, tmp_path):
    before = weights_of(base)
    found = merged_unet(base, written(kind, halves, tmp_path / "lora"))
    for name, weight in before.items():
        pair = halves.get(name.removesuffix(".weight"))
        if pair and kind == "half":
            pair = [half.half() for half in pair]
        value = expected(weight, *pair) if pair and name.endswith(".weight") else weight
        close(found[name], value)


def test_without_alpha_it_is_the_rank(base, halves, tmp_path):
    save_file(old_diffusers(halves), tmp_path / "old.safetensors")
    found, before = merged_unet(base, tmp_path / "old.safetensors"), weights_of(base)
    for module, pair in halves.items():
        name = f"{module}.weight"
        close(found[name], expected(before[name], *pair, alpha=RANK))


def test_rank_stabilised_alpha_and_patterns(base, halves, tmp_path):
    folder = written("PEFT's folder", halves, tmp_path / "lora")
    own = next(iter(halves))
    settings = SETTINGS | {"use_rslora": True, "alpha_pattern": {own: 5.0}}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    found, before = merged_unet(base, folder), weights_of(base)
    for module, pair in halves.items():
        alpha = (5.0 if module == own else ALPHA) * RANK**0.5
        value = expected(before[f"{module}.weight"], *pair, alpha=alpha)
        close(found[f"{module}.weight"], value)


def test_kohyas_names_of_the_first_code(tmp_path):
    """XL is trained under them: blocks are counted, not nested."""
    unet = ldm.make_unet()
    unet.save_pretrained(tmp_path / "base" / "unet")
    halves = halves_of(unet.state_dict(), ("to_k", "proj_out", "ff.net.0.proj"))
    save_file(kohya(halves, first_code), tmp_path / "kohya.safetensors")
    found = merged_unet(tmp_path / "base", tmp_path / "kohya.safetensors")
    for name, weight in unet.state_dict().items():
        pair = halves.get(name.removesuffix(".weight")) if name.endswith(".weight") else None
        close(found[name], expected(weight, *pair) if pair else weight)
    assert len(halves) > 30


def transformer_folder(name: str, folder: Path, **options) -> dict:
    """A small transformer's folder as diffusers writes it; its tensors."""
    torch.manual_seed(0)
    own = family_of(name).build(NETWORKS[name, ""]).transformer
    own.save_pretrained(folder / "transformer", **options)
    path = folder / "transformer" / "config.json"
    values = json.loads(path.read_text()) | {"_class_name": family_of(name).official_classes[0]}
    path.write_text(json.dumps(values))
    return own.state_dict()


@pytest.mark.parametrize("names", ["PEFT", "kohya"])
@pytest.mark.parametrize("name", ["sd3", "sana", "flux"])
def test_transformers_too(name, names, tmp_path):
    """Their base in shards of a variant, beside which the folder has nothing else."""
    shards = {"max_shard_size": "20KB", "variant": "bf16"}
    before = transformer_folder(name, tmp_path / "base", **shards)
    assert len(list((tmp_path / "base" / "transformer").glob("*bf16-*"))) > 1
    halves = halves_of(before, ("to_q", "to_out.0", "proj_out"))
    tensors = with_alphas(peft(halves, "transformer."), halves, "transformer.")
    save_file(kohya(halves) if names == "kohya" else tensors, tmp_path / "style.safetensors")
    folder = fused(tmp_path / "base", find_lora(str(tmp_path / "style.safetensors"), SCALE), "base")
    found = networks.load(str(folder))[0].transformer.state_dict()
    assert len(halves) >= 3 and found.keys() == before.keys()
    for key, weight in before.items():
        pair = halves.get(key.removesuffix(".weight")) if key.endswith(".weight") else None
        close(found[key], expected(weight, *pair) if pair else weight)


def test_kohyas_names_of_flux(tmp_path):
    """Of its first code, where query, key and value are one matrix."""
    before = transformer_folder("flux", tmp_path / "base")
    front = "transformer_blocks.0.attn.to_"
    width = before[f"{front}q.weight"].shape[1]
    down, up = torch.randn(RANK, width), torch.randn(3 * width, RANK)
    tensors = kohya({"double_blocks.0.img_attn.qkv": (down, up)})
    save_file(tensors, tmp_path / "style.safetensors")
    folder = fused(tmp_path / "base", find_lora(str(tmp_path / "style.safetensors"), SCALE), "base")
    found = networks.load(str(folder))[0].transformer.state_dict()
    for letter, part in zip("qkv", up.chunk(3), strict=True):
        name = f"{front}{letter}.weight"
        value = expected(before[name], down, part)
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("names", ["kohya", "PEFT"])
def test_the_text_encoder_is_merged_too(names, base, halves, tmp_path):
    encoder = load_encoder(base).state_dict()
    known = {n if n.startswith("text_model") else f"text_model.{n}": v for n, v in encoder.items()}
    pairs = {
        module: (torch.randn(RANK, 24), torch.randn(len(known[f"{module}.weight"]), RANK))
        for module in TEXT
    }
    tensors = kohya(halves) | kohya(pairs, front="lora_te_")
    if names == "PEFT":
        front = "text_encoder."
        tensors = with_alphas(peft(halves), halves)
        tensors |= with_alphas(peft(pairs, front), pairs, front)
    save_file(tensors, tmp_path / "both.safetensors")
    folder = fused(base, find_lora(str(tmp_path / "both.safetensors"), SCALE), "base")
    found = load_encoder(folder).state_dict()
    for name, value in encoder.items():
        module = name.removesuffix(".weight")
        module = module if module.startswith("text_model") else f"text_model.{module}"
        if module in pairs and name.endswith(".weight"):
            value = expected(value, *pairs[module])
        close(found[name], value)
    components = find_components(networks.describe(folder), folder, Named())
    assert components.text == folder and (components.vae / "vae").resolve() == base / "vae"


# In a run -----------------------------------------------------------------------------------------


def test_a_run_sees_the_sum_and_notes_it(base, halves, tmp_path):
    file = written("kohya", halves, tmp_path / "lora")
    config = replace(
        recipe("sd15-lsg-kappa3"),
        teacher__source=str(base),
        teacher__lora=str(file),
        teacher__lora_scale=SCALE,
    )
    start = find_start(config, with_data=False)
    found = networks.load_path(start.teacher)[0].unet.state_dict()
    name = f"{next(iter(halves))}.weight"
    assert not torch.equal(found[name], weights_of(base)[name])
    noted = generator_description(config, start.description).notes["lora"]
    assert noted["scale"] == SCALE and noted["sha256"] == lora_fingerprint(config)
    assert find_start(config, with_data=False).teacher == start.teacher  # merged once

    generator = tmp_path / "generator"
    generator.mkdir()
    description = generator_description(config, start.description)
    beside = find_components(description, generator, Named())
    assert beside.text == start.teacher  # of the teacher that was distilled, LoRA and all

    shutil.copy(file, tmp_path / "moved.safetensors")
    moved = replace(config, teacher__lora=str(tmp_path / "moved.safetensors"))
    assert moved.identity() == config.identity()
    record = changed(RunRecord(config.to_json()), lora=lora_fingerprint(config))
    check_same_lora(record, lora_fingerprint(moved))
    assert replace(config, teacher__lora_scale=1.0).identity() != config.identity()
    for other in ("", "0" * 64):
        with pytest.raises(UserError, match="LoRA is not the one that this run began with"):
            check_same_lora(record, other)
    with pytest.raises(UserError, match="now 000000"):
        check_same_lora(changed(record, lora=""), "0" * 64)


def test_fuse_writes_the_sum(base, halves, tmp_path):
    """The sum that --teacher.lora takes, as a file and in a folder with all parts of the base."""
    file, new = written("kohya", halves, tmp_path / "lora"), tmp_path / "new.safetensors"
    same = networks.load(str(fused(base, find_lora(str(file), SCALE), "base")))[0].state_dict()
    for made in (new, tmp_path / "new"):
        fuse(FuseOptions(str(base), str(file), made, SCALE))
        model, description = networks.load(str(made))
        found = model.state_dict()
        assert all(torch.equal(found[name], value) for name, value in same.items())
        assert description.notes["fused"]["scale"] == SCALE and description.one_step is None
    parts = {entry.name for entry in base.iterdir()}
    assert {entry.name for entry in made.iterdir()} == parts | {"model.json"}


# What does not fit --------------------------------------------------------------------------------


def refusal(base: Path, tensors, tmp_path: Path) -> str:
    save_file(tensors, tmp_path / "style.safetensors")
    with pytest.raises(UserError) as caught:
        fused(base, find_lora(str(tmp_path / "style.safetensors")), "base")
    line = str(caught.value)
    assert "\n" not in line and "style.safetensors on base: " in line
    assert not list((tmp_path / "cache").rglob("model.json"))
    return line


MODULE = "unet.mid_block.attentions.0.proj_in"
A, B = torch.ones(RANK, 16, 1, 1), torch.ones(16, RANK, 1, 1)
REFUSED = {
    "of another network": ({"unet.x.y.lora_A.weight": A, "unet.x.y.lora_B.weight": B}, "'x.y'"),
    "of another shape": (
        {f"{MODULE}.lora_A.weight": torch.ones(RANK, 99), f"{MODULE}.lora_B.weight": B},
        r"\[2, 99\] .* a LoRA of another network",
    ),
    "of another rank": (
        {f"{MODULE}.lora_A.weight": A, f"{MODULE}.lora_B.weight": torch.ones(16, 5)},
        "make no change",
    ),
    "one half": ({f"{MODULE}.lora_A.weight": A}, "one half is missing"),
    "DoRA": ({f"{MODULE}.lora_A.weight": A, f"{MODULE}.dora_scale": B}, "of DoRA"),
    "LoKr": ({"lora_unet_mid_block.lokr_w1": A}, "of LoKr"),
    "unknown kohya": ({f"lora_unet_a_b.lora_{n}.weight": A for n in ("up", "down")}, "a.b"),
    "other tensors": ({f"{MODULE}.lora_A.weight": A, "conv.weight": B}, "'conv.weight' is not"),
    "a network": ({"conv_in.weight": A}, "holds no LoRA"),
    "no such part": (
        {"transformer.x.lora_A.weight": A, "transformer.x.lora_B.weight": B},
        "'transformer.x', which the network does not have",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_named(case, base, tmp_path):
    tensors, message = REFUSED[case]
    line = refusal(base, {n: v.clone() for n, v in tensors.items()}, tmp_path)
    assert re.search(message, line), line


def test_a_text_encoder_that_is_not_there(base, tmp_path):
    folder = tmp_path / "unet"
    shutil.copytree(base / "unet", folder)
    name = f"text_encoder.{TEXT[0]}"
    tensors = {f"{name}.lora_A.weight": A[..., 0, 0], f"{name}.lora_B.weight": B[..., 0, 0]}
    assert "changes text_encoder, too" in refusal(folder, tensors, tmp_path)


def test_no_file(tmp_path):
    with pytest.raises(UserError, match=r"no LoRA at .*none.safetensors"):
        find_lora(str(tmp_path / "none.safetensors"))
    with pytest.raises(UserError, match=r"pytorch_lora_weights.safetensors .* is needed"):
        find_lora(str(tmp_path))
