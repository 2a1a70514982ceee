"""Noise levels of the EDM family and of discrete variance-preserving (VP) diffusion.

Symbols
    sigma        noise standard deviation       sigma_data   standard deviation of the data (0.5)
    rho          curvature of the time grid     t            position on it, 0 (noisy) to 1 (clean);
                                                             VP: the timestep, 0 (clean) to 999
    abar         VP: cumulative product of 1 - beta; alpha = sqrt(abar), sigma = sqrt(1 - abar)
    tau          VP: the timestep at which the generator reads its noise
    epsilon, v   what a VP network predicts: the noise, or alpha * noise - sigma * x_0
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from sid_ray.diffusion.weighting import sid_weight
from sid_ray.errors import UserError, nearest
from sid_ray.types import Level, Prediction, Want


def image_shape(per_sample: Tensor) -> Tensor:
    """[B] -> [B, 1, 1, 1], to scale images [B, C, H, W]."""
    return per_sample.reshape(-1, 1, 1, 1)


class NoiseLevels:
    """What all kinds of noise levels have in common, and what most of them have."""

    normal_fake_time: ClassVar[bool] = True
    normal_generator_time: ClassVar[bool] = False
    adversarial_per_sample: ClassVar[bool] = False
    embeds_guidance: ClassVar[bool] = False
    officially_all_steps: ClassVar[bool] = True
    step_noise: ClassVar[str] = "fresh"

    def add_noise(self, x_0: Tensor, noise: Tensor, level: Level) -> Tensor:
        """x_t = alpha * x_0 + sigma * noise; images [B, C, H, W]."""
        return image_shape(level.alpha) * x_0 + image_shape(level.sigma) * noise

    def loss_divisor(self, level: Level, y: Tensor, f_phi: Tensor) -> Tensor:
        """1/w of the generator's loss, [B]: SiD's, which reads the images."""
        return sid_weight(y, f_phi)


@dataclass(frozen=True)
class EDMSchedule(NoiseLevels):
    """Noise levels for EDM and EDM2 teachers (EDM, table 1; SiD, section 4).

    Args are those of the config's ``schedule`` section.
    """

    fake_want: ClassVar[Want] = Want.X0

    p_mean: float = -1.2
    p_std: float = 1.2
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    t_max: float = 0.8
    init_sigma: float = 2.5
    sigma_data: float = 0.5

    def level(self, sigma: Tensor) -> Level:
        """A level from sigma [B]; t = ln(sigma)/4 is what the network is told (EDM, table 1)."""
        return Level(t=sigma.log() / 4, alpha=torch.ones_like(sigma), sigma=sigma)

    def sigma_at(self, t: Tensor) -> Tensor:
        """The rho grid: sigma(0) = sigma_max, sigma(1) = sigma_min (EDM, equation 5)."""
        top, bottom = self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho)
        return (top + t * (bottom - top)) ** self.rho

    def fake_level(self, draw: Tensor) -> Level:
        """ln sigma = p_mean + p_std * draw, draw [B] normal (EDM, table 1)."""
        return self.level((self.p_mean + self.p_std * draw).exp())

    def generator_level(self, draw: Tensor) -> Level:
        """draw [B] uniform in [0, 1): t' = t_max * draw, sigma the rho grid at 1 - t' (SiD).

        t_max 0.8 leaves out the noisiest fifth: sigma reaches 24.4.
        """
        return self.level(self.sigma_at(1 - self.t_max * draw))

    def step_level(self, step: int, num_steps: int, batch: int, like: Tensor) -> Level:
        """The generator's levels: s_k = init_sigma * (K - k) / K, linear in sigma (SiDA).

        Step 0 reads the noise, at init_sigma; a one-step generator has no other.
        """
        sigma = self.init_sigma * (num_steps - step) / num_steps
        return self.level(torch.full((batch,), sigma, dtype=like.dtype, device=like.device))

    def fake_weight(self, level: Level) -> Tensor:
        """lambda(sigma) = (sigma^2 + sigma_data^2) / (sigma * sigma_data)^2, [B] (EDM, table 1)."""
        return (level.sigma**2 + self.sigma_data**2) / (level.sigma * self.sigma_data) ** 2

    def fake_terms(
        self, found: Prediction, x_0: Tensor, noise: Tensor, level: Level
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(D, x_0, lambda(sigma)): the fake score's loss compares images."""
        assert found.x0 is not None
        return found.x0, x_0, self.fake_weight(level)


PREDICTION_TYPES = ("epsilon", "v_prediction")


def x0_from_raw(prediction_type: str, x_t: Tensor, raw: Tensor, level: Level) -> Tensor:
    """x_0 in closed form from the network's epsilon or v; all [B, C, H, W].

    epsilon: x_0 = (x_t - sigma * eps) / alpha (DDPM, arXiv:2006.11239, equation 15);
    v: x_0 = alpha * x_t - sigma * v (progressive distillation, arXiv:2202.00512, appendix D).
    """
    alpha, sigma = image_shape(level.alpha), image_shape(level.sigma)
    if prediction_type == "epsilon":
        return (x_t - sigma * raw) / alpha
    return alpha * x_t - sigma * raw


