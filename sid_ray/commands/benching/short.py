"""A short iteration that stands for a whole one, and the way back from its seconds.

An iteration of a published batch has hundreds of passes that are all alike. Measured are two of
each phase, whole, with everything around them, and the update; the others cost what the first did:
it accumulates as they do, while the last may also sum gradients over ranks.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sid_ray.config.distill_config import DistillConfig, replace
from sid_ray.planning.fit import micro_batch_of
from sid_ray.planning.memory import TRAINED

PASSES = 2  # of each phase and rank that are measured
PASS, LOOK, UPDATE, AVERAGE = "pass", "look", "update", "average"
Seconds = Mapping[str, Sequence[float]]  # "generator pass" -> of each pass


@dataclass(frozen=True)
class Short:
    """The config of a short iteration. ``passes``: of a rank in the whole one; a last pass that is
    not full counts as a part of one. ``whole``: nothing was left out.
    """

    config: DistillConfig
    passes: float
    whole: bool


def short_of(config: DistillConfig, world_size: int) -> Short:
    """Two passes a rank and phase of what the config asks for, or all where there are no more.

    Raises UserError where the sizes do not divide, or there are more ranks than groups.
    """
    plan = config.group_plan(world_size)
    if plan.passes_a_rank <= PASSES:
        return Short(config, plan.passes_a_rank, True)
    micro, rounds = micro_batch_of(config), -(-plan.num_groups // world_size)
    group = plan.group_size
    if plan.passes_a_group > 1:  # the look ahead over a split group is shortened with it
        group = PASSES * micro
        batch = group * world_size
    else:
        batch = PASSES * micro * world_size
    short = replace(
        config,
        training__batch_size=batch,
        training__group_size=group,
        resources__micro_batch=micro,
    )
    return Short(short, rounds / plan.groups_a_pass * plan.passes_a_group, False)


def whole_seconds(short: Short, found: Seconds) -> float:
    """Seconds of the whole iteration, of what its short one took."""
    total = sum(found.get(AVERAGE, ()))
    for role in TRAINED:
        each, look = found.get(f"{role} {PASS}", ()), sum(found.get(f"{role} {LOOK}", ()))
        total += sum(found.get(f"{role} {UPDATE}", ()))
        if short.whole or not each:
            total += sum(each) + look
            continue
        like_the_first = statistics.median(each[:-1]) * (short.passes - 1)
        total += like_the_first + each[-1] + look * short.passes / len(each)
    return total
