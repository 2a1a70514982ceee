"""Flow-matching transformers of diffusers as denoisers: what SD3, SANA and FLUX share.

A network is run by its own submodules, as the U-Net in stable_diffusion.py is: its last hidden
states are the adversarial logits' source, and one pass gives both.

Symbols
    t, v         time in (0, 1), 1 is noise; the velocity eps - x_0 that the network predicts
    B, C, H, W   batch, channels, height and width of latents
    N, D         image tokens, width of a hidden state
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sid_ray.denoisers.attention import check_backend
from sid_ray.denoisers.casting import product_layers
from sid_ray.denoisers.precondition import with_real
from sid_ray.denoisers.prompt_layout import Prompt, PromptLayout
from sid_ray.denoisers.recompute import recomputed
from sid_ray.diffusion.flow import x0_from_velocity
from sid_ray.types import Condition, Level, Prediction, Want


class FlowDenoiser(nn.Module):
    """D(x_t; t, text): x_0 = x_t - t v, with v of a transformer.

    ``compute_dtype`` is the precision of the network's body: None for that of its parameters, or
    torch.float16 or torch.bfloat16, by torch.autocast (the published mixed precision). The time is
    float32 in each; everything around the network is float32 at least. ``cond.text`` [B, T, D] is
    required, as ``layout`` packs it; labels, augment labels and dropout keys have no meaning here.

    Args:
        transformer: diffusers' network.
        layout: of a prompt.
    """

    def __init__(self, transformer: nn.Module, layout: PromptLayout):
        super().__init__()
        self.transformer: Any = transformer
        self.layout = layout
        self.compute_dtype: torch.dtype | None = None
        self._attention_backend = "sdpa"

    # Of each family --------------------------------------------------------------------------

    def hidden(self, x: Tensor, t: Tensor, prompt: Prompt, guidance: Tensor | None) -> Tensor:
        """The states of image tokens before the last projection, [B, N, D].

        x [B, C, H, W]; t [B] in (0, 1) and guidance [B] are float32 at least.
        """
        raise NotImplementedError

    def velocity(self, tokens: Tensor, height: int, width: int) -> Tensor:
        """tokens [B, N, D] -> v [B, C, H, W]."""
        raise NotImplementedError

    def choose_attention(self, backend: str) -> None:
        """Switches all attention layers to a backend that can run here. Raises UserError."""
        raise NotImplementedError

    # Of all ----------------------------------------------------------------------------------

    def cast_layers(self) -> Iterator[nn.Module]:
        """The layers whose weights are cast to ``compute_dtype`` in each pass."""
        return product_layers(self.transformer)

    @property
    def attention_backend(self) -> str:
        """``sdpa`` or ``xformers``; denoisers.attention.set_attention sets it."""
        return self._attention_backend

    @attention_backend.setter
    def attention_backend(self, backend: str) -> None:
        check_backend(backend, self.compute_dtype)
        self.choose_attention(backend)
        self._attention_backend = backend

    @property
    def recompute(self) -> bool:
        """Whether blocks are computed again in the backward pass; set_recompute sets it."""
        return bool(self.transformer.gradient_checkpointing)

    @recompute.setter
    def recompute(self, on: bool) -> None:
        if on:
            self.transformer.enable_gradient_checkpointing(recomputed)
        else:
            self.transformer.disable_gradient_checkpointing()

    def forward(
        self, x_t: Tensor, level: Level, cond: Condition, want: Want = Want.X0
    ) -> Prediction:
        if cond.text is None:
            raise ValueError("a text-to-image transformer needs cond.text [B, T, D], got None")
        wide = torch.promote_types(x_t.dtype, torch.float32)
        # Of a bias: weights of a frozen base may be held in less (adapters.hold_as_base).
        own = self.transformer.proj_out.bias.dtype
        if self.compute_dtype is not None:  # bfloat16 weights too are cast where they are used
            own = torch.promote_types(own, torch.float32)
        x_t, t, count = x_t.to(wide), level.t.to(wide), x_t.shape[0]
        x, both = x_t, cond
        if cond.real is not None:  # one pass for both
            x, t, both = with_real(x_t, t, cond._replace(real=cond.real.to(wide)))
        assert both.text is not None
        prompt = self.layout.unpack(both.text.to(x.device, own))
        guidance = None if both.guidance is None else both.guidance.to(x.device, wide)
        logits = real_logits = raw = x0 = None
        with self._body(x.device):
            tokens = self.hidden(x.to(own), t, prompt, guidance)
            if want & (Want.X0 | Want.RAW):
                raw = self.velocity(tokens[:count], *x.shape[2:])
        if Want.LOGITS in want:
            logits = tokens.to(wide).mean(dim=1, keepdim=True)  # [B, 1, D]
            real_logits = None if cond.real is None else logits[count:]
            logits = logits[:count]
        if raw is not None:
            raw = raw.to(wide)
            x0 = x0_from_velocity(x_t, raw, level) if Want.X0 in want else None
        raw = raw if Want.RAW in want else None
        return Prediction(x0, logits=logits, raw=raw, real_logits=real_logits)

    def _body(self, device: torch.device) -> AbstractContextManager[Any]:
        """What the network runs in. No cast is kept: each weight is used once a pass, and kept
        casts would be a second copy of all weights.
        """
        if self.compute_dtype is None:
            return nullcontext()
        if device.type == "meta":
            warnings.filterwarnings("ignore", "Mismatch dtype between input and weight")
            return CastProducts(self.compute_dtype)
        return torch.autocast(device.type, dtype=self.compute_dtype, cache_enabled=False)


class CastProducts(TorchFunctionMode):
    """What torch.autocast does to products, for the tensors without data of a memory plan, which it
    refuses.
    """

    active: ClassVar[torch.dtype | None] = None  # of the mode that something runs in now
    PRODUCTS = (F.linear, F.conv2d, torch.matmul, torch.bmm, F.scaled_dot_product_attention)

    def __init__(self, dtype: torch.dtype):
        super().__init__()
        self.dtype = dtype

    def __enter__(self) -> CastProducts:
        CastProducts.active = self.dtype
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        CastProducts.active = None
        super().__exit__(*error)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in self.PRODUCTS:
            args = [self.cast(value) for value in args]
            kwargs = {name: self.cast(value) for name, value in kwargs.items()}
        return func(*args, **kwargs)

    def cast(self, value: Any) -> Any:
        floats = isinstance(value, Tensor) and value.is_floating_point()
        return value.to(self.dtype) if floats else value


def run_layer(transformer: Any, block: nn.Module, *arguments: Any) -> Any:
    """block(*arguments), its inside remembered or not, as the transformer says."""
    if transformer.gradient_checkpointing and torch.is_grad_enabled():
        return recomputed(as_here(block), *arguments)
    return block(*arguments)


def as_here(block: nn.Module) -> Any:
    """A block that runs again as now: torch keeps autocast for that, and knows no CastProducts."""
    dtype = CastProducts.active
    if dtype is None:
        return block

    def run(*arguments: Any) -> Any:
        if CastProducts.active is not None:
            return block(*arguments)
        with CastProducts(dtype):
            return block(*arguments)

    run._forward_pre_hooks = block._forward_pre_hooks  # type: ignore[attr-defined]
    run._forward_hooks = block._forward_hooks  # type: ignore[attr-defined]
    return run


def in_float32(device: torch.device) -> AbstractContextManager[Any]:
    """Products in their inputs' own precision, within a body in half precision."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def image_of_patches(tokens: Tensor, height: int, width: int, patch: int) -> Tensor:
    """[B, N, patch * patch * C], ordered (row, column, channel) -> [B, C, H, W]."""
    rows, columns = height // patch, width // patch
    split = tokens.reshape(tokens.shape[0], rows, columns, patch, patch, -1)
    return split.permute(0, 5, 1, 3, 2, 4).reshape(tokens.shape[0], -1, height, width)