def betas_of(
    beta_schedule: str, beta_start: float, beta_end: float, count: int, zero_snr: bool = False
) -> Tensor:
    """beta [count], float32 throughout, as diffusers computes it, so that it agrees to the bit.

    ``zero_snr``: sqrt(abar) moved and stretched so that its first value stays and the last is 0
    (arXiv:2305.08891, section 3.1).
    """
    power = {"linear": 1.0, "scaled_linear": 0.5}[beta_schedule]
    roots = torch.linspace(beta_start**power, beta_end**power, count, dtype=torch.float32)
    betas = roots**2 if beta_schedule == "scaled_linear" else roots
    if not zero_snr:
        return betas
    alpha = torch.cumprod(1.0 - betas, dim=0).sqrt()
    first, last = alpha[0].clone(), alpha[-1].clone()
    stretched = ((alpha - last) * (first / (first - last))) ** 2
    return 1 - torch.cat([stretched[:1], stretched[1:] / stretched[:-1]])


@lru_cache(maxsize=16)
def cumulative_alphas(
    beta_schedule: str,
    beta_start: float,
    beta_end: float,
    count: int,
    device: torch.device,
    zero_snr: bool = False,
) -> Tensor:
    """abar [count], float32, of ``betas_of``."""
    # By way of betas also where they are made of abar: that is how diffusers' schedulers are told,
    # and it rounds.
    betas = betas_of(beta_schedule, beta_start, beta_end, count, zero_snr)
    return torch.cumprod(1.0 - betas, dim=0).to(device)


