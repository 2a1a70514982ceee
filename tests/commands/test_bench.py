"""sid-ray bench: the search on made-up machines, the short iteration, and real processes."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
import torch

from sid_ray.commands.benching import turns as in_turn
from sid_ray.commands.benching.made_up import RandomSamples
from sid_ray.commands.benching.marks import Marks
from sid_ray.commands.benching.processes import ended
from sid_ray.commands.benching.rank import LONGEST, why
from sid_ray.commands.benching.report import Measurement, bench_table, values_of
from sid_ray.commands.benching.search import Descent, Found, NotMeasuredError, fields_to_try
from sid_ray.commands.benching.short import PASSES, short_of, whole_seconds
from sid_ray.commands.benching.turns import Turns
from sid_ray.config.chosen import plain
from sid_ray.config.distill_config import replace
from sid_ray.errors import UserError
from sid_ray.planning.fit import micro_batch_of
from sid_ray.planning.profile import SETTINGS, Profile
from sid_ray.recipes.known_networks import teacher_of
from sid_ray.recipes.registry import recipe
from sid_ray.types import Pick

DIGITS = recipe("digits-sid")
PLAINEST = replace(DIGITS, resources=plain(DIGITS.resources))
START = replace(PLAINEST, resources__micro_batch=16)


class Machine:
    """Seconds of a config by a rule; notes what it was asked, and how far each is from the best."""

    def __init__(self, seconds, fails=lambda config: ""):
        self.seconds, self.fails = seconds, fails
        self.best = None
        self.asked = []

    def measure(self, config, what, more):
        self.asked.append((config, more))
        if reason := self.fails(config):
            raise NotMeasuredError(reason, late="time" in reason)
        seconds = self.seconds(config.resources)
        ratios = () if self.best is None else (seconds / self.best,) * 3
        found = Found(seconds, 1.0, ratios)
        if self.best is None or found.faster:
            self.best = seconds
        return found


def search(machine, config=START, fields=None, world_size=1):
    fields = fields_to_try([], world_size) if fields is None else fields
    found = Descent(config, world_size, machine.measure, fields)
    found.run()
    return found


def cost(resources):
    """Fastest at a micro-batch of 64, compiled, contiguous."""
    seconds = 10 / resources.micro_batch + 0.01 * (resources.micro_batch > 64)
    seconds *= 0.8 if resources.compile == "default" else 1
    return seconds * (0.9 if resources.memory_format == "contiguous" else 1)


def test_the_search_changes_one_thing_at_a_time_and_keeps_what_is_faster():
    machine = Machine(cost)
    found = search(machine)
    assert found.settings["micro_batch"] == 64  # all there are: 4 groups of 16
    assert found.settings["compile"] == "default"
    assert found.settings["memory_format"] == "contiguous"
    assert found.settings["activation_checkpointing"] is False
    assert found.settings.keys() == set(fields_to_try([], 1))
    best = machine.asked[0][0].resources
    kept = [row.kept for row in found.rows if row.found]
    for (config, _), keep in zip(machine.asked, kept, strict=True):
        fields = [f.name for f in dataclasses.fields(best)]
        changed = [n for n in fields if getattr(best, n) != getattr(config.resources, n)]
        assert len(changed) <= 1
        best = config.resources if keep else best
    more = [count for _, count in machine.asked]
    assert more == sorted(more, reverse=True)
    assert more[-1] >= 1


def test_a_change_within_noise_or_without_agreement_is_not_kept():
    assert not Found(1, 1, (0.995, 0.995, 0.995)).faster
    assert not Found(1, 1, (0.9, 1.1, 1.2, 0.8, 0.97, 1.3)).faster
    assert Found(1, 1, (0.9, 1.1, 0.95)).faster
    assert not Found(1, 1).faster
    assert not Found(1, 1, (0.95,)).faster  # one turn, which may be anything
    assert Found(1, 1, (0.8,)).faster


def test_what_fails_is_a_row_with_its_line_and_the_search_goes_on():
    def fails(config):
        return "out of memory" if config.resources.micro_batch > 32 else ""

    found = search(Machine(cost, fails))
    notes = {row.change: row.note for row in found.rows if row.found is None}
    assert notes["micro_batch 64"] == "out of memory"
    assert "needs GPUs" in notes["compile cudagraphs"]  # the config's own refusal
    assert found.settings["micro_batch"] == 32
    assert found.settings["compile"] == "default"


def test_where_the_settings_fail_as_they_are_smaller_micro_batches_are_tried():
    def fails(config):
        return "out of memory" if config.resources.micro_batch > 4 else ""

    found = search(Machine(cost, fails))
    assert [row.change for row in found.rows if "as it is" in row.change][-1] == (
        "as it is, micro_batch 4"
    )
    with pytest.raises(NotMeasuredError, match="broken"):
        search(Machine(cost, lambda config: "broken"))


def test_what_there_is_no_time_for_is_said():
    asked = []

    def fails(config):
        asked.append(config)
        return "no time left" if len(asked) > 3 else ""

    found = search(Machine(cost, fails))
    late = [row for row in found.rows if row.note.startswith("not tried")]
    assert len(asked) == 4
    assert found.settings.keys() == {"micro_batch"}  # of the others nothing is known
    assert {row.change.split()[0] for row in late} == {
        "attention", "activation_checkpointing", "compile"
    }  # fmt: skip


def test_zero_and_overlap_are_tried_where_there_is_somebody_to_share_with():
    assert fields_to_try([], 2) == list(SETTINGS)
    assert not {"zero_stage", "overlap_comm"} & set(fields_to_try([], 1))
    assert "compile" not in fields_to_try(["compile"], 2)
    config = replace(PLAINEST, resources__zero_stage=0)
    found = search(Machine(lambda resources: 1.0), config, ["overlap_comm"], world_size=2)
    assert found.rows[-1].note.startswith("nothing to overlap")


@pytest.mark.parametrize("name", ["digits-sid", "img512-xxl-sida", "cifar10-uncond-sid"])
@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("micro_batch", [1, 2, 32, 64])
def test_a_short_iteration_has_two_whole_passes_and_predicts_the_whole_one(
    name, world_size, micro_batch
):
    """On a made-up machine: a pass, one that sums over ranks, a look ahead and an update."""
    config = replace(recipe(name), resources__micro_batch=micro_batch)
    short = short_of(config, world_size)
    plan = config.group_plan(world_size)
    own = short.config.group_plan(world_size)
    assert own.passes_a_rank == min(plan.passes_a_rank, PASSES)
    assert micro_batch_of(short.config) == micro_batch
    if not short.whole:
        assert own.batch_size == PASSES * micro_batch * world_size

    def seconds(passes, group_passes):
        looks = 0.5 * passes if group_passes > 1 else 0.0
        return {
            f"{role} {part}": values
            for role in ("fake_score", "generator")
            for part, values in (
                ("pass", [3.0] * (passes - 1) + [4.0]), ("look", [looks]), ("update", [2.0])
            )
        } | {"average": [1.0]}  # fmt: skip

    found = whole_seconds(short, seconds(own.passes_a_rank, own.passes_a_group))
    whole = seconds(plan.passes_a_rank, plan.passes_a_group)
    expected = sum(map(sum, whole.values()))
    # A rank's last pass may hold fewer groups than the others: it counts as a part of one.
    rest = 2 * 3.0 * (plan.passes_a_rank - short.passes)
    assert found == pytest.approx(expected - rest)


def test_samples_are_of_the_networks_shapes():
    for name, labels, has_images in (("img512-xs-sid", 1000, False), ("digits-sida", 10, True)):
        config = recipe(name)
        samples = RandomSamples(config, teacher_of(config))
        batch = samples.batch(Pick(torch.rand(3)))
        assert batch.labels.sum(1).tolist() == [1] * 3
        assert batch.labels.shape == (3, labels)
        assert (batch.images is not None) == has_images
        assert batch.images is None or batch.images.shape == (3, *samples.shape)


def test_marks_name_what_has_passed_between_two_of_them():
    marks = Marks(torch.device("cpu"))
    marks.start()
    assert marks.after("slow", lambda value: time.sleep(0.05) or value)(3) == 3
    marks.mark("fast")
    marks.mark("fast")
    found = marks.seconds()
    assert found["slow"][0] >= 0.05 > sum(found["fast"])
    assert len(found["fast"]) == 2


class Event:
    """What Marks uses of torch.cuda.Event: a moment of the GPU's, in ms."""

    now = 0.0

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        Event.now += 250.0
        self.at = Event.now

    def elapsed_time(self, later):
        return later.at - self.at


