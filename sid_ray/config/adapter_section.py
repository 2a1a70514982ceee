"""What of the section ``adapter`` goes with itself and with the resources."""

from __future__ import annotations

from sid_ray.config.sections import AdapterConfig, ResourcesConfig
from sid_ray.errors import UserError

OF_A_RANK = ("alpha", "targets", "roles", "base")  # what nothing is without adapter.rank


def check_adapter(adapter: AdapterConfig, resources: ResourcesConfig) -> None:
    """Raises UserError for fields without a rank, and where a base would be shared out."""
    if not adapter.rank:
        whole = AdapterConfig()
        for name in OF_A_RANK:
            if getattr(adapter, name) != getattr(whole, name):
                raise UserError(
                    f"adapter.{name} is {getattr(adapter, name)}, but adapter.rank is 0, which "
                    f"trains whole networks: set --adapter.rank 64, or leave adapter.{name} out"
                )
        return
    if adapter.targets and not any(name.strip() for name in adapter.targets.split(",")):
        raise UserError(
            f"adapter.targets is {adapter.targets!r:.80}; it must be endings of layers' names with "
            "commas between them, like to_q,to_v, or empty for the family's own"
        )
    for role in ("fake_score", "generator"):
        if adapter.of(role) and resources.stage_of(role) == 3:
            own = getattr(resources, f"{role}_zero_stage") == 3
            flag = f"--resources.{role}-zero-stage" if own else "--resources.zero-stage"
            raise UserError(
                f"{role} is an adapter (adapter.rank {adapter.rank}), whose base each worker has "
                f"whole, but it is at ZeRO stage 3: set {flag.replace('_', '-')} 2, or "
                "--adapter.rank 0"
            )
    if resources.teacher_zero_stage == 3:
        raise UserError(
            f"the teacher is the base of adapters (adapter.rank {adapter.rank}), which each worker "
            "has whole, but resources.teacher_zero_stage is 3: set --resources.teacher-zero-stage "
            "0, or --adapter.rank 0"
        )
