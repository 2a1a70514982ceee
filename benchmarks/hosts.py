"""Hosts that share nothing, on one machine (Linux, as root): namespaces on a bridge of their own.

Each has its own network, processes, host name, /tmp, /dev/shm and home; the installation is
read-only. Their addresses exist in these namespaces alone.

    with Hosts(folder) as hosts:
        a = hosts.add("a")
        a.head(); hosts.add("b").join()
        print(a.run("sid-ray doctor").output)

    power_off: no packet leaves the host any more, as of a machine without power.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

NET = "10.77.0."
# Of the machine, in whose place a host has its own; /tmp last, in which the hosts' disks may lie.
HIDDEN = ("/root", "/var/tmp", "/run", "/tmp")
SHARED = "/mnt"  # a folder that all hosts share
CHECKOUT = Path(__file__).parents[1]
BASIC = {
    "PATH": f"{sys.prefix}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "PYTHONPATH": str(CHECKOUT),
    "PYTHONUNBUFFERED": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",
    "RAY_worker_niceness": "0",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}
INIT = """set -e
mount --make-rprivate /
{installation}
mount --bind {folder}/hosts /etc/hosts
mount --bind {folder}/resolv /etc/resolv.conf
mount -t tmpfs -o size=2g shm /dev/shm
mount --bind {shared} {SHARED}
{own}
mount -o remount,bind,ro /
hostname {hostname}
exec sleep infinity
"""


def why_not() -> str:
    """Why there can be no such hosts here; empty where there can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "needs Linux and root"
    missing = [tool for tool in ("ip", "nsenter", "unshare") if not shutil.which(tool)]
    return f"needs {', '.join(missing)} (iproute2, util-linux)" if missing else ""


def command(*words: object) -> str:
    done = subprocess.run([str(word) for word in words], text=True, capture_output=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, words))}: {done.stderr.strip()}")
    return done.stdout


@dataclass
class Ended:
    """A command's end on a host."""

    code: int
    output: str
    seconds: float


