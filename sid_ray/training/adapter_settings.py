"""What the section ``adapter`` of a config means for a teacher."""

from __future__ import annotations

from sid_ray.config.distill_config import DistillConfig
from sid_ray.denoisers.adapters import Adapter, check_targets, target_layers
from sid_ray.denoisers.quantised import require_bitsandbytes
from sid_ray.denoisers.registry import family_of
from sid_ray.errors import UserError
from sid_ray.weights.folder import ModelDescription
from sid_ray.weights.networks import layout
from sid_ray.weights.same import called


def run_adapter(config: DistillConfig, family: str) -> Adapter | None:
    """What the adapters of a run are; None where whole networks are trained. Raises UserError."""
    chosen = config.adapter
    if not chosen.rank:
        return None
    named = tuple(name for name in (part.strip() for part in chosen.targets.split(",")) if name)
    targets = named or family_of(family).adapter_targets
    if not targets:
        raise UserError(
            f"adapter.rank is {chosen.rank}, but {called(family)} names no layers for adapters: "
            "set adapter.targets, or adapter.rank 0"
        )
    return Adapter(chosen.rank, chosen.alpha or chosen.rank, targets)


def check_adapted_layers(
    config: DistillConfig, teacher: ModelDescription, adapter: Adapter
) -> None:
    """Raises UserError where a run's adapters find no layers, or leave out one that is trained."""
    network = layout(teacher, config.teacher.source)
    check_targets(network, adapter)
    head = family_of(teacher.family).logvar_layer
    trains_head = config.objective.logvar and config.adapter.of("fake_score")
    named = (name for name, _ in target_layers(network, adapter.targets))
    if trains_head and not any(name.endswith(head) for name in named):
        raise UserError(
            f"objective.logvar trains the fake score's log-variance head, which adapter.targets "
            f"{','.join(adapter.targets)} leave as it is: add {head} to them"
        )


def base_precision(config: DistillConfig, family: str) -> str:
    """How the base of adapters is held. Raises UserError where its networks cannot be held so."""
    chosen, known = config.adapter.base, family_of(family).bases
    if chosen == "auto":
        precision = config.training.precision
        return precision if precision in known else "float32"
    if chosen not in known:
        raise UserError(
            f"adapter.base is {chosen}; {called(family)} can be held in {', '.join(known)}: set "
            "one of these, or auto"
        )
    if chosen == "4bit":
        require_bitsandbytes()
    return chosen


def noted_base(config: DistillConfig, family: str) -> str:
    """What the base's weights must be made for the numbers that an adapter was trained over.

    float32 where the network computes in the precision that they were held in: it rounds them so.
    """
    held = base_precision(config, family)
    return "float32" if held == config.training.precision else held
