"""What SD3, FLUX and SANA make of a prompt, as their pipelines in diffusers do.

Symbols
    B, L, E   prompts, tokens, width of a token's embedding          P   width of the pooled one
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from sid_ray.denoisers.clip_states import clip_states_of, clip_widths
from sid_ray.denoisers.component import component_of, read_config
from sid_ray.denoisers.encoder_parts import (
    CLIP,
    GEMMA2,
    PROJECTED_CLIP,
    T5,
    EncoderKind,
    LoadedPart,
    check_part,
    load_part,
    to_device,
)
from sid_ray.denoisers.prompt_encoders import PromptEncoders
from sid_ray.denoisers.prompt_layout import Prompt, PromptLayout
from sid_ray.denoisers.stored_text import EncodePrompts
from sid_ray.errors import UserError

FIRST, SECOND, THIRD = "text_encoder", "text_encoder_2", "text_encoder_3"
CLIP_TOKENS = 77  # of SD3's T5, too
T5_XXL = 4096  # width of the only T5 that was published with these pipelines
Device = torch.device | str


def t5_states(part: LoadedPart, prompts: Sequence[str], tokens: int) -> Tensor:
    """[B, tokens, E] float32; padding is not masked, as published."""
    states: Tensor = part.encoder(padded_tokens(part, prompts, tokens)[0])[0]
    return states.float()


def padded_tokens(part: LoadedPart, prompts: Sequence[str], tokens: int) -> tuple[Tensor, Tensor]:
    """Of every prompt as many tokens, and which of them are no padding, on the encoder's device."""
    shape = {"padding": "max_length", "truncation": True, "max_length": tokens}
    found = part.tokenizer(list(prompts), return_tensors="pt", **shape)
    device = part.encoder.device
    return to_device(found.input_ids, device), to_device(found.attention_mask, device)


def encoder_config(folder: Path, part: str, kind: EncoderKind) -> dict[str, Any]:
    """All values of an encoder's config, the library's own where its file is silent."""
    import transformers

    own = component_of(folder, part)
    given = read_config(own, *kind.names)
    values: dict[str, Any] = getattr(transformers, kind.config).from_dict(given).to_dict()
    return values


def refuse_other(folder: Path, what: str, own: int, reads: int) -> None:
    """Raises UserError where two widths differ."""
    if own != reads:
        raise UserError(
            f"the text encoders in {folder} make {what} of width {own}, the network reads {reads}: "
            "take those that it was trained with"
        )


class TwoClipsAndT5(PromptEncoders):
    """SD3: the penultimate states of two CLIPs side by side, zeros up to the width, followed by
    T5's, or zeros where a folder has no T5 (none, where the network reads no token more); pooled
    are both projections, one behind the other.
    """

    classes: ClassVar = {FIRST: PROJECTED_CLIP.names, SECOND: PROJECTED_CLIP.names, THIRD: T5.names}

    def layout_of(self, folder: Path) -> PromptLayout:
        pooled = sum(
            encoder_config(folder, p, PROJECTED_CLIP)["projection_dim"] for p in (FIRST, SECOND)
        )
        width = encoder_config(folder, THIRD, T5)["d_model"] if has_third(folder) else T5_XXL
        return PromptLayout(2 * CLIP_TOKENS, width, pooled)

    def check(self, folder: Path, layout: PromptLayout) -> None:
        first, second = (clip_widths(folder, part, projected=True) for part in (FIRST, SECOND))
        refuse_other(folder, "pooled embeddings", first.projected + second.projected, layout.pooled)
        if layout.tokens < first.tokens + has_third(folder):
            raise UserError(
                f"the network reads {layout.tokens} tokens, the CLIP in {folder} alone makes "
                f"{first.tokens}: set its text_tokens to more"
            )
        if first.width + second.width > layout.width:
            refuse_other(folder, "embeddings", first.width + second.width, layout.width)
        if has_third(folder):
            refuse_other(
                folder / THIRD, "embeddings", check_part(folder, THIRD, T5).d_model, layout.width
            )

    def open(
        self, folder: Path, device: Device, dtype: torch.dtype, layout: PromptLayout
    ) -> EncodePrompts:
        first, second = (
            clip_states_of(load_part(folder, part, PROJECTED_CLIP, device, dtype))
            for part in (FIRST, SECOND)
        )
        t5 = load_part(folder, THIRD, T5, device, dtype) if has_third(folder) else None

        @torch.no_grad()
        def encode(prompts: Sequence[str]) -> Tensor:
            found = [states(prompts) for states in (first, second)]
            tokens = torch.cat([states.penultimate for states in found], dim=2)
            tokens = pad(tokens, (0, layout.width - tokens.shape[2]))
            count = layout.tokens - tokens.shape[1]
            if t5 is None:
                more = tokens.new_zeros(len(prompts), count, layout.width)
            else:
                more = t5_states(t5, prompts, count)
            pooled = [states.projected for states in found if states.projected is not None]
            return layout.pack(Prompt(torch.cat([tokens, more], dim=1), torch.cat(pooled, dim=1)))

        return encode


