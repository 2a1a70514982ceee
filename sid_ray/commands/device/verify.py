"""`sid-ray doctor --device`: every check of a machine with GPUs, one after another, and a report.

Each check has a share of the time and runs in a process of its own; what one leaves of its share
goes to those behind it, so that the whole ends in under ten minutes whatever a check does.
"""

from __future__ import annotations

import datetime
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from sid_ray.commands.device.apart import DeviceCheck, rows_apart
from sid_ray.commands.device.facts import gpu_tables, machine_facts
from sid_ray.commands.device.report import MARKDOWN_FILE, CheckedDevice, DeviceReport
from sid_ray.commands.device.rows import Rig
from sid_ray.errors import UserError, nearest
from sid_ray.storage.places import expanded

WHOLE_S = 585.0  # of ten minutes; the rest is for the start
CPU_MEMORY = 4 << 30  # bytes that a rehearsal takes for a GPU's
CPU_TIMES = 3  # as long a rehearsal may take
CPU_WORLD = 2  # processes that stand for GPUs there

DEVICE_CHECKS = (
    DeviceCheck("numbers", "networks, losses and gradients against the vectors that ship",
        "commands.device.numbers:verify_numbers", 25),
    DeviceCheck("steps", "an iteration of each objective against the CPU, and to the same bits",
        "commands.device.steps:verify_steps", 40),
    DeviceCheck("collectives", "NCCL over all GPUs, and gloo beside: right sums, and bandwidth",
        "commands.device.collectives:verify_collectives", 30),
    DeviceCheck("zero", "ZeRO 0 to 3 with offloading against plain torch",
        "commands.device.zero:verify_zero", 70),
    DeviceCheck("resume", "a run that is killed and goes on, to the same bits",
        "commands.device.resume:verify_resume", 100),
    DeviceCheck("memory", "the plan's memory against what is measured",
        "commands.device.memory_plan:verify_memory", 70),
    DeviceCheck("snapshot", "how long training waits for a checkpoint's copy",
        "commands.device.snapshots:verify_snapshot", 40),
    DeviceCheck("attention", "xformers beside torch's own kernels",
        "commands.device.kernels:verify_attention", 15),
    DeviceCheck("compile", "compile modes: the same losses, and what they bring",
        "commands.device.compiling:verify_compile", 55),
    DeviceCheck("speed", "images/s of steps, and of a generator with its decoder",
        "commands.device.speed:verify_speed", 135),
)  # fmt: skip


def verify_device(on_cpu: bool, folder: str, only: str) -> int:
    """Makes the report, telling every row as it comes; 0 when none failed, else 1.

    Raises UserError: in one line what a machine needs that has no GPU to use, for a check that is
    not known, and for a folder that cannot be written.
    """
    checks = chosen_checks(only)
    rig = rig_of(on_cpu)
    report = DeviceReport(report_folder(folder), machine_facts(rig.device), machine_tables(rig))
    try:
        report.write()
    except OSError as error:
        raise UserError(f"--report {report.folder}: {error.strerror or error}") from None
    for name, value in report.facts.items():
        print(f"{name:20} {value}", flush=True)
    try:
        look_at_device(checks, rig, report)
    finally:
        report.write()
        print(f"{report.in_a_line()}\nreport: {report.folder / MARKDOWN_FILE}", flush=True)
    return int(report.failed > 0)


def rig_of(on_cpu: bool) -> Rig:
    """All GPUs of this machine, or its CPU. Raises UserError where there is no GPU to use."""
    if on_cpu:
        return Rig("cpu", CPU_WORLD, CPU_MEMORY, CPU_TIMES * WHOLE_S)
    from sid_ray.device.found import gpus_here, require_gpu

    require_gpu()
    gpus = gpus_here()
    return Rig("cuda", len(gpus), min(gpu.memory for gpu in gpus), WHOLE_S)


def machine_tables(rig: Rig) -> dict[str, str]:
    return {} if rig.small else gpu_tables()


def report_folder(given: str) -> Path:
    if given:
        return expanded(given)
    return Path(f"device-report-{datetime.datetime.now():%Y%m%d-%H%M%S}")


def chosen_checks(only: str) -> Sequence[DeviceCheck]:
    """Those named, a comma between, or all. Raises UserError for one that is not known."""
    known = {check.name: check for check in DEVICE_CHECKS}
    names = [name.strip() for name in only.split(",") if name.strip()] or list(known)
    for name in names:
        if name not in known:
            raise UserError(
                f"--only {name!r:.60}: there are {', '.join(known)}.{nearest(name, known)}"
            )
    return [check for check in DEVICE_CHECKS if check.name in names]


def look_at_device(checks: Sequence[DeviceCheck], rig: Rig, report: DeviceReport) -> None:
    """Runs the checks one after another and adds what they find to the report."""
    ends = time.monotonic() + rig.seconds
    with tempfile.TemporaryDirectory(prefix="sid-ray-device-") as folder:
        for number, check in enumerate(checks):
            left = ends - time.monotonic()
            kept = sum(other.share_s for other in checks[number + 1 :]) * rig.seconds / WHOLE_S
            own = Rig(rig.device, rig.world, rig.memory, max(left - kept, 0.0))
            print(
                f"[{number + 1} of {len(checks)}] {check.name}: {check.looks_at}; at most "
                f"{minutes_of(own.seconds)} of the {minutes_of(left)} that are left",
                flush=True,
            )
            examined = CheckedDevice(check, own.seconds)
            report.checks.append(examined)
            began = time.monotonic()
            try:
                for row in rows_apart(check, own, Path(folder)):
                    examined.rows.append(row)
                    bound = f" ({row.bound})" if row.bound else ""
                    print(f"  {row.verdict:8} {row.name}: {row.measured}{bound}", flush=True)
            finally:
                examined.seconds = time.monotonic() - began
            report.write()
    report.complete = True


def minutes_of(seconds: float) -> str:
    """Minutes and seconds, m:ss."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"
