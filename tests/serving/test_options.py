"""What `sid-ray serve` refuses before anything is opened, in a line that says what to do."""

import importlib.util
import socket
import subprocess
import sys

import pytest

from sid_ray.cli import main
from sid_ray.commands.arguments import parse
from sid_ray.errors import UserError
from sid_ray.serving import command
from sid_ray.serving.options import ServeOptions, is_loopback
from sid_ray.serving.places import ReplicaRange, batch_of, replica_place


def options(*args: str) -> ServeOptions:
    return parse(ServeOptions, args, "sid-ray serve")


@pytest.fixture(autouse=True)
def no_token(monkeypatch):
    monkeypatch.delenv("SID_RAY_SERVE_TOKEN", raising=False)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "RUN is missing"),
        (["a", "--port", "0"], "--port is 0"),
        (["a", "--replicas", "0"], "--replicas '0': expected auto, a number from 1"),
        (["a", "--replicas", "4-2"], "--replicas '4-2': expected auto"),
        (["a", "--replicas", "many"], "--replicas 'many'"),
        (["a", "--batch", "0"], "--batch '0': expected auto, or a number from 1 to 1024"),
        (["a", "--batch", "-3"], "--batch"),
        (["a", "--batch", "2048"], "--batch '2048'"),
        (["a", "--queue", "8"], "--queue 8 is smaller than --images 64"),
        (["a", "--host", "0.0.0.0"], "--host 0.0.0.0 lets other machines in: give --token-file"),
        (["a", "--host", "::"], "lets other machines in"),
        (["a", "--host", "example.com"], "lets other machines in"),
        (["a", "--host", "http://x"], "expected an address, like 127.0.0.1"),
        (["a", "--host", ""], "expected an address"),
        (["a", "--host", "127.0.0.2x"], "expected an address"),
        (["a", "--host", "10.0.0"], "expected an address"),
        (["a", "--device", "tpu"], "--device"),
    ],
)
def test_wrong_arguments(args, words):
    with pytest.raises(UserError) as refused:
        options(*args)
    assert words in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no token"),
        ("short\n", "holds no token"),
        ("two words of it\n", "holds more than one word"),
        ("schlüsselwort\n", "holds no token"),
        (b"\xff\xfe\x00\x01", "it is no text"),
        (None, "No such file"),
    ],
)
def test_a_token_file_without_a_token(text, words, tmp_path):
    path = tmp_path / "token"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=words) as refused:
        options("a", "--host", "0.0.0.0", "--token-file", str(path)).token()
    assert "schl" not in str(refused.value) and "two words" not in str(refused.value)


def test_a_token_opens_other_hosts_and_is_read_from_either_place(tmp_path, monkeypatch):
    path = tmp_path / "token"
    path.write_text("  from-a-file\n")
    given = options("a", "--host", "0.0.0.0", "--token-file", str(path))
    assert given.token() == "from-a-file" and given.hosts() == ["*"]
    monkeypatch.setenv("SID_RAY_SERVE_TOKEN", "from-the-environment")
    assert options("a", "--host", "0.0.0.0").token() == "from-the-environment"
    assert given.token() == "from-a-file"
    assert options("a", "--allow-host", "x.example, y").hosts()[-2:] == ["x.example", "y"]


def test_loopback_is_what_no_other_machine_reaches():
    assert all(map(is_loopback, ("127.0.0.1", "127.1.2.3", "::1", "[::1]", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "localhost.example.com")))


def test_a_missing_extra_is_named(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "fastapi" else find(name)
    )
    with pytest.raises(UserError, match=r"pip install 'sid_ray\[serve\]'"):
        options("a")


@pytest.fixture
def no_ray(monkeypatch):
    """Fails where anything slow would begin."""

    def started(*_):
        raise AssertionError("Ray was about to start")

    monkeypatch.setattr(command, "check_ray", started)


