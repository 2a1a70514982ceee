"""Complete pipeline folders like Stable Diffusion's, made from configs: a few hundred kilobytes.

Random weights under a fixed seed. The layout and file names are those of the hub's folders.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

START, END = "<|startoftext|>", "<|endoftext|>"
WORDS = ("a", "cat", "dog", "red", "of", "photo")
TEXT_WIDTH = 24
SCHEDULER = {
    "_class_name": "PNDMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "trained_betas": None,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "prediction_type": "epsilon",
}


def byte_pairs() -> tuple[dict[str, int], list[str]]:
    """A CLIP-like vocabulary and its merges: "!" is 0, start and end are the last two."""
    letters = ["!", *"abcdefghijklmnopqrstuvwxyz.,'"]
    tokens = [*letters, *(letter + "</w>" for letter in letters)]
    merges = []
    for word in WORDS:
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            pair, parts = parts[:2], ["".join(parts[:2]), *parts[2:]]
            merges.append(" ".join(pair))
            tokens.append(parts[0])
    tokens = [*dict.fromkeys(tokens), START, END]
    return {token: index for index, token in enumerate(tokens)}, list(dict.fromkeys(merges))


def write_tokenizer(folder: Path, pad: str) -> dict[str, int]:
    """vocab.json, merges.txt and the two JSONs of a hub tokenizer; returns the vocabulary.

    As in the hub's folders, tokenizer_config.json names the end token even where
    special_tokens_map.json pads with another (SD 2: "!").
    """
    folder.mkdir(parents=True)
    vocabulary, merges = byte_pairs()
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": pad}
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    config = special | {"pad_token": END, "model_max_length": 77, "do_lower_case": True}
    config["tokenizer_class"] = "CLIPTokenizer"
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return vocabulary


NOTHING: dict[str, Any] = {}
UNET: dict[str, Any] = {
    "sample_size": 16,
    "layers_per_block": 1,
    "block_out_channels": (8, 16),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": TEXT_WIDTH,
    "attention_head_dim": 4,
    "norm_num_groups": 4,
}


def write_pipeline(
    folder: Path,
    pad: str = END,
    prediction_type: str = "epsilon",
    scheduler: Mapping[str, Any] = NOTHING,
    **unet: Any,
) -> None:
    """unet, vae, text_encoder, tokenizer and scheduler; ``unet`` and ``scheduler`` say what of
    these is other.
    """
    from transformers import CLIPTextModel

    vocabulary = write_tokenizer(folder / "tokenizer", pad)
    torch.manual_seed(0)
    write_unet(folder, **unet)
    write_vae(folder, scaling_factor=0.18215)
    CLIPTextModel(text_config(vocabulary, TEXT_WIDTH)).save_pretrained(folder / "text_encoder")
    write_scheduler(folder, prediction_type=prediction_type, **scheduler)


XL_WIDTHS = 8, 16, 12  # of both encoders' states, and of the projection of the second one's


def write_xl_pipeline(folder: Path, **unet: Any) -> None:
    """SDXL's: two encoders and tokenizers, of which the second pads with "!", zeros for the empty
    prompt, an auto-encoder that overflows in float16.
    """
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    vocabulary = write_tokenizer(folder / "tokenizer", END)
    write_tokenizer(folder / "tokenizer_2", "!")
    torch.manual_seed(0)
    first, second, projected = XL_WIDTHS
    write_unet(folder, **xl_unet(first + second, projected) | unet)
    write_vae(folder, scaling_factor=0.13025, force_upcast=True)
    CLIPTextModel(text_config(vocabulary, first)).save_pretrained(folder / "text_encoder")
    config = text_config(vocabulary, second, projection_dim=projected, hidden_act="gelu")
    CLIPTextModelWithProjection(config).save_pretrained(folder / "text_encoder_2")
    write_scheduler(folder, _class_name="EulerDiscreteScheduler")
    index = {"_class_name": "StableDiffusionXLPipeline", "force_zeros_for_empty_prompt": True}
    (folder / "model_index.json").write_text(json.dumps(index))


def xl_unet(width: int, projected: int) -> dict[str, Any]:
    """What SDXL's U-Net has that Stable Diffusion's has not."""
    return {
        "cross_attention_dim": width,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": projected + 6 * 8,
        "transformer_layers_per_block": (2, 1),
        "use_linear_projection": True,
    }


def write_unet(folder: Path, **unet: Any) -> None:
    from diffusers import UNet2DConditionModel

    UNet2DConditionModel(**UNET | unet).save_pretrained(folder / "unet")


def write_vae(folder: Path, **options: Any) -> None:
    from diffusers import AutoencoderKL

    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=32,
        **options,
    )
    vae.save_pretrained(folder / "vae")


def text_config(vocabulary: dict[str, int], width: int, **options: Any) -> Any:
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=len(vocabulary),
        hidden_size=width,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        bos_token_id=vocabulary[START],
        eos_token_id=vocabulary[END],
        **options,
    )


def write_scheduler(folder: Path, **changes: Any) -> None:
    (folder / "scheduler").mkdir()
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(SCHEDULER | changes))
