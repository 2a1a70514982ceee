"""Writes small checkpoints of the first Stable Diffusion code: a pipeline in one file.

Networks of diffusers and transformers, made from configs, under the names of that code. The names
are written out here and not taken from the converters that read them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

Tensors = dict[str, Tensor]
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
OUTSIDE = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
SD1 = {
    "sample_size": 64,
    "block_out_channels": (32, 32, 64, 64),
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "cross_attention_dim": 64,
    "attention_head_dim": 8,
}
SD2 = SD1 | {
    "block_out_channels": (64, 64, 128, 128),
    "cross_attention_dim": 1024,
    "attention_head_dim": (1, 1, 2, 2),
    "use_linear_projection": True,
}
SDXL = {
    "sample_size": 128,
    "block_out_channels": (32, 64, 64),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 3),
    "cross_attention_dim": 96,
    "attention_head_dim": (1, 1, 1),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 32 + 6 * 256,
}
VAE = {
    "block_out_channels": (32, 32, 64, 64),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}


def make_unet(config: Mapping[str, Any] = SD1, **other: Any) -> Any:
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    return UNet2DConditionModel(**dict(config) | other)


def make_vae(**other: Any) -> Any:
    from diffusers import AutoencoderKL

    torch.manual_seed(1)
    return AutoencoderKL(**VAE | other)


def make_text(width: int = 64, activation: str = "quick_gelu", vocabulary: int = 100) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(2)
    config = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=max(1, width // 64),
        max_position_embeddings=77,
        hidden_act=activation,
        bos_token_id=0,
        eos_token_id=2,
        projection_dim=width,
    )
    return CLIPTextModel(config)


def ldm_unet(unet: Any, prefix: str = "model.diffusion_model.") -> Tensors:
    """A U-Net's tensors under the names of the first code."""
    return {prefix + _unet_name(n): v for n, v in unet.state_dict().items()}


def _unet_name(name: str) -> str:
    for ours, theirs in OUTSIDE.items():
        if name.startswith(ours + "."):
            return theirs + name.removeprefix(ours)
    kind, *rest = name.split(".")
    if kind == "mid_block":
        block = f"middle_block.{1 if rest[0] == 'attentions' else 2 * int(rest[1])}"
        return f"{block}.{_inside(rest[0], rest[2:])}"
    level, layer, number, *tail = rest
    level, number = int(level), int(number)
    if kind == "down_blocks":
        if layer == "downsamplers":
            return f"input_blocks.{3 * level + 3}.0.op.{tail[-1]}"
        place = f"input_blocks.{3 * level + number + 1}"
    else:
        if layer == "upsamplers":
            return f"output_blocks.{3 * level + 2}.UP.conv.{tail[-1]}"
        place = f"output_blocks.{3 * level + number}"
    return f"{place}.{0 if layer == 'resnets' else 1}.{_inside(layer, tail)}"


def _inside(layer: str, tail: list[str]) -> str:
    if layer == "resnets":
        tail = [RESNET[tail[0]], *tail[1:]]
    return ".".join(tail)


def with_upsamplers(tensors: Tensors, marks: str = "UP") -> Tensors:
    """Upsamplers come behind attention where a block has some: second, else third."""
    found = {}
    for name, value in tensors.items():
        if f".{marks}." in name:
            block = name.partition(f".{marks}.")[0]
            second = any(n.startswith(f"{block}.1.") for n in tensors)
            name = name.replace(f".{marks}.", ".2." if second else ".1.")
        found[name] = value
    return found


def ldm_vae(vae: Any, prefix: str = "first_stage_model.") -> Tensors:
    """A VAE's tensors under the names of the first code, attention as convolutions."""
    levels = len(vae.config.block_out_channels)
    found = {}
    for name, value in vae.state_dict().items():
        parts = name.split(".")
        if "down_blocks" in parts or "up_blocks" in parts:
            up = parts[1] == "up_blocks"
            level = levels - 1 - int(parts[2]) if up else int(parts[2])
            kind = {"resnets": f"block.{parts[4]}"}.get(
                parts[3], "upsample" if up else "downsample"
            )
            name = ".".join([parts[0], "up" if up else "down", str(level), kind, *parts[5:]])
        elif "mid_block" in parts and parts[2] == "resnets":
            name = ".".join([parts[0], "mid", f"block_{int(parts[3]) + 1}", *parts[4:]])
        elif "mid_block" in parts:
            tail = ".".join(parts[4:]).replace("group_norm", "norm").replace("to_out.0", "proj_out")
            for letter in "qkv":
                tail = tail.replace(f"to_{letter}", letter)
            name = f"{parts[0]}.mid.attn_1.{tail}"
            value = value[:, :, None, None] if value.ndim == 2 else value
        name = name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
        found[prefix + name] = value
    return found


def old_names(text: Any) -> Tensors:
    """A text encoder's tensors with text_model in front, as files have them."""
    front = "text_model."
    state = text.state_dict().items()
    return {n if n.startswith((front, "text_proj")) else front + n: v for n, v in state}


def ldm_clip(text: Any, prefix: str = "cond_stage_model.transformer.") -> Tensors:
    ids = torch.arange(77)[None]  # files of that time hold them
    named = {prefix + name: value for name, value in old_names(text).items()}
    return named | {f"{prefix}text_model.embeddings.position_ids": ids}


def ldm_open_clip(text: Any, prefix: str = "cond_stage_model.model.") -> Tensors:
    """Under the names of OpenCLIP, where query, key and value are one matrix."""
    named = old_names(text)
    found = {
        "positional_embedding": named.pop("text_model.embeddings.position_embedding.weight"),
        "token_embedding.weight": named.pop("text_model.embeddings.token_embedding.weight"),
        "ln_final.weight": named.pop("text_model.final_layer_norm.weight"),
        "ln_final.bias": named.pop("text_model.final_layer_norm.bias"),
        "logit_scale": torch.tensor(1.0),
    }
    if "text_projection.weight" in named:
        found["text_projection"] = named.pop("text_projection.weight").T.contiguous()
    for name in list(named):
        if ".self_attn.q_proj." in name:
            three = [named.pop(name.replace("q_proj", f"{letter}_proj")) for letter in "qkv"]
            kind = name.rpartition(".")[2]
            named[name.replace(f"q_proj.{kind}", f"in_proj_{kind}")] = torch.cat(three)
    for name, value in named.items():
        name = name.replace("text_model.encoder.layers.", "transformer.resblocks.")
        for ours, theirs in (
            ("self_attn", "attn"),
            ("layer_norm1", "ln_1"),
            ("layer_norm2", "ln_2"),
            ("fc1", "c_fc"),
            ("fc2", "c_proj"),
        ):
            name = name.replace(f".{ours}.", f".{theirs}.")
        found[name] = value
    return {prefix + name: value.contiguous() for name, value in found.items()}


def pipeline_in_one(unet: Any, text: Any = None, vae: Any = None) -> Tensors:
    """A version 1 pipeline's tensors under the names of the first code."""
    tensors = with_upsamplers(ldm_unet(unet))
    tensors |= ldm_clip(text) if text is not None else {}
    tensors |= ldm_vae(vae) if vae is not None else {}
    return {name: value.clone() for name, value in tensors.items()}
