"""Random numbers as a function of what they are for.

Every draw of training is keyed by (seed, stream, images_seen, group): never by rank, world size or
how often something was called before. So any set of workers draws the same numbers, and a run can
go on from images_seen alone, with no generator state in its checkpoint (design: keyed randomness).
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence

import torch

from sid_ray.types import Draw

# Streams: what a draw is for. Their numbers are part of every run's identity: never renumber.
FAKE_SCORE = 1
GENERATOR = 2
EVALUATION = 3
TEACHER = 4


def derive_seed(*key: int) -> int:
    """A 63-bit seed from a tuple of integers; close keys give unrelated seeds."""
    digest = hashlib.blake2b(struct.pack(f"<{len(key)}q", *key), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator_for(seed: int, stream: int, *key: int) -> torch.Generator:
    """A CPU generator for one use. On the CPU, so that a GPU run draws the same numbers."""
    return torch.Generator().manual_seed(derive_seed(seed, stream, *key))


def draw_group(
    seed: int,
    stream: int,
    images_seen: int,
    group: int,
    group_size: int,
    shape: Sequence[int],
) -> tuple[Draw, torch.Tensor]:
    """The Draw of one logical group, and uniform numbers [group_size] for its labels.

    ``stream`` is FAKE_SCORE (normal times) or GENERATOR (uniform times).
    """
    rng = generator_for(seed, stream, images_seen, group)
    size = (group_size, *shape)
    latents = torch.randn(size, generator=rng)
    noise = torch.randn(size, generator=rng)
    sample_time = torch.randn if stream == FAKE_SCORE else torch.rand
    time = sample_time(group_size, generator=rng)
    labels = torch.rand(group_size, generator=rng)
    keys = torch.randint(-(2**62), 2**62, (group_size,), generator=rng)
    return Draw(latents, noise, time, keys), labels
