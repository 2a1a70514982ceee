"""Draws are those of their key, however they are cut, packed, spread over ranks or made ahead."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
import torch

from sid_ray.diffusion.augment import AugmentPipe
from sid_ray.diffusion.rng import FAKE_SCORE, GENERATOR, draw_group
from sid_ray.groups import GroupPlan, MicroStep
from sid_ray.training.draws import Drawn, Draws, DrawUnit, Maker, draws_of
from sid_ray.training.draws_ahead import Coming, DrawsAhead, HostLane, lane_to
from sid_ray.types import Batch, Draw, DrawSpec, Pick
from tests.support.networks import LabelledNoise

CPU = torch.device("cpu")
SEED, SHAPE = 5, (1, 8, 8)
EVERYTHING = DrawSpec(num_steps=3, text=True, augment=AugmentPipe(0.5).plan)
Asked = tuple[int, int, MicroStep]


def always(images_seen: int) -> bool:
    return True


def ahead(plan: GroupPlan, rank: int = 0, depth: int = 2, **changes) -> DrawsAhead:
    coming = {"trains_generator": always} | changes
    source = coming.pop("source", LabelledNoise())
    spec = coming.pop("spec", EVERYTHING)
    return DrawsAhead(
        Maker(source, plan, SEED, spec), Coming(plan, rank, **coming), HostLane(), depth
    )


def asked(plan: GroupPlan, rank: int, iterations: range) -> Iterator[Asked]:
    """As a step asks, with a look ahead at each group that is split."""
    for number in iterations:
        for stream in (FAKE_SCORE, GENERATOR):
            micro_steps = plan.micro_steps(rank)
            for first in micro_steps:
                if first.opens_group and plan.passes_a_group > 1:
                    for part in micro_steps:
                        if part.groups == first.groups:
                            yield stream, number * plan.batch_size, part
                yield stream, number * plan.batch_size, first


def expected_parts(draws: Draws, asked_for: Asked, plan: GroupPlan) -> Iterator[tuple]:
    """What was drawn, and the same from draw_group alone, field by field."""
    stream, images_seen, micro_step = asked_for
    draw, batch = draws(*asked_for)
    source, cut = LabelledNoise(), slice(micro_step.start, micro_step.stop)
    groups = [
        draw_group(SEED, stream, images_seen, group, plan.group_size, SHAPE, EVERYTHING)
        for group in micro_step.groups
    ]
    for index, name in enumerate(draw._fields):
        parts = [own[index] for own, _ in groups]
        if name == "step":
            yield torch.tensor(draw.step), torch.tensor(parts[0])
        elif name == "augment" and stream == GENERATOR:
            assert draw.augment is None
        else:
            yield draw[index], torch.cat([part[cut] for part in parts])
    data = source.batch(Pick(torch.cat([uniform[cut] for _, uniform in groups])))
    yield batch.labels, data.labels
    yield batch.images, data.images


# Two ranks of five groups of four: packed with padding, one at a time, and split in two.
PLANS = [GroupPlan(20, 4, 8, 2), GroupPlan(20, 4, 4, 2), GroupPlan(20, 4, 2, 2)]


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: f"micro batch {plan.micro_batch}")
@pytest.mark.parametrize("depth", [None, 0, 1, 2, 9])
def test_draws_made_ahead_are_those_of_their_key(plan, depth):
    """Over phases and iterations; None is draws_of, which makes nothing ahead."""
    for rank in range(plan.world_size):
        if depth is None:
            draws: Draws = draws_of(LabelledNoise(), plan, SEED, CPU, EVERYTHING)
        else:
            draws = ahead(plan, rank, depth)
        for question in asked(plan, rank, range(3)):
            for found, expected in expected_parts(draws, question, plan):
                assert torch.equal(found, expected), question
        if depth is not None:
            draws.close()


def test_a_jump_back_and_one_ahead_get_their_own_draws():
    """As after a roll-back, or where a look ahead was cut short."""
    plan = GroupPlan(8, 4, 4, 1)
    draws = ahead(plan)
    for iterations in (range(5, 7), range(2, 4), range(100, 102)):
        for question in asked(plan, 0, iterations):
            for found, expected in expected_parts(draws, question, plan):
                assert torch.equal(found, expected)
    last = list(asked(plan, 0, range(100, 101)))[::-1]
    for question in last:  # in no order that anybody expects
        for found, expected in expected_parts(draws, question, plan):
            assert torch.equal(found, expected)
    draws.close()


class Slow(LabelledNoise):
    """A source that says what it was asked for, and waits where it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[int, int]] = []
        self.free = threading.Event()
        self.free.set()

    def batch(self, pick: Pick) -> Batch:
        assert self.free.wait(20)
        self.asked.append((pick.stream, pick.images_seen))
        return super().batch(pick)


