"""Short trainings of tiny networks, at any stage and world size, and in plain torch.

For tests, and for benchmarks/equality.py, which prints all of them as one table.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import socket
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.distributed
import torch.multiprocessing
from torch import Tensor, nn

from sid_ray.denoisers.adapter_names import UP
from sid_ray.denoisers.adapters import Adapter, start_adapter, with_adapter
from sid_ray.denoisers.edm2 import EDM2Denoiser, EDM2Network
from sid_ray.denoisers.family import leave_weight
from sid_ray.denoisers.precondition import set_precision
from sid_ray.denoisers.recompute import set_recompute
from sid_ray.denoisers.registry import family_of
from sid_ray.diffusion.schedules import EDMSchedule
from sid_ray.distributed import deepspeed_role
from sid_ray.distributed.fragments import ShardedAverage, whole_state
from sid_ray.distributed.roles import AdamSettings, TorchRole, Trainee, UpdateRules
from sid_ray.groups import GroupPlan
from sid_ray.objectives.sid import SiD
from sid_ray.objectives.sida import SiDA
from sid_ray.training.draws import draws_of
from sid_ray.training.step import StepSettings, Sums, step
from sid_ray.types import Batch, Pick
from tests.conftest import relative_error
from tests.support.networks import tiny_network

# Groups are split over two passes; 2, 3 and 4 ranks do not divide them: somebody pads.
ITERATIONS, GROUPS, GROUP, MICRO_BATCH = 5, 5, 8, 4
ADAM = AdamSettings(1e-3, 0.0, 0.999, 1e-8)
EDM2 = EDM2Network(
    img_resolution=8,
    img_channels=4,
    label_dim=10,
    model_channels=64,
    channel_mult=(1,),
    num_blocks=1,
    attn_resolutions=(8,),
    dropout=0.1,
)


class LabelledImages:
    """A source of ten classes with images made up of the same uniform numbers."""

    def __init__(self, shape: tuple[int, int, int]):
        self.shape = shape

    def batch(self, pick: Pick) -> Batch:
        uniform = pick.uniform
        grid = torch.arange(torch.Size(self.shape).numel()).reshape(self.shape)
        images = torch.sin(uniform.float()[:, None, None, None] * 6 + grid * 0.7)
        return Batch(torch.eye(10)[(uniform * 10).long()], images)


def edm2_network() -> nn.Module:
    """Gains that are not zero: with the first ones no gradient reaches the body."""
    torch.manual_seed(0)
    network = EDM2Denoiser(EDM2)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() == 0:
                parameter.fill_(0.5)
    return network


@dataclass(frozen=True)
class Case:
    """A training: network, objective and what is done to gradients and weights."""

    network: Callable[[], nn.Module]
    shape: tuple[int, int, int]
    objective: SiD
    rules: UpdateRules
    teacher_noise: float = 0.0  # relative, in the teacher's weights: else it starts as the others
    base: nn.Module | None = None  # what ``network`` makes adapters over
    adam: AdamSettings | None = None  # None: ADAM

    def teacher(self) -> nn.Module:
        if self.base is not None:
            return self.base
        network, random = self.network(), torch.Generator().manual_seed(0)
        with torch.no_grad():
            for weight in network.parameters():
                weight.mul_(1 + self.teacher_noise * torch.randn(weight.shape, generator=random))
        return network.requires_grad_(False)


SCHEDULE = EDMSchedule()
CASES = {
    "sid-edm": Case(tiny_network, (1, 8, 8), SiD(SCHEDULE), UpdateRules()),
    "sida-edm": Case(
        tiny_network, (1, 8, 8), SiDA(SCHEDULE), UpdateRules(clip_value=1.0, replace_nonfinite=True)
    ),
    "sida-edm2": Case(
        edm2_network,
        (4, 8, 8),
        SiDA(SCHEDULE, logvar=True, discriminator_weight=100.0),
        UpdateRules(family_of("edm2").constrain),
    ),
}


def changed(
    case: Case, recompute: bool = False, precision: str = "float32", teacher_noise: float = 0.0
) -> Case:
    """The same training with other settings of all three networks."""

    def network() -> nn.Module:
        built = case.network()
        set_recompute(built, recompute)
        set_precision(built, precision)
        return built

    return replace(case, network=network, teacher_noise=teacher_noise)


def adapted(case: Case, adapter: Adapter) -> Case:
    """The same training with adapters over one base, whose B are not 0: so that A has gradients."""
    base = case.network().requires_grad_(False)

    def network() -> nn.Module:
        tree = with_adapter(base, adapter)
        start_adapter(tree, seed=0, role=0)
        random = torch.Generator().manual_seed(0)
        for name, value in tree.named_parameters():
            if name.endswith(UP):
                value.data.normal_(0, 0.1, generator=random)
        return tree.requires_grad_(True)

    rules = replace(case.rules, constrain=leave_weight)  # as in a run (assemble.rules_of)
    return replace(case, network=network, base=base, rules=rules)


def plan_of(world_size: int, micro_batch: int = MICRO_BATCH) -> GroupPlan:
    return GroupPlan(GROUPS * GROUP, GROUP, micro_batch, world_size)


def plain_trainee(case: Case) -> Trainee:
    def role() -> TorchRole:
        return TorchRole(case.network(), case.adam or ADAM, case.rules)

    return Trainee(case.teacher(), role(), role(), case.network().requires_grad_(False))


def sharded_trainee(
    case: Case,
    fake_score_stage: int,
    generator_stage: int,
    teacher_stage: int,
    world_size: int,
    micro_batch: int = MICRO_BATCH,
    offload: bool = False,
) -> Trainee:
    """Every role on this rank as the worker builds it."""

    def role(stage: int) -> deepspeed_role.DeepSpeedRole:
        passes = plan_of(world_size, micro_batch).passes_a_rank
        built = deepspeed_role.DeepSpeedRole(
            case.network(), case.adam or ADAM, stage, passes, case.rules, offload
        )
        built.module.requires_grad_(False)
        return built

    fake_score, generator = role(fake_score_stage), role(generator_stage)
    teacher = case.teacher()
    if teacher_stage == 3:
        teacher = deepspeed_role.shard_frozen(teacher)
    return Trainee(teacher, fake_score, generator, ShardedAverage(generator))


def train(
    case: Case,
    trainee: Trainee,
    rank: int,
    world_size: int,
    iterations: int,
    micro_batch: int = MICRO_BATCH,
) -> Sums:
    plan, sums = plan_of(world_size, micro_batch), Sums()
    source = LabelledImages(case.shape)
    draws = draws_of(source, plan, 0, torch.device("cpu"), case.objective.draw_spec)
    for _ in range(iterations):
        step(trainee, case.objective, StepSettings(plan, rank, 100, 0.5), draws, sums)
    return sums


def outcome(trainee: Trainee) -> dict[str, Tensor]:
    """Weights, moments and average by name. A collective."""
    found: dict[str, Tensor] = {}
    for role, state in (("f", trainee.fake_score.state()), ("G", trainee.generator.state())):
        found |= {f"{role} {name}": value.cpu() for name, value in state.tensors.items()}
    ema = {f"EMA {name}": value.clone() for name, value in whole_state(trainee.generator_ema)}
    return found | ema


COLUMNS = ("weights", "EMA", "exp_avg_sq", "worst tensor")


def errors(found: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    """Relative errors of each kind of state, all tensors of a kind as one vector, the largest of
    the roles; and the largest of a single tensor, which may be one of nothing but cancellation.
    """
    vectors: dict[tuple[str, str], list[tuple[Tensor, ...]]] = {}
    worst = dict.fromkeys(COLUMNS, 0.0)
    worst["worst tensor"] = max(tensor_errors(found, expected).values())
    for name, value in expected.items():
        role, _, rest = name.partition(" ")
        kind = "EMA" if role == "EMA" else rest.rpartition("/")[2].replace("master", "weights")
        vectors.setdefault((role, kind), []).append(without_keys(name, found[name], value))
    for (_, kind), pairs in vectors.items():
        whole = (
            torch.cat([value.flatten() for value in side]) for side in zip(*pairs, strict=True)
        )
        worst[kind] = max(worst.get(kind, 0.0), relative_error(*whole))
    return worst


def tensor_errors(found: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    """Relative error of each tensor that any loss reaches."""
    assert found.keys() == expected.keys()
    errors = {}
    for name, value in expected.items():
        if value.any():
            errors[name] = relative_error(*without_keys(name, found[name], value))
        else:
            assert not found[name].any(), name  # what no loss reaches
    return errors


def without_keys(name: str, *values: Tensor) -> tuple[Tensor, ...]:
    """Leaves out the keys' third of EDM's qkv.bias: its gradient is rounding alone."""
    if "qkv.bias" not in name:
        return values
    return tuple(value[torch.arange(len(value)) % 3 != 1] for value in values)


def spawn(work: Callable[..., None], world_size: int, *arguments: object) -> None:
    """Runs work(rank, world_size, *arguments) in fresh processes that DeepSpeed has joined."""
    _start("spawn", work, world_size, arguments)


def run_ranks(work: Callable[..., None], world_size: int, *arguments: object) -> None:
    """As ``spawn``, in processes that are forked from one which has loaded torch and DeepSpeed.

    Not where memory is measured: theirs is shared.
    """
    multiprocessing.set_forkserver_preload(["tests.support.preloaded"])
    _start("forkserver", work, world_size, arguments)


def _start(method: str, work: Callable[..., None], world_size: int, arguments: tuple) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = (work, world_size, port, arguments)
    torch.multiprocessing.start_processes(_joined, given, nprocs=world_size, start_method=method)


def _joined(rank: int, work: Callable[..., None], world_size: int, port: int, arguments: tuple):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=world_size)
    deepspeed_role.init_deepspeed()
    work(rank, world_size, *arguments)
    torch.distributed.destroy_process_group()
    # All is written. Now and then torch 2.13 aborts behind this, when the interpreter is gone
    # already ("terminate called without an active exception"): a C++ thread that nobody joined.
    os._exit(0)


def plain_outcome(name: str, micro_batch: int = MICRO_BATCH) -> dict[str, Tensor]:
    """The reference: one process of plain torch."""
    torch.set_num_threads(1)
    case = CASES[name]
    trainee = plain_trainee(case)
    train(case, trainee, 0, 1, ITERATIONS, micro_batch)
    return outcome(trainee)
