"""Copies beside a training that goes on; the stream that copies is faked, as late as it may be."""

import itertools
import time
from types import SimpleNamespace

import pytest
import torch

from sid_ray.actors import handover as module
from sid_ray.actors.handover import Handover
from sid_ray.checkpoint.copies import ALIGNED, Copies, CudaCopyStream, PinnedMemory
from sid_ray.checkpoint.snapshot import take_snapshot, write_snapshot
from sid_ray.diffusion.schedules import EDMSchedule
from sid_ray.distributed.roles import fill
from sid_ray.groups import GroupPlan
from sid_ray.objectives.sid import SiD
from sid_ray.training.draws import draws_of
from sid_ray.training.step import StepSettings, Sums, step
from tests.checkpoint.test_manifest import DESCRIPTION
from tests.support.networks import tiny_network
from tests.training.test_step import CPU, LabelledNoise, trainee_of


class LateCopies:
    """Copies nothing before somebody has to have it. ``held``: so often the training waited."""

    def __init__(self):
        self.queue, self.done, self.held = [], 0, 0

    def is_ours(self, value):
        return True

    def follow(self):
        pass

    def copy(self, target, value):
        self.queue.append((target, value))

    def mark(self):
        return len(self.queue)

    def hold(self, mark):
        self.held += 1
        self.wait(mark)

    def wait(self, mark):
        for target, value in self.queue[self.done : mark]:
            target.copy_(value)
        self.done = max(self.done, mark)


def memory(chunk=1 << 20):
    return PinnedMemory(lambda size: torch.full((size,), 0x7F, dtype=torch.uint8), chunk)


def late():
    return Copies(LateCopies(), memory())


# A snapshot while the training goes on ------------------------------------------------------------


def filled(trainee, number):
    """The trainee's roles, everything in them this number."""
    roles = {"fake_score": trainee.fake_score, "generator": trainee.generator}
    for role in roles.values():
        fill(role.owned(), lambda fragment, _: torch.full((fragment.length,), float(number)))
    return roles


def overtaken(copies, folder, hold=True):
    """Files of a state, written when an update behind it has changed everything."""
    trainee = trainee_of(tiny_network())
    snapshot = take_snapshot(trainee, filled(trainee, 1), DESCRIPTION, "{}", copies)
    if hold:
        copies.hold()
    filled(trainee, 2)
    return write_snapshot(folder, snapshot).files


def test_a_snapshot_has_the_bits_of_its_moment_though_it_is_copied_later(tmp_path):
    at_once = overtaken(Copies(), tmp_path / "a")
    assert overtaken(late(), tmp_path / "b") == at_once
    without = overtaken(late(), tmp_path / "c", hold=False)
    changed = [name for name in at_once if "rank" in name and without[name] != at_once[name]]
    assert len(changed) == 2, "else what the training overwrites meanwhile would be in it"


def test_a_step_asks_before_it_changes_anything():
    plan, objective = GroupPlan(4, 4, 4, 1), SiD(EDMSchedule())
    trainee, draws = trainee_of(tiny_network()), draws_of(LabelledNoise(), plan, 0, CPU)
    roles = [trainee.fake_score, trainee.generator]

    def state():
        return torch.cat([v for r in roles for held in r.owned() for v in held.values.values()])

    before, asked = state(), []
    settings = StepSettings(plan, 0, 100, 0.5, lambda: asked.append(state()))
    step(trainee, objective, settings, draws, Sums())
    assert torch.equal(asked[0], before)
    last = asked[-1]
    assert not torch.equal(last, before), "before the second role's update, the first has changed"
    assert not torch.equal(state(), last)


def test_a_snapshot_in_used_memory_is_the_same(tmp_path):
    copies, trainee = late(), trainee_of(tiny_network())
    sizes = []
    for number in range(3):
        roles = filled(trainee, number)
        written = write_snapshot(
            tmp_path / f"late{number}", take_snapshot(trainee, roles, DESCRIPTION, "{}", copies)
        )
        plain = take_snapshot(trainee, roles, DESCRIPTION, "{}")
        assert written == write_snapshot(tmp_path / f"plain{number}", plain)
        sizes.append(copies._memory.size)
    assert sizes == sizes[:1] * 3


