"""Adam with moments in 8 bits and with weights in two halves, against Adam in float32."""

import copy
import dataclasses
from importlib.util import find_spec
from math import inf, nan

import pytest
import torch
from torch import nn

from sid_ray.denoisers.adapters import Adapter
from sid_ray.distributed import adam
from sid_ray.distributed.adam import MOMENT_BYTES, AdamSettings, in_batches
from sid_ray.distributed.eight_bits import BLOCK, LEAST, EightBits
from sid_ray.distributed.fragments import ShardedAverage
from sid_ray.distributed.half_weights import join_halves, split_halves
from sid_ray.distributed.packed_adam import PackedAdam
from sid_ray.distributed.roles import TorchRole
from tests.conftest import relative_error
from tests.support.trajectories import CASES, adapted, outcome, plain_trainee, train

BETAS = (0.0, 0.9)
BOTH = {"halves": {"half_weights": True}}
if find_spec("bitsandbytes"):
    BOTH |= {"8 bits": {"eight_bits": True}, "both": {"eight_bits": True, "half_weights": True}}
bitsandbytes = pytest.mark.skipif("8 bits" not in BOTH, reason="bitsandbytes is not installed")


def settings(beta1: float, lr: float = 1e-3, **packed: bool) -> AdamSettings:
    return AdamSettings(lr, beta1, 0.999, 1e-8, **packed)


