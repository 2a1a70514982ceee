"""Files of flow-matching reference numbers, and the networks and prompts that they speak of.

A folder holds models/<family>/<role> (diffusers folders) and, in denoise/, noise_levels/, losses/,
generator/ and trajectories/, a .safetensors file and a .json of the same name for each case.

Symbols
    wide   float64; the numbers of a file in float64 stand under f64/
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from sid_ray.denoisers.flow_family import FlowFamily
from sid_ray.denoisers.prompt_layout import Prompt
from sid_ray.denoisers.registry import family_of, from_official
from sid_ray.types import Condition, Level, Prediction, Want
from sid_ray.weights.networks import named_for

KINDS = ("denoise", "noise_levels", "losses", "generator", "trajectories")
EXACT, CLOSE = 1e-9, 2e-5  # tolerances in float64 and float32
AFTER_UPDATES = 1e-4  # in float32 against float64
OF_MEASURED = 5  # of what float32 was measured to differ from float64


@dataclass
class Found:
    """Relative errors of a file's numbers, each beside what is allowed."""

    errors: dict[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def worst(self) -> tuple[str, float, float]:
        """(name, error, allowed) of the one nearest to what is allowed, or beyond it."""
        name = max(self.errors, key=lambda key: self.errors[key][0] / self.errors[key][1])
        return (name, *self.errors[name])


class Vectors:
    """One file, in float64 (``wide``) or in float32."""

    def __init__(self, path: Path, wide: bool):
        self.root, self.kind, self.name = path.parents[1], path.parent.name, path.stem
        self.tensors, self.wide = load_file(path), wide
        self.said: dict[str, Any] = json.loads(path.with_suffix(".json").read_text())
        self.dtype = torch.float64 if wide else torch.float32
        self.found = Found()

    @property
    def family(self) -> str:
        return self.name.partition("_")[0]

    def __contains__(self, name: str) -> bool:
        return self.stored(name) in self.tensors

    def stored(self, name: str) -> str:
        """The name of a number in this precision."""
        only_wide = name not in self.tensors
        return f"f64/{name}" if self.wide or only_wide else name

    def given(self, name: str) -> Tensor:
        """An input or a draw in this precision; whole numbers stay."""
        value = self.tensors[name]
        return value.to(self.dtype) if value.is_floating_point() else value

    def drawn(self, ending: str, before: str = "") -> list[Tensor]:
        """Draws by the end of their names, in the order in which they were made."""
        names = (name for name in self.tensors if name.startswith(f"{before}draw/"))
        return [self.given(name) for name in sorted(names) if name.endswith(ending)]

    def expected(self, name: str) -> Tensor:
        return self.tensors[self.stored(name)].double()

    def names(self, start: str) -> Iterator[str]:
        """Of results that begin so, without f64/."""
        found = {name.removeprefix("f64/") for name in self.tensors}
        yield from sorted(name for name in found if name.startswith(start))

    def compare(self, name: str, found: Tensor, allowed: float | None = None) -> None:
        """Notes the error of a result, relative to the largest element expected."""
        expected = self.expected(name)
        found = found.detach().double().reshape(expected.shape)
        largest = float(expected.abs().max()) or 1.0
        error = float((found - expected).abs().max()) / largest
        self.found.errors[name] = (error, allowed or self.allowed(name))

    def allowed(self, name: str) -> float:
        measured = self.said.get("f32_vs_f64_rel", {}).get(name, 0.0)
        return EXACT if self.wide else max(self.close, OF_MEASURED * measured)

    @property
    def close(self) -> float:
        return AFTER_UPDATES if self.kind == "trajectories" else CLOSE

    def compare_gradients(self, start: str, found: dict[str, Tensor]) -> None:
        """Those of weights, against the largest of all: some are zero but for rounding."""
        named = {name.removeprefix(start): self.expected(name) for name in self.names(start)}
        assert named.keys() == found.keys(), named.keys() ^ found.keys()
        largest = max(float(value.abs().max()) for value in named.values())
        errors = (float((found[name] - value).abs().max()) for name, value in named.items())
        what = start.strip("/").rpartition("/")[2]
        measured = self.said.get("f32_vs_f64_rel_gradw", {}).get(what, {})
        more = OF_MEASURED * measured.get("max_abs_over_global_max", 0.0)
        allowed = EXACT if self.wide else max(self.close, more)
        self.found.errors[start] = (max(errors) / largest, allowed)

    # Networks and prompts --------------------------------------------------------------------

    def network(self, role: str) -> nn.Module:
        """A network of ``models`` by its role, as a denoiser whose weights take gradients."""
        embeds = (value for name, value in self.tensors.items() if name.endswith("prompt_embeds"))
        tokens = next(value.shape[1] for value in embeds if value.dim() == 3)
        return loaded(self.root / self.said["models"][role], tokens).to(self.dtype)

    def prompt(self, net: Any, start: str = "in/", pooled: str | None = None) -> Tensor:
        """Prompts whose parts' names begin so, packed; ``pooled``: that part of other prompts."""
        names = {"tokens": f"{start}prompt_embeds", "mask": f"{start}prompt_attention_mask"}
        names["pooled"] = f"{start if pooled is None else pooled}pooled_prompt_embeds"
        return self._packed(net, names)

    def null_text(self, net: Any) -> Tensor:
        """The empty prompt, [T, D]."""
        names = {"tokens": "in/uncond_embeds", "mask": "in/uncond_attention_mask"}
        return self._packed(net, names | {"pooled": "in/uncond_pooled_embeds"})[0]

    def _packed(self, net: Any, names: dict[str, str]) -> Tensor:
        given = {part: self.given(name) for part, name in names.items() if name in self.tensors}
        return net.layout.pack(Prompt(**given))


def gradients_of(net: nn.Module) -> dict[str, Tensor]:
    """By diffusers' names; those that no loss reaches are left out."""
    named = ((name.removeprefix("transformer."), p.grad) for name, p in net.named_parameters())
    return {name: gradient.double() for name, gradient in named if gradient is not None}


@cache
def weights_of(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    config = json.loads((folder / "config.json").read_text())
    return config, load_file(folder / "diffusion_pytorch_model.safetensors")


def loaded(folder: Path, text_tokens: int) -> nn.Module:
    config, tensors = weights_of(folder)
    name, arguments = from_official(config["_class_name"], config)
    family = family_of(name)
    assert isinstance(family, FlowFamily)
    net = family.build(arguments | {"text_tokens": text_tokens})
    net.load_state_dict(named_for(name, tensors))
    return net


class Told:
    """A network that is told a guidance scale, and nothing else: official FLUX at scale 0."""

    def __init__(self, net: Any, scale: float):
        self.net, self.scale = net, scale

    def __call__(
        self, x_t: Tensor, level: Level, cond: Condition, want: Want = Want.X0
    ) -> Prediction:
        scale = level.t.new_full((len(x_t),), self.scale)
        return self.net(x_t, level, cond._replace(guidance=scale), want)


def files(root: Path, *kinds: str) -> list[Path]:
    """The cases of a folder."""
    return [path for kind in kinds or KINDS for path in sorted((root / kind).glob("*.safetensors"))]