def test_memory_is_handed_out_once_aligned_and_no_more_than_is_needed():
    rooms, own = memory(chunk=1000), []
    values = [torch.zeros(30), torch.zeros(2, 3, dtype=torch.float64), torch.zeros(()),
              torch.zeros(700, dtype=torch.float16), torch.zeros(0)]  # fmt: skip
    for value in values:
        room = rooms.like(value)
        assert (room.shape, room.dtype) == (value.shape, value.dtype)
        start = room.data_ptr()
        own.append((start, start + room.numel() * room.element_size()))
        assert not room.numel() or (start - rooms._pieces[rooms._piece].data_ptr()) % ALIGNED == 0
    own = sorted(span for span in own if span[0] < span[1])
    assert all(stop <= start for (_, stop), (start, _) in itertools.pairwise(own))
    assert rooms.size == 1000 + 1400, "what is larger than a piece has one of its own"


def test_what_does_not_last_is_copied_before_its_memory_is_used_again():
    copies = late()
    copies.begin()
    gathered = torch.ones(4)
    copied = copies.of(gathered, lasting=False)
    gathered.zero_()  # the next parameter, in the same memory
    copies.end()
    copies.wait()
    assert copied.tolist() == [1] * 4
    assert copies.stream.held == 1


def test_the_training_waits_once_a_set():
    copies = late()
    copies.hold()
    copies.begin()
    copies.of(torch.ones(1))
    copies.end()
    for _ in range(5):
        copies.hold()
    assert copies.stream.held == 1


def test_from_cpu_memory_it_is_one_plain_copy():
    copies = Copies.off(torch.device("cpu"))
    value = torch.ones(3)
    copies.begin()
    copied = copies.of(value)
    value.zero_()
    for done in (copies.end, copies.hold, copies.wait):
        done()
    assert copied.tolist() == [1] * 3 and copies._memory.size == 0


def test_the_stream_of_a_gpu_is_ordered_as_the_rules_say(monkeypatch):
    """By the calls of torch.cuda; what they do is CUDA's."""
    said = []

    class Event:
        def synchronize(self):
            said.append("host waits")

    class Stream:
        def __init__(self, name):
            self.name = name

        def wait_stream(self, other):
            said.append(f"{self.name} waits for {other.name}")

        def wait_event(self, event):
            said.append(f"{self.name} waits for the copies")

        def record_event(self):
            said.append("mark")
            return Event()

        def __enter__(self):
            said.append(f"on {self.name}")

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream("beside"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream("training"))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    monkeypatch.setattr(torch.cuda, "device", lambda device: Stream(str(device)))

    class Target(SimpleNamespace):
        def copy_(self, value, non_blocking):
            said.append(f"copy {value}, non_blocking={non_blocking}")

    stream = CudaCopyStream(torch.device("cuda", 1))
    stream.follow()
    stream.copy(Target(), "weights")
    mark = stream.mark()
    stream.hold(mark)
    stream.wait(mark)
    assert said == [
        "beside waits for training",
        "on beside",
        "copy weights, non_blocking=True",
        "mark",
        "training waits for the copies",
        "on cuda:1",  # a thread begins on GPU 0
        "host waits",
    ]


# Weights for the evaluator ------------------------------------------------------------------------


@pytest.fixture
def evaluator(monkeypatch):
    """One that takes weights after a while; ``taken`` are what it got."""
    found = SimpleNamespace(taken=[], slow_s=0.0)

    def take(weights, images_seen):
        time.sleep(found.slow_s)
        found.taken.append((images_seen, {name: v.clone() for name, v in weights.items()}))
        return images_seen

    found.take = SimpleNamespace(remote=take)
    monkeypatch.setattr(module.ray, "put", lambda value: value)
    monkeypatch.setattr(module.ray, "wait", lambda refs, **_: (refs, []))
    return found


@pytest.mark.parametrize("copies", [Copies, late], ids=["cpu", "gpu"])
def test_weights_come_in_order_as_they_were(evaluator, copies):
    weight = torch.zeros(4)
    handover = Handover(evaluator, copies())
    evaluator.slow_s = 0.05
    for number in (1, 2, 3):
        weight.fill_(number)
        handover.give(iter([("w", weight)]), number)
    assert handover.unfinished(5) == 0
    assert [(n, w["w"].tolist()) for n, w in evaluator.taken] == [
        (n, [float(n)] * 4) for n in (1, 2, 3)
    ]
    handover.close()


def test_nobody_waits_for_weights_to_be_packed(evaluator):
    evaluator.slow_s = 1.5
    handover = Handover(evaluator, late())
    handover.give(iter([("w", torch.ones(4))]), 1)
    assert handover.unfinished() == 1, "they would go with this process"
    assert handover.unfinished(5) == 0
    handover.close()
