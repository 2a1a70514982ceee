"""Smaller passes after a lack of memory: which, and how often. Ray's part is faked."""

from types import SimpleNamespace

import pytest
import torch

from sid_ray.actors import passes, signals
from sid_ray.actors import worker as module
from sid_ray.actors.passes import Passes, half_pass, largest_pass
from sid_ray.actors.signals import OutOfMemoryAgainError, PausedError, SmallerPassesError
from sid_ray.actors.worker import Loop, Worker
from sid_ray.config.distill_config import replace
from sid_ray.recipes.registry import recipe

CONFIG = replace(recipe("digits-sid"), training__batch_size=96, training__group_size=12)


@pytest.mark.parametrize(
    ("micro_batch", "workers", "found"),
    [(96, 1, (96, 48)), (960, 1, (96, 48)), (0, 1, (12, 6)), (36, 1, (36, 12)), (3, 1, (3, 1)),
     (1, 1, (1, 0)), (960, 2, (48, 24)), (96, 3, (36, 12)), (4, 1, (4, 2)), (24, 8, (12, 6))],
)  # fmt: skip
def test_a_pass_gets_half_as_large_and_stays_a_part_of_a_group_or_whole_ones(
    micro_batch, workers, found
):
    """A rank's fullest pass counts: its share may be smaller than a micro-batch could hold."""
    config = replace(CONFIG, resources__micro_batch=micro_batch)
    assert (largest_pass(config, workers), half_pass(config, workers)) == found
    if found[1]:
        smaller = replace(config, resources__micro_batch=found[1])
        assert largest_pass(smaller, workers) == found[1]


def test_all_ranks_of_a_group_are_told_the_same_and_the_next_group_ends_it():
    kept = Passes()
    assert kept.now == 0, "the config's"
    assert [kept.after(96, 48), kept.after(96, 48), kept.now] == [48, 48, 48]
    assert [kept.after(48, 24), kept.now] == [0, 48]
    assert Passes().after(1, 0) == 0


class Told:
    """A tracker whose calls are answered at once."""

    def __init__(self):
        self.passes, self.said = Passes(), []

    def __getattr__(self, name):
        answers = {"smaller_passes": self.passes.after}
        note = lambda *args: self.said.append((name, *args))  # noqa: E731
        return SimpleNamespace(remote=answers.get(name, note))


def short(monkeypatch, tracker, micro_batch=96) -> BaseException:
    """What a worker raises whose step runs out of memory."""
    monkeypatch.setattr(passes.ray, "get", lambda value: value)

    def step(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(module, "step", step)
    worker = object.__new__(Worker)
    worker.config = replace(CONFIG, resources__micro_batch=micro_batch)
    worker.world_size, worker.settings = 1, SimpleNamespace(tracker=tracker)
    worker.trainee, worker.sums = SimpleNamespace(images_seen=0), None
    loop = object.__new__(Loop)
    loop.worker, loop.source = worker, SimpleNamespace(reads=False)
    loop.objective = loop.settings = loop.draws = None
    with pytest.raises(RuntimeError) as raised:
        loop.iterate()
    return raised.value


def test_a_run_that_lacks_memory_starts_again_with_smaller_passes_once(monkeypatch):
    tracker = Told()
    first = short(monkeypatch, tracker)
    assert isinstance(first, SmallerPassesError)
    line = "out of memory with 96 images in a pass: starting again with --resources.micro-batch 48"
    assert tracker.said == [("event", line)]
    second = short(monkeypatch, tracker, tracker.passes.now)
    assert isinstance(second, OutOfMemoryAgainError)
    _, (told, why) = tracker.said
    assert told == "give_up" and why.startswith("again out of memory with 48 images in a pass: ")
    for flag in ("micro-batch", "activation-checkpointing", "offload-optimizer"):
        assert f"--resources.{flag}" in why
    assert "\n" not in why


def test_a_single_image_cannot_be_halved(monkeypatch):
    tracker = Told()
    assert isinstance(short(monkeypatch, tracker, 1), OutOfMemoryAgainError)
    ((told, why),) = tracker.said
    assert told == "give_up" and why.startswith("out of memory with 1 image in a pass: ")


# What a rank that fails does before its peers know ------------------------------------------------


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ValueError("wrong\nlong story"), [("failed", "worker 3 failed: ValueError: wrong")]),
        (SmallerPassesError("less"), [("failed", "less")]),
        (RuntimeError("[pair.cc:553] Connection closed by peer [192.0.2.1]"), []),
    ],
)
def test_a_rank_that_fails_tells_its_reason_and_leaves_its_groups(monkeypatch, error, told):
    """The first rank that fails knows why: peers only see that it is gone."""
    tracker, left = Told(), []

    def run(settings):
        raise error

    monkeypatch.setattr(signals.ray, "get", lambda value: value)
    context = SimpleNamespace(get_world_rank=lambda: 3)
    monkeypatch.setattr(module.ray.train, "get_context", lambda: context)
    monkeypatch.setattr(module, "run_worker", run)
    monkeypatch.setattr(module, "leave_groups", lambda: left.append(list(tracker.said)))
    with pytest.raises(type(error)):
        module.train_loop({"tracker": tracker})
    assert tracker.said == told
    assert left == [told], "once, and behind the reason"


def test_ranks_that_pause_together_leave_no_group_in_haste(monkeypatch):
    def run(settings):
        raise PausedError("nodes have come")

    monkeypatch.setattr(module, "run_worker", run)
    monkeypatch.setattr(module, "leave_groups", lambda: pytest.fail("left"))
    with pytest.raises(PausedError):
        module.train_loop({"tracker": Told()})
