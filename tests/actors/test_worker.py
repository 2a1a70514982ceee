"""What a worker does when its updates are not finite any more; Ray's part is faked."""

from pathlib import Path

import pytest

from sid_ray.actors import worker as module
from sid_ray.actors.worker import DivergedError, crossed, train_with_second_chance


class FakeWorker:
    """A worker whose newest checkpoint is given for each time it is asked."""

    rank = 0

    def __init__(self, *newest):
        self.left, self.told, self.taken = list(newest), [], []

    def newest(self):
        return self.left.pop(0)

    def tell(self, text):
        self.told.append(text)

    def go_on_from(self, folder, word):
        self.taken.append((folder, word))


def diverging(monkeypatch, times: int) -> list[int]:
    """train() that diverges ``times`` times and then ends well."""
    calls: list[int] = []

    def train(worker):
        calls.append(1)
        if len(calls) <= times:
            raise DivergedError("none of the last 20 updates was finite")

    monkeypatch.setattr(module, "train", train)
    return calls


def test_a_checkpoint_gets_one_second_chance(monkeypatch):
    calls = diverging(monkeypatch, times=1)
    worker = FakeWorker(Path("checkpoint_1"))
    train_with_second_chance(worker)
    assert len(calls) == 2
    assert worker.taken == [(Path("checkpoint_1"), "rolled back")]
    assert "none of the last 20" in worker.told[0]


def test_the_second_time_at_the_same_checkpoint_is_the_end(monkeypatch):
    diverging(monkeypatch, times=99)
    worker = FakeWorker(Path("checkpoint_1"), Path("checkpoint_2"), Path("checkpoint_2"))
    with pytest.raises(DivergedError):
        train_with_second_chance(worker)
    assert [folder.name for folder, _ in worker.taken] == ["checkpoint_1", "checkpoint_2"]


def test_without_a_checkpoint_there_is_nothing_to_roll_back_to(monkeypatch):
    diverging(monkeypatch, times=99)
    worker = FakeWorker(None)
    with pytest.raises(DivergedError):
        train_with_second_chance(worker)
    assert worker.taken == []


def test_multiples_are_crossed_once():
    assert crossed(100, 90, 100)
    assert not crossed(100, 100, 190)
    assert crossed(100, 190, 410)
    assert not crossed(0, 0, 10**9)
