"""What other programs' networks are that cannot be distilled here, in words for a refusal."""

from __future__ import annotations

import re
from collections.abc import Iterable

# Part of a class's name -> what it is, and what to do. The first that fits counts.
KINDS = (
    (
        r"ControlNet|T2IAdapter|MotionAdapter|MultiAdapter",
        "steers another network and makes no images itself: give the pipeline that it steers",
    ),
    (
        r"Autoencoder|VQModel|VAE",
        "is an auto-encoder, which turns images into latents: give it as --teacher.vae, and the "
        "network that makes the latents as --teacher.source",
    ),
    (
        r"TextModel|TextEncoder|EncoderModel|ForCausalLM|T5|Gemma",
        "is a text encoder: give it as --teacher.text-encoder, and the network that it serves as "
        "--teacher.source",
    ),
    (
        r"3D|Video|Wan|LTX|Mochi|Motion|SpatioTemporal|Allegro|EasyAnimate",
        "makes video, and only images are distilled here",
    ),
    (r"Audio|Music|Sound|1DModel|1d", "makes sound, and only images are distilled here"),
    (r"Scheduler", "is a scheduler, which holds no network"),
    (r"Upscale|SuperRes", "makes images larger, and needs one to begin with"),
)

# What the tensors are of a file that does not say it.
NAMES = (
    (
        ("control_model.", "controlnet_", "input_hint_block."),
        "holds a ControlNet, which steers another network: give the pipeline that it steers",
    ),
    (
        ("encoder.down", "decoder.up", "first_stage_model.", "quant_conv."),
        "holds a VAE, which turns images into latents: give it as --teacher.vae, and the network "
        "that makes the latents as --teacher.source",
    ),
    (
        ("text_model.", "cond_stage_model."),
        "holds a text encoder: give a folder with it as --teacher.text-encoder, and the network "
        "that it serves as --teacher.source",
    ),
)


def class_in_words(class_name: str) -> str:
    """What a network is by the name of its class; empty where that does not say it."""
    return next((words for pattern, words in KINDS if re.search(pattern, class_name)), "")


def names_in_words(names: Iterable[str]) -> str:
    """What a file holds by its tensors' names; empty where they do not say it."""
    given = list(names)
    for fronts, words in NAMES:
        if any(name.startswith(fronts) for name in given):
            return words
    return ""
