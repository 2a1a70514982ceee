"""Kinds of noise levels: which fields of a config they have, and how a teacher samples on them.

A kind is an object that families share: EDM's and EDM2's are one. Flow matching's are in
flow_noise.py. ``kind`` is what ``schedule.kind`` of a config says. This file is light: torch is
imported inside methods.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, cast

from sid_ray.config.sections import ScheduleConfig
from sid_ray.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from sid_ray.denoisers.stock import StockScheduler
    from sid_ray.diffusion.schedules import DiscreteVPSchedule, EDMSchedule
    from sid_ray.types import Condition, Denoiser, Schedule

BETAS = (
    "beta_schedule", "beta_start", "beta_end", "num_train_timesteps", "prediction_type",
    "rescale_zero_snr",
)  # fmt: skip
Solve = Callable[["Denoiser", "Tensor", "Condition", "Tensor | None"], "Tensor"]


class TeacherSampler(NamedTuple):
    """How a teacher makes images.

    ``run(net, latents [N, C, H, W], cond, null_text [T, D] or None)`` makes them, with
    ``evaluations`` of the network each; ``settings`` is what a result records of it.
    """

    evaluations: int
    settings: dict[str, Any]
    run: Solve


class Noise(ABC):
    """A kind of noise levels.

    Attributes:
        kind: its name in ``schedule.kind``.
        fields: the fields of the config's ``schedule`` section that a run may choose.
        of_teacher: those that say what the teacher was trained with.
    """

    kind: ClassVar[str]
    fields: ClassVar[tuple[str, ...]] = ()
    of_teacher: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def schedule(self, chosen: ScheduleConfig) -> Schedule:
        """The noise levels of a config."""

    @abstractmethod
    def one_step(self, chosen: ScheduleConfig) -> dict[str, Any]:
        """What model.json says of where a generator reads its noise."""

    @abstractmethod
    def of_generator(self, one_step: Mapping[str, Any]) -> Schedule:
        """The noise levels of a generator, the inverse of one_step. Raises KeyError, TypeError."""

    @abstractmethod
    def sampler(self, chosen: ScheduleConfig, steps: int, guidance: float = 1.0) -> TeacherSampler:
        """The teacher's own sampler in so many steps; a ``guidance`` of 1 is none.

        Raises UserError for a teacher that has none.
        """

    def of_network(self, folder: Path, network: Mapping[str, Any], size: int) -> ScheduleConfig:
        """What a teacher, a file or folder, says of its noise levels; its samples are ``size`` a
        side. Raises UserError.
        """
        return ScheduleConfig(kind=self.kind)

    def check(self, chosen: ScheduleConfig, folder: Path) -> None:
        """Raises UserError where a config contradicts its teacher's folder, or itself."""
        return

    def exported(self, one_step: Mapping[str, Any]) -> StockScheduler:
        """The scheduler of diffusers for a generator, by what model.json says of its steps. Raises
        UserError where none does the same.
        """
        raise UserError(f"diffusers has no pipeline for noise levels of kind {self.kind}")


class EDMNoise(Noise):
    """A standard deviation, continuous: EDM and EDM2. Sampled with Heun's method."""

    kind = "edm"
    fields = ("p_mean", "p_std", "sigma_min", "sigma_max", "rho", "t_max", "init_sigma")

    def schedule(self, chosen: ScheduleConfig) -> EDMSchedule:
        from sid_ray.diffusion.schedules import EDMSchedule

        return EDMSchedule(**{name: getattr(chosen, name) for name in self.fields})

    def one_step(self, chosen: ScheduleConfig) -> dict[str, Any]:
        return {"sigma": chosen.init_sigma}

    def of_generator(self, one_step: Mapping[str, Any]) -> EDMSchedule:
        from sid_ray.diffusion.schedules import EDMSchedule

        return EDMSchedule(init_sigma=one_step["sigma"])

    def sampler(self, chosen: ScheduleConfig, steps: int, guidance: float = 1.0) -> TeacherSampler:
        count, schedule = 2 * steps - 1, self.schedule(chosen)
        levels = {name: getattr(chosen, name) for name in ("sigma_min", "sigma_max", "rho")}
        settings = {"sampler": "heun", "evaluations": count, "steps": steps} | levels

        def run(net: Denoiser, latents: Tensor, cond: Condition, null: Tensor | None) -> Tensor:
            from sid_ray.diffusion.solvers import heun

            return heun(net, schedule, latents, cond, steps)

        return TeacherSampler(count, settings, run)


