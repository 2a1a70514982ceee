"""Whole iterations of SiD on flow matching, compared with the numbers of flow_vectors.py."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from sid_ray.diffusion.flow import FlowSchedule
from sid_ray.objectives.lsg import Guidance
from sid_ray.objectives.sid import SiD
from sid_ray.objectives.sida import SiDA
from sid_ray.types import WHOLE, Batch, Draw, Networks
from tests.support.flow_vectors import Vectors, gradients_of

ZERO_GRADIENT = 1e-6  # of weights that rounding alone moves
STARTS = {"generator_start": 20_000, "adversarial_start": 40_000}


def trajectory(vectors: Vectors) -> None:
    """In the official order, with plain Adam, over as many passes an update as the file has."""
    said = vectors.said
    chosen, seen = said["settings"], said["settings"]["cur_nimg"]
    teacher, fake, generator = (vectors.network(r) for r in ("teacher", "fake", "generator"))
    kappas = chosen["kappas"]
    kinds: type[SiD] = SiDA if chosen["gan"] else SiD
    own: dict[str, Any] = {"adversarial_weight": 1.0} | STARTS if chosen["gan"] else {}
    objective = kinds(
        FlowSchedule(weighting=chosen["scheme"], step_noise=chosen["noise_type"]),
        alpha=chosen["alpha"],
        num_steps=chosen["K"],
        guidance=Guidance(*kappas, 0, vectors.null_text(teacher)),
        **own,
    )
    adam = {"betas": tuple(said["adam"]["betas"]), "eps": said["adam"]["eps"]}
    steps_fake = torch.optim.Adam(fake.parameters(), lr=chosen["lr"], **adam)
    steps_generator = torch.optim.Adam(generator.parameters(), lr=chosen["glr"], **adam)
    nets = Networks(teacher.requires_grad_(False), fake, generator)
    for iteration in range(chosen["iters"]):
        for role, net, adam_of in (("fake", fake, steps_fake), ("g", generator, steps_generator)):
            fake.requires_grad_(role == "fake")
            generator.requires_grad_(role == "g")
            for index in range(chosen["rounds"]):
                one_pass(vectors, nets, objective, f"iter{iteration}/", f"{role}{index}_", seen)
            start = f"iter{iteration}/gradw/{'G' if role == 'g' else role}/"
            if any(vectors.names(start)):
                vectors.compare_gradients(start, gradients_of(net))
            if role == "fake" or objective.trains_generator(seen):
                adam_of.step()
            adam_of.zero_grad(set_to_none=True)
        seen += said["batch"]
    compare_weights(vectors, {"fake": fake, "G": generator})


def one_pass(
    vectors: Vectors, nets: Networks, objective: SiD, where: str, who: str, seen: int
) -> None:
    """A micro-batch of a phase: its loss over the whole batch, backward, and what was recorded."""
    count, steps = vectors.said["batch"], objective.num_steps
    (k,) = vectors.drawn("_randint_k", where)
    (z,) = vectors.drawn(f"{who}z", where)
    (noise,) = vectors.drawn(f"{who}noise", where)
    (time,) = vectors.drawn(f"{who}normal_t", where)
    later = vectors.drawn(f"{who}step_noise", where)
    later += [torch.zeros_like(z)] * (steps - 1 - len(later))
    more = torch.stack(later, 1) if later else None
    draw = Draw(z, noise, time, step=int(k) - 1 if steps > 1 else None, more_noise=more)
    batch = Batch(text=vectors.prompt(nets.generator, f"{where}in/{who}"))
    real = f"{where}in/{who.replace('fake', 'real')}"
    if f"{real}images_real" in vectors.tensors:
        text = vectors.prompt(nets.generator, real, pooled=f"{where}in/{who}")
        batch = batch._replace(images=vectors.given(f"{real}images_real"), real_text=text)
    loss_of = objective.fake_loss if who[0] == "f" else objective.generator_loss
    loss = loss_of(nets, batch, draw, replace(WHOLE, images_seen=seen))
    (loss.total / count).backward()
    with torch.no_grad():
        found = {"images": objective.generate(nets, batch, draw, dropout=False)}
    said = {"loss": loss.metrics.get("fake_loss"), "loss_D": loss.metrics.get("discriminator_loss")}
    if who[0] == "g":
        scaled = objective.generator_scale * loss.metrics["generator_loss"]
        said = {"loss": scaled, "loss_gan": loss.metrics.get("adversarial_loss")}
    found |= {name: value / len(z) for name, value in said.items() if value is not None}
    for name, value in found.items():
        if f"{where}out/{who}{name}" in vectors:
            vectors.compare(f"{where}out/{who}{name}", value)


def compare_weights(vectors: Vectors, nets: dict[str, nn.Module]) -> None:
    """In float32 against float64: most tensors agree; where a gradient crosses zero, Adam moves an
    element by its whole step the other way.
    """
    said, errors, moved = vectors.said, [], 0.0
    for role, net in nets.items():
        for name, value in net.state_dict().items():
            stored = f"w_{role}/{name.removeprefix('transformer.')}"
            rounding = stored in said["zero_gradient_tensors"]
            if stored not in vectors:
                continue
            if vectors.wide:
                vectors.compare(stored, value, ZERO_GRADIENT if rounding else None)
            elif not rounding:
                expected = vectors.expected(stored)
                errors.append(float((value - expected).norm() / expected.norm()))
                moved = max(moved, float((value - expected).abs().max()))
    if errors:
        found, steps = vectors.found.errors, said["settings"]["iters"]
        found["three of four weights"] = (sorted(errors)[len(errors) * 3 // 4], vectors.close)
        found["single elements"] = (moved, 2 * said["settings"]["lr"] * steps)