def settled(draws: DrawsAhead) -> None:
    """Returns when the thread has nothing left to do."""
    for _, future in list(draws._queue):
        future.result(timeout=20)


def test_the_thread_goes_over_phases_and_iterations_but_not_beyond_the_end():
    plan, source = GroupPlan(8, 4, 8, 1), Slow()
    draws = ahead(plan, source=source, until=24, trains_generator=lambda seen: seen > 0)
    (pass_of,) = plan.micro_steps(0)
    draws(FAKE_SCORE, 0, pass_of)
    settled(draws)
    # No generator phase at 0 images, and nothing of the iteration after the next.
    assert source.asked == [(FAKE_SCORE, 0), (FAKE_SCORE, 8), (GENERATOR, 8)]
    for stream, seen in ((FAKE_SCORE, 8), (GENERATOR, 8), (FAKE_SCORE, 16), (GENERATOR, 16)):
        draws(stream, seen, pass_of)
    settled(draws)
    assert source.asked[3:] == [(FAKE_SCORE, 16), (GENERATOR, 16)], "24 images are the end"
    draws.close()


def test_no_more_than_one_iteration_ahead():
    """Where the next begins, the worker asks first whether its data is there."""
    plan, source = GroupPlan(4, 4, 4, 1), Slow()
    draws = ahead(plan, depth=9, source=source)
    (pass_of,) = plan.micro_steps(0)
    draws(FAKE_SCORE, 40, pass_of)
    settled(draws)
    assert {seen for _, seen in source.asked} == {40, 44}
    draws.close()


def test_a_step_does_not_wait_for_what_was_made_meanwhile():
    plan, source = GroupPlan(8, 4, 4, 1), Slow()
    draws, questions = ahead(plan, source=source), list(asked(plan, 0, range(2)))
    draws(*questions[0])
    settled(draws)
    source.free.clear()
    draws.waited_s = 0.0
    for question in questions[1:3]:  # AHEAD of them are there
        draws(*question)
    assert draws.waited_s < 0.5
    timer = threading.Timer(0.3, source.free.set)
    timer.start()
    draws(*questions[3])
    assert draws.waited_s > 0.1
    draws.close()


def test_what_goes_wrong_in_the_thread_is_raised_where_it_was_asked_for():
    class Damaged(LabelledNoise):
        def batch(self, pick: Pick) -> Batch:
            if pick.images_seen == 8 and broken:
                raise OSError("gone")
            return super().batch(pick)

    plan, broken = GroupPlan(8, 4, 8, 1), True
    draws = ahead(plan, source=Damaged())
    questions = list(asked(plan, 0, range(3)))
    for question in questions[:2]:
        draws(*question)
    with pytest.raises(OSError, match="gone"):
        draws(*questions[2])
    broken = False
    for question in questions[2:]:  # and it goes on as soon as that works again
        for found, expected in expected_parts(draws, question, plan):
            assert torch.equal(found, expected)
    draws.close()


def test_no_thread_outlives_its_worker():
    """Closed while it is at work, and while it waits for files of a source that is closed first."""

    class Reading(Slow):
        def close(self) -> None:
            self.closed = True
            self.free.set()

        def batch(self, pick: Pick) -> Batch:
            assert self.free.wait(20)
            if getattr(self, "closed", False):
                raise RuntimeError("the reader is closed")
            return super().batch(pick)

    def threads() -> set[threading.Thread]:
        return {thread for thread in threading.enumerate() if thread.name.startswith("draws")}

    before, plan, source = threads(), GroupPlan(8, 4, 4, 1), Reading()
    draws, questions = ahead(plan, source=source), list(asked(plan, 0, range(2)))
    draws(*questions[0])
    settled(draws)
    source.free.clear()
    draws(*questions[1])
    assert len(threads() - before) == 1
    source.close()
    began = time.monotonic()
    draws.close()
    assert time.monotonic() - began < 5
    assert threads() == before
    with pytest.raises(RuntimeError, match="after shutdown"):
        draws(*questions[3])


