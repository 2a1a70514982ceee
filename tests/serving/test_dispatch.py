"""Packing of requests into batches, their turns, back-pressure, and replicas that end."""

import asyncio

import pytest

from sid_ray.errors import UserError
from sid_ray.serving.contract import BusyError, LostError, Painted, WantedImage
from sid_ray.serving.dispatch import AHEAD, Dispatcher, GoneError, Speed


def images(count: int, start: int = 0, role="generator") -> list[WantedImage]:
    return [WantedImage(role, start + seed) for seed in range(count)]


class Replica:
    """Makes batches when it is told to; ``sent`` are the seeds of each."""

    def __init__(self, most=4, teacher=2, queued=1000, replicas=1):
        self.sent: list[list[int]] = []
        self.open: list[asyncio.Future] = []
        self.dispatcher = Dispatcher(
            self.send, {"generator": most, "teacher": teacher}, queued, lambda: replicas
        )

    async def send(self, wanted):
        self.sent.append([each.seed for each in wanted])
        self.open.append(asyncio.get_running_loop().create_future())
        await self.open[-1]
        return [Painted(b"%d" % each.seed, 0.1, len(wanted)) for each in wanted]

    async def ask(self, wanted) -> asyncio.Task:
        task = asyncio.create_task(self.dispatcher.paint(wanted))
        await settle()
        return task

    async def answer(self, error: Exception | None = None) -> None:
        """The oldest batch."""
        future = next(each for each in self.open if not each.done())
        future.set_exception(error) if error else future.set_result(None)
        await settle()

    async def answer_all(self) -> None:
        while any(not each.done() for each in self.open):
            await self.answer()


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def seeds_of(painted) -> list[int]:
    return [int(each.png) for each in painted]


def run(test) -> None:
    asyncio.run(asyncio.wait_for(test, 10))


def test_a_small_request_does_not_wait_behind_a_huge_one():
    async def test():
        replica = Replica()
        huge = await replica.ask(images(40))
        assert replica.sent == [[0, 1, 2, 3], [4, 5, 6, 7]]  # one is made, one lies ready
        small = await replica.ask(images(1, 100))
        await replica.answer()
        assert replica.sent[2] == [8, 100, 9, 10]
        await replica.answer()
        await replica.answer()
        assert small.done() and not huge.done()
        assert seeds_of(await small) == [100]
        await replica.answer_all()
        assert seeds_of(await huge) == [*range(40)]

    run(test())


def test_requests_are_packed_together_and_each_gets_its_own():
    async def test():
        replica = Replica(most=8)
        tasks = [await replica.ask(images(1, start)) for start in range(0, 100, 10)]
        assert replica.sent == [[0], [10]]  # nobody waited for company
        await replica.answer()
        assert replica.sent[2] == [20, 30, 40, 50, 60, 70, 80, 90]
        await replica.answer_all()
        assert [seeds_of(await task) for task in tasks] == [[start] for start in range(0, 100, 10)]

    run(test())


def test_teacher_and_generator_take_turns_and_share_no_batch():
    async def test():
        replica = Replica()
        teacher = await replica.ask(images(6, role="teacher"))
        generator = await replica.ask(images(8, 100))
        await replica.answer_all()
        assert replica.sent[2:5] == [[100, 101, 102, 103], [4, 5], [104, 105, 106, 107]] or (
            replica.sent[2:5] == [[4, 5], [100, 101, 102, 103], [104, 105, 106, 107]]
        )
        assert seeds_of(await teacher) == [*range(6)]
        assert seeds_of(await generator) == [*range(100, 108)]

    run(test())


def test_more_replicas_are_sent_more_batches():
    async def test():
        replica = Replica(most=1, replicas=3)
        task = await replica.ask(images(20))
        assert len(replica.sent) == 3 * AHEAD
        await replica.answer_all()
        assert seeds_of(await task) == [*range(20)]

    run(test())


def test_a_full_queue_refuses_and_says_when_to_ask_again():
    async def test():
        replica = Replica(queued=10)
        first = await replica.ask(images(8))
        with pytest.raises(BusyError) as refused:
            await replica.dispatcher.paint(images(3))
        assert refused.value.retry_after_s == 1  # nothing is known of its speed yet
        fits = await replica.ask(images(2, 50))
        await replica.answer_all()
        assert seeds_of(await first) == [*range(8)] and seeds_of(await fits) == [50, 51]
        assert replica.dispatcher.held == 0
        later = await replica.ask(images(10))
        await replica.answer_all()
        await later

    run(test())