def test_a_port_in_use_and_runs_without_a_generator_are_found_before_ray(no_ray, tmp_path, capfd):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        cases = {
            ("serve", str(tmp_path), "--port", port): "Address already in use; choose another",
            ("serve", str(tmp_path / "none")): "none",
            ("serve", str(tmp_path)): str(tmp_path),
            ("serve", "builtin:digits-teacher"): "not a one-step generator",
            ("serve", "x=a", "x=b"): "two runs are called x",
        }
        for args, words in cases.items():
            given = [*args] if "--port" in args else [*args, "--port", free_port()]
            with pytest.raises(SystemExit) as ended:
                main(given)
            said = capfd.readouterr().err
            assert ended.value.code == 2, said
            assert words in said and said.count("\n") == 1, said


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def test_help_loads_nothing_heavy():
    code = (
        "import sys; from sid_ray.commands.arguments import parse\n"
        "from sid_ray.serving.options import ServeOptions\n"
        "parse(ServeOptions, ['runs/a'], 'sid-ray serve')\n"
        "print(*(m for m in ('torch', 'ray', 'fastapi') if m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "", done.stdout


# Where replicas go --------------------------------------------------------------------------------


ON_CPUS = [
    # typed, CPUs of each node, models, then cpus of a replica, threads, least, most
    ("auto", [16], 1, (4, 4, 1, 4)),  # one client has more than one of them
    ("auto", [2], 1, (1, 1, 1, 2)),
    ("auto", [16], 3, (4, 4, 1, 2)),
    ("auto", [16], 5, (3, 3, 1, 1)),
    ("auto", [2], 2, (1, 1, 1, 1)),  # nobody's second replica takes the other's place
    ("auto", [2], 3, (0.6666, 1, 1, 1)),
    ("auto", [16, 16], 1, (8, 8, 1, 4)),
    ("auto", [16, 16], 5, (5, 5, 1, 2)),  # 6 would leave the fifth without a node
    ("auto", [4, 7, 7], 1, (3, 3, 1, 5)),
    ("2", [8], 1, (4, 4, 2, 2)),
    ("1-4", [16], 2, (2, 2, 1, 4)),
    ("4", [2], 1, (0.5, 1, 4, 4)),
    ("auto", [0], 1, (0.0001, 1, 1, 1)),
    ("auto", [], 1, (0.0001, 1, 1, 1)),
]


@pytest.mark.parametrize(("typed", "nodes", "models", "expected"), ON_CPUS)
def test_places_on_cpus(typed, nodes, models, expected):
    offered = {"CPU": sum(nodes)}
    found = replica_place(ReplicaRange.of(typed), "auto", offered, nodes, models)
    assert (found.device, found.gpus) == ("cpu", 0)
    assert (found.cpus, found.threads, found.least, found.most) == expected
    # Those of each model, all at their least but one at its most, have a place.
    if found.cpus >= 1:
        rooms = sum(cpus // found.cpus for cpus in nodes)
        assert rooms >= found.most + found.least * (models - 1)


@pytest.mark.parametrize(
    ("typed", "gpus", "models", "expected"),
    [
        ("auto", 4, 1, (1, 1, 4)),
        ("auto", 4, 2, (1, 1, 3)),  # the other one's place stays its own
        ("2-3", 8, 1, (1, 2, 3)),
        ("auto", 1, 2, (0.5, 1, 1)),  # both begin
    ],
)
def test_places_on_gpus(typed, gpus, models, expected):
    offered = {"CPU": 8, "GPU": gpus}
    found = replica_place(ReplicaRange.of(typed), "auto", offered, [8], models)
    assert (found.device, found.cpus) == ("cuda", 0)
    assert (found.gpus, found.least, found.most) == expected
    assert found.gpus * (found.most + found.least * (models - 1)) <= gpus


def test_a_gpu_is_refused_where_there_is_none_and_left_alone_where_it_is_not_wanted():
    with pytest.raises(UserError, match="--device cuda: Ray has no GPU"):
        replica_place(ReplicaRange(1, 0), "cuda", {"CPU": 4}, [4], 1)
    found = replica_place(ReplicaRange(1, 0), "cpu", {"CPU": 4, "GPU": 2}, [4], 1)
    assert (found.device, found.gpus) == ("cpu", 0)
    assert (batch_of("auto", "cuda"), batch_of("auto", "cpu"), batch_of(7, "cpu")) == (64, 32, 7)
