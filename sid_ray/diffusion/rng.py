"""Random numbers as a function of what they are for.

Every draw of training is keyed by (seed, stream, images_seen, group): never by rank, world size or
how often something was called before. So any set of workers draws the same numbers, and a run can
go on from images_seen alone, with no generator state in its checkpoint (design: keyed randomness).
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from typing import NamedTuple, Self

import torch
from torch import Tensor

from sid_ray.diffusion.augment import draw_augmentations as draw_augment
from sid_ray.types import Draw, DrawSpec

# Streams: what a draw is for. Their numbers are part of every run's identity: never renumber.
FAKE_SCORE = 1
GENERATOR = 2
EVALUATION = 3
TEACHER = 4
DATA = 5
ADAPTER = 6

# Draws of a group that only some objectives need; numbers as permanent as the streams'.
STEPS = 1
TEXT = 2
AUGMENT = 3
POSTERIOR = 4

PLAIN = DrawSpec()


def derive_seed(*key: int) -> int:
    """A 63-bit seed from a tuple of integers; close keys give unrelated seeds."""
    digest = hashlib.blake2b(struct.pack(f"<{len(key)}q", *key), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator_for(seed: int, stream: int, *key: int) -> torch.Generator:
    """A CPU generator for one use. On the CPU, so that a GPU run draws the same numbers."""
    return torch.Generator().manual_seed(derive_seed(seed, stream, *key))


class Room(NamedTuple):
    """Memory for the large fields of a Draw, filled in place: several groups share one tensor.

    None where torch shall make each tensor anew.
    """

    latents: Tensor | None = None
    noise: Tensor | None = None
    more_noise: Tensor | None = None

    @classmethod
    def for_samples(
        cls, count: int, shape: Sequence[int], spec: DrawSpec, pinned: bool = False
    ) -> Self:
        """For ``count`` samples of shape (C, H, W), in page-locked memory where ``pinned``."""

        def empty(*size: int) -> Tensor:
            return torch.empty(count, *size, *shape, pin_memory=pinned)

        more = empty(spec.num_steps - 1) if spec.num_steps > 1 else None
        return cls(empty(), empty(), more)

    def part(self, start: int, stop: int) -> Room:
        """The memory of samples ``start:stop``."""
        return Room(*(None if field is None else field[start:stop] for field in self))

    def filled(self, draw: Draw) -> Draw:
        """A Draw whose large fields are these."""
        return draw._replace(**self._asdict())


NO_ROOM = Room()


def draw_group(
    seed: int,
    stream: int,
    images_seen: int,
    group: int,
    group_size: int,
    shape: Sequence[int],
    spec: DrawSpec = PLAIN,
    room: Room = NO_ROOM,
) -> tuple[Draw, torch.Tensor]:
    """The Draw of one logical group, and uniform numbers [group_size] that pick its data.

    ``stream`` is FAKE_SCORE or GENERATOR. What ``spec`` asks for beyond the first draws comes from
    generators of its own, so that switching it on leaves the others as they are. ``room`` is where
    the large fields are written.
    """
    rng = generator_for(seed, stream, images_seen, group)
    size = (group_size, *shape)
    latents = torch.randn(size, generator=rng, out=room.latents)
    noise = torch.randn(size, generator=rng, out=room.noise)
    normal = spec.normal_fake_time if stream == FAKE_SCORE else spec.normal_generator_time
    time = (torch.randn if normal else torch.rand)(group_size, generator=rng)
    data = torch.rand(group_size, generator=rng)
    keys = torch.randint(-(2**62), 2**62, (group_size,), generator=rng)
    draw = Draw(latents, noise, time, keys)

    def more(what: int) -> torch.Generator:
        return generator_for(seed, stream, images_seen, group, what)

    if spec.num_steps > 1:
        # One step for the whole iteration: every rank then runs as many passes.
        of_iteration = generator_for(seed, stream, images_seen)
        step = int(torch.randint(spec.num_steps, (1,), generator=of_iteration))
        count = (group_size, spec.num_steps - 1, *shape)
        more_noise = torch.randn(count, generator=more(STEPS), out=room.more_noise)
        draw = draw._replace(step=step, more_noise=more_noise)
    if spec.text:
        draw = draw._replace(text_uniform=torch.rand(group_size, generator=more(TEXT)))
    if spec.augment and stream == FAKE_SCORE:  # the other phase augments nothing
        raw = draw_augment(2 * group_size, more(AUGMENT)).reshape(group_size, 2, -1)
        draw = draw._replace(augment=spec.augment(raw, shape))
    return draw, data


def posterior_noise(
    seed: int, stream: int, images_seen: int, group: int, group_size: int, shape: Sequence[int]
) -> torch.Tensor:
    """N(0,1) [group_size, *shape] that makes samples of stored means and deviations."""
    rng = generator_for(seed, stream, images_seen, group, POSTERIOR)
    return torch.randn(group_size, *shape, generator=rng)
