"""A CLIP network with random weights and its tokenizer, in the layout of the published ones."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from transformers import CLIPConfig, CLIPModel

from sid_ray.denoisers.clip_text import load_tokenizer
from sid_ray.metrics.features import ASSETS

TOKENIZER = ASSETS / "emoji-teacher" / "tokenizer"


def write_clip(folder: Path, seed: int = 0, scale: float = 4.6052) -> CLIPModel:
    """Into a folder. ``scale`` is the logarithm of that of the cosines; published ones have 100."""
    torch.manual_seed(seed)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    small |= {"num_attention_heads": 2}
    shutil.copytree(TOKENIZER, folder, dirs_exist_ok=True)
    end = load_tokenizer(folder).eos_token_id  # whose embedding is the text's
    text = small | {"vocab_size": 4096, "max_position_embeddings": 20, "eos_token_id": end}
    vision = small | {"image_size": 32, "patch_size": 8}
    config = CLIPConfig(
        text_config=text, vision_config=vision, projection_dim=8, logit_scale_init_value=scale
    )
    network = CLIPModel(config).eval()
    network.save_pretrained(folder)
    return network
