"""Compiled networks: the same numbers, whole graphs, names and copies as without."""

import copy
import logging
import os
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch._dynamo
import torch._inductor.metrics
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func
from torch._functorch.compilers import nop
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from benchmarks import compile_cache, overlap
from sid_ray.denoisers import compiled, cpu_convolution
from sid_ray.denoisers.compiled import CACHE_VARIABLE, blocks_to_compile, keep_compiled, set_compile
from sid_ray.denoisers.dropout import keep_mask
from sid_ray.denoisers.edm import EDMDenoiser
from sid_ray.denoisers.recompute import set_recompute
from sid_ray.denoisers.stable_diffusion import build_stable_diffusion
from sid_ray.diffusion.schedules import EDMSchedule
from sid_ray.distributed.adam import AdamSettings
from sid_ray.distributed.roles import TorchRole, Trainee
from sid_ray.errors import UserError
from sid_ray.groups import GroupPlan
from sid_ray.objectives.sida import SiDA
from sid_ray.training.draws import draws_of
from sid_ray.training.step import StepSettings, Sums, step
from sid_ray.types import Condition, Level, Want
from tests.conftest import relative_error
from tests.denoisers.test_recompute import FAMILIES
from tests.support.networks import TINY, LabelledNoise, some_draw, tiny_edm2, tiny_network