def test_marks_on_a_gpu_are_events_and_nobody_waits_between_them(monkeypatch):
    waited = []
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    marks = Marks(torch.device("cuda", 1))
    marks.start()
    for name in ("generator pass", "generator pass", "average"):
        marks.mark(name)
    assert waited == [torch.device("cuda", 1)]
    assert marks.seconds() == {"generator pass": [0.25, 0.25], "average": [0.25]}
    assert len(waited) == 2


def test_settings_run_in_turn_in_processes_that_are_gone_afterwards(monkeypatch):
    """What a run does, on random weights; what fails is told in one line and ends nothing else."""
    monkeypatch.setattr(in_turn, "MOST_TURNS", 3)
    monkeypatch.setattr(in_turn, "WARM_UPS", 1)
    before = set(psutil.Process().children(recursive=True))
    config = replace(START, training__batch_size=16)
    told: list[str] = []
    with Turns(teacher_of(config), 1, False, time.monotonic() + 120, told.append) as turns:
        first = turns.measure(config, "as it is", 60)
        assert first.seconds > 0
        assert 0.1 < first.peak_gib < 4
        assert not first.note  # no update was left out
        assert turns.ceiling["matrix product"] > 1e9
        other = turns.measure(replace(config, resources__micro_batch=8), "micro_batch 8", 60)
        assert 1 <= len(other.ratios) <= 3
        with pytest.raises(UserError, match="has kernels for NVIDIA GPUs"):
            turns.measure(replace(config, resources__attention="xformers"), "xformers", 1)
        wrong = replace(config, training__precision="complex64")
        with pytest.raises(NotMeasuredError, match="ComplexFloat") as failed:
            turns.measure(wrong, "what fails as it is built", 60)
        assert "\n" not in str(failed.value)
        assert turns.best is not None
        assert turns.best.alive
    assert set(psutil.Process().children(recursive=True)) == before
    assert "micro_batch 8" in told[2]
    assert "of the best's" in told[3]


