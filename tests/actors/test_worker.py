"""What a worker does when its updates are not finite any more; Ray's part is faked."""

from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch

from sid_ray.actors import worker as module
from sid_ray.actors.measures import largest, peak_memory_gib
from sid_ray.actors.worker import (
    COMING,
    DAMAGED,
    THERE,
    DivergedError,
    Loop,
    crossed,
    train_with_second_chance,
)
from sid_ray.data.row_groups import DamagedDataError
from sid_ray.storage.shared import NotSharedError


class FakeWorker:
    """A worker with checkpoints at these images seen."""

    rank = 0

    def __init__(self, *checkpoints):
        self.checkpoints, self.told, self.taken = checkpoints, [], []

    def newest(self, good_until=None):
        good = [seen for seen in self.checkpoints if good_until is None or seen <= good_until]
        return max(good or self.checkpoints, default=None)

    def tell(self, text):
        self.told.append(text)

    def roll_back(self, found):
        self.taken.append(found)


def diverging(monkeypatch, *faults) -> list[int]:
    """train() that finds these faults, one a call, and then ends well."""
    calls: list[int] = []

    def train(worker):
        calls.append(1)
        if len(calls) <= len(faults):
            raise DivergedError("none of the last 20 updates was finite", *faults[len(calls) - 1])

    monkeypatch.setattr(module, "train_worker", train)
    return calls


def test_a_run_gets_one_second_chance_from_its_last_good_checkpoint(monkeypatch):
    calls = diverging(monkeypatch, (300, 200))
    worker = FakeWorker(100, 200, 290)
    train_with_second_chance(worker)
    assert len(calls) == 2
    assert worker.taken == [200]
    assert "none of the last 20" in worker.told[0]


def test_the_same_fault_again_is_the_end(monkeypatch):
    calls = diverging(monkeypatch, (300, 200), (300, 200))
    with pytest.raises(DivergedError):
        train_with_second_chance(FakeWorker(100, 200))
    assert len(calls) == 2


def test_a_fault_beyond_a_healthy_stretch_gets_a_chance_of_its_own(monkeypatch):
    diverging(monkeypatch, (300, 200), (900, 800), (1000, 850))
    worker = FakeWorker(100, 200, 700)
    with pytest.raises(DivergedError):
        train_with_second_chance(worker)
    assert worker.taken == [200, 700]


def test_where_no_checkpoint_is_surely_good_the_newest_is_taken(monkeypatch):
    diverging(monkeypatch, (300, 50))
    worker = FakeWorker(100, 200)
    train_with_second_chance(worker)
    assert worker.taken == [200]


def test_without_a_checkpoint_there_is_nothing_to_roll_back_to(monkeypatch):
    diverging(monkeypatch, (300, 200))
    worker = FakeWorker()
    with pytest.raises(DivergedError):
        train_with_second_chance(worker)
    assert worker.taken == []


def test_multiples_are_crossed_once():
    assert crossed(100, 90, 100)
    assert not crossed(100, 100, 190)
    assert crossed(100, 190, 410)
    assert not crossed(0, 0, 10**9)


# Waiting for data -------------------------------------------------------------------------------


class FakeSource:
    """Gives these answers to ``wait``, one a call."""

    reads = True

    def __init__(self, *answers):
        self.answers = list(answers)

    def wait(self, images_seen, timeout_s):
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def waiting(source, others) -> tuple[Loop, list[str]]:
    """A loop beside another rank whose states are ``others``, one a poll; what the worker did."""
    done: list[str] = []
    worker = SimpleNamespace(
        trainee=SimpleNamespace(images_seen=64),
        spool=SimpleNamespace(poll=lambda state: max(state, others.pop(0))),
        heed=lambda: done.append("heed"),
        secure=lambda: done.append("secure"),
        data_stalled_s=0.0,
    )
    loop = object.__new__(Loop)
    loop.worker, loop.source = worker, source
    return loop, done


def test_no_step_begins_before_all_ranks_have_their_data():
    loop, done = waiting(FakeSource(True, True, True), [COMING, COMING, THERE])
    loop.await_data()
    assert done == ["heed", "heed"], "a rank that waits still hears what is asked of it"
    assert loop.worker.data_stalled_s > 0
    loop, done = waiting(FakeSource(True), [THERE])
    loop.await_data()
    assert (done, loop.worker.data_stalled_s) == ([], 0.0)


@pytest.mark.parametrize("own", [True, False], ids=["own", "another rank's"])
def test_damage_stops_all_ranks_alike_after_their_state_is_kept(own):
    error = DamagedDataError("part-00001.parquet, row group 3, row 1: not a whole image")
    loop, done = waiting(FakeSource(error if own else True), [THERE if own else DAMAGED])
    with pytest.raises(DamagedDataError) as raised:
        loop.await_data()
    assert str(raised.value) == (str(error) if own else "")
    assert done == ["secure"]


def test_a_process_knows_the_most_memory_that_it_has_had():
    """As the kernel says it elsewhere."""
    (line,) = (x for x in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in x)
    kernel_gib = int(line.split()[1]) / 2**20
    assert peak_memory_gib(torch.device("cpu")) == pytest.approx(kernel_gib, rel=0.02)
    assert largest(1.5) == 1.5


def test_hosts_that_do_not_share_the_run_are_not_started_again(monkeypatch):
    """An error would be raised to Ray, which starts the workers again."""
    told = []
    monkeypatch.setattr(module.ray, "get", lambda value: value)
    tracker = SimpleNamespace(refuse=SimpleNamespace(remote=told.append))

    def build(settings):
        raise NotSharedError("/runs/x is not one folder for all hosts")

    monkeypatch.setattr(module, "WorkerSettings", lambda **settings: settings)
    monkeypatch.setattr(module, "build_worker", build)
    assert module.train_loop({"tracker": tracker}) is None
    assert told == ["/runs/x is not one folder for all hosts"]


def test_a_worker_opens_its_data_while_the_others_wait_patiently(monkeypatch):
    """Embedding a run's prompts on one node may take longer than NCCL waits inside a step."""
    order = []

    @contextmanager
    def patiently(waits):
        order.append("in")
        yield
        order.append("out")

    def stop(*args):
        raise InterruptedError

    def data_of(*args, **named):
        order.append("data")
        return SimpleNamespace(source=None, null_text=None)

    monkeypatch.setattr(module, "patiently", patiently)
    monkeypatch.setattr(module, "data_of", data_of)
    monkeypatch.setattr(module, "components_of", lambda *args: None)
    monkeypatch.setattr(module, "objective_of", stop)
    worker = MagicMock()
    worker.settings.teacher_folder = "nowhere"
    with pytest.raises(InterruptedError):
        Loop(worker)
    assert order == ["in", "data", "out"]
