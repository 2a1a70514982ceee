"""Tiny teachers of flow matching in pipelines' folders: SD3, SANA and FLUX, with text encoders
and auto-encoders. Random weights under a fixed seed, from configs.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch

from tests.denoisers.tiny_text import (
    CLIP_WIDTHS,
    GEMMA_WIDTH,
    T5_WIDTH,
    write_gemma,
    write_three_encoders,
    write_two_encoders,
)

SIZE = 8  # of a latent


def write_scheduler(folder: Path) -> None:
    values = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
    (folder / "scheduler").mkdir(parents=True)
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(values))


def write_shifted_vae(folder: Path) -> None:
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16),
        latent_channels=4,
        norm_num_groups=4,
        sample_size=2 * SIZE,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=1.5305,
        shift_factor=0.0609,
    ).save_pretrained(folder / "vae")


def write_deep_vae(folder: Path) -> None:
    from diffusers import AutoencoderDC

    torch.manual_seed(0)
    AutoencoderDC(
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
        scaling_factor=0.41407,
    ).save_pretrained(folder / "vae")


def write_sd3(folder: Path) -> None:
    from diffusers import SD3Transformer2DModel

    torch.manual_seed(0)
    SD3Transformer2DModel(
        sample_size=SIZE,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=T5_WIDTH,
        caption_projection_dim=16,
        pooled_projection_dim=sum(CLIP_WIDTHS),
        pos_embed_max_size=8,
    ).save_pretrained(folder / "transformer")
    write_three_encoders(folder)
    write_shifted_vae(folder)
    write_scheduler(folder)


def write_sana(folder: Path) -> None:
    from diffusers import SanaTransformer2DModel

    torch.manual_seed(0)
    SanaTransformer2DModel(
        sample_size=SIZE,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        cross_attention_head_dim=8,
        num_cross_attention_heads=2,
        cross_attention_dim=16,
        caption_channels=GEMMA_WIDTH,
    ).save_pretrained(folder / "transformer")
    write_gemma(folder)
    write_deep_vae(folder)
    write_scheduler(folder)


def write_flux(folder: Path) -> None:
    """Its config names no size: ``latent_size`` is added, which is this project's."""
    from diffusers import FluxTransformer2DModel

    torch.manual_seed(0)
    FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=T5_WIDTH,
        pooled_projection_dim=CLIP_WIDTHS[0],
        axes_dims_rope=(2, 2, 4),
        guidance_embeds=True,
    ).save_pretrained(folder / "transformer")
    path = folder / "transformer" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"latent_size": SIZE}))
    write_two_encoders(folder)
    write_shifted_vae(folder)
    write_scheduler(folder)


WRITERS: dict[str, Callable[[Path], None]] = {
    "sd3": write_sd3,
    "sana": write_sana,
    "flux": write_flux,
}