def test_why_something_failed_is_one_line():
    assert why(UserError("no\nsuch thing")) == "no\\nsuch thing"
    full = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has")
    assert why(full) == "out of memory: CUDA out of memory. Tried to allocate 2.00 GiB."
    assert why(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED\nmore")).startswith("out of m")
    assert why(NotImplementedError("no operator\n" * 9)) == "NotImplementedError: no operator"
    assert len(why(ValueError("x" * 9999))) == LONGEST
    assert ended(-9) == "its process was ended by SIGKILL, as when a machine has no memory left"
    assert ended(-11) == "its process was ended by SIGSEGV"
    assert ended(3) == "its process ended by itself (exit code 3)"


def test_the_table_and_the_file_say_the_same():
    found = search(
        Machine(cost, lambda c: "out of [memory]" if c.resources.compile != "off" else "")
    )
    profile = Profile("cpu", 1, "n", "float32", "b", found.settings, 1, 1, {"torch": "2"})
    measured = Measurement("digits-sid", 64, 10**9, {"matrix product": 1e12}, found.rows, profile)
    values = json.loads(json.dumps(values_of(measured, "/profile")))
    assert len(values["rows"]) == bench_table(measured).row_count == len(found.rows)
    first = values["rows"][0]
    assert first["flops"] == pytest.approx(64e9 / first["seconds"])
    assert first["share_of_ceiling"] == pytest.approx(first["flops"] / 1e12)
    assert [row["note"] for row in values["rows"] if row["change"] == "compile default"] == [
        "out of [memory]"
    ]


def ranks_of_bench() -> list[int]:
    """Processes that measure, whoever started them."""
    found = psutil.process_iter(["cmdline"])
    return [
        p.pid for p in found if any("benching.rank" in word for word in p.info["cmdline"] or ())
    ]


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_bench_that_is_stopped_leaves_nothing_running(sent, tmp_path):
    """The last output is in docs/bench.md."""
    before = set(ranks_of_bench())
    command = [sys.executable, "-m", "sid_ray.cli", "bench", "digits-sid", "--workers", "2"]
    process = subprocess.Popen(command, env=os.environ | {"SID_RAY_CACHE": str(tmp_path)})
    try:
        deadline = time.monotonic() + 200
        while len(set(ranks_of_bench()) - before) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        time.sleep(5)  # amidst their start, or an iteration
        process.send_signal(sent)
        began = time.monotonic()
        code = process.wait(30)
        while set(ranks_of_bench()) - before:
            assert time.monotonic() < began + 30
            time.sleep(0.1)
        print(f"{sent.name}: exit code {code}, all gone {time.monotonic() - began:.1f} s later")
    finally:
        process.kill()
    assert code == (-9 if sent == signal.SIGKILL else 130)
