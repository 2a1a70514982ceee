"""Noise levels of flow matching: which fields of a config they have, how a teacher samples on them.

Light, as noise.py is: torch is imported inside methods.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from sid_ray.config.sections import ScheduleConfig
from sid_ray.denoisers.noise import Noise, TeacherSampler, levels_of, scheduler_file

if TYPE_CHECKING:
    from torch import Tensor

    from sid_ray.denoisers.stock import StockScheduler
    from sid_ray.diffusion.flow import FlowSchedule
    from sid_ray.types import Condition, Denoiser


class FlowNoise(Noise):
    """A time between image and noise: flow matching. Sampled with Euler's method, guided by the
    empty prompt.
    """

    kind = "flow"
    fields = (
        "time_mean", "time_std", "weighting", "init_time", "generator_shift", "step_noise",
        "teacher_shift",
    )  # fmt: skip
    of_steps = ("init_time", "generator_shift", "step_noise")  # that a generator's images depend on

    def schedule(self, chosen: ScheduleConfig) -> FlowSchedule:
        from sid_ray.diffusion.flow import FlowSchedule

        return FlowSchedule(**self.chosen_fields(chosen))

    def chosen_fields(self, chosen: ScheduleConfig) -> dict[str, Any]:
        """What a schedule is made of: all fields but the teacher's sampler's."""
        names = (name for name in self.fields if name != "teacher_shift")
        return {name: getattr(chosen, name) for name in names}

    def one_step(self, chosen: ScheduleConfig) -> dict[str, Any]:
        return {name: getattr(chosen, name) for name in self.of_steps}

    def of_generator(self, one_step: Mapping[str, Any]) -> FlowSchedule:
        from sid_ray.diffusion.flow import FlowSchedule

        values = dict(one_step)
        init_time = values.pop("init_time")
        return FlowSchedule(init_time=init_time, **values)

    def sampler(self, chosen: ScheduleConfig, steps: int, guidance: float = 1.0) -> TeacherSampler:
        schedule, count = self.schedule(chosen), self.evaluations(steps, guidance)
        settings = {"sampler": "euler", "evaluations": count, "steps": steps, "guidance": guidance}
        settings |= {"shift": chosen.teacher_shift}

        def run(net: Denoiser, latents: Tensor, cond: Condition, null: Tensor | None) -> Tensor:
            from sid_ray.diffusion.solvers import euler

            net, cond = self.guided(net, cond, guidance, null)
            return euler(net, schedule, latents, cond, steps, chosen.teacher_shift)

        return TeacherSampler(count, settings, run)

    def evaluations(self, steps: int, guidance: float) -> int:
        """Of the network, for an image."""
        return steps * (1 if guidance == 1 else 2)

    def guided(
        self, net: Denoiser, cond: Condition, guidance: float, null: Tensor | None
    ) -> tuple[Denoiser, Condition]:
        """The teacher and its condition under guidance."""
        from sid_ray.denoisers.guidance import Guided

        return (net if guidance == 1 or null is None else Guided(net, guidance, null)), cond

    def of_network(self, folder: Path, network: Mapping[str, Any], size: int) -> ScheduleConfig:
        """The shift of the scheduler's file: its number, or what that makes of the size."""
        from sid_ray.denoisers.time_shift import shift_in

        shift = shift_in(scheduler_file(folder), size)
        if shift is None:
            return ScheduleConfig(kind=self.kind)
        return ScheduleConfig(kind=self.kind, teacher_shift=shift)

    def exported(self, one_step: Mapping[str, Any]) -> StockScheduler:
        from sid_ray.denoisers.stock import flow_scheduler

        schedule, num_steps = levels_of(self, one_step)
        return flow_scheduler(cast("FlowSchedule", schedule), num_steps)


class GuidedFlowNoise(FlowNoise):
    """Flow matching whose network is told the guidance scale, and needs one evaluation for it."""

    kind = "guided-flow"

    def schedule(self, chosen: ScheduleConfig) -> FlowSchedule:
        from sid_ray.diffusion.flow import GuidedFlowSchedule

        return GuidedFlowSchedule(**self.chosen_fields(chosen))

    def evaluations(self, steps: int, guidance: float) -> int:
        return steps

    def guided(
        self, net: Denoiser, cond: Condition, guidance: float, null: Tensor | None
    ) -> tuple[Denoiser, Condition]:
        assert cond.text is not None
        return net, cond._replace(guidance=cond.text.new_full((len(cond.text),), guidance))


FLOW_NOISE, GUIDED_FLOW_NOISE = FlowNoise(), GuidedFlowNoise()
