"""The words every other file speaks: noise level, prediction, condition, draw, loss.

Symbols
    x_0      a clean image                     B, C, H, W   batch, channels, height, width
    x_t      alpha * x_0 + sigma * eps         eps          standard normal noise
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple, Protocol

from torch import Tensor


class Level(NamedTuple):
    """One noise level a sample: x_t = alpha * x_0 + sigma * eps. Each field is [B].

    ``t`` is what the network is told: ln(sigma)/4 for EDM and EDM2, the integer timestep for
    Stable Diffusion, the time in (0, 1) for flow matching.
    """

    t: Tensor
    alpha: Tensor
    sigma: Tensor


class Want(enum.Flag):
    """What a denoiser is asked for; several in one pass are cheaper than several passes."""

    X0 = enum.auto()
    LOGVAR = enum.auto()
    LOGITS = enum.auto()
    RAW = enum.auto()


class Prediction(NamedTuple):
    """What a denoiser returns. A NamedTuple, because ZeRO-3 must see the tensors.

    ``x0`` [B, C, H, W] the denoised image, ``logvar`` [B] the log-variance head's output,
    ``logits`` [B, ...] the adversarial logits: one a place [B, 1, h, w], or for transformers one a
    channel [B, 1, D]; ``raw`` [B, C, H, W] what the network itself predicts where that is not x0
    (Stable Diffusion: epsilon or v, which SiD-LSG's fake-score loss compares; flow matching: the
    velocity), ``real_logits`` those of ``Condition.real``. What was not wanted, or what the network
    lacks, is None.
    """

    x0: Tensor | None = None
    logvar: Tensor | None = None
    logits: Tensor | None = None
    raw: Tensor | None = None
    real_logits: Tensor | None = None


class Condition(NamedTuple):
    """What a denoiser is conditioned on beside the noise level.

    ``labels`` [B, label_dim] one-hot or None, ``augment`` [B, 9] augmentation labels or None,
    ``dropout_keys`` [B] int64: one key a sample switches dropout on, None switches it off,
    ``text`` [B, T, D] the prompts, in place of labels, as the family's text encoders return them:
    one tensor a prompt, whose layout (token embeddings, a pooled embedding, a mask) only the family
    knows. ``guidance`` [B] the guidance scale, for networks that are told it (FLUX); None where
    nothing is guided.
    ``real`` [B, C, H, W] further noisy images, of which adversarial logits alone are wanted: the
    encoder sees both in one pass. They share noise levels and labels, have text ``real_text`` of
    their own (None: the same), augmentation labels ``real_augment``, and the dropout keys
    ~dropout_keys.
    Dropout is an argument, not a mode of the module, so that nothing depends on a forgotten
    ``train()`` and any packing of samples sees the same masks.
    """

    labels: Tensor | None = None
    augment: Tensor | None = None
    dropout_keys: Tensor | None = None
    text: Tensor | None = None
    real: Tensor | None = None
    real_augment: Tensor | None = None
    real_text: Tensor | None = None
    guidance: Tensor | None = None


class Batch(NamedTuple):
    """What the data set contributes to one logical group.

    ``labels`` [B, label_dim] one-hot or None; ``images`` [B, C, H, W] in the denoiser's space, of
    those same labels, None in data-free runs; ``text`` [B, T, D] prompts or None, ``real_text``
    the images' own where they have other ones.
    """

    labels: Tensor | None = None
    images: Tensor | None = None
    text: Tensor | None = None
    real_text: Tensor | None = None


class Pick(NamedTuple):
    """Which samples a micro-step asks of the data set, in two ways.

    ``uniform`` [B] in [0, 1): independent draws. ``positions`` [B] int64: places in a stream that
    holds every sample once an epoch; the iteration at ``images_seen`` takes those from images_seen
    on, and each of the two phases (``stream``) has an order of its own.
    """

    uniform: Tensor
    positions: Tensor | None = None
    stream: int = 0
    images_seen: int = 0


class Draw(NamedTuple):
    """Every random number of one phase of one logical group (or several, one after another).

    ``latents`` [B, C, H, W] N(0,1) the generator's input, ``noise`` [B, C, H, W] N(0,1) the
    forward noise, ``time`` [B] the raw draw of the noise level (normal or uniform, as the schedule
    asks), ``dropout_keys`` [B] int64. Only where the objective asks: ``step`` which of the
    generator's K evaluations is trained, one number for the whole iteration (known to the host,
    which runs as many passes), ``more_noise`` [B, K - 1, C, H, W] N(0,1) of the evaluations after
    the first, ``text_uniform`` [B] uniform, ``augment`` [B, 2, 15] what DrawSpec.augment makes of
    the draws for generated and for real images.
    """

    latents: Tensor
    noise: Tensor
    time: Tensor
    dropout_keys: Tensor | None = None
    step: int | None = None
    more_noise: Tensor | None = None
    text_uniform: Tensor | None = None
    augment: Tensor | None = None


# Raw draws [..., 15] of an augmentation and an image's shape (C, H, W) -> what is done to each.
Augment = Callable[[Tensor, Sequence[int]], Tensor]


@dataclass(frozen=True)
class DrawSpec:
    """Which random numbers an objective needs beside the first four.

    ``augment`` is what it makes of raw draws of augmentations, on the host, where they are made;
    they are drawn for the fake-score phase alone.
    """

    normal_fake_time: bool = True
    num_steps: int = 1
    text: bool = False
    augment: Augment | None = None
    normal_generator_time: bool = False


class GroupSums(NamedTuple):
    """Sums over one whole logical group, for a pass that holds a part of it. Each is [].

    ``weight`` of the samples' weights, ``value`` of the values they are multiplied with,
    ``samples`` how many are finite. No gradient.
    """

    weight: Tensor
    value: Tensor
    samples: Tensor


@dataclass(frozen=True)
class Scope:
    """What a loss knows beside tensors: the run's progress, and how samples form groups.

    A pass holds whole groups of ``group_size`` samples one after another (0: all one group), or,
    where ``sums`` is given, a part of the one group that these are the sums of.
    """

    images_seen: int = 0
    group_size: int = 0
    sums: GroupSums | None = None


WHOLE = Scope()  # all samples are one whole group, at the run's start


@dataclass(frozen=True)
class Loss:
    """A loss summed over the samples it was computed on, and metrics summed the same way."""

    total: Tensor
    metrics: Mapping[str, Tensor] = field(default_factory=dict)


class Denoiser(Protocol):
    """A network that predicts x_0 from x_t. EDM, EDM2 and SD differ only behind this."""

    def __call__(
        self, x_t: Tensor, level: Level, cond: Condition, want: Want = Want.X0
    ) -> Prediction: ...


class Schedule(Protocol):
    """Noise levels and weights of one family.

    ``normal_fake_time`` and ``normal_generator_time``: fake_level and generator_level map normal
    numbers, not uniform ones. ``fake_want`` is the prediction that the fake-score loss compares,
    ``fake_terms`` (prediction, target, weight [B]). ``loss_divisor`` [B] is what the generator's
    loss is divided by, without gradient: SiD's w, or 1 over SiD-DiT's weight. ``step_noise``: what
    a generator's evaluations after the first read: "fresh" noise, the "fixed" noise of the first,
    or "ddim", the noise that the evaluation before them left. ``adversarial_per_sample``: SiDA's
    adversarial terms weigh each sample by its own weight and by C*H*W, with clamped logits in both
    phases (SiD-DiT), instead of by its group's. ``embeds_guidance``: networks are told the guidance
    scale. ``officially_all_steps``: the published code trains all evaluations as one, not a drawn
    one.
    """

    normal_fake_time: ClassVar[bool]
    normal_generator_time: ClassVar[bool]
    fake_want: ClassVar[Want]
    adversarial_per_sample: ClassVar[bool]
    embeds_guidance: ClassVar[bool]
    officially_all_steps: ClassVar[bool]

    @property
    def step_noise(self) -> str: ...

    def fake_level(self, draw: Tensor) -> Level: ...

    def generator_level(self, draw: Tensor) -> Level: ...

    def step_level(self, step: int, num_steps: int, batch: int, like: Tensor) -> Level: ...

    def add_noise(self, x_0: Tensor, noise: Tensor, level: Level) -> Tensor: ...

    def fake_weight(self, level: Level) -> Tensor: ...

    def loss_divisor(self, level: Level, y: Tensor, f_phi: Tensor) -> Tensor: ...

    def fake_terms(
        self, found: Prediction, x_0: Tensor, noise: Tensor, level: Level
    ) -> tuple[Tensor, Tensor, Tensor]: ...


class Networks(NamedTuple):
    """The three roles as plain denoisers, as an objective sees them."""

    teacher: Denoiser
    fake_score: Denoiser
    generator: Denoiser


SumsOf = Callable[[Networks, Batch, Draw], GroupSums]


class Objective(Protocol):
    """Pure: tensors and draws in, a loss out. No device, no seed, no rank.

    The ``sums`` are those of GroupSums over the samples given, added up over the parts of a split
    group by the caller; None for a loss that couples no samples.
    """

    @property
    def draw_spec(self) -> DrawSpec: ...

    def trains_generator(self, images_seen: int) -> bool: ...

    def fake_loss(self, nets: Networks, batch: Batch, draw: Draw, scope: Scope = WHOLE) -> Loss: ...

    def fake_sums(self, images_seen: int) -> SumsOf | None: ...

    def generator_loss(
        self, nets: Networks, batch: Batch, draw: Draw, scope: Scope = WHOLE
    ) -> Loss: ...

    def generator_sums(self, images_seen: int) -> SumsOf | None: ...
