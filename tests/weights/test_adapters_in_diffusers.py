"""An adapter's file in the tools that people use: diffusers' own pipelines of the base read it, and
make sid-ray generate's image in one step.
"""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
pytest.importorskip("peft")

import diffusers
from transformers import CLIPTextModel, CLIPTokenizer

from sid_ray.checkpoint.model_card import model_card
from sid_ray.checkpoint.snapshot import write_average
from sid_ray.commands.generate import OneStepNetwork
from sid_ray.config.distill_config import replace
from sid_ray.denoisers import flow_prompts
from sid_ray.denoisers.flux import packed, unpacked
from sid_ray.denoisers.sdxl import prompt_layout
from sid_ray.diffusion.schedules import DiscreteVPSchedule
from sid_ray.evaluation.samplers import Inputs, seeded_latents
from sid_ray.recipes.registry import recipe
from sid_ray.weights.description import PEFT_METADATA, read_description
from tests.denoisers.tiny_flow import write_flow_pipeline
from tests.denoisers.tiny_pipeline import write_pipeline, write_xl_pipeline
from tests.weights.adapters import ALPHA, RANK, write_adapter

PROMPT, SEEDS = "a red cat", (3, 4)
CLASSES: dict[str, Any] = {
    "stable-diffusion": (diffusers.StableDiffusionPipeline, diffusers.UNet2DConditionModel),
    "sdxl": (diffusers.StableDiffusionXLPipeline, diffusers.UNet2DConditionModel),
    "sana": (diffusers.SanaPipeline, diffusers.SanaTransformer2DModel),
    "sd3": (diffusers.StableDiffusion3Pipeline, diffusers.SD3Transformer2DModel),
    "flux": (diffusers.FluxPipeline, diffusers.FluxTransformer2DModel),
}
INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "scheduler": ["diffusers", "PNDMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "safety_checker": [None, None],
    "feature_extractor": [None, None],
}
UNETS = ("stable-diffusion", "sdxl")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SID_RAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(flow_prompts, "instruction", lambda: "longer: ")


def write_base(folder: Path, name: str) -> None:
    if name == "stable-diffusion":
        write_pipeline(folder)
    elif name == "sdxl":
        write_xl_pipeline(folder)
    else:
        write_flow_pipeline(folder, name)
        size = {"latent_size": 16}  # SANA's pipeline wants pictures of a multiple of 32 a side
        path = folder / "transformer" / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | size))


@pytest.fixture(params=CLASSES)
def made(request, tmp_path) -> tuple[str, Path, Path]:
    """(family, base, adapter)"""
    base, adapter = tmp_path / "base", tmp_path / "run" / "model"
    write_base(base, request.param)
    write_adapter(adapter, base)
    return request.param, base, adapter


def pipeline_of(name: str, base: Path, **parts: Any) -> Any:
    """diffusers' own of the base, with the scheduler that one step takes."""
    if name in UNETS:
        own = DiscreteVPSchedule()
        scheduler = diffusers.EulerDiscreteScheduler(
            num_train_timesteps=626,
            trained_betas=torch.linspace(
                own.beta_start**0.5, own.beta_end**0.5, 1000, dtype=torch.float64
            )[:626].square().float().numpy(),
            timestep_spacing="trailing",
            steps_offset=0,
        )  # fmt: skip
    else:
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=1)
    pipeline, network = CLASSES[name]
    part = "unet" if name in UNETS else "transformer"
    left_out = [
        n
        for n in inspect.signature(pipeline.__init__).parameters
        if n.startswith(("text_enc", "token", "safety", "feature", "image_enc"))
    ]
    parts = dict.fromkeys(left_out) | parts
    vae = diffusers.AutoencoderDC if name == "sana" else diffusers.AutoencoderKL
    made = pipeline(
        **parts,
        **{part: network.from_pretrained(base / part)},
        vae=vae.from_pretrained(base / "vae"),
        scheduler=scheduler,
    )
    made.set_progress_bar_config(disable=True)
    return made


def latents_of(pipe: Any, name: str, net: OneStepNetwork, latents: Tensor, text: Tensor) -> Tensor:
    """What the pipeline makes of given noise and embeddings in one step, before its decoder."""
    side = latents.shape[-1] * pipe.vae_scale_factor
    told: dict[str, Any] = {"height": side, "width": side, "latents": latents}
    told |= {"num_inference_steps": 1, "output_type": "latent"}
    told |= {"guidance_scale": 1.0 if name == "flux" else 0.0}
    if name == "stable-diffusion":
        return pipe(prompt_embeds=text, **told).images
    layout = prompt_layout if name == "sdxl" else net.family.layout
    prompt = layout(net.description.network).unpack(text)
    told["prompt_embeds"] = prompt.tokens
    if name == "sana":
        told |= {"prompt_attention_mask": prompt.mask, "use_resolution_binning": False}
    else:
        told["pooled_prompt_embeds"] = prompt.pooled
    if name == "sdxl":  # whose network takes a VAE of 8 pixels a latent
        eight = 2 * (8 * latents.shape[-1],)
        told |= {"original_size": eight, "target_size": eight}
    if name == "flux":
        return unpacked(pipe(**told | {"latents": packed(latents)}).images, *latents.shape[2:])
    return pipe(**told).images


