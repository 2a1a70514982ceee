"""What this project computes for each file of flow_vectors.py, compared with its numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sid_ray.denoisers.guidance import Guided
from sid_ray.diffusion.flow import FlowSchedule
from sid_ray.evaluation.samplers import few_step
from sid_ray.objectives.functional import logit_loss
from sid_ray.objectives.generation import generator_step
from sid_ray.objectives.lsg import Guidance
from sid_ray.objectives.sid import SiD
from sid_ray.objectives.sida import SiDA
from sid_ray.types import (
    Batch,
    Condition,
    Draw,
    Level,
    Networks,
    Prediction,
    Want,
)
from tests.support.flow_iterations import trajectory
from tests.support.flow_vectors import Found, Told, Vectors, gradients_of
from tests.support.networks import Fixed

SHIFT = 3.0  # of SD3's generator


@dataclass(frozen=True)
class GivenTimes(FlowSchedule):
    """Times are given, not drawn: those of float32 differ in their last digit."""

    def fake_level(self, draw: Tensor) -> Level:
        return self.level(draw)


def errors_of(path: Path, wide: bool) -> Found:
    """Of one file; everything is computed in float64 or in float32."""
    vectors = Vectors(path, wide)
    check = CHECKS.get(vectors.name, CHECKS.get(vectors.kind))
    if vectors.kind == "losses" and vectors.name not in CHECKS:
        check = fake_loss if "_fake_" in vectors.name else generator_loss
    assert check is not None, path
    check(vectors)
    assert vectors.found.errors, f"{path} has no number that is compared"
    return vectors.found


def guided(vectors: Vectors, net: Any, kappa: float) -> tuple[Any, float]:
    """(network, scale) of the official guidance: scale 0 is not the empty prompt for FLUX."""
    told = kappa == 0 and vectors.family == "flux"
    return (Told(net, 0.0), 1.0) if told else (net, kappa)


# Denoising and noise levels -----------------------------------------------------------------------


def denoise(vectors: Vectors) -> None:
    net, schedule = vectors.network("teacher"), FlowSchedule()
    level = schedule.level(vectors.given("in/t"))
    x_t = schedule.add_noise(vectors.given("in/images"), vectors.given("in/noise"), level)
    vectors.compare("out/x_t", x_t)
    x_t.requires_grad_(True)
    cond, null = Condition(text=vectors.prompt(net)), vectors.null_text(net)
    for kappa in vectors.said["kappas"]:
        own, scale = guided(vectors, net, kappa)
        judged, name = f"out/logit_k{kappa:g}" in vectors, f"k{kappa:g}"
        want = Want.X0 | Want.RAW | (Want.LOGITS if judged else Want(0))
        out = Guided(own, scale, null)(x_t, level, cond, want)
        found = {"v": out.raw, "x0": out.x0} | ({"logit": out.logits} if judged else {})
        for what, value in found.items():
            vectors.compare(f"out/{what}_{name}", value)
            cotangent = vectors.given("in/cotangent")
            if what == "logit":
                cotangent = torch.linspace(-1, 1, value.shape[-1], dtype=value.dtype)
            (gradient,) = torch.autograd.grad((value * cotangent).sum(), x_t, retain_graph=True)
            vectors.compare(f"grad/{what}_{name}/x_t", gradient)
        if judged:  # without a velocity
            alone = Guided(own, scale, null)(x_t, level, cond, Want.LOGITS)
            assert alone.raw is alone.x0 is None
            vectors.compare(f"out/logit_{name}", alone.logits)


def noise_levels(vectors: Vectors) -> None:
    images, y_real = vectors.given("in/images"), vectors.given("in/y_real")
    for phase in ("fake_phase", "generator_phase"):
        schedule = FlowSchedule()
        level_of = schedule.fake_level if phase == "fake_phase" else schedule.generator_level
        (draw,) = vectors.drawn(f"normal_{phase}")
        vectors.compare(f"out/t_{phase}", level_of(draw).t)
        given = schedule.level(vectors.expected(f"out/t_{phase}").to(vectors.dtype))
        for weighting in vectors.said["weights"]:
            own = FlowSchedule(weighting=weighting)
            divisor = own.loss_divisor(given, images, y_real)
            vectors.compare(f"out/w_{weighting}/{phase}_t", 1 / divisor)
    for name in vectors.names("out/t_steps"):
        steps, first = (int(word) for word in name.rpartition("/K")[2].split("_init"))
        shift = SHIFT if "shift3" in name else 1.0
        own = FlowSchedule(init_time=first, generator_shift=shift)
        levels = [own.step_level(step, steps, 1, images).t for step in range(steps)]
        vectors.compare(name, torch.cat(levels))


# The generator ------------------------------------------------------------------------------------


def generator(vectors: Vectors) -> None:
    net, said = vectors.network("generator"), vectors.said
    schedule = FlowSchedule(
        init_time=said["init_timestep"],
        generator_shift=SHIFT if said["sd3_shift"] else 1.0,
        step_noise=said["noise_type"],
    )
    steps, cond = said["K"], Condition(text=vectors.prompt(net))
    (z,) = vectors.drawn("_z")
    fresh = vectors.drawn("_step") or [torch.zeros_like(z)] * (steps - 1)
    before = None
    with torch.no_grad():
        for step, noise in enumerate((z, *fresh)):
            before = generator_step(net, schedule, before, noise, z, step, steps, cond)
            vectors.compare(f"out/step{step}_t", before.level.t)
            vectors.compare(f"out/step{step}_x_in", before.x_t)
            vectors.compare(f"out/step{step}_D", before.image)
        last = few_step(net, schedule, z, cond, steps, fresh)
    vectors.compare(f"out/step{steps - 1}_D", last)


# Losses -------------------------------------------------------------------------------------------


def schedule_of(vectors: Vectors, weighting: str) -> tuple[FlowSchedule, Tensor]:
    """The schedule and what is drawn for it: raw numbers in float64, times in float32."""
    (draw,) = vectors.drawn("normal_t")
    if vectors.wide:
        return FlowSchedule(weighting=weighting), draw
    return GivenTimes(weighting=weighting), vectors.expected("out/t").float()


def fake_loss(vectors: Vectors) -> None:
    said, judged = vectors.said, "out/loss_D" in vectors
    net, count = vectors.network("fake"), said["batch_gpu_total"]
    schedule, time = schedule_of(vectors, "1_minus_sigma")
    own, kappa = guided(vectors, net, said["kappa1"])
    guidance = Guidance(kappa1=kappa, text_dropout=0, null_text=vectors.null_text(net))
    images, (noise,) = vectors.given("in/images"), vectors.drawn("_noise")
    batch, draw = Batch(text=vectors.prompt(net)), Draw(noise, noise, time)
    nets, want = Networks(own, own, Fixed(images)), schedule.fake_want
    if judged:
        want |= Want.LOGITS
        real = vectors.prompt(net, "in/real_", pooled="in/")  # the official mix-up
        batch = batch._replace(images=vectors.given("in/images_real"), real_text=real)
    kinds: type[SiD] = SiDA if judged else SiD
    objective = kinds(schedule, guidance=guidance)
    seen = objective.denoise(nets, batch, draw, want, judged)
    loss = objective.fake_loss(nets, batch, draw)
    vectors.compare("out/t", seen.level.t)
    vectors.compare("out/target", seen.target)
    vectors.compare("out/v", seen.prediction.raw)
    vectors.compare("out/loss_unreduced", (seen.found - seen.target) ** 2)
    vectors.compare("out/loss", loss.metrics["fake_loss"] / count)
    if judged:
        compare_judged(vectors, "out", seen.prediction, loss.metrics["discriminator_loss"] / count)
        vectors.compare("out/logit_fake", seen.prediction.logits)
        vectors.compare("out/bce_fake", clamped_loss(seen.prediction.logits, real=False))
    (loss.total / count).backward()
    what = "loss_plus_loss_D" if judged else "loss"
    vectors.compare_gradients(f"gradw/{what}/", gradients_of(net))
    if any(vectors.names("out_fixed/")):
        batch = batch._replace(real_text=vectors.prompt(net, "in/real_"))
        with torch.no_grad():
            seen = objective.denoise(nets, batch, draw, want, judged)
            loss = objective.fake_loss(nets, batch, draw)
        value = loss.metrics["discriminator_loss"] / count
        compare_judged(vectors, "out_fixed", seen.prediction, value)


def compare_judged(vectors: Vectors, where: str, found: Prediction, loss: Tensor) -> None:
    vectors.compare(f"{where}/logit_real", found.real_logits)
    vectors.compare(f"{where}/bce_real", clamped_loss(found.real_logits, real=True))
    vectors.compare(f"{where}/loss_D", loss)


def clamped_loss(logits: Tensor, real: bool) -> Tensor:
    return logit_loss(logits.clamp(-10, 10), real)


def generator_loss(vectors: Vectors) -> None:
    said = vectors.said
    teacher, fake = (vectors.network(role).requires_grad_(False) for role in ("teacher", "fake"))
    weighting, *_ = said["weighting"].split()
    schedule, time = schedule_of(vectors, weighting)
    (teacher, kappa4), (fake, kappa2) = (
        guided(vectors, net, kappa)
        for net, kappa in ((teacher, said["kappas"][3]), (fake, said["kappas"][1]))
    )
    null, text = (make(vectors.network("fake")) for make in (vectors.null_text, vectors.prompt))
    guidance = Guidance(1, kappa2, kappa2, kappa4, 0, null)
    images, (noise,) = vectors.given("in/images").requires_grad_(True), vectors.drawn("_noise")
    nets, batch = Networks(teacher, fake, Fixed(images)), Batch(text=text)
    draw, count = Draw(noise, noise, time), said["batch_gpu_total"]
    objective = SiD(schedule, alpha=said["alpha"], guidance=guidance)
    seen = objective.score(nets, batch, draw)
    vectors.compare("out/y_fake", seen.f_psi)
    vectors.compare("out/y_real", seen.f_phi)
    vectors.compare("out/w", 1 / seen.divisor)
    losses = {"loss": objective.generator_loss(nets, batch, draw).total}
    for name in vectors.names("out/w_"):  # by all other weights, too
        other = replace(objective, schedule=replace(schedule, weighting=name[6:]))
        vectors.compare(name, 1 / other.score(nets, batch, draw).divisor)
        losses[f"loss_{name[6:]}"] = other.generator_loss(nets, batch, draw).total
    if "out/loss_gan" in vectors:
        own = SiDA(schedule, alpha=said["alpha"], guidance=guidance, adversarial_weight=1.0)
        losses["half_sum"] = own.generator_loss(nets, batch, draw).total
        alone = replace(own, generator_scale=0.0)
        losses["loss_gan"] = 2 * alone.generator_loss(nets, batch, draw).total
        vectors.compare("out/logit", own.score(nets, batch, draw, Want.X0 | Want.LOGITS).logits)
    for name, loss in losses.items():
        if f"out/{name}" in vectors:
            vectors.compare(f"out/{name}", loss / count)
        (gradient,) = torch.autograd.grad(loss / count, images)
        vectors.compare(f"grad/{name}/images", gradient)


class Judge:
    """A fake score whose logits are given, and which is right about every image."""

    def __init__(self, logits: Tensor, real: Tensor | None = None):
        self.logits, self.real = logits, real

    def __call__(
        self, x_t: Tensor, level: Level, cond: Condition, want: Want = Want.X0
    ) -> Prediction:
        return Prediction(x_t, logits=self.logits, raw=x_t, real_logits=self.real)


def bce_clamp(vectors: Vectors) -> None:
    said, logits = vectors.said, {}
    for name in ("fake", "real", "generator"):
        logits[name] = vectors.given(f"in/logit_{name}").requires_grad_(True)
    time, count = vectors.given("in/t"), said["batch_gpu_total"]
    images = torch.zeros(len(time), *said["image_shape"], dtype=vectors.dtype)
    draw, batch = Draw(images, images, time), Batch(images=images)
    objective = SiDA(GivenTimes(weighting=said["weighting"]), adversarial_weight=1.0)
    judge = Judge(logits["fake"], logits["real"])
    loss = objective.fake_loss(Networks(judge, judge, Fixed(images)), batch, draw)
    vectors.compare("out/loss_D", loss.metrics["discriminator_loss"] / count)
    (loss.total / count).backward()
    judge = Judge(logits["generator"])
    loss = objective.generator_loss(Networks(judge, judge, Fixed(images)), batch, draw)
    vectors.compare("out/loss_gan", 2 * loss.total / count)
    (2 * loss.total / count).backward()
    for name, value in logits.items():
        what = "loss_gan" if name == "generator" else "loss_D"
        vectors.compare(f"grad/{what}/logit_{name}", value.grad)
    for name, real in (("fake", False), ("real", True)):
        vectors.compare(f"out/bce_{name}", clamped_loss(logits[name], real))


CHECKS: dict[str, Callable[[Vectors], None]] = {
    "denoise": denoise,
    "noise_levels": noise_levels,
    "generator": generator,
    "bce_clamp": bce_clamp,
    "trajectories": trajectory,
}
