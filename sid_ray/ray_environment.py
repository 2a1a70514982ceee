"""How a Ray that this project starts behaves: settings that must be there before it starts."""

from __future__ import annotations

import os
import signal
import threading

# A value that the user has set wins.
RAY_ENVIRONMENT = {
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",  # 2 by default: how soon a dead worker is seen
    # How long a placement may wait for its nodes (60 by default) before the group is made smaller.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "10",
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",  # 5 by default
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "120",  # 600 by default: a worker that hangs
    # 30 by default: how long workers that end may take to leave their process group in peace.
    "TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": "5",
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


def stop_like_ctrl_c() -> None:
    """SIGTERM, by which `ray job stop` ends a driver, raises KeyboardInterrupt as Ctrl-C does.

    For the main thread, before and after ray.init: Ray sets a handler of its own.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)


def joins_cluster() -> bool:
    """Whether RAY_ADDRESS names a cluster; otherwise Ray is started on this machine."""
    return bool(os.environ.get("RAY_ADDRESS"))
