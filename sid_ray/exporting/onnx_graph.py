"""A generator from noise to pixels as one module whose batch is free: what ONNX graphs are made of.

Inputs and outputs, float32 but for the classes:
    latents [N, C, H, W]                N(0, 1)
    classes [N] int64                   -1 for none
    encoder_hidden_states [N, L, E], pooled_projections [N, P], encoder_attention_mask [N, L]
    noises [N, K - 1, C, H, W]          N(0, 1), of K steps that read fresh noise
    images [N, 3 or 1, height, width]   in [0, 1]
K is the number of steps: they are unrolled.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sid_ray.denoisers.codecs import Codec
from sid_ray.denoisers.prompt_layout import Prompt, PromptLayout
from sid_ray.denoisers.registry import family_of
from sid_ray.evaluation.samplers import Inputs, few_step
from sid_ray.training.assemble import generation_of
from sid_ray.types import Condition, Level, Schedule
from sid_ray.weights.description import ModelDescription


class FixedLevels:
    """A schedule whose levels are numbers of the graph, not computed in it."""

    def __init__(self, schedule: Schedule, num_steps: int, like: Tensor):
        self.levels = [schedule.step_level(step, num_steps, 1, like) for step in range(num_steps)]
        self.step_noise, self.add_noise = schedule.step_noise, schedule.add_noise

    def step_level(self, step: int, num_steps: int, batch: int, like: Tensor) -> Level:
        return Level(*(value.expand(batch) for value in self.levels[step]))


class Signature(NamedTuple):
    """What the graph of a generator reads, in the order of its inputs."""

    shape: tuple[int, int, int]
    classes: int
    layout: PromptLayout | None
    noises: int  # fresh ones after the first

    @property
    def text_names(self) -> tuple[str, ...]:
        if self.layout is None:
            return ()
        pooled = ("pooled_projections",) if self.layout.pooled else ()
        mask = ("encoder_attention_mask",) if self.layout.masked else ()
        return ("encoder_hidden_states", *pooled, *mask)

    @property
    def names(self) -> tuple[str, ...]:
        classes, noises = ("classes",) if self.classes else (), ("noises",) if self.noises else ()
        return ("latents", *classes, *self.text_names, *noises)

    def of_prompts(self, packed: Tensor) -> Signature:
        """Of embeddings [P, T, D] as the text encoders make them. Stable Diffusion's U-Net reads
        any number of tokens, which its encoder decides: 77, and fewer of small ones.
        """
        if self.layout is None or self.layout.pooled or self.layout.masked:
            return self
        return self._replace(layout=PromptLayout(*packed.shape[1:]))

    def text(self, packed: Tensor) -> dict[str, Tensor]:
        """Embeddings [N, T, D], as ours are packed, as inputs."""
        assert self.layout is not None
        prompt = self.layout.unpack(packed)
        parts = prompt.tokens, prompt.pooled, prompt.mask
        there = [part for part in parts if part is not None]
        return dict(zip(self.text_names, there, strict=True))

    def example(self, count: int) -> dict[str, Tensor]:
        """Inputs of so many images: of the right shapes and types, and no more."""
        found = {"latents": torch.randn(count, *self.shape)}
        if self.classes:
            found["classes"] = torch.arange(count) % self.classes
        if self.layout is not None:
            found |= self.text(torch.ones(count, *self.layout.shape))
        if self.noises:
            found["noises"] = torch.randn(count, self.noises, *self.shape)
        return found

    def inputs(self, given: Inputs) -> dict[str, Tensor]:
        """By name, of a sampler's."""
        found = {"latents": given.latents}
        if self.classes:
            labels = given.cond.labels
            none = torch.full((len(given.latents),), -1)
            found["classes"] = none if labels is None else labels.argmax(dim=1)
        if self.layout is not None:
            assert given.cond.text is not None
            found |= self.text(given.cond.text)
        if self.noises:
            assert given.more_noise is not None
            found["noises"] = given.more_noise
        return found


def signature_of(description: ModelDescription) -> Signature:
    family, network = family_of(description.family), description.network
    schedule, steps = generation_of(description)
    return Signature(
        family.shape(network),
        family.label_dim(network),
        family.layout(network) if family.reads_text else None,
        steps - 1 if schedule.step_noise == "fresh" else 0,
    )


class WholeGenerator(nn.Module):
    """From a signature's inputs to pixels [N, C, H, W] in [0, 1]."""

    def __init__(
        self, net: nn.Module, description: ModelDescription, signature: Signature, codec: Codec
    ):
        super().__init__()
        self.net, self.signature, self.codec = net, signature, codec
        schedule, self.steps = generation_of(description)
        self.levels: Any = FixedLevels(schedule, self.steps, torch.zeros(1))

    def forward(self, *given: Tensor) -> Tensor:
        of = dict(zip(self.signature.names, given, strict=True))
        latents = of["latents"]
        # Noise that the schedule leaves out is no input.
        unread = self.steps - 1 - self.signature.noises
        noises = of["noises"].unbind(1) if self.signature.noises else [latents] * unread
        net: Any = self.net
        made = few_step(net, self.levels, latents, self.condition(of), self.steps, noises)
        return (self.codec.decode_at_once(made) / 2 + 0.5).clip(0, 1)

    def condition(self, of: Mapping[str, Tensor]) -> Condition:
        labels = text = None
        if self.signature.classes:
            labels = (of["classes"][:, None] == torch.arange(self.signature.classes)).float()
        if self.signature.layout is not None:
            tokens, *others = (of[name] for name in self.signature.text_names)
            pooled = others.pop(0) if self.signature.layout.pooled else None
            mask = others.pop(0) if self.signature.layout.masked else None
            text = self.signature.layout.pack(Prompt(tokens, pooled, mask))
        return Condition(labels=labels, text=text)