def network() -> nn.Module:
    """A weight of many blocks, the last one cut short, a small one, one that no loss reaches."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(83, 71), nn.Tanh(), nn.Linear(71, 5))
    module.unused = nn.Parameter(torch.ones(LEAST))
    return module


def iterate(role: TorchRole, number: int, passes: int = 2, poison: float = 0.0) -> bool:
    """One update on keyed samples, in float32 whatever the weights are."""
    random = torch.Generator().manual_seed(number)
    for parameter in role.module.parameters():
        parameter.requires_grad_(True)
    for part in torch.randn(8, 83, generator=random).chunk(passes):
        one, two = role.module[0], role.module[2]
        x = nn.functional.linear(part, one.weight.float(), one.bias.float()).tanh()
        out = nn.functional.linear(x, two.weight.float(), two.bias.float())
        role.backward((out - part[:, :5]).square().sum() * (poison or 1))
    return bool(role.update())


@bitsandbytes
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("scale", [1.0, 1e-12, 1e-30])
def test_what_is_closed_opens_to_what_closes_to_the_same_bits(signed, scale):
    random = torch.Generator().manual_seed(0)
    values = torch.randn(100 * BLOCK + 77, generator=random) ** 5 * scale
    kept = EightBits(values, signed)
    assert not kept.open().any()
    kept.close(values if signed else values.abs())
    opened, codes, scales = kept.open(), kept.codes.clone(), kept.scales.clone()
    kept.close(opened)
    assert torch.equal(kept.codes, codes) and torch.equal(kept.scales, scales)
    assert torch.equal(kept.open(), opened)
    assert codes.nbytes + scales.nbytes == pytest.approx(MOMENT_BYTES * len(values), rel=1e-3)
    blocks = opened[: 100 * BLOCK].view(100, BLOCK) - values[: 100 * BLOCK].view(100, BLOCK)
    if signed:  # the coarsest codes are 1.4 % of a block's largest value apart
        largest = values[: 100 * BLOCK].view(100, BLOCK).abs().amax(1)
        assert (blocks.abs().amax(1) <= 0.0142 * largest).all()


def test_halves_are_the_weight_and_the_first_is_the_nearest_bfloat16():
    random = torch.Generator().manual_seed(0)
    values = torch.randn(100_000, generator=random) ** 5
    values[:6] = torch.tensor([0.0, -0.0, 1.0, -1.0, 1 + 2.0**-8, 1e-40])
    near, low = split_halves(values)
    assert torch.equal(join_halves(near, low).view(torch.int32), values.view(torch.int32))
    assert near.dtype == torch.bfloat16 and low.dtype == torch.int16
    nearest = values.bfloat16()
    assert ((values - near.float()).abs() <= (values - nearest.float()).abs()).all()


@pytest.mark.parametrize("beta1", BETAS)
@pytest.mark.parametrize("kind", BOTH)
def test_updates_are_those_of_float32_to_the_precision_of_what_is_kept(beta1, kind):
    plain = TorchRole(network(), settings(beta1))
    packed = TorchRole(network(), settings(beta1, **BOTH[kind]))
    start = network().state_dict()
    for number in range(10):
        assert iterate(plain, number) and iterate(packed, number)
    ours, theirs = packed.state(), plain.state()
    moved = {n: theirs.tensors[f"{n}/master"] - start[n] for n in start}
    errors = {
        name: ((ours.tensors[f"{name}/master"] - start[name] - way).norm() / way.norm()).item()
        for name, way in moved.items()
        if way.norm()
    }
    assert len(errors) == 4
    assert packed.optimizer.steps() == 10
    limit = 0.05 if kind == "halves" else 0.1
    assert max(errors.values()) < limit, errors
    if kind == "8 bits":  # what is too small for it moves as ever; the layer before it does not
        assert errors["0.weight"] > 1e-5


@pytest.mark.parametrize("kind", BOTH)
def test_the_first_update_is_that_of_float32(kind):
    """Nothing was rounded before it but the weights that the loss reads, in halves."""
    plain = TorchRole(network(), settings(0.0))
    packed = TorchRole(network(), settings(0.0, **BOTH[kind]))
    for role in (plain, packed):
        for parameter in role.module.parameters():
            parameter.requires_grad_(True)
        loss = sum(
            (p * torch.arange(p.numel()).view(p.shape).sin().to(p.dtype)).sum()
            for p in role.module.parameters()
        )
        role.backward(loss)
        role.update()
    for name, value in plain.state().tensors.items():
        if name.endswith("master"):
            limit = 1e-7 if kind == "8 bits" else 1e-4  # the gradient was rounded to bfloat16
            assert relative_error(packed.state().tensors[name], value) < limit


@pytest.mark.parametrize("value", [nan, inf])
@pytest.mark.parametrize("kind", BOTH)
def test_an_update_that_is_not_finite_changes_no_bit(kind, value):
    role = TorchRole(network(), settings(0.9, **BOTH[kind]))
    for number in range(2):
        iterate(role, number)
    before = role.state()
    assert not iterate(role, 2, poison=value)
    after = role.state()
    assert before.optimizer_steps == after.optimizer_steps == 2
    for name, tensor in before.tensors.items():
        assert torch.equal(tensor, after.tensors[name]), name
    assert iterate(role, 3)


@pytest.mark.parametrize("beta1", BETAS)
@pytest.mark.parametrize("kind", BOTH)
def test_a_role_goes_on_from_its_state_to_the_bit(beta1, kind):
    through, again = (TorchRole(network(), settings(beta1, **BOTH[kind])) for _ in range(2))
    for number in range(3):
        iterate(through, number)
    again.load_state(copy.deepcopy(through.state()))
    average, other = ShardedAverage(through), ShardedAverage(again)
    for number in range(3, 6):
        for role, mean in ((through, average), (again, other)):
            iterate(role, number)
            role.average_into(mean, 0.5)
    ours, theirs = again.state(), through.state()
    assert ours.optimizer_steps == theirs.optimizer_steps == 6
    assert all(torch.equal(ours.tensors[n], value) for n, value in theirs.tensors.items())
    assert all(torch.equal(a, b) for a, b in zip(other.parts, average.parts, strict=True))
    assert all(value.dtype == torch.float32 for value in theirs.tensors.values())


@pytest.mark.parametrize("kind", BOTH)
def test_float32_reads_the_state(kind):
    packed = TorchRole(network(), settings(0.0, **BOTH[kind]))
    iterate(packed, 0)
    plain = TorchRole(network(), settings(0.0))
    plain.load_state(packed.state())
    for name, value in packed.state().tensors.items():
        assert torch.equal(plain.state().tensors[name], value)
    assert iterate(plain, 1)


@pytest.mark.parametrize("kind", BOTH)
def test_batches_change_no_bit(monkeypatch, kind):
    roles = []
    for most in (adam.AT_ONCE, 1000):
        monkeypatch.setattr(adam.in_batches, "__defaults__", (most,))
        roles.append(TorchRole(network(), settings(0.9, **BOTH[kind])))
        for number in range(3):
            iterate(roles[-1], number)
    one, other = (role.state().tensors for role in roles)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_batches_are_neighbours_up_to_a_size():
    assert list(in_batches([5, 5, 20, 1, 1], 10)) == [(0, 2), (2, 3), (3, 5)]
    assert list(in_batches([])) == []


@bitsandbytes
def test_parts_of_a_role_are_slices_of_what_is_kept():
    role = TorchRole(network(), settings(0.0, eight_bits=True, half_weights=True))
    iterate(role, 0)
    for held in role.owned():
        part = held.part(10, 50)
        if part is not None:
            for kind in role.kinds:
                assert torch.equal(part.values[kind], held.values[kind][10:50])
        assert not held.lasting or held.fragment.length < LEAST


@bitsandbytes
def test_what_is_kept_takes_the_bytes_that_plan_counts():
    role = TorchRole(network(), settings(0.0, eight_bits=True, half_weights=True))
    assert isinstance(role.optimizer, PackedAdam)
    weight = role.module[0].weight
    state = role.optimizer.state_of(weight)
    second = state["exp_avg_sq"]
    assert weight.element_size() + state["low"].element_size() == 4
    packed = second.codes.nbytes + second.scales.nbytes
    assert packed == pytest.approx(MOMENT_BYTES * 83 * 71, abs=4)
    assert "exp_avg" not in state
    assert torch.is_tensor(role.optimizer.state_of(role.module[2].weight)["exp_avg_sq"])


@bitsandbytes
def test_adapters_have_moments_in_8_bits():
    """Of their larger tensors; a first update, before which nothing was rounded, is float32's."""
    case = adapted(CASES["sid-edm"], Adapter(16, 16.0, ("conv0",)))
    base = {name: value.clone() for name, value in case.base.state_dict().items()}
    found = []
    for eight_bits in (False, True):
        adam = settings(0.5, eight_bits=eight_bits)
        trainee = plain_trainee(dataclasses.replace(case, adam=adam))
        train(case, trainee, 0, 1, 1)
        found.append({n: v for n, v in outcome(trainee).items() if "exp_avg" not in n})
    expected, ours = found
    for name, value in ours.items():
        if not name.startswith("G"):
            continue
        assert relative_error(value, expected[name]) < 1e-5, name
    optimizer = trainee.generator.optimizer
    packed = [p for p in optimizer.state if optimizer.is_packed(p)]
    assert packed and all(p.numel() >= LEAST for p in packed) and len(packed) < len(optimizer.state)
    assert all(torch.equal(value, base[name]) for name, value in case.base.state_dict().items())