@dataclass(frozen=True)
class DiscreteVPSchedule(NoiseLevels):
    """Noise levels of Stable Diffusion and other DDPM-like teachers (DDPM; SiD-LSG).

    Args:
        beta_schedule, beta_start, beta_end, num_train_timesteps: the teacher's own, from its
            scheduler_config.json; ``scaled_linear`` is linear in sqrt(beta).
        prediction_type: what the teacher's network predicts, ``epsilon`` or ``v_prediction``.
        rescale_zero_snr: whether its last timestep is pure noise (abar 0), as in teachers trained
            so; epsilon says nothing of x_0 there, v does.
        t_min, t_max: both losses draw the timestep evenly from t_min .. t_max - 1.
        init_timestep: tau, the level at which the generator reads its noise.
    """

    normal_fake_time: ClassVar[bool] = False
    fake_want: ClassVar[Want] = Want.RAW

    beta_schedule: str = "scaled_linear"
    beta_start: float = 0.00085
    beta_end: float = 0.012
    num_train_timesteps: int = 1000
    prediction_type: str = "epsilon"
    rescale_zero_snr: bool = False
    t_min: int = 20
    t_max: int = 980
    init_timestep: int = 625

    def __post_init__(self) -> None:
        _one_of("beta_schedule", self.beta_schedule, ("linear", "scaled_linear"))
        _one_of("prediction_type", self.prediction_type, PREDICTION_TYPES)
        count = self.num_train_timesteps
        if not isinstance(count, int) or count < 1:
            raise UserError(f"num_train_timesteps {count!r} is not a whole number above 0")
        for name in ("beta_start", "beta_end"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not 0 < value < 1:
                raise UserError(f"{name} {value!r} is not a number between 0 and 1")
        if not 0 <= self.t_min < self.t_max <= count:
            raise UserError(
                f"timesteps from t_min {self.t_min} to t_max {self.t_max} are not a range within "
                f"0..{count} (num_train_timesteps)"
            )
        if not 0 <= self.init_timestep < count:
            raise UserError(f"init_timestep {self.init_timestep} is not within 0..{count - 1}")
        last = {"t_max": self.t_max - 1, "init_timestep": self.init_timestep}
        reached = [name for name, timestep in last.items() if timestep == count - 1]
        if self.rescale_zero_snr and self.prediction_type == "epsilon" and reached:
            raise UserError(
                f"{reached[0]} {getattr(self, reached[0])} reaches timestep {count - 1}, which is "
                "pure noise (rescale_zero_snr), and a network that predicts epsilon says nothing "
                f"of the image there: set {reached[0]} lower"
            )

    def betas(self) -> Tensor:
        """beta [num_train_timesteps], float32."""
        return betas_of(
            self.beta_schedule,
            self.beta_start,
            self.beta_end,
            self.num_train_timesteps,
            self.rescale_zero_snr,
        )

    def alphas_cumprod(self, device: torch.device) -> Tensor:
        """abar [num_train_timesteps], float32."""
        return cumulative_alphas(
            self.beta_schedule,
            self.beta_start,
            self.beta_end,
            self.num_train_timesteps,
            device,
            self.rescale_zero_snr,
        )

    def level(self, t: Tensor, dtype: torch.dtype = torch.float32) -> Level:
        """A level from integer timesteps [B]; alpha and sigma in float32 at least.

        ``t`` stays int64: as a float16 or bfloat16 it would be rounded (625 -> 624).
        """
        abar = self.alphas_cumprod(t.device)[t].to(torch.promote_types(dtype, torch.float32))
        return Level(t=t, alpha=abar.sqrt(), sigma=(1 - abar).sqrt())

    def _drawn_level(self, draw: Tensor) -> Level:
        t = self.t_min + (draw.double() * (self.t_max - self.t_min)).long()
        return self.level(t.clamp_max(self.t_max - 1), draw.dtype)

    def fake_level(self, draw: Tensor) -> Level:
        """draw [B] uniform in [0, 1) -> t evenly from t_min .. t_max - 1 (SiD-LSG).

        Uniform, where EDM's fake-score phase draws normal numbers.
        """
        return self._drawn_level(draw)

    def generator_level(self, draw: Tensor) -> Level:
        """draw [B] uniform in [0, 1) -> t evenly from t_min .. t_max - 1 (SiD-LSG)."""
        return self._drawn_level(draw)

    def step_level(self, step: int, num_steps: int, batch: int, like: Tensor) -> Level:
        """The generator's levels: t_i = int(tau * (1 - i/K)), linear in the timestep (SiD-LSG).

        Step 0 reads the noise, at tau, as add_noise(0, z): z times sigma_tau, 0.9286 at tau 625,
        not the teacher's marginal there. The published generators are defined so.
        """
        t = int(self.init_timestep * (1 - step / num_steps))
        return self.level(torch.full((batch,), t, device=like.device), like.dtype)

    def fake_weight(self, level: Level) -> Tensor:
        """SNR = (alpha / sigma)^2, [B]: the weight of |x_0 error|^2.

        In units of the prediction it is raw_weight: the plain sum of (eps error)^2 in SiD-LSG.
        """
        return (level.alpha / level.sigma) ** 2

    def raw_weight(self, level: Level) -> Tensor:
        """The same weight on |epsilon or v error|^2, [B]: 1, or SNR / (SNR + 1) = alpha^2."""
        if self.prediction_type == "epsilon":
            return torch.ones_like(level.alpha)
        return level.alpha**2

    def fake_terms(
        self, found: Prediction, x_0: Tensor, noise: Tensor, level: Level
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(epsilon or v, its target, 1 or alpha^2): SiD-LSG's loss compares what the network says.

        The same as SNR times the squared error of x_0, without dividing by a small alpha.
        """
        assert found.raw is not None
        return found.raw, self.raw_target(x_0, noise, level), self.raw_weight(level)

    def raw_target(self, x_0: Tensor, noise: Tensor, level: Level) -> Tensor:
        """What a perfect network predicts at alpha * x_0 + sigma * noise, [B, C, H, W]."""
        if self.prediction_type == "epsilon":
            return noise
        return image_shape(level.alpha) * noise - image_shape(level.sigma) * x_0

    @classmethod
    def from_scheduler_config(cls, values: Mapping[str, Any], **ours: int) -> DiscreteVPSchedule:
        """From a diffusers scheduler's config; ``ours`` are t_min, t_max, init_timestep.

        Any scheduler class over discrete betas serves: only the forward process is read.
        Raises UserError for what is not supported, by name.
        """
        for name in ("beta_start", "beta_end", "beta_schedule"):
            if name not in values:
                raise UserError(
                    f"{values.get('_class_name', 'the scheduler')} has no {name!r}: only discrete "
                    "DDPM-like schedulers are supported (DDPM, DDIM, PNDM, Euler, DPM-Solver)"
                )
        # What changes the forward process or the closed-form x_0, and its only supported value.
        plain = {"trained_betas": None, "clip_sample": False, "thresholding": False}
        for name, expected in plain.items():
            if values.get(name, expected) not in (expected, None):
                raise UserError(
                    f"scheduler option {name!r} = {values[name]!r} is not supported; "
                    f"expected {json.dumps(expected)}"
                )
        names = {field.name for field in fields(cls)} - {"t_min", "t_max", "init_timestep"}
        chosen: dict[str, Any] = {name: values[name] for name in names if name in values}
        chosen["rescale_zero_snr"] = bool(values.get("rescale_betas_zero_snr"))
        return cls(**chosen | ours)


def read_scheduler_config(path: Path, **ours: int) -> DiscreteVPSchedule:
    """The schedule of a scheduler_config.json. Raises UserError naming the file."""
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"no scheduler at {path}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} does not describe a scheduler: it holds no object")
    try:
        return DiscreteVPSchedule.from_scheduler_config(values, **ours)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        listed = ", ".join(known)
        hint = nearest(str(value), known)
        raise UserError(f"{name} {value!r} is not supported; known: {listed}.{hint}")
