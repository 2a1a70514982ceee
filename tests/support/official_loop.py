"""The published EDM2 training loop, written down from its description, for tests alone.

It shares nothing with sid_ray but the network as a function: losses, forced normalisation, the
order of updates, Adam and the average stand here once more, in float64 and on one process. Every
random number is handed in. A role is normalised in each forward pass of its own phase, as the
published layers do in training mode:

    no discriminator       fake score and generator, whatever --force_normalization says
    with a discriminator   the generator, where --force_normalization is 1; the fake score never

Symbols as in sid_ray/objectives/functional.py; b is the batch of one forward pass, B the whole one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sid_ray.types import Batch, Condition, Draw, Level, Prediction, Want

SIGMA_DATA = 0.5
FAKE, GENERATOR = "fake", "generator"
Given = Callable[[str, int, int], tuple[Draw, Batch]]  # (phase, images seen, pass)


@dataclass(frozen=True)
class Flags:
    """What the published command line sets; ``passes`` is B / b on one GPU."""

    use_gan: bool
    force_normalization: bool
    return_logvar: bool = False
    passes: int = 1
    num_steps: int = 1
    alpha: float = 1.0
    batch_size: int = 4
    lr: float = 1e-3
    ema_images: int = 2000
    ls: float = 1.0
    lsg: float = 100.0
    lsd: float = 100.0
    lsg_gan: float = 0.01
    p_mean: float = -0.4
    p_std: float = 1.0
    t_max: float = 0.8
    init_sigma: float = 2.5
    generator_from: int = 100_000
    adversarial_from: int = 200_000

    @property
    def normalised(self) -> set[str]:
        """The roles whose weights are overwritten in training forward passes."""
        if not self.use_gan:
            return {FAKE, GENERATOR}
        return {GENERATOR} if self.force_normalization else set()


def overwrite(net: nn.Module) -> None:
    """w <- w / (1e-4 + rms of its row), every matrix and kernel."""
    with torch.no_grad():
        for w in net.parameters():
            if w.ndim > 1:
                w /= 1e-4 + w.flatten(1).square().mean(1).sqrt().reshape(-1, *[1] * (w.ndim - 1))


def image(per_sample: Tensor) -> Tensor:
    return per_sample.reshape(-1, 1, 1, 1)


def evaluate(net: nn.Module, x: Tensor, sigma: Tensor, labels: Tensor, want: Want) -> Prediction:
    level = Level(sigma.log() / 4, torch.ones_like(sigma), sigma)
    return net(x, level, Condition(labels), want)


@dataclass
class OfficialLoop:
    """Teacher, fake score, generator and average, all with the teacher's weights at first."""

    teacher: nn.Module
    flags: Flags
    images_seen: int = 0
    fake: nn.Module = field(init=False)
    generator: nn.Module = field(init=False)
    average: nn.Module = field(init=False)

    def __post_init__(self) -> None:
        self.fake, self.generator, self.average = (copy.deepcopy(self.teacher) for _ in range(3))
        self.adam = {
            net: torch.optim.Adam(net.parameters(), self.flags.lr, (0.0, 0.999), 1e-8)
            for net in (self.fake, self.generator)
        }

    def generate(self, draw: Draw, labels: Tensor) -> Tensor:
        """K evaluations, sigma falling linearly, fresh noise before each; no gradient is cut."""
        flags, noises = self.flags, [draw.latents]
        if flags.num_steps > 1:
            noises += draw.more_noise.unbind(1)
        y = torch.zeros_like(draw.latents)
        for k, noise in enumerate(noises):
            sigma = torch.full_like(draw.time, flags.init_sigma * (1 - k / flags.num_steps))
            y = evaluate(self.generator, y + image(sigma) * noise, sigma, labels, Want.X0).x0
        return y

    def iterate(self, given: Given) -> None:
        """Fake score, generator, average."""
        self.phase(FAKE, self.fake, given, self.fake_loss, steps=True)
        trained = not self.flags.use_gan or self.images_seen > self.flags.generator_from
        self.phase(GENERATOR, self.generator, given, self.generator_loss, trained)
        half_life = min(self.flags.ema_images, 0.05 * self.images_seen)
        beta = 0.5 ** (self.flags.batch_size / max(half_life, 1e-8))
        with torch.no_grad():
            for mean, w in zip(self.average.parameters(), self.generator.parameters(), strict=True):
                mean.copy_(beta * mean + (1 - beta) * w)
        self.images_seen += self.flags.batch_size

    def phase(
        self,
        name: str,
        net: nn.Module,
        given: Given,
        loss: Callable[[Draw, Batch], Tensor],
        steps: bool,
    ) -> None:
        """Gradients of all passes, then Adam; a generator that waits throws its gradients away."""
        for role in (self.fake, self.generator):
            role.requires_grad_(role is net)
            role.zero_grad(set_to_none=True)
        for index in range(self.flags.passes):
            if name in self.flags.normalised:
                overwrite(net)
            loss(*given(name, self.images_seen, index)).backward()
        with torch.no_grad():
            for w in net.parameters():
                if w.grad is not None:
                    torch.nan_to_num(w.grad, nan=0.0, posinf=1e5, neginf=-1e5, out=w.grad)
        if steps:
            self.adam[net].step()

    def fake_loss(self, draw: Draw, batch: Batch) -> Tensor:
        flags, labels = self.flags, batch.labels
        with torch.no_grad():
            y = self.generate(draw, labels)
        sigma = (flags.p_mean + flags.p_std * draw.time).exp()
        weight = (sigma**2 + SIGMA_DATA**2) / (sigma * SIGMA_DATA) ** 2
        want = Want.X0 | Want.LOGITS | Want.LOGVAR
        found = evaluate(self.fake, y + image(sigma) * draw.noise, sigma, labels, want)
        u = found.logvar if flags.return_logvar else torch.zeros_like(sigma)
        error = image(weight / u.exp()) * (found.x0 - y) ** 2 + image(u)
        total = flags.ls * error.sum()
        if flags.use_gan:
            noisy = batch.images + image(sigma) * draw.noise
            real = evaluate(self.fake, noisy, sigma, labels, Want.LOGITS).logits
            judged = F.softplus(-real).mean() / 2 + F.softplus(found.logits).mean() / 2
            total = total + flags.lsd * (weight / u.exp() * judged).sum()
        return total / flags.batch_size

    def generator_loss(self, draw: Draw, batch: Batch) -> Tensor:
        flags, labels = self.flags, batch.labels
        y = self.generate(draw, labels)
        rho = 1 / 7
        t = flags.t_max * draw.time
        sigma = (80**rho + (1 - t) * (0.002**rho - 80**rho)) ** 7
        x = y + image(sigma) * draw.noise
        want = Want.X0 | Want.LOGITS | Want.LOGVAR
        real = evaluate(self.teacher, x, sigma, labels, Want.X0).x0
        found = evaluate(self.fake, x, sigma, labels, want)
        with torch.no_grad():
            w = (y - real).abs().mean((1, 2, 3)).clamp(min=1e-5)
        u = found.logvar.detach() if flags.return_logvar else torch.zeros_like(sigma)
        delta = real - found.x0
        total = flags.lsg * (delta * ((real - y) - flags.alpha * delta) / image(w * u.exp())).sum()
        if flags.use_gan and self.images_seen > flags.adversarial_from:
            judged = F.softplus(-found.logits.clamp(-10, 10)).mean()
            adversarial = flags.lsg_gan * y[0].numel() * (judged / (w * u.exp())).sum()
            total = 0.5 * total + 0.5 * adversarial
        return total / flags.batch_size
