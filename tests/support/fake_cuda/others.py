"""Paths beside training: sampling, features of an evaluation, auto-encoders, text encoders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from sid_ray.denoisers import clip_states, clip_text, flow_prompts, sdxl, sdxl_text
from sid_ray.denoisers.encoder_parts import CLIP, PROJECTED_CLIP, T5, EncoderKind, LoadedPart
from sid_ray.denoisers.family import Family
from sid_ray.denoisers.flow_family import FlowFamily
from sid_ray.denoisers.flow_latents import DeepLatents
from sid_ray.denoisers.precondition import set_precision
from sid_ray.denoisers.prompt_layout import PromptLayout
from sid_ray.denoisers.registry import family_of
from sid_ray.denoisers.stored_text import EncodePrompts, PromptFolder, StoredEmbeddings
from sid_ray.denoisers.text import TextEmbeddings
from sid_ray.metrics import extractors
from sid_ray.metrics.extractors import extract, load_extractor
from sid_ray.metrics.features import load_feature_space
from tests.support.fake_cuda.cases import NETWORKS, Case
from tests.support.fake_cuda.machine import CUDA, fake_module, replace_tensors
from tests.support.fake_cuda.watch import Watch

TOKENS, WORDS = 77, 99
STORED = ("a stored prompt", "another one")
T5_ALIASES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")


def meta(build: Callable[[], nn.Module]) -> nn.Module:
    """A module of fake tensors in host memory, from what builds it."""
    with torch.device("meta"):
        module = build()
    return fake_module(module.eval().requires_grad_(False))


# Text ---------------------------------------------------------------------------------------------


def text_encoder(width: int, projection: int = 0) -> nn.Module:
    """A CLIP, with a projection of that width where there is one."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=WORDS,
        hidden_size=width,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=TOKENS,
        eos_token_id=2,
        projection_dim=projection,
    )
    return meta(lambda: (CLIPTextModelWithProjection if projection else CLIPTextModel)(config))


class Tokenizer:
    """A tokenizer that finds the same tokens in every prompt."""

    model_max_length = TOKENS

    def __call__(self, prompts: Sequence[str], max_length: int, **kwargs: Any) -> Any:
        ids = torch.ones(len(prompts), max_length, dtype=torch.int64)
        return SimpleNamespace(input_ids=ids, attention_mask=ids)

    def encode(self, text: str) -> list[int]:
        return [1] * 5