def test_when_to_ask_again_follows_from_the_speed():
    now = [0.0]
    speed = Speed(lambda: now[0])
    assert speed.per_s == 0
    for _ in range(20):
        now[0] += 2.0
        speed.add(8)
    assert speed.per_s == pytest.approx(4)
    for _ in range(20):  # twice as fast now
        now[0] += 2.0
        speed.add(16)
    assert speed.per_s == pytest.approx(8, rel=0.1)
    dispatcher = Replica(queued=100).dispatcher
    dispatcher.speed, dispatcher.held = speed, 96
    assert dispatcher.retry_after_s(44) == pytest.approx(40 / speed.per_s, abs=1)


def test_images_of_a_replica_that_ended_are_asked_again_once():
    async def test():
        replica = Replica()
        one, other = await replica.ask(images(2)), await replica.ask(images(2, 10))
        await replica.answer(GoneError("killed"))
        assert replica.sent[-1] == [0, 1]
        await replica.answer_all()
        assert seeds_of(await one) == [0, 1] and seeds_of(await other) == [10, 11]

    run(test())


def test_what_kills_replicas_takes_no_other_request_along():
    async def test():
        replica = Replica(most=8)
        ahead = [await replica.ask(images(1, 50 + each)) for each in range(AHEAD)]
        killer, other = await replica.ask(images(1)), await replica.ask(images(1, 10))
        for _ in ahead:
            await replica.answer()
        assert replica.sent[AHEAD] == [0, 10]
        await replica.answer(GoneError("killed"))
        assert replica.sent[-2:] == [[0], [10]]  # each alone
        await replica.answer(GoneError("killed"))
        await replica.answer_all()
        assert seeds_of(await other) == [10]
        with pytest.raises(LostError, match="ended twice: killed"):
            await killer
        assert replica.dispatcher.held == replica.dispatcher.on_their_way == 0

    run(test())


def test_an_error_reaches_who_waits_and_nobody_else():
    async def test():
        replica = Replica()
        wrong, right = await replica.ask(images(1)), await replica.ask(images(1, 10))
        await replica.answer(UserError("class 12: this generator knows 0-9"))
        await replica.answer_all()
        with pytest.raises(UserError, match="class 12"):
            await wrong
        assert seeds_of(await right) == [10]

    run(test())


def test_an_answer_of_another_length_is_an_error_and_no_silence():
    async def test():
        async def short(wanted):
            return [Painted(b"0", 0.1, 1)]

        dispatcher = Dispatcher(short, {"generator": 4, "teacher": 1}, 10)
        with pytest.raises(ValueError, match="shorter"):
            await dispatcher.paint(images(2))

    run(test())


def test_what_nobody_waits_for_is_never_made():
    async def test():
        replica = Replica(queued=40)
        left = await replica.ask(images(40))
        left.cancel()
        await settle()
        assert replica.dispatcher.held == 0
        other = await replica.ask(images(4, 100))
        await replica.answer_all()
        assert seeds_of(await other) == [100, 101, 102, 103]
        assert replica.sent == [[0, 1, 2, 3], [4, 5, 6, 7], [100, 101, 102, 103]]

    run(test())


def test_without_a_replica_to_come_who_waits_and_who_asks_is_told():
    async def test():
        replica = Replica(most=1)
        waiting = await replica.ask(images(AHEAD + 3))  # some were sent, some were not
        assert replica.dispatcher.on_their_way == AHEAD
        replica.dispatcher.stop("none of d is there")
        with pytest.raises(LostError, match="none of d is there"):
            await waiting
        with pytest.raises(LostError, match="none of d is there"):
            await replica.dispatcher.paint(images(1))
        await settle()
        assert replica.dispatcher.held == replica.dispatcher.on_their_way == 0
        assert all(each.cancelled() for each in replica.open)
        replica.dispatcher.wake()
        after = await replica.ask(images(1, 70))
        await replica.answer_all()
        assert seeds_of(await after) == [70]

    run(test())
