"""Preconditioning, the same for EDM and EDM2: from the raw network F to an estimate of x_0.

Symbols (EDM, equation 7 and table 1)
    sigma, sigma_data   noise standard deviation of the input, standard deviation of the data
    c_skip, c_out, c_in, c_noise   D = c_skip x_t + c_out F(c_in x_t; c_noise)
    F, D                the raw network, the denoiser (an estimate of x_0)
    B, C, H, W, h, w    batch, channels, height, width; the size of the lowest resolution
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from sid_ray.diffusion.schedules import image_shape
from sid_ray.errors import UserError
from sid_ray.types import Condition, Level, Prediction, Want

# F [B, C, H, W] and adversarial logits [B, 1, h, w]; None what was not wanted.
RawOutput = tuple[Tensor | None, Tensor | None]


class RawNetwork(Protocol):
    """The two halves of a raw network."""

    def encode(self, x: Tensor, emb: Tensor, dropout_keys: Tensor | None) -> list[Tensor]: ...

    def decode(self, skips: list[Tensor], emb: Tensor, dropout_keys: Tensor | None) -> Tensor: ...


def run_unet(
    unet: RawNetwork,
    x: Tensor,
    emb: Tensor,
    keys: Tensor | None,
    want: Want,
    wide: torch.dtype,
    own: int,
) -> RawOutput:
    """(F in x's precision, adversarial logits in the wide one), None what was not wanted.

    The logits are the channel mean of the last encoder block's output, [B, 1, h, w]: no parameters
    of their own (SiDA, section 3). Logits alone leave the decoder out; it sees the first ``own``
    images.
    """
    skips = unet.encode(x, emb, keys)
    logits = raw = None
    if Want.LOGITS in want:
        logits = skips[-1].mean(dim=1, keepdim=True, dtype=wide)
    if Want.X0 in want:
        if own < x.shape[0]:
            skips, emb = [skip[:own] for skip in skips], emb[:own]
            keys = None if keys is None else keys[:own]
        raw = unet.decode(skips, emb, keys)
    return raw, logits


def with_real(x: Tensor, c_noise: Tensor, cond: Condition) -> tuple[Tensor, Tensor, Condition]:
    """Inputs of one pass for x and ``cond.real`` [B, C, H, W], behind each other."""
    assert cond.real is not None

    def twice(own: Tensor | None, other: Tensor | None) -> Tensor | None:
        return None if own is None or other is None else torch.cat([own, other])

    keys = cond.dropout_keys
    both = Condition(
        twice(cond.labels, cond.labels),
        twice(cond.augment, cond.real_augment),
        twice(keys, None if keys is None else ~keys),
        twice(cond.text, cond.text if cond.real_text is None else cond.real_text),
        guidance=twice(cond.guidance, cond.guidance),
    )
    return torch.cat([x, cond.real]), torch.cat([c_noise, c_noise]), both


class Preconditioned(nn.Module):
    """A denoiser D around a raw network F.

    ``compute_dtype`` is the precision of F's body: None for that of the arithmetic around it, or
    torch.float16 or torch.bfloat16. The arithmetic around it, the embeddings and all that is
    returned are float32 (float64 when x_t is). Parameters keep their own precision and are cast
    layer by layer, so that setting ``compute_dtype`` is all there is to mixed precision.
    ``memory_format`` is the order in memory of the body's activations, which changes rounding only.
    """

    def __init__(self, sigma_data: float, label_dim: int):
        super().__init__()
        self.sigma_data, self.label_dim = sigma_data, label_dim
        self.compute_dtype: torch.dtype | None = None
        self.memory_format = torch.contiguous_format

    def raw(self, x: Tensor, c_noise: Tensor, cond: Condition, want: Want, own: int) -> RawOutput:
        """The body: x = c_in x_t in the compute precision, c_noise [B] in the wide one.

        F is wanted of the first ``own`` images.
        """
        raise NotImplementedError

    def logvar(self, c_noise: Tensor) -> Tensor | None:
        """[B] -> log-variance [B]; None where the network has no such head."""
        return None

    # Batches are counted with shape[0] in what torch.export traces: len() is a plain number there.

    def forward(
        self, x_t: Tensor, level: Level, cond: Condition, want: Want = Want.X0
    ) -> Prediction:
        wide = torch.promote_types(x_t.dtype, torch.float32)
        x_t, sigma, c_noise = x_t.to(wide), image_shape(level.sigma).to(wide), level.t.to(wide)
        logvar = self.logvar(c_noise) if Want.LOGVAR in want else None
        if not want & (Want.X0 | Want.LOGITS):
            return Prediction(logvar=logvar)
        c_in = 1 / (sigma**2 + self.sigma_data**2).sqrt()
        x, cond, own = c_in * x_t, self._condition(cond, x_t), x_t.shape[0]
        if cond.real is not None:
            x, c_noise, cond = with_real(x, c_noise, cond._replace(real=c_in * cond.real))
        x = x.to(self.compute_dtype or wide, memory_format=self.memory_format)
        raw, logits = self.raw(x, c_noise, cond, want, own)
        real_logits = logits[own:] if logits is not None and own < x.shape[0] else None
        logits = None if logits is None else logits[:own]
        if raw is None:
            return Prediction(logvar=logvar, logits=logits, real_logits=real_logits)
        c_skip = self.sigma_data**2 / (sigma**2 + self.sigma_data**2)
        c_out = sigma * self.sigma_data * c_in
        x0 = c_skip * x_t + c_out * raw.to(wide)
        return Prediction(x0, logvar, logits, real_logits=real_logits)

    def _condition(self, cond: Condition, like: Tensor) -> Condition:
        """The condition in like's precision; missing labels of a class-conditional net are zeros.

        An unconditional network is given no labels, whatever the caller has.
        """
        labels = None
        if self.label_dim and cond.labels is None:
            labels = like.new_zeros(like.shape[0], self.label_dim)
        elif self.label_dim and cond.labels is not None:
            labels = cond.labels.to(like)
        augments = (cond.augment, cond.real, cond.real_augment)
        augment, real, theirs = (None if value is None else value.to(like) for value in augments)
        return Condition(labels, augment, cond.dropout_keys, real=real, real_augment=theirs)


def set_precision(module: nn.Module, precision: str) -> None:
    """Sets the precision of a denoiser's body by its name in torch; float32 is its own.

    A denoiser with another one has the attribute ``compute_dtype``. Raises UserError for one
    without.
    """
    if precision == "float32":
        return
    if not hasattr(module, "compute_dtype"):
        raise UserError(
            f"training.precision is {precision}; {type(module).__name__} computes in float32 only"
        )
    module.compute_dtype = getattr(torch, precision)


def precision_beside(precision: str, device: torch.device | str) -> str:
    """Of frozen networks beside the trained ones: the generator that is scored, text encoder, VAE.

    On a GPU ``training.precision``, as in the published runs; float32 on a CPU, which has nothing
    to gain.
    """
    return precision if torch.device(device).type == "cuda" else "float32"


def set_memory_format(module: nn.Module, name: str) -> None:
    """Sets the order in memory of a denoiser's activations: contiguous (NCHW) or channels_last.

    Networks that choose their own, such as diffusers', are left alone.
    """
    formats = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
    if isinstance(module, Preconditioned):
        module.memory_format = formats[name]
