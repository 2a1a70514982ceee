"""Three hosts that share nothing but a folder, on this machine: `make slow`, as root.

Their names resolve to loopback or to nothing, as many systems' do.
"""

import re
import time

import pytest

from benchmarks.hosts import SHARED, Hosts, distill, why_not

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(bool(why_not()), reason=why_not()),
]
LINE = "is not one folder for all hosts: "
SAME = "is not the same on all hosts: "


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    """Ray's head and the driver on "a", a worker's place each on "b" and "c"."""
    with Hosts(tmp_path_factory.mktemp("hosts")) as hosts:
        head = hosts.add("a", names="127.0.1.1 host-a\n")
        head.head()  # with Ray's default health checks
        hosts.add("b", names="127.0.1.1 host-b\n").join()
        hosts.add("c", names="").join()
        yield hosts


@pytest.fixture
def driver(hosts):
    """Runs a command on the driver's host."""
    return lambda line: hosts.all["a"].run(line, RAY_ADDRESS=hosts.ray)


def refused(ended, place, line=LINE):
    """The last line of a command that must end with exit code 2."""
    last = ended.output.strip().splitlines()[-1]
    print(f"exit {ended.code} after {ended.seconds:.0f} s: {last}")
    assert ended.code == 2, ended.output
    assert f"{place} {line}" in last and "host-b (10.77.0.2)" in last, ended.output
    assert "all hosts share" in last and "Traceback" not in ended.output
    return last


def test_names_that_lead_nowhere_are_not_looked_up(driver):
    flags = "--images", "640", "--output.checkpoint-every", "320"
    ended = driver(distill("names", f"{SHARED}/runs", *flags))
    print(ended.output)
    assert ended.code == 0, ended.output
    assert "first step of 2 workers" in ended.output


def test_a_run_on_disks_of_their_own_is_refused_before_its_first_step(driver, hosts):
    ended = driver(distill("local", "/tmp/runs", "--images", "640"))
    refused(ended, "/tmp/runs/local")
    assert "restarting" not in ended.output and "first step" not in ended.output


def test_preparing_to_disks_of_their_own_is_refused_before_the_work(driver, hosts):
    ended = driver("sid-ray data prepare digits /tmp/set --workers 2")
    refused(ended, "/tmp/set")
    for host in hosts.all.values():
        assert host.run("ls -A /tmp/set").output.startswith("ls: cannot access"), host.name


def test_a_source_on_the_drivers_disk_alone_is_named(driver):
    make = "mkdir -p /tmp/src && cd /tmp/src && python -c 'from PIL import Image\n"
    make += 'for n in range(8): Image.new("L", (8, 8), n).save(f"{n}.png")\''
    assert driver(make).code == 0
    refused(driver(f"sid-ray data prepare /tmp/src {SHARED}/set --workers 2"), "/tmp/src", SAME)


def test_a_sweep_on_disks_of_their_own_is_refused_before_its_first_trial(driver):
    line = "sid-ray sweep tune_spaces/digits-sida.yaml --output.folder /tmp/sweeps --concurrent 2"
    checkout = __file__.rsplit("/", 3)[0]
    refused(driver(f"cd {checkout} && {line}"), "/tmp/sweeps")


def test_doctor_says_it(driver):
    ended = driver("sid-ray doctor digits-sid --output.folder /tmp/runs")
    print(ended.output)
    assert ended.code == 1
    for host in ("host-b", "host-c"):
        assert re.search(rf"FAILED +cluster +{host} .*{LINE}", ended.output)
    assert driver(f"sid-ray doctor digits-sid --output.folder {SHARED}/runs").code == 0


def test_a_pulled_cable_and_a_power_cut_cost_seconds(hosts, tmp_path):
    """Ray's default health checks take more than a minute to notice either."""
    log = tmp_path / "log.txt"
    line = distill("cut", f"{SHARED}/runs", "--images", "400000", "--output.checkpoint-every", "64")
    running = hosts.all["a"].start(line, log, RAY_ADDRESS=hosts.ray)
    lost, come = "; 1 worker after 2,", "; 2 workers after 1,"

    def wait(text, times, patience_s):
        began = time.monotonic()
        while log.read_text().count(text) < times:
            assert time.monotonic() - began < patience_s, log.read_text()
            assert running.poll() is None, log.read_text()
            time.sleep(0.1)
        return time.monotonic() - began

    try:
        wait("first step of 2 workers", 1, 300)
        time.sleep(5)
        hosts.all["c"].unplug()
        pulled_s = wait(lost, 1, 120)
        hosts.all["c"].plug()
        back_s = wait(come, 1, 300)
        time.sleep(5)
        hosts.all["c"].power_off()
        cut_s = wait(lost, 2, 120)
    finally:
        running.kill()
        running.wait()
    print(f"first step of one worker {pulled_s:.1f} s after the cable, {cut_s:.1f} s after the cut")
    print(f"two workers {back_s:.1f} s after the cable was back\n{log.read_text()}")
    assert "host-c has not answered for" in log.read_text()