def test_padding_and_parts_are_one_unit():
    """Rank 1 of three has one group of five, and repeats it where the others go on."""
    plan = GroupPlan(20, 4, 2, 3)
    units = list(Coming(plan, 2, always).iteration(0))
    assert units == [DrawUnit(FAKE_SCORE, 0, (2,)), DrawUnit(GENERATOR, 0, (2,))]
    assert len(plan.micro_steps(2)) == 4


def test_parts_of_a_unit_share_its_memory():
    plan = GroupPlan(8, 4, 2, 1)
    drawn = Maker(LabelledNoise(), plan, SEED, EVERYTHING)(DrawUnit(FAKE_SCORE, 0, (1,)))
    part = drawn.part(2, 4)
    assert isinstance(part, Drawn)
    for whole, piece in zip(drawn.tensors(), part.tensors(), strict=True):
        assert piece.data_ptr() == whole[2:].data_ptr()


# The way to a GPU, with streams that only take notes ---------------------------------------------


class Noted(torch.Tensor):
    """A tensor that notes what is done with it; ``place`` is where it says it is."""

    place, pinned, notes = "cpu", False, []

    @staticmethod
    def of(value: torch.Tensor, notes: list, place: str = "cpu", pinned: bool = False) -> Noted:
        found = torch.Tensor._make_subclass(Noted, value)
        found.notes, found.place, found.pinned = notes, place, pinned
        return found

    @property
    def device(self):
        return torch.device(self.place)

    @property
    def is_cuda(self):
        return self.place != "cpu"

    def is_pinned(self):
        return self.pinned

    def pin_memory(self):
        return Noted.of(self, self.notes, pinned=True)

    def to(self, device, non_blocking=False):
        self.notes.append(("copy", self.pinned and non_blocking))
        return Noted.of(self, self.notes, str(device))

    def record_stream(self, stream):
        self.notes.append(("used on", stream.name))


class Stream:
    """Notes what it waits for."""

    def __init__(self, name: str, notes: list):
        self.name, self.notes = name, notes

    def wait_stream(self, other):
        self.notes.append((self.name, "waits for", other.name))

    def wait_event(self, event):
        self.notes.append((self.name, "waits for copies"))


@pytest.fixture
def notes(monkeypatch):
    """What CUDA is told, and by which thread."""
    found: list = []

    class Event:
        def record(self, stream):
            found.append(("copies end on", stream.name))

    def thread() -> str:
        return threading.current_thread().name.split("_")[0]

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream("side", found))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream("step", found))
    monkeypatch.setattr(torch.cuda, "Event", Event)

    def note(name: str) -> None:
        def told(value):
            found.append((thread(), name, getattr(value, "name", value)))

        monkeypatch.setattr(torch.cuda, name, told)

    note("set_device")
    note("set_stream")
    return found


def test_copies_to_a_gpu_are_made_beside_the_step_and_awaited_by_its_stream(notes):
    """Pinned, not blocking, on a side stream; the step's stream waits, and the memory is its."""
    device = torch.device("cuda:1")
    lane = lane_to(device)
    assert notes == [("side", "waits for", "step")], "what the lane reads was made there"

    def make(unit: DrawUnit) -> Drawn:
        here = Noted.of(torch.zeros(4), notes)
        pinned = Noted.of(torch.zeros(4), notes, pinned=True)
        text = Noted.of(torch.zeros(4), notes, "cuda:1")  # as its encoder leaves it
        return Drawn(Draw(pinned, pinned, here, step=1), Batch(here, text=text))

    plan = GroupPlan(4, 4, 4, 1)
    sent = []

    class OneWay:
        pinned = False
        begin = lane.begin

        def send(self, drawn: Drawn):
            sent.append(drawn)
            return lane.send(drawn)

    maker = Maker(LabelledNoise(), plan, SEED)
    draws = DrawsAhead(maker, Coming(plan, 0, always, 4), OneWay(), depth=0)
    draws.make = make
    notes.clear()
    draw, batch = draws(FAKE_SCORE, 0, plan.micro_steps(0)[0])
    draws.close()
    assert notes == [
        ("draws", "set_device", device),
        ("draws", "set_stream", "side"),
        *[("copy", True)] * 4,
        ("copies end on", "side"),
        ("step", "waits for copies"),
        *[("used on", "step")] * 5,
    ]
    assert draw.step == 1
    assert all(value.is_cuda for value in (draw.latents, draw.time, batch.labels, batch.text))
