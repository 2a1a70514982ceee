"""Whole folders of SD3, FLUX and SANA in small: transformer, VAE, text encoders, scheduler.

Random weights under a fixed seed, in the layout and under the names of the hub's folders.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from tests.denoisers.tiny_text import (
    CLIP_WIDTHS,
    GEMMA_WIDTH,
    T5_WIDTH,
    write_gemma,
    write_three_encoders,
    write_two_encoders,
)

BODY: dict[str, Any] = {"num_layers": 1, "attention_head_dim": 8, "num_attention_heads": 2}
SD3 = BODY | {
    "sample_size": 8,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "joint_attention_dim": T5_WIDTH,
    "caption_projection_dim": 16,
    "pooled_projection_dim": sum(CLIP_WIDTHS),
    "pos_embed_max_size": 8,
}
FLUX = BODY | {
    "in_channels": 64,
    "num_single_layers": 1,
    "joint_attention_dim": T5_WIDTH,
    "pooled_projection_dim": 12,
    "axes_dims_rope": (2, 2, 4),
    "guidance_embeds": True,
}
SANA = BODY | {
    "sample_size": 8,
    "patch_size": 1,
    "in_channels": 4,
    "out_channels": 4,
    "cross_attention_head_dim": 8,
    "num_cross_attention_heads": 2,
    "cross_attention_dim": 16,
    "caption_channels": GEMMA_WIDTH,
}


def write_flow_pipeline(folder: Path, name: str) -> None:
    """A folder of the family ``name``: sd3, flux or sana."""
    import diffusers

    torch.manual_seed(0)
    kinds = {
        "sd3": (diffusers.SD3Transformer2DModel, SD3, write_three_encoders),
        "flux": (diffusers.FluxTransformer2DModel, FLUX, write_two_encoders),
        "sana": (diffusers.SanaTransformer2DModel, SANA, write_gemma),
    }
    made, arguments, write_encoders = kinds[name]
    made(**arguments).save_pretrained(folder / "transformer")
    auto_encoder = deep_vae() if name == "sana" else shifted_vae()
    auto_encoder.save_pretrained(folder / "vae")
    write_encoders(folder)
    values = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(values))


def shifted_vae() -> Any:
    """An AutoencoderKL of 16 channels that shifts its latents."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16),
        latent_channels=16,
        norm_num_groups=4,
        sample_size=16,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=1.5305,
        shift_factor=0.0609,
    )


def deep_vae() -> Any:
    """A DC-AE."""
    from diffusers import AutoencoderDC

    sizes: dict[str, Any] = {"latent_channels": 4, "attention_head_dim": 2}
    for half in ("encoder", "decoder"):
        sizes |= {
            f"{half}_block_types": ("ResBlock", "EfficientViTBlock"),
            f"{half}_block_out_channels": (8, 8),
            f"{half}_layers_per_block": (1, 1),
            f"{half}_qkv_multiscales": ((), (5,)),
        }
    return AutoencoderDC(**sizes, scaling_factor=0.41407)
