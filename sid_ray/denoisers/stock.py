"""What diffusers needs to evaluate a generator as it was trained: a scheduler and a pipeline of its
own, with their settings and what a person calls them with.

Light: torch and diffusers are imported inside functions.

Symbols
    tau, t_0    where the generator reads its noise: a timestep (VP), a time (flow)
    K           evaluations an image       sigma, abar   as in diffusion/schedules.py
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sid_ray.errors import UserError

if TYPE_CHECKING:
    from sid_ray.diffusion.flow import FlowSchedule
    from sid_ray.diffusion.schedules import DiscreteVPSchedule

DIFFUSERS, TRANSFORMERS = "diffusers", "transformers"
# Programs that evaluate a family's networks without this package: they are copied, never imported.
LOADERS = Path(__file__).parent / "loaders"
# Large against 1/tau, and a power of two: c_skip is below 1e-12, and c_out is 1.
NO_SKIP = 2.0**20
TOKENIZERS = {  # class of a text encoder -> its tokenizer's
    "CLIPTextModel": "CLIPTokenizer",
    "CLIPTextModelWithProjection": "CLIPTokenizer",
    "T5EncoderModel": "T5TokenizerFast",
    "Gemma2Model": "GemmaTokenizerFast",
}


@dataclass(frozen=True)
class StockScheduler:
    """A scheduler of diffusers.

    Attributes:
        class_name, config: what scheduler_config.json holds.
        call: of the pipeline's arguments, those that choose its timesteps.
        latents_scale: what N(0, 1) noise is multiplied with, by whoever calls the pipeline; 1 where
            the scheduler sees to it, as it does to all noise but the first.
        betas: Python with torch for ``trained_betas`` of the config, which are many; empty where
            there is none shorter than they are.
    """

    class_name: str
    config: Mapping[str, Any]
    call: Mapping[str, Any]
    latents_scale: float = 1.0
    betas: str = ""

    def lines(self) -> str:
        """Python that makes ``scheduler``, where torch is imported."""
        values = {name: repr(value) for name, value in self.config.items()}
        if self.betas:
            values["trained_betas"] = self.betas
        arguments = "".join(f"    {name}={value},\n" for name, value in values.items())
        return (
            f"from diffusers import {self.class_name}\n"
            f"scheduler = {self.class_name}(\n{arguments})\n"
        )


@dataclass(frozen=True)
class StockPipeline:
    """A pipeline of diffusers for one network.

    Attributes:
        class_name: the pipeline's.
        folder, network_class: the part that is the network, and its class.
        network: what its config.json holds.
        vae_class: of the auto-encoder.
        encoders: part -> class of each text encoder; None for one that is left out.
        settings: what else model_index.json holds; None for a part that is left out.
        call: arguments of the pipeline beside the scheduler's and the prompt.
        latent_size: of its images where nobody asks for a size.
        packs_latents: whether it takes noise as its network's tokens.
    """

    class_name: str
    folder: str
    network_class: str
    network: Mapping[str, Any]
    vae_class: str
    encoders: Mapping[str, str | None]
    call: Mapping[str, Any]
    latent_size: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    packs_latents: bool = False

    @property
    def left_out(self) -> tuple[str, ...]:
        """Encoders and tokenizers that a person must name as None to open the folder."""
        missing = [part for part, name in self.encoders.items() if name is None]
        return (*missing, *(part.replace("text_encoder", "tokenizer") for part in missing))

    def index(self, scheduler: StockScheduler) -> dict[str, Any]:
        """model_index.json, but for the version of diffusers."""
        found: dict[str, Any] = {"_class_name": self.class_name}
        found[self.folder] = [DIFFUSERS, self.network_class]
        found["vae"] = [DIFFUSERS, self.vae_class]
        found["scheduler"] = [DIFFUSERS, scheduler.class_name]
        for part, name in self.encoders.items():
            tokenizer = None if name is None else TOKENIZERS[name]
            for each, of in ((part, name), (part.replace("text_encoder", "tokenizer"), tokenizer)):
                found[each] = [None, None] if of is None else [TRANSFORMERS, of]
        for name, value in self.settings.items():
            found[name] = [None, None] if value is None else value
        return found


# Schedulers ---------------------------------------------------------------------------------------


def vp_scheduler(schedule: DiscreteVPSchedule, num_steps: int) -> StockScheduler:
    """Timesteps end at tau in both: what comes after it is never reached.

    One step: Euler's, whose only timestep is tau, whose first input is sigma_tau z, and which goes
    to a noise of 0 in one step. Several steps, with fresh noise: LCM's without its skip connection,
    which does not scale the first input. So it is for one step from pure noise (abar_tau 0), where
    that scale is 1 and Euler's is infinite.
    """
    import torch

    tau = schedule.init_timestep
    steps = [int(tau * (1 - step / num_steps)) for step in range(num_steps)]
    if steps[-1] < 1 or len(set(steps)) < num_steps:
        raise UserError(
            f"a generator of {num_steps} steps from timestep {tau} has some twice or at 0, which "
            "no scheduler of diffusers does"
        )
    betas, printed = schedule.betas()[: tau + 1], ""
    if not schedule.rescale_zero_snr:
        power = 0.5 if schedule.beta_schedule == "scaled_linear" else 1
        ends = f"{schedule.beta_start}**{power}, {schedule.beta_end}**{power}"
        printed = f"(torch.linspace({ends}, {schedule.num_train_timesteps}) ** {1 / power:g})"
        printed += f"[:{tau + 1}].tolist()"
    config: dict[str, Any] = {
        "num_train_timesteps": tau + 1,
        "trained_betas": betas.tolist(),
        "prediction_type": schedule.prediction_type,
        "steps_offset": 1,  # neither reads it; StableDiffusionPipeline warns of any other number
    }
    level = schedule.level(torch.tensor([tau]))
    if num_steps == 1 and level.alpha > 0:
        config |= {"timestep_spacing": "trailing"}
        one = {"num_inference_steps": 1}
        return StockScheduler("EulerDiscreteScheduler", config, one, betas=printed)
    config |= {
        "original_inference_steps": tau + 1,
        "timestep_scaling": NO_SKIP,
        "clip_sample": False,
        "set_alpha_to_one": True,
    }
    call: dict[str, Any] = {"num_inference_steps": num_steps}
    if num_steps > 1:
        call["timesteps"] = steps
    return StockScheduler("LCMScheduler", config, call, level.sigma.item(), printed)


def flow_scheduler(schedule: FlowSchedule, num_steps: int) -> StockScheduler:
    """Euler's on the generator's own times, with fresh noise between them or without any."""
    import torch

    if num_steps > 1 and schedule.step_noise == "fixed":
        raise UserError(
            "this generator reads its first noise again at each step (step_noise fixed), which "
            "no scheduler of diffusers does: a one-step generator, or one of step_noise fresh or "
            "ddim, can be exported"
        )
    like = torch.zeros(1, dtype=torch.float32)
    times = [schedule.step_level(k, num_steps, 1, like).t.item() for k in range(num_steps)]
    config = {
        "num_train_timesteps": 1000,
        "shift": 1.0,
        "use_dynamic_shifting": False,
        "stochastic_sampling": num_steps > 1 and schedule.step_noise == "fresh",
    }
    call: dict[str, Any] = {"num_inference_steps": num_steps}
    if times != [1.0]:
        call["sigmas"] = times
    return StockScheduler("FlowMatchEulerDiscreteScheduler", config, call, times[0])


# Pipelines ----------------------------------------------------------------------------------------


def stock_arguments(network: Mapping[str, Any], *ours: str) -> dict[str, Any]:
    """A network's arguments as diffusers' config.json holds them."""
    return {n: value for n, value in network.items() if n not in ours and not n.startswith("_")}


def stock_encoders(folder: Path, classes: Mapping[str, tuple[str, ...]]) -> dict[str, str | None]:
    """Part -> class of the text encoders that a folder has; the first of a family's classes is the
    one that pipelines load.
    """
    from sid_ray.denoisers.component import component_of

    first = next(iter(classes))
    there = {part: part == first or (folder / part).is_dir() for part in classes}
    assert (component_of(folder, first) / "config.json").is_file()
    return {part: names[0] if there[part] else None for part, names in classes.items()}