class VPNoise(Noise):
    """Discrete timesteps that preserve the variance: Stable Diffusion. Sampled with DDIM, guided by
    the empty prompt.
    """

    kind = "vp"
    fields = ("timestep_min", "timestep_max", "init_timestep")
    of_teacher = BETAS

    def schedule(self, chosen: ScheduleConfig) -> DiscreteVPSchedule:
        from sid_ray.diffusion.schedules import DiscreteVPSchedule

        return DiscreteVPSchedule(
            **{name: getattr(chosen, name) for name in BETAS},
            t_min=chosen.timestep_min,
            t_max=chosen.timestep_max,
            init_timestep=chosen.init_timestep,
        )

    def one_step(self, chosen: ScheduleConfig) -> dict[str, Any]:
        return {"timestep": chosen.init_timestep} | said_betas(chosen)

    def of_generator(self, one_step: Mapping[str, Any]) -> DiscreteVPSchedule:
        from sid_ray.diffusion.schedules import DiscreteVPSchedule

        values = dict(one_step)
        return DiscreteVPSchedule(init_timestep=values.pop("timestep"), **values)

    def sampler(self, chosen: ScheduleConfig, steps: int, guidance: float = 1.0) -> TeacherSampler:
        schedule, count = self.schedule(chosen), steps * (1 if guidance == 1 else 2)
        settings = {"sampler": "ddim", "evaluations": count, "steps": steps, "guidance": guidance}
        settings |= said_betas(chosen)
        if chosen.rescale_zero_snr and chosen.prediction_type == "epsilon":
            raise UserError(
                "the teacher's noise levels end in pure noise (rescale_zero_snr), and it predicts "
                "epsilon, which says nothing of the image there: it has no sampler here"
            )

        def run(net: Denoiser, latents: Tensor, cond: Condition, null: Tensor | None) -> Tensor:
            from sid_ray.denoisers.guidance import Guided
            from sid_ray.diffusion.solvers import ddim

            if guidance != 1 and null is not None:
                net = Guided(net, guidance, null)
            return ddim(net, schedule, latents, cond, steps)

        return TeacherSampler(count, settings, run)

    def of_network(self, folder: Path, network: Mapping[str, Any], size: int) -> ScheduleConfig:
        from sid_ray.diffusion.schedules import read_scheduler_config

        path = scheduler_file(folder)
        if path.is_file():
            own = read_scheduler_config(path)
            return ScheduleConfig(kind=self.kind, **{name: getattr(own, name) for name in BETAS})
        predicts = network.get("prediction_type", "epsilon")
        return ScheduleConfig(kind=self.kind, prediction_type=predicts)

    def check(self, chosen: ScheduleConfig, folder: Path) -> None:
        from sid_ray.diffusion.schedules import read_scheduler_config

        self.schedule(chosen)  # refuses levels that are none
        path = scheduler_file(folder)
        if not path.is_file():
            return
        own = read_scheduler_config(path)
        for name in BETAS:
            has, asked = getattr(own, name), getattr(chosen, name)
            if has != asked:
                raise UserError(
                    f"schedule.{name} is {asked!r}, but {path} says {has!r}: set it to that"
                )

    def exported(self, one_step: Mapping[str, Any]) -> StockScheduler:
        from sid_ray.denoisers.stock import vp_scheduler

        schedule, num_steps = levels_of(self, one_step)
        return vp_scheduler(cast("DiscreteVPSchedule", schedule), num_steps)


def said_betas(chosen: ScheduleConfig) -> dict[str, Any]:
    """BETAS as model.json and results record them.

    That noise levels are rescaled is said only where they are: what is older does not say it.
    """
    values = {name: getattr(chosen, name) for name in BETAS}
    return {name: value for name, value in values.items() if name != "rescale_zero_snr" or value}


def scheduler_file(folder: Path) -> Path:
    return folder / "scheduler" / "scheduler_config.json"


def levels_of(noise: Noise, one_step: Mapping[str, Any]) -> tuple[Schedule, int]:
    """(noise levels, number of evaluations) from a generator's description. Raises UserError."""
    values = dict(one_step)
    num_steps = values.pop("num_steps", 1)
    try:
        return noise.of_generator(values), num_steps
    except (KeyError, TypeError):
        like = noise.one_step(ScheduleConfig(kind=noise.kind))
        raise UserError(
            f"one_step of model.json is {json.dumps(dict(one_step))}; expected one like "
            f"{json.dumps(like)}"
        ) from None


EDM_NOISE, VP_NOISE = EDMNoise(), VPNoise()
