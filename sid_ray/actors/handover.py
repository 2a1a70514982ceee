"""The averaged generator on its way from rank 0 to the evaluator, while the training goes on.

From a GPU the weights come as a checkpoint's do (checkpoint/copies.py), and what makes one object
of Ray's out of them, gigabytes that are copied once more, is done by a thread.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import ray
from torch import Tensor

from sid_ray.checkpoint.copies import Copies


class Handover:
    """Takes the weights of one evaluation after another.

    ``copies``: for weights that are on a GPU; from CPU memory they are handed over at once.
    """

    def __init__(self, evaluator: Any, copies: Copies):
        self.evaluator, self.copies = evaluator, copies
        self._beside = ThreadPoolExecutor(1, "handover") if copies.stream is not None else None
        self._sent: list[Future[Any]] = []  # each is the evaluator's answer, a reference of Ray's

    def give(self, weights: Iterable[tuple[str, Tensor]], images_seen: int) -> None:
        """Hands weights over, in the order of the calls; returns before they are there.

        Waits for those before them to be out of this process, whose memory they use.
        """
        wait(self._sent)
        self.copies.begin()
        if self._beside is None:
            taken: Future[Any] = Future()
            taken.set_result(self._put({name: value.cpu() for name, value in weights}, images_seen))
        else:
            copied = {name: self.copies.of(value, lasting=False) for name, value in weights}
            self.copies.end()
            taken = self._beside.submit(self._put, copied, images_seen)
        self._sent = [*self._unanswered(), taken]

    def unfinished(self, timeout_s: float = 0.0) -> int:
        """How many weights the evaluator has not taken yet: they go with this process."""
        deadline = time.monotonic() + timeout_s
        wait(self._sent, timeout_s)
        answers = [sent.result() for sent in self._sent if sent.done()]
        if answers:
            left_s = max(0.0, deadline - time.monotonic())
            ray.wait(answers, num_returns=len(answers), timeout=left_s)
        return len(self._unanswered())

    def close(self) -> None:
        if self._beside is not None:
            self._beside.shutdown(wait=False, cancel_futures=True)

    def _unanswered(self) -> list[Future[Any]]:
        """What is on its way, or was not taken yet."""
        return [
            sent
            for sent in self._sent
            if not sent.done() or ray.wait([sent.result()], timeout=0)[1]
        ]

    def _put(self, weights: dict[str, Tensor], images_seen: int) -> Any:
        self.copies.wait()
        return self.evaluator.take.remote(ray.put(weights), images_seen)
