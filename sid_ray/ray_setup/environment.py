"""How a Ray that this project starts behaves: settings that must be there before it starts."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

# A value that the user has set wins.
RAY_ENVIRONMENT = {
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",  # 2 by default: how soon a dead worker is seen
    # How long a placement may wait for its nodes (60 by default) before the group is made smaller.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "10",
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",  # 5 by default
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "120",  # 600 by default: a worker that hangs
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray starts its workers at niceness 15: beside any other work they would get 3 % of a core, and
    # minutes to start. Holds for a Ray that is started here, not for a cluster that is joined.
    "RAY_worker_niceness": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
}


def set_ray_environment() -> None:
    for name, value in RAY_ENVIRONMENT.items():
        os.environ.setdefault(name, value)


# SIGTERM: `ray job stop`, `kill`, `timeout`. SIGHUP: the terminal, or the ssh session, is closed.
# SIGUSR1: SLURM's warning before a time limit, where it is asked for.
ENDINGS = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
SAME_S = 60.0  # a shell and the kernel both tell of a closed terminal; `timeout` tells twice too


class Interrupt:
    """The handler of ENDINGS: raises KeyboardInterrupt with the signal's name.

    What comes within a minute of the first is the same wish: while the state is saved only Ctrl-C
    leaves at once.
    """

    def __init__(self) -> None:
        self.asked_at = float("-inf")

    def __call__(self, number: int, frame: object) -> None:
        now = time.monotonic()
        if now - self.asked_at >= SAME_S:
            self.asked_at = now
            raise KeyboardInterrupt(signal.Signals(number).name)


INTERRUPT = Interrupt()


def stop_like_ctrl_c() -> None:
    """ENDINGS end this process as Ctrl-C does, so that it can save.

    For the main thread, before and after ray.init: Ray sets a handler of its own. What nohup has
    switched off stays off.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    for number in ENDINGS:
        if number == signal.SIGTERM or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, INTERRUPT)
    # A sweep's trial inherits the mask of its actor, a process of Ray.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, *ENDINGS})


@contextmanager
def stopping_like_ctrl_c() -> Iterator[None]:
    """``stop_like_ctrl_c`` within, what there was before behind it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in ENDINGS}
    stop_like_ctrl_c()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


def end_with_parent() -> None:
    """Interrupts the thread that calls this, the main one, when stdin ends.

    Also in a process that a shell has put into the background (``... &`` in a script), where SIGINT
    is ignored and Python therefore leaves it alone.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    main_thread = threading.get_ident()

    def wait() -> None:
        # Not sys.stdin: a thread that holds its lock makes Python abort when it ends.
        while os.read(0, 1):
            pass
        # A real signal to that thread: _thread.interrupt_main would not wake it from a wait.
        signal.pthread_kill(main_thread, signal.SIGINT)

    threading.Thread(target=wait, daemon=True, name="parent").start()


@contextmanager
def unheard(*more: int) -> Iterator[None]:
    """Processes that are started within never hear SIGHUP, SIGUSR1 and ``more`` signals, whoever is
    told of them.

    They work until this one has saved and ends them. They inherit the mask; of this process, every
    other thread hears.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP, signal.SIGUSR1, *more})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def joins_cluster() -> bool:
    """Whether RAY_ADDRESS names a cluster; otherwise Ray is started on this machine."""
    return os.environ.get("RAY_ADDRESS", "") not in ("", "local")
