"""Host memory that a run on GPUs takes, and what it moves there. Pure arithmetic.

What DeepSpeed 0.19.8 keeps in host memory of a role that offloads, and moves in an iteration of k
passes, in float32 a parameter of a rank's part:

    stage  keeps, beside masters, gradients and moments    moves, in bytes
    1      -                                               4 + 4: gradients, new weights
    2      with k > 1 the sum of gradients, each           8, with k > 1 4 + 8 k
           parameter's by itself
    3      the sum of gradients                            8 + 8 k

At stage 2 each pass writes the sum and each but the first reads it (stage_1_and_2.py:2166,
1809-1866, accumulated_grads_in_cpu), and before each parameter the host waits for the copies so
far; at stage 3 every pass writes and reads it (stage3.py:2022-2039). Stage 1 adds up on the GPU and
hands gradients over once, behind the last pass (engine.py:3089).

Of a checkpoint the host keeps the copies that are written behind the training, until the next one.

Before all that, as it starts, each worker has read the network for itself, and keeps it until the
last of its roles has gone to the GPU out of it; what is offloaded is there by then.
"""

from __future__ import annotations

import math

from sid_ray.planning.memory import GENERATOR, TRAINED, WORD, Layout, Network


def offloaded_bytes(network: Network, layout: Layout, passes: int) -> int:
    """What a rank offloads. Page-locked memory is given out in powers of two."""
    found = 0
    for role in offloading(layout):
        part = layout.part(network.trained(role))
        found += int(layout.moments[role] * part)
        if layout.stages[role] == 3:
            found += part + 2 * power_of_two(part)  # masters; gradients and their sum
        else:
            found += 2 * power_of_two(part)  # masters and gradients
        if layout.stages[role] == 2 and passes > 1:
            found += 2 * part  # each parameter's by itself, so up to twice its size
    return found


def snapshot_bytes(network: Network, layout: Layout) -> int:
    """A rank's copies of the state for a checkpoint: masters and moments of its part."""
    kinds = {role: 1 + math.ceil(layout.moments[role]) for role in TRAINED}  # float32 here
    return sum(kinds[role] * layout.part(network.trained(role)) for role in TRAINED)


def start_bytes(network: Network, layout: Layout, passes: int) -> int:
    """What a rank takes of it as it starts: its network as it was read, at stage 3 the parts that
    DeepSpeed joins there, and what it offloads.

    At stages 1 and 2 DeepSpeed has two more copies there where a GPU has no room for another one:
    not counted.
    """
    joined = layout.part(network.parameters) if 3 in layout.stages.values() else 0
    read = WORD * network.parameters + network.buffers
    return read + joined + offloaded_bytes(network, layout, passes)


def first_rank_bytes(network: Network, evaluates: bool) -> int:
    """What the first rank keeps beside: the whole average of a checkpoint; where there is an
    evaluator, another one for it, page-locked and in Ray's memory.
    """
    average = WORD * network.trained(GENERATOR) + network.own_buffers(GENERATOR)
    return average * (3 if evaluates else 1)


def host_bytes(network: Network, layout: Layout, passes: int) -> int:
    """What a rank takes of its host: what it offloads, and the copies for a checkpoint."""
    return offloaded_bytes(network, layout, passes) + snapshot_bytes(network, layout)


def moved_bytes(network: Network, layout: Layout, passes: int) -> int:
    """Bytes that offloading moves between a GPU and its host in one iteration, both ways."""
    found = 0
    for role in offloading(layout):
        summed = 2 * passes - 1 if passes > 1 else 0  # the first pass reads nothing
        words = 2 + {1: 0, 2: summed, 3: 2 * passes}[layout.stages[role]]
        found += words * layout.part(network.trained(role))
    return found


def offloading(layout: Layout) -> list[str]:
    """The roles whose optimizer is in host memory: stage 0 has none there."""
    return [role for role in TRAINED if layout.offload and layout.stages[role]]


def power_of_two(size: int) -> int:
    """The next one from a size on."""
    return 1 << (size - 1).bit_length() if size else 0