def encoder_part(kind: EncoderKind, layout: PromptLayout, dtype: torch.dtype) -> LoadedPart:
    """An encoder of a kind, as wide as a layout asks: of two CLIPs each has half of it."""
    import transformers

    half = layout.pooled // 2
    small: dict[str, Any] = {
        "vocab_size": WORDS,
        "hidden_size": layout.width,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    if kind is PROJECTED_CLIP:
        small |= {"hidden_size": half - half % 2, "projection_dim": half, "eos_token_id": 3}
    elif kind is CLIP:
        small |= {"hidden_size": layout.pooled, "eos_token_id": 3}
    elif kind is T5:
        small |= {"d_model": layout.width, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2}
        small = {name: value for name, value in small.items() if name not in T5_ALIASES}
    else:
        small |= {"head_dim": 4, "num_key_value_heads": 1}
    config = getattr(transformers, kind.config)(**small)
    encoder = meta(lambda: getattr(transformers, kind.name)(config))
    return LoadedPart(encoder.to(CUDA, dtype), Tokenizer())


def opened(family: FlowFamily, layout: PromptLayout, dtype: torch.dtype) -> EncodePrompts:
    """A family's own use of encoders that are made, not read."""

    def part(folder: Path, name: str, kind: EncoderKind, *others: Any) -> LoadedPart:
        return encoder_part(kind, layout, dtype)

    patches = {"load_part": part, "has_third": lambda folder: True, "instruction": lambda: "x"}
    with mock.patch.multiple(flow_prompts, **patches):
        return family.prompts().open(Path("nowhere"), CUDA, dtype, layout)


class FakeFolder(PromptFolder):
    """Keeps nothing, and holds the rows of ``STORED``."""

    def __init__(self, layout: PromptLayout, dtype: torch.dtype):
        super().__init__("", layout.shape, dtype)
        self.usable = False

    def read(self, prompt: str) -> Tensor | None:
        return torch.zeros(self.shape, dtype=self.dtype) if prompt in STORED else None


def text_of(family: str, precision: str, variant: str = "") -> TextEmbeddings:
    """A family's text encoder on the device, as data_of loads it."""
    own, network = family_of(family), NETWORKS[family, variant]
    shape = own.text_shape(network)
    assert shape is not None
    patches = {
        "load_encoder": lambda folder: text_encoder(shape[1]),
        "load_tokenizer": lambda folder: Tokenizer(),
        "tokenizer_folder": lambda folder: folder,
    }
    if family == "sdxl":
        return two_encoders(own, NETWORKS[family, variant], precision)
    with mock.patch.multiple(clip_text, **patches):
        text = own.load_text(Path("nowhere"), CUDA, precision, network)
    if isinstance(own, FlowFamily):
        assert isinstance(text, StoredEmbeddings)
        layout = own.layout(network)
        dtype = torch.float32 if precision == "float32" else torch.bfloat16
        text.open_encoders = lambda: opened(own, layout, dtype)
        text.open_folder = lambda: FakeFolder(layout, dtype)
    return text


def two_encoders(own: Family, network: dict[str, Any], precision: str) -> TextEmbeddings:
    """SDXL's: one encoder with a third of the width, one with the rest and the pooled prompt."""
    layout = sdxl.prompt_layout(network)
    widths = {sdxl_text.FIRST: (layout.width // 3, 0)}
    widths[sdxl_text.SECOND] = layout.width - layout.width // 3, layout.pooled

    def load(folder: Path, part: str, kind: Any, device: Any, dtype: torch.dtype) -> LoadedPart:
        return LoadedPart(text_encoder(*widths[part]).to(device, dtype), Tokenizer())

    with (
        mock.patch.object(clip_states, "load_part", load),
        mock.patch.object(sdxl_text, "layout_of_encoders", lambda folder: layout),
    ):
        return own.load_text(Path("nowhere"), CUDA, precision)


def text(case: Case, watch: Watch) -> None:
    with watch.during("build"):
        embeddings = text_of(case.family, case.precision, case.variant)
    with watch.during("text"):
        embeddings.embed(["a cat", "a dog", *STORED])


# Sampling -----------------------------------------------------------------------------------------


def sample(case: Case, watch: Watch) -> None:
    """Images by a generator of one step and of several, and by the teacher's own sampler."""
    from sid_ray.evaluation.samplers import (
        Inputs,
        generator_sampler,
        sample_in_batches,
        seeded_latents,
        seeded_noises,
    )
    from sid_ray.types import Condition
    from tests.support.fake_cuda.paths import config_of, description_of, laid_out

    config, family = config_of(case), family_of(case.family)
    network = NETWORKS[case.family, case.variant]
    net = laid_out(description_of(case)).to(CUDA)
    set_precision(net, case.precision)
    shape, seeds = family.shape(network), range(4)
    width = family.text_shape(network)
    wide = None if width is None else torch.randn(4, *width)
    classes = torch.zeros(4, family.label_dim(network)) if family.label_dim(network) else None
    cond = Condition(classes, text=wide)
    schedule = family.noise.schedule(config.schedule)
    for steps in (1, 2):
        inputs = Inputs(seeded_latents(seeds, shape), cond, seeded_noises(seeds, shape, steps))
        with watch.during(f"generator in {steps}"):
            sampler = generator_sampler(net, schedule, steps)
            sample_in_batches(sampler, inputs.to(CUDA), 2, pad=True)
    null = None if width is None else torch.randn(width, device=CUDA)
    with watch.during("teacher"), torch.no_grad():
        here = Inputs(seeded_latents(seeds, shape), cond).to(CUDA)
        guided = family.noise.sampler(config.schedule, 3, 2.0 if family.reads_text else 1.0)
        guided.run(net, here.latents, here.cond, null)


# Evaluation ---------------------------------------------------------------------------------------


def features(case: Case, watch: Watch) -> None:
    """Features of images by an extractor, which ``variant`` names."""
    extractor = extractor_of(case.variant)
    channels, height, width = extractor.shape
    size = (2, channels, 32, 32) if extractor.resizes else (2, channels, height, width)
    images = torch.zeros(size, dtype=torch.uint8)
    with watch.during("features"):
        extract(extractor, images)


def extractor_of(name: str) -> Any:
    """An extractor on the device: as it is loaded, but for the numbers of its weights."""
    if name == "lite0":
        from efficientnet_lite_pytorch import EfficientNet

        from sid_ray.metrics.lite0 import Lite0

        return Lite0(name, meta(lambda: EfficientNet.from_name("efficientnet-lite0")), CUDA)
    if name == "dinov2":
        from transformers import Dinov2Config, Dinov2Model

        from sid_ray.metrics.dinov2 import DINOv2

        small = Dinov2Config(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=2, patch_size=14,
            image_size=28,
        )  # fmt: skip
        return DINOv2(meta(lambda: Dinov2Model(small)), "0" * 64, CUDA)
    with mock.patch.object(extractors, "load_feature_space", lambda name: SPACES[name]):
        return load_extractor(name, CUDA)


class Spaces(dict[str, Any]):
    """Feature spaces with fake networks."""

    def __missing__(self, name: str) -> Any:
        from torch._subclasses.fake_tensor import unset_fake_temporarily

        with unset_fake_temporarily():
            space = load_feature_space(name)
        replace_tensors(space.network)
        return space


SPACES = Spaces()


# Auto-encoders ------------------------------------------------------------------------------------


def auto_encoder() -> nn.Module:
    from diffusers import AutoencoderKL

    return meta(
        lambda: AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(8, 16),
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=4,
            sample_size=16,
        )
    )


def deep_auto_encoder() -> nn.Module:
    from diffusers import AutoencoderDC

    sizes: dict[str, Any] = {"attention_head_dim": 2, "latent_channels": 4}
    for half in ("encoder", "decoder"):
        sizes |= {
            f"{half}_block_types": ("ResBlock", "EfficientViTBlock"),
            f"{half}_block_out_channels": (8, 8),
            f"{half}_layers_per_block": (1, 1),
            f"{half}_qkv_multiscales": ((), (5,)),
        }
    return meta(lambda: AutoencoderDC(**sizes))


def codec(case: Case, watch: Watch) -> None:
    """Pictures to latents and back by a family's convention."""
    convention = family_of(case.family).latent_convention()
    made = deep_auto_encoder if isinstance(convention, DeepLatents) else auto_encoder
    found = convention.codec(made().to(CUDA, convention.dtype(case.precision)), 2)
    images = torch.zeros(4, 3, 16, 16, device=CUDA)
    with watch.during("encode"):
        noise = torch.randn(4, 4, 8, 8, device=CUDA)
        latents: Tensor = found.encode(images, noise)
    with watch.during("decode"):
        found.decode_uint8(latents)


PATHS: dict[str, Callable[[Case, Watch], None]] = {
    "sample": sample,
    "features": features,
    "codec": codec,
    "text": text,
}
