"""Bytes that a run keeps on one GPU, by role and kind, at each ZeRO stage. Pure arithmetic.

What DeepSpeed 0.19.8 holds in float32, in units of a network's 4 N bytes on P ranks, as measured
by benchmarks/plan_memory.py. Beside the state there is what a moment of an iteration adds.

    stage    weights  masters  gradients  moments       during a pass        during an update
    0        1        -        -          M             gradients 1          gradients 1, flat <= 1
    1        1        1/P      -          M/P           gradients 1          gradients 2/P
    2        1        1/P      -          M/P           gradients 2/P        gradients 2/P
    3        1/P      1/P      1/P        M/P           gathered weights     gradients 1/P more

One GPU that offloads nothing is plain torch, whatever stage is set: as stage 0 without the flat
copy. Adam's fused kernels make no temporaries.

A role that is an adapter holds nothing of the teacher's network, which is there once for all: N is
the adapter's parameters then.

Symbols
    N, P, M   parameters that a role trains, GPUs, Adam's moments: 1 where its beta1 is 0, else 2
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

GIB = 1 << 30
RESERVE_GIB = 2.0  # assumed: CUDA context, NCCL, workspaces of cuDNN and cuBLAS, fragmentation
# Gradients, masters and averages are float32 whatever training.precision is; weights and moments
# but for training.weights and training.optimizer.
WORD = 4
FLAT = 500_000_000  # elements that stage 0 copies side by side to add them up over ranks
# Buffers beside the gradients' own: the bucket that gradients are reduced in, and its copy on the
# way. The second kind is what an update's gathering of new weights passes through.
PASS_BUCKETS, UPDATE_BUCKETS = 2, 1

TEACHER, FAKE_SCORE, GENERATOR, PASS, RESERVE = (
    "teacher", "fake_score", "generator", "pass", "reserve"
)  # fmt: skip
TRAINED = (FAKE_SCORE, GENERATOR)
KINDS = (
    "weights", "gathered", "masters", "gradients", "moments", "average", "activations", "buckets",
    "other",
)  # fmt: skip

Parts = Counter[tuple[str, str]]  # (role, kind) -> bytes


@dataclass(frozen=True)
class Network:
    """Sizes of the one architecture that teacher, fake score and generator share.

    ``parameters`` in all, ``small`` of them in tensors that stage 3 leaves gathered, ``buffers``
    and the frozen ``text`` encoder with its cache in bytes; ``largest`` is of the parameters those
    in one tensor, at most. ``adapters`` are the parameters of each role that is an adapter.
    """

    parameters: int
    small: int = 0
    buffers: int = 0
    text: int = 0
    largest: int = 0
    adapters: Mapping[str, int] = field(default_factory=dict)

    def trained(self, role: str) -> int:
        """Parameters that a role trains."""
        return self.adapters.get(role, self.parameters)

    def own_buffers(self, role: str) -> int:
        """Bytes of the buffers that a role does not share."""
        return 0 if role in self.adapters else self.buffers


@dataclass(frozen=True)
class Layout:
    """How the networks lie on ``gpus`` GPUs.

    ``stages`` is the ZeRO stage of each role, the teacher's 0 or 3; ``bucket`` the elements of a
    communication bucket, ``live`` those that stage 3 may leave gathered between uses;
    ``offload`` keeps masters and moments in host memory. ``reserve`` bytes are no tensor's: CUDA
    context, libraries' workspaces, what the allocator cannot use. ``moments`` is how many of Adam's
    each trained role keeps, in float32 or, as a share of that, in fewer bits. ``teacher`` is the
    bytes of a whole teacher whose body is cast to half precision for good, or that is the base of
    adapters; 0 where it is float32. ``half`` are the roles whose working weights are bfloat16; of
    a stage 0 the other half, which the optimizer keeps, is among the masters.
    """

    gpus: int
    stages: Mapping[str, int]
    bucket: int
    live: int
    offload: bool = False
    reserve: int = 0
    moments: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(TRAINED, 2))
    teacher: int = 0
    half: frozenset[str] = frozenset()

    def word(self, role: str) -> int:
        """Bytes of a working weight."""
        return WORD // 2 if role in self.half else WORD

    def part(self, elements: int) -> int:
        """Bytes of a rank's share of elements."""
        return WORD * -(-elements // self.gpus)


@dataclass(frozen=True)
class Moment:
    """The bytes at one time of an iteration."""

    name: str
    parts: Parts = field(default_factory=Counter)

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    def of_kind(self, kind: str) -> int:
        return sum(size for (_, own), size in self.parts.items() if own == kind)

    def of_role(self, role: str) -> dict[str, int]:
        """Kind -> bytes of one role."""
        return {kind: size for (own, kind), size in self.parts.items() if own == role}


def role_state(role: str, network: Network, layout: Layout) -> Parts:
    """What a role keeps between two iterations."""
    count, stage, parts = network.trained(role), layout.stages[role], Parts()
    word = layout.word(role)
    if stage == 3:
        parts[role, "weights"] = layout.part(count) * word // WORD + word * network.small
    else:
        parts[role, "weights"] = word * count
    parts[role, "other"] = network.own_buffers(role)
    if role == TEACHER:
        if layout.teacher and not stage:
            parts[role, "weights"] = layout.teacher
        return parts
    optimised = WORD * count if stage == 0 else layout.part(count)
    if not (layout.offload and stage):
        parts[role, "moments"] = int(layout.moments[role] * optimised)
        parts[role, "masters"] = optimised if stage else (WORD - word) * count
    if stage == 3:
        parts[role, "gradients"] = optimised
        parts[role, "buckets"] = WORD * layout.bucket
    if role == GENERATOR:
        parts[role, "average"] = layout.part(count)
    return parts


def state(network: Network, layout: Layout) -> Parts:
    """What all roles keep between two iterations."""
    total = Parts({(TEACHER, "other"): network.text, (RESERVE, "other"): layout.reserve})
    for role in (TEACHER, *TRAINED):
        total += role_state(role, network, layout)
    return total


def pass_parts(role: str, network: Network, layout: Layout, activations: int) -> Parts:
    """What a forward and backward pass of a role's phase adds to the state."""
    count, stage = network.trained(role), layout.stages[role]
    parts = Parts({(PASS, "activations"): activations})
    if stage <= 1:
        parts[role, "gradients"] = WORD * count
    if stage == 1:
        parts[role, "buckets"] = WORD * layout.bucket
    if stage == 2:  # what earlier passes left, and what this one reduces
        parts[role, "gradients"] = 2 * layout.part(count)
        parts[role, "buckets"] = PASS_BUCKETS * WORD * layout.bucket
    if stage == 3:
        parts[role, "buckets"] = (PASS_BUCKETS - 1) * WORD * layout.bucket
    used = TRAINED if role == FAKE_SCORE else (TEACHER, *TRAINED)
    for other in used:
        if layout.stages[other] == 3 and layout.gpus > 1:
            gathered = min(network.trained(other), layout.live)
            parts[other, "gathered"] = layout.word(other) * gathered
    return parts


def reduce_parts(role: str, network: Network, layout: Layout) -> Parts:
    """What adding up gradients over ranks adds, where it follows the last pass (stages 0 and 1)."""
    count, stage, parts = network.trained(role), layout.stages[role], Parts()
    if stage <= 1:
        parts[role, "gradients"] = WORD * count + (layout.part(count) if stage else 0)
        flat = PASS_BUCKETS * layout.bucket if stage else min(count, FLAT)
        parts[role, "buckets"] = WORD * flat if layout.gpus > 1 or stage else 0
    return parts


def update_parts(role: str, network: Network, layout: Layout) -> Parts:
    """What Adam's step of a role adds."""
    count, stage, parts = network.trained(role), layout.stages[role], Parts()
    own = layout.part(count) if stage else WORD * count
    parts[role, "gradients"] = own if stage in (0, 3) else 2 * own
    if stage:
        parts[role, "buckets"] = UPDATE_BUCKETS * WORD * layout.bucket
    return parts


def start(network: Network, layout: Layout) -> Moment:
    """The fullest time of the building: the generator, the fake score, and the teacher last, but
    for adapters, which come behind it.

    Each goes from host memory to the GPU parameter by parameter. At stage 3 it is in parts but for
    one parameter; at stages 1 and 2 DeepSpeed lays it side by side once more; a teacher is made
    ready layer by layer, for which there is a layer twice.
    """
    found, there = list[Parts](), Parts({(RESERVE, "other"): layout.reserve})
    there[TEACHER, "other"] = network.text
    roles = sorted((GENERATOR, FAKE_SCORE, TEACHER), key=lambda role: role in network.adapters)
    for role in roles:
        there = there + role_state(role, network, layout)
        stage, frozen = layout.stages[role], role == TEACHER
        more = {0: 2 * network.largest if frozen else 0, 3: network.largest}
        words = more.get(stage, network.trained(role))
        found.append(there + Parts({(role, "weights"): WORD * words}))
    return Moment("start", max(found, key=lambda parts: sum(parts.values())))


def moments(network: Network, layout: Layout, activations: Mapping[str, int]) -> list[Moment]:
    """Every time of an iteration, and the start, with all that is there.

    ``activations`` is bytes a phase, FAKE_SCORE and GENERATOR, of one pass.
    """
    kept = state(network, layout)
    found = [start(network, layout)]
    for role in TRAINED:
        passing = pass_parts(role, network, layout, activations[role])
        found.append(Moment(f"{role} pass", kept + passing))
        found.append(Moment(f"{role} reduction", kept + reduce_parts(role, network, layout)))
        found.append(Moment(f"{role} update", kept + update_parts(role, network, layout)))
    return found


def peak(network: Network, layout: Layout, activations: Mapping[str, int]) -> Moment:
    """The moment at which most is there."""
    return max(moments(network, layout, activations), key=lambda moment: moment.total)


def checkpoint_bytes(network: Network, stored: Mapping[str, int]) -> int:
    """A checkpoint's size: ``stored`` tensors a parameter of each role, and the average."""
    of_roles = sum(tensors * network.trained(role) for role, tensors in stored.items())
    average = WORD * network.trained(GENERATOR) + network.own_buffers(GENERATOR)
    return WORD * of_roles + average


def sent_bytes(network: Network, layout: Layout, passes: int) -> int:
    """Bytes that a GPU sends in one iteration of ``passes`` passes a phase, at most.

    A reduction or a gathering of N elements sends N (P - 1) / P of them, an all-reduce is one of
    each. Stage 0: an all-reduce an update. Stages 1 and 2 sum gradients by all-reduce too, of which
    each rank keeps its part (use_multi_rank_bucket_allreduce), once an update or in each pass, and
    gather new weights. 3: gatherings for each forward and backward pass of each network, also where
    it is only evaluated, and for forced normalisation. Gradients are sent in float32, weights as
    they are computed with.
    """
    sent = 0
    for role, evaluated in ((FAKE_SCORE, 2), (GENERATOR, 1)):
        stage = layout.stages[role]
        gradients = (1, 2, 2 * passes, passes)[stage]
        weights = (1, 1, 1, passes * (2 + evaluated) + 1)[stage]
        sent += (WORD * gradients + layout.word(role) * weights) * network.trained(role)
    if layout.stages[TEACHER] == 3:
        sent += layout.word(TEACHER) * 2 * passes * network.parameters
    return sent * (layout.gpus - 1) // layout.gpus