@torch.no_grad()
def test_a_stock_pipeline_of_the_base_makes_our_image_in_one_step(made):
    name, base, adapter = made
    net = OneStepNetwork(adapter, 2)
    cond = net.conditions(None, [PROMPT])(SEEDS)
    latents = seeded_latents(SEEDS, net.shape)
    ours = net.sampler[0](Inputs(latents, cond))
    pipe = pipeline_of(name, base)
    of_base = latents_of(pipe, name, net, latents, cond.text)
    pipe.load_lora_weights(str(adapter))
    loaded = latents_of(pipe, name, net, latents, cond.text)
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    fused = latents_of(pipe, name, net, latents, cond.text)
    scale = ours.abs().max()
    assert (loaded - ours).abs().max() < 1e-5 * scale
    assert (fused - ours).abs().max() < 1e-5 * scale
    assert (of_base - ours).abs().max() > 1e-2 * scale, "the adapter changes nothing"


@torch.no_grad()
def test_a_prompt_becomes_our_picture(tmp_path):
    """With diffusers' own tokenizer, text encoder and auto-encoder, before 8 bits."""
    base, adapter = tmp_path / "base", tmp_path / "model"
    write_pipeline(base)
    write_adapter(adapter, base)
    net = OneStepNetwork(adapter, 2)
    latents = seeded_latents(SEEDS, net.shape)
    made = net.sampler[0](Inputs(latents, net.conditions(None, [PROMPT])(SEEDS)))
    ours = (net.codec.decode(made) / 2 + 0.5).clip(0, 1)
    pipe = pipeline_of(
        "stable-diffusion",
        base,
        text_encoder=CLIPTextModel.from_pretrained(base / "text_encoder"),
        tokenizer=CLIPTokenizer.from_pretrained(base / "tokenizer"),
    )
    pipe.load_lora_weights(str(adapter))
    told: dict[str, Any] = {"num_inference_steps": 1, "guidance_scale": 0, "output_type": "np"}
    theirs = pipe(2 * [PROMPT], latents=latents, **told).images
    assert theirs.shape == (2, 32, 32, 3)
    assert (torch.from_numpy(theirs).permute(0, 3, 1, 2) - ours).abs().max() < 1e-5


def test_the_file_says_what_peft_is_made_of(tmp_path):
    """alpha too, which would be taken for the rank; names are whole: endings with a star, as ours,
    and those of other parts of the pipeline, would be something else to PEFT.
    """
    write_pipeline(tmp_path / "base")
    network = write_adapter(tmp_path / "model", tmp_path / "base")
    with safe_open(tmp_path / "model" / "model.safetensors", framework="pt") as file:
        found = json.loads(file.metadata()[PEFT_METADATA])
        names = set(file.keys())
    assert (found.pop("unet.r"), found.pop("unet.lora_alpha")) == (RANK, ALPHA)
    (targets,) = found.values()
    assert {f"unet.{t}.lora_{letter}.weight" for t in targets for letter in "AB"} == names
    assert 2 * len(targets) == sum(1 for _ in network.parameters())


def test_files_of_checkpoints_say_the_same(tmp_path):
    """They are written as they come, by another writer."""
    write_pipeline(tmp_path / "base")
    network = write_adapter(tmp_path / "model", tmp_path / "base")
    write_average(tmp_path / "ema", network.state_dict(), read_description(tmp_path / "model"))
    found = []
    for folder in ("model", "ema"):
        with safe_open(tmp_path / folder / "model.safetensors", framework="pt") as file:
            found.append((file.metadata(), sorted(file.keys())))
    assert found[0] == found[1]


@torch.no_grad()
def test_the_lines_of_the_model_card_run(tmp_path):
    """With the base and the folder put in their place, by a pipeline of the folder's own parts."""
    base, adapter = tmp_path / "base", tmp_path / "model"
    write_pipeline(base)
    (base / "model_index.json").write_text(json.dumps(INDEX))
    write_adapter(adapter, base)
    config = replace(recipe("sd15-lsg-kappa3"), teacher__source=str(base))
    card = model_card(config, read_description(adapter), 64, {}, "abc", 1234)
    assert "library_name: diffusers" in card and "- lora" in card and "1,234 bytes" in card
    assert f"rank {RANK}, alpha {ALPHA}" in card and "strength of 2.5" in card
    (lines,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    lines = lines.replace('("base"', f'("{base}"').replace("FOLDER", str(adapter))
    lines = lines.replace("128", "32")  # its VAE halves sides
    made: dict[str, Any] = {}
    exec(lines, made)
    net = OneStepNetwork(adapter, 2)
    latents = seeded_latents(SEEDS, net.shape)
    ours = net.sampler[0](Inputs(latents, net.conditions(None, [PROMPT])(SEEDS)))
    told: dict[str, Any] = {"num_inference_steps": 1, "guidance_scale": 1}
    told |= {"output_type": "latent", "latents": latents, "height": 32, "width": 32}
    theirs = made["pipe"](2 * [PROMPT], **told).images
    assert made["image"].size == (32, 32)
    assert (theirs - ours).abs().max() < 1e-5 * ours.abs().max()