def clip_tokens(folder: Path) -> int:
    """Of a prompt, those that SD3's CLIPs make. Raises UserError."""
    return clip_widths(folder, FIRST, projected=True).tokens


def has_third(folder: Path) -> bool:
    """Many folders are kept without the T5, by far the largest of the three."""
    return (folder / THIRD).is_dir()


class ClipAndT5(PromptEncoders):
    """FLUX: T5's states; pooled is CLIP's state at the end token."""

    classes: ClassVar = {FIRST: CLIP.names, SECOND: T5.names}

    def layout_of(self, folder: Path) -> PromptLayout:
        pooled = encoder_config(folder, FIRST, CLIP)["hidden_size"]
        return PromptLayout(512, encoder_config(folder, SECOND, T5)["d_model"], pooled)

    def check(self, folder: Path, layout: PromptLayout) -> None:
        own = check_part(folder, FIRST, CLIP).hidden_size
        refuse_other(folder, "pooled embeddings", own, layout.pooled)
        refuse_other(folder, "embeddings", check_part(folder, SECOND, T5).d_model, layout.width)

    def open(
        self, folder: Path, device: Device, dtype: torch.dtype, layout: PromptLayout
    ) -> EncodePrompts:
        clip = clip_states_of(load_part(folder, FIRST, CLIP, device, dtype))
        t5 = load_part(folder, SECOND, T5, device, dtype)

        @torch.no_grad()
        def encode(prompts: Sequence[str]) -> Tensor:
            tokens = t5_states(t5, prompts, layout.tokens)
            return layout.pack(Prompt(tokens, clip(prompts).pooled))

        return encode


class InstructedGemma(PromptEncoders):
    """SANA: Gemma-2's last states of an instruction with the prompt behind it, of which the first
    token and the last L - 1 are taken; of the empty prompt without the instruction.
    """

    classes: ClassVar = {FIRST: GEMMA2.names}

    def layout_of(self, folder: Path) -> PromptLayout:
        return PromptLayout(300, encoder_config(folder, FIRST, GEMMA2)["hidden_size"], masked=True)

    def check(self, folder: Path, layout: PromptLayout) -> None:
        own = check_part(folder, FIRST, GEMMA2).hidden_size
        refuse_other(folder, "embeddings", own, layout.width)

    def told(self) -> str:
        return instruction()

    def open(
        self, folder: Path, device: Device, dtype: torch.dtype, layout: PromptLayout
    ) -> EncodePrompts:
        gemma = load_part(folder, FIRST, GEMMA2, device, dtype)
        gemma.tokenizer.padding_side = "right"
        told, count = instruction(), layout.tokens
        length = len(gemma.tokenizer.encode(told)) + count - 2

        def rows(texts: Sequence[str], tokens: int) -> Tensor:
            ids, mask = padded_tokens(gemma, texts, tokens)
            states = gemma.encoder(ids, attention_mask=mask, use_cache=False)[0].float()
            taken = [
                torch.cat([whole[:, :1], whole[:, tokens - count + 1 :]], dim=1)
                for whole in (states, mask.float())
            ]
            return layout.pack(Prompt(taken[0], mask=taken[1]))

        @torch.no_grad()
        def encode(prompts: Sequence[str]) -> Tensor:
            """Each of two calls is of all rows: a product of another size rounds otherwise."""
            null = None if all(prompts) else rows([""] * len(prompts), count)
            if null is not None and not any(prompts):
                return null
            found = rows([told + prompt.lower().strip() for prompt in prompts], length)
            if null is None:
                return found
            given = to_device(torch.tensor([bool(prompt) for prompt in prompts]), found.device)
            return torch.where(given[:, None, None], found, null)

        return encode


def instruction() -> str:
    """What the published pipeline tells Gemma to do with a prompt, by its own default."""
    from diffusers import SanaPipeline

    given = inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"]
    return "\n".join(given.default)


SD3_PROMPTS, FLUX_PROMPTS, SANA_PROMPTS = TwoClipsAndT5(), ClipAndT5(), InstructedGemma()