ROUNDING = 2e-5
TINY_UNET = {
    "sample_size": 8,
    "block_out_channels": (32, 64),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "cross_attention_dim": 24,
    "attention_head_dim": 8,
    "norm_num_groups": 8,
}


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """Graphs of other tests, and limits that set_compile raises, are not this test's."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "disabled", True)  # slow, and long
    monkeypatch.setattr(compiled.Recorded, "graphs", False)
    monkeypatch.setattr(cpu_convolution, "ONEDNN", False)  # compiled networks do not use it
    with torch._dynamo.config.patch():
        yield
    torch._dynamo.reset()


def graphs() -> int:
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def outcome(network: nn.Module, trained: bool, keys: Tensor | None, want: Want) -> list[Tensor]:
    """Outputs and gradients with respect to the image and, where trained, the weights."""
    network.requires_grad_(trained)
    x = some_draw(3).latents.clone().requires_grad_()
    cond = Condition(torch.eye(10)[:3], dropout_keys=keys)
    found = network(x, EDMSchedule().level(torch.ones(3)), cond, want)
    values = [value for value in found if value is not None]
    sum(value.square().sum() for value in values).backward()
    weights = [p.grad for p in network.parameters() if p.grad is not None]
    network.zero_grad(set_to_none=True)
    return [x.grad, *(value.detach() for value in values), *weights]


slow = pytest.mark.slow  # a trace of a block takes a third of a second


def cases() -> list[tuple[bool, Tensor | None, Want]]:
    """What one network is asked for in a run: each toggle on and off again."""
    keys = some_draw(3).dropout_keys
    both = Want.X0 | Want.LOGITS
    return [(True, keys, Want.X0), (False, None, both), (True, keys, Want.X0)]


def outcomes(network: nn.Module) -> list[list[Tensor]]:
    found = [outcome(network, *case) for case in cases()]
    with torch.no_grad():
        level, x = EDMSchedule().level(torch.ones(3)), some_draw(3).latents
        found.append([network(x, level, Condition(torch.eye(10)[:3])).x0])
    return found


@pytest.mark.parametrize(
    ("family", "mode"),
    [
        pytest.param("edm", "default", marks=slow),
        ("edm", "cudagraphs"),
        pytest.param("edm2", "default", marks=slow),
        pytest.param("edm2", "cudagraphs", marks=slow),
        pytest.param("adm", "default", marks=slow),
        pytest.param("adm", "cudagraphs", marks=slow),
    ],
)
def test_graphs_have_no_breaks_and_change_no_number(family, mode):
    """Traced and run by dynamo without a compiler: every operation stays what it was."""
    network = FAMILIES[family]()
    expected = outcomes(network)
    set_compile(network, mode, backend="eager")
    found = outcomes(network)
    assert graphs() > 0
    for ours, theirs in zip(found, expected, strict=True):
        assert len(ours) == len(theirs)
        assert all(map(torch.equal, ours, theirs))


@slow
def test_blocks_computed_again_are_compiled_too():
    network, case = tiny_network(), cases()[0]
    set_recompute(network, True)
    expected = outcome(network, *case)
    set_compile(network, "default", backend="aot_eager")
    found = outcome(network, *case)
    assert max(map(relative_error, found, expected)) < ROUNDING
    assert graphs() > 0


@slow
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("mode", ["default", "cudagraphs"])
def test_stable_diffusion_is_compiled(mode, recompute):
    pytest.importorskip("diffusers")
    if recompute and mode == "cudagraphs":
        pytest.skip("distill_config.py refuses it")
    network = build_stable_diffusion(TINY_UNET)
    set_recompute(network, recompute)
    text = torch.randn(2, 7, 24)
    level = Level(torch.tensor([3, 600]), torch.full((2,), 0.8), torch.full((2,), 0.6))

    def run() -> list[Tensor]:
        found = []
        for trained in (True, False):
            network.requires_grad_(trained)
            x = torch.ones(2, 4, 8, 8, requires_grad=True)
            given = network(x, level, Condition(text=text), Want.X0 | Want.LOGITS)
            (given.x0.square().sum() + given.logits.sum()).backward()
            found += [x.grad, *(p.grad for p in network.parameters() if p.grad is not None)]
            network.zero_grad(set_to_none=True)
        return found

    expected = run()
    set_compile(network, mode, backend="eager")
    assert all(map(torch.equal, run(), expected))
    assert graphs() > 0


def test_equal_blocks_and_networks_share_their_code():
    deep = EDMDenoiser(replace(TINY, num_blocks=3, channel_mult=(1,)))
    cond = Condition(torch.eye(10)[:3], dropout_keys=some_draw(3).dropout_keys)
    given = (some_draw(3).latents, EDMSchedule().level(torch.ones(3)), cond)
    made = []
    with torch.no_grad():
        expected = deep(*given).x0
        for network in (deep, copy.deepcopy(deep)):
            set_compile(network, "default", backend="eager")
            assert torch.equal(network(*given).x0, expected)
            made.append(graphs())
    assert made[0] == made[1] < len(list(blocks_to_compile(deep)))


def test_names_and_copies_are_those_of_the_network():
    plain, network = tiny_edm2(), tiny_edm2()
    set_compile(network, "default", backend="eager")
    assert list(network.state_dict()) == list(plain.state_dict())
    assert [name for name, _ in network.named_parameters()] == [
        name for name, _ in plain.named_parameters()
    ]
    expected = outcomes(plain)
    for ours, theirs in zip(outcomes(copy.deepcopy(network)), expected, strict=True):
        assert all(map(torch.equal, ours, theirs))
    assert graphs() == 0, "a copy is not compiled"


def test_sites_as_tensors_give_the_masks_of_sites_as_numbers():
    keys = some_draw(3).dropout_keys
    for site in (0, 1, 57, 2**40):
        mask = keep_mask(keys, torch.tensor(site), 0.3, 100)
        assert torch.equal(mask, keep_mask(keys, site, 0.3, 100))


def test_more_variants_than_there_is_room_for_raise(monkeypatch):
    monkeypatch.setattr(compiled, "VARIANTS", 1)
    network = tiny_network()
    with torch._dynamo.config.patch(recompile_limit=1):
        set_compile(network, "default", backend="eager")
        with pytest.raises(torch._dynamo.exc.FailOnRecompileLimitHit):
            outcomes(network)


def test_off_is_off_and_other_words_are_refused():
    network = tiny_network()
    set_compile(network, "off")
    outcomes(network)
    assert graphs() == 0
    with pytest.raises(ValueError, match="found 'fast'"):
        set_compile(network, "fast")


def test_a_cache_folder_of_ones_own_stays(tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, default_cache_dir())  # as dynamo's import leaves it
    keep_compiled(tmp_path / "ours")
    assert os.environ[CACHE_VARIABLE] == str(tmp_path / "ours")
    assert (tmp_path / "ours").stat().st_mode & 0o077 == 0
    keep_compiled(tmp_path / "other")
    assert os.environ[CACHE_VARIABLE] == str(tmp_path / "ours")


def test_a_cache_folder_of_somebody_else_is_refused(tmp_path, monkeypatch):
    monkeypatch.delenv(CACHE_VARIABLE, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(UserError, match="belongs to another user"):
        keep_compiled(tmp_path)


class Replayed:
    """A backend that emulates CUDA graphs: what a backward graph returns is the same memory at
    every run, written again by the next one (torch/_inductor/cudagraph_trees.py)."""

    def __init__(self) -> None:
        self.memory: dict[tuple[int, int], Tensor] = {}
        self.compiled = aot_autograd(fw_compiler=nop, bw_compiler=self.recorded)

    def __call__(self, graph, inputs, **options):
        return self.compiled(graph, inputs)

    def recorded(self, graph, inputs):
        def replay(*given):
            found = []
            for index, value in enumerate(graph(*given)):
                if isinstance(value, Tensor):
                    place = self.memory.setdefault((id(graph), index), torch.empty_like(value))
                    value = place.copy_(value).detach()  # a new tensor in the old memory
                found.append(value)
            return found

        return make_boxed_func(replay)


class Squared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = None
        self.weight = nn.Parameter(torch.tensor([2.0, 3.0]))

    def forward(self, x: Tensor) -> Tensor:
        return (self.weight * x).square()


def summed_over_passes(network: nn.Module, passes: list[float]) -> Tensor:
    for x in passes:
        network(torch.full((2,), x)).sum().backward()
    found = network.weight.grad
    network.weight.grad = None
    return found


def test_gradients_outlive_the_graphs_that_made_them():
    """Two and three passes a phase, and a phase after another."""
    plain, network, passes = Squared(), Squared(), [1.0, 2.0, 5.0]
    stolen = torch.compile(Squared(), backend=Replayed())
    set_compile(network, "cudagraphs", backend=Replayed())
    assert not torch.equal(summed_over_passes(stolen, passes), summed_over_passes(plain, passes))
    for some in (passes[:1], passes[:2], passes, passes[1:]):
        assert torch.equal(summed_over_passes(network, some), summed_over_passes(plain, some))


def test_each_pass_of_a_step_is_told_where_graphs_are_recorded(monkeypatch):
    """Also those of a look ahead at a group that is split; nowhere else."""
    told: list[int] = []
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: told.append(1))
    plan, objective = GroupPlan(8, 4, 2, 1), SiDA(EDMSchedule(), alpha=1.0)
    network = tiny_network()
    adam = AdamSettings(1e-3, 0.0, 0.999, 1e-8)
    roles = [TorchRole(copy.deepcopy(network), adam) for _ in range(2)]
    trainee = Trainee(network.requires_grad_(False), *roles, copy.deepcopy(network))
    draws = draws_of(LabelledNoise(), plan, 0, torch.device("cpu"), objective.draw_spec)
    for passes in (0, 2 * (4 + 4)):
        step(trainee, objective, StepSettings(plan, 0, 100, 0.05), draws, Sums())
        assert len(told) == passes
        compiled.Recorded.graphs = True


@slow
@pytest.mark.timeout(1800)
def test_a_new_process_compiles_nothing_again():
    """Also with its phases turned round, and where two processes compiled the same at once."""
    with tempfile.TemporaryDirectory() as folder:
        rows = compile_cache.measure(Path(folder))
    compile_cache.print_table(rows)
    cold = rows.pop("cold")
    assert cold["fxgraph_cache_miss"] > 0
    for name, row in rows.items():
        for phase, loss in cold["losses"].items():
            assert row["losses"][phase] == pytest.approx(loss, rel=1e-6), name
        if "at once" in name:
            assert row["fxgraph_cache_hit"] + row["fxgraph_cache_miss"] > 0
            continue
        assert row["fxgraph_cache_hit"] > 0, name
        assert row["autograd_cache_hit"] > 0, name
        assert row["fxgraph_cache_miss"] == row["autograd_cache_miss"] == 0, name
        assert row["first_s"] < cold["first_s"] / 3, name


@slow
def test_overlap_changes_no_bit_at_any_stage():
    for stage, row in overlap.measure(rounds=4, channels=32).items():
        assert row["largest"] == 0, stage


@slow
def test_compiled_masks_are_the_same_to_the_bit(tmp_path, monkeypatch):
    """The 64-bit hash, really compiled: wrapping products and shifts as torch's own."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    mask = torch.compile(keep_mask, dynamic=False, fullgraph=True)
    keys = torch.tensor([1, -5, 2**61, -(2**63), 2**63 - 1])
    for site in (torch.tensor(0), torch.tensor(57)):
        assert torch.equal(mask(keys, site, 0.13, 4096), keep_mask(keys, site, 0.13, 4096))
    # Two loops at most: the sample's start, and its elements.
    assert torch._inductor.metrics.generated_kernel_count <= 2