@dataclass
class Host:
    """One of them; ``hostname`` is what it calls itself, ``names`` the lines of its /etc/hosts."""

    hosts: Hosts
    name: str
    number: int
    hostname: str = ""
    names: str | None = None
    outer: subprocess.Popen | None = None
    pid: int = 0

    def __post_init__(self) -> None:
        self.hostname = self.hostname or f"host-{self.name}"
        self.address = f"{NET}{self.number}"
        self.folder = self.hosts.folder / self.name
        self.space, self.cable = f"{self.hosts.tag}{self.name}", f"v{self.name}"

    def power_on(self) -> Host:
        binds = {path: f"{self.folder}/own{path}" for path in HIDDEN}
        for path in binds.values():
            Path(path).mkdir(parents=True, exist_ok=True)
        names = f"{self.address} {self.hostname}\n" if self.names is None else self.names
        (self.folder / "hosts").write_text(f"127.0.0.1 localhost\n{names}")
        (self.folder / "resolv").write_text("# no name server\n")
        installation = ""
        for path in {sys.prefix, sys.base_prefix, str(CHECKOUT)}:
            if path.startswith(HIDDEN):
                target = f"{self.folder}/own{path}"
                Path(target).mkdir(parents=True, exist_ok=True)
                installation += f"mount --bind {path} {target}\n"
                installation += f"mount -o remount,bind,ro {target}\n"
        script = self.folder / "init.sh"
        script.write_text(
            INIT.format(
                installation=installation,
                folder=self.folder,
                SHARED=SHARED,
                shared=self.hosts.shared,
                own="\n".join(f"mount --rbind {own} {path}" for path, own in binds.items()),
                hostname=self.hostname,
            )
        )
        switch = self.hosts.switch
        command("ip", "netns", "add", self.space)
        command(
            *("ip", "-n", switch, "link", "add", self.cable, "type", "veth"),
            *("peer", "name", "eth0", "netns", self.space),
        )
        command("ip", "-n", switch, "link", "set", self.cable, "master", "br0", "up")
        command("ip", "-n", self.space, "link", "set", "lo", "up")
        command("ip", "-n", self.space, "addr", "add", f"{self.address}/24", "dev", "eth0")
        command("ip", "-n", self.space, "link", "set", "eth0", "up")
        log = (self.folder / "init.log").open("ab")
        self.outer = subprocess.Popen(
            [
                "ip", "netns", "exec", self.space, "unshare", "--mount", "--uts", "--ipc", "--pid",
                "--fork", "--kill-child", "--mount-proc", "bash", str(script),
            ],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, env=BASIC,
        )  # fmt: skip
        children = Path(f"/proc/{self.outer.pid}/task/{self.outer.pid}/children")
        deadline = time.monotonic() + 20
        while True:
            pids = children.read_text().split() if children.exists() else []
            if pids and Path(f"/proc/{pids[0]}/comm").read_text().strip() == "sleep":
                break
            if time.monotonic() > deadline or self.outer.poll() is not None:
                raise RuntimeError((self.folder / "init.log").read_text())
            time.sleep(0.1)
        self.pid = int(pids[0])
        return self

    def power_off(self) -> None:
        """Without power: no FIN, no RST leaves it."""
        if self.outer is None:
            return
        command("ip", "-n", self.hosts.switch, "link", "set", self.cable, "down")
        self.outer.kill()  # and with it its child, the first process of the host
        self.outer.wait()
        self.outer = None
        command("ip", "netns", "del", self.space)

    def unplug(self) -> None:
        command("ip", "-n", self.hosts.switch, "link", "set", self.cable, "down")

    def plug(self) -> None:
        command("ip", "-n", self.hosts.switch, "link", "set", self.cable, "up")

    def words(self, line: str, settings: dict[str, str]) -> list[str]:
        values = [f"{name}={value}" for name, value in (BASIC | settings).items()]
        inside = ["nsenter", "-t", str(self.pid), "-m", "-u", "-i", "-n", "-p", "env", "-i"]
        return [*inside, *values, "bash", "-c", f"cd /root && {line}"]

    def run(self, line: str, patience_s: float = 300, **settings: str) -> Ended:
        began = time.monotonic()
        done = subprocess.run(
            self.words(line, settings), text=True, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, timeout=patience_s,
        )  # fmt: skip
        return Ended(done.returncode, done.stdout, time.monotonic() - began)

    def start(self, line: str, log: Path, **settings: str) -> subprocess.Popen:
        """In the background; what it prints goes to ``log``, a file outside of the hosts."""
        with log.open("wb") as out:
            return subprocess.Popen(
                self.words(f"exec {line}", settings), stdin=subprocess.DEVNULL, stdout=out,
                stderr=out, start_new_session=True,
            )  # fmt: skip

    def ray(self, more: str, cpus: int, **settings: str) -> None:
        done = self.run(
            f"ray start --node-ip-address={self.address} --num-cpus={cpus} "
            f"--object-store-memory=200000000 --disable-usage-stats {more}",
            **settings,
        )
        if done.code:
            raise RuntimeError(done.output)

    def head(self, cpus: int = 0, more: str = "", **settings: str) -> str:
        """Ray's head; its address."""
        self.hosts.ray = f"{self.address}:6379"
        self.ray(f"--head --port=6379 --include-dashboard=false {more}", cpus, **settings)
        return self.hosts.ray

    def join(self, cpus: int = 1, **settings: str) -> Host:
        self.ray(f"--address={self.hosts.ray}", cpus, **settings)
        return self


@dataclass
class Hosts:
    """Use as a context manager. ``folder``: where their disks lie, outside of the checkout."""

    folder: Path
    ray: str = ""
    all: dict[str, Host] = field(default_factory=dict)

    def __enter__(self) -> Hosts:
        self.tag = f"sid{os.getpid()}-"
        self.switch, self.shared = f"{self.tag}switch", self.folder / "shared"
        self.shared.mkdir(parents=True, exist_ok=True)
        command("ip", "netns", "add", self.switch)
        command("ip", "-n", self.switch, "link", "add", "br0", "type", "bridge")
        command("ip", "-n", self.switch, "link", "set", "br0", "up")
        return self

    def __exit__(self, *_: object) -> None:
        for host in self.all.values():
            host.power_off()
        command("ip", "netns", "del", self.switch)

    def add(self, name: str, hostname: str = "", names: str | None = None) -> Host:
        host = Host(self, name, len(self.all) + 1, hostname, names)
        self.all[name] = host
        return host.power_on()


def distill(run: str, folder: str, *flags: str, workers: int = 2) -> str:
    """A small run's command."""
    words = [
        "sid-ray", "distill", "digits-sid", "--run", run, "--output.folder", folder,
        "--workers", str(workers), "--evaluation.every", "0", "--evaluation.no-final-report",
        *flags,
    ]  # fmt: skip
    return shlex.join(words)
