"""What would keep Ray from starting, or from joining a cluster, is found before, in one line."""

import http.server
import os
import socket
import threading
import time
from concurrent import futures
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
import ray
from ray.core.generated import gcs_pb2
from ray.core.generated import gcs_service_pb2 as messages
from ray.core.generated import gcs_service_pb2_grpc as services

from sid_ray.cli import main
from sid_ray.data.pipeline import reports
from sid_ray.data.progress import StoppedError
from sid_ray.errors import UserError
from sid_ray.ray_setup import start
from sid_ray.ray_setup.environment import joins_cluster
from sid_ray.ray_setup.start import check_cluster, check_ray, ray_folder, with_ray


@pytest.fixture(autouse=True)
def nothing_is_set(monkeypatch, tmp_path):
    for name in ("RAY_ADDRESS", "RAY_TMPDIR", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.setenv(name, "")  # so that it is as before behind the test
        monkeypatch.delenv(name)
    monkeypatch.setenv("TMPDIR", "/tmp")


# The temporary folder -----------------------------------------------------------------------------


def test_a_path_is_counted_as_ray_builds_it():
    from ray._private.node import Node
    from ray._private.utils import validate_socket_filepath

    node = Node.__new__(Node)
    limit = start.SOCKET_PATH - len(start.LONGEST) - len(str(os.getpid()))
    session = time.strftime("session_%Y-%m-%d_%H-%M-%S_000000_") + str(os.getpid())
    for length, fits in ((limit, True), (limit + 1, False)):
        folder = "/" + "x" * (length - 1)
        path = f"{folder}/ray/{session}/sockets/plasma_store"
        assert hasattr(node, "_prepare_socket_file")
        if fits:
            validate_socket_filepath(path)
        else:
            with pytest.raises(OSError, match="AF_UNIX"):
                validate_socket_filepath(path)
        assert ("sockets" in start.trouble_with(folder, "TMPDIR")) is not fits


@pytest.mark.parametrize("name", ["{0}/" + 42 * "a", "{0}/file", "{0}/file/below", "/proc/none"])
def test_another_folder_takes_the_place_of_one_that_will_not_do(tmp_path, monkeypatch, name):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TMPDIR", name.format(tmp_path))
    said = []
    start.settle_folder(said.append)
    assert os.environ["RAY_TMPDIR"] == "/tmp"
    assert len(said) == 1 and "Ray's own files go to /tmp/ray" in said[0] and "TMPDIR" in said[0]
    start.settle_folder(said.append)
    assert len(said) == 1, "said once"


def test_a_disk_without_space(monkeypatch):
    monkeypatch.setattr(
        start.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1 << 20})
    )
    with pytest.raises(UserError, match="1 MiB free, and Ray needs 32: set RAY_TMPDIR"):
        ray_folder()


@pytest.mark.parametrize("name", ["/proc/none", "/dev/null", f"/tmp/{42 * 'a'}"])
def test_a_folder_for_ray_alone_is_not_replaced(monkeypatch, name):
    monkeypatch.setenv("RAY_TMPDIR", name)
    with pytest.raises(UserError, match=f"RAY_TMPDIR {name}"):
        check_ray()


def test_a_relative_folder_is_one_for_all_processes(monkeypatch):
    monkeypatch.chdir("/tmp")
    monkeypatch.setenv("TMPDIR", ".")
    assert ray_folder() == ("/tmp", "")


def test_too_few_open_files(monkeypatch):
    monkeypatch.setattr(start.resource, "getrlimit", lambda which: (64, 64))
    with pytest.raises(UserError, match="may open 64 files here, and Ray needs 512"):
        check_ray()


def test_a_home_that_cannot_be_written_gets_a_token_of_its_own(monkeypatch):
    monkeypatch.setenv("HOME", "/proc/none")
    start.settle_token()
    assert os.environ["RAY_AUTH_MODE"] == "token" and len(os.environ["RAY_AUTH_TOKEN"]) == 64


# The address --------------------------------------------------------------------------------------


@contextmanager
def listening(answer=None):
    """A port that accepts; with ``answer`` an HTTP server."""
    if answer:
        server = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        server.server_close()
        return
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


class Head(
    services.NodeInfoGcsServiceServicer,
    services.InternalKVGcsServiceServicer,
):
    """What a head answers, as far as it is asked."""

    def __init__(self, version=ray.__version__, python="", nodes=(), token=""):
        self.version, self.python, self.nodes, self.token = version, python, nodes, token

    def CheckAlive(self, request, context):  # noqa: N802
        if self.token and ("authorization", f"Bearer {self.token}") not in (
            context.invocation_metadata()
        ):
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "token")
        return messages.CheckAliveReply(ray_version=self.version)

    def InternalKVGet(self, request, context):  # noqa: N802
        told = f'{{"ray_version": "2", "python_version": "{self.python}"}}' if self.python else ""
        return messages.InternalKVGetReply(value=told.encode())

    def GetAllNodeInfo(self, request, context):  # noqa: N802
        return messages.GetAllNodeInfoReply(
            node_info_list=[gcs_pb2.GcsNodeInfo(node_id=bytes.fromhex(n)) for n in self.nodes]
        )


@contextmanager
def serving(head):
    server = grpc.server(futures.ThreadPoolExecutor(2))
    services.add_NodeInfoGcsServiceServicer_to_server(head, server)
    services.add_InternalKVGcsServiceServicer_to_server(head, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None)


def refused(monkeypatch, address) -> str:
    monkeypatch.setenv("RAY_ADDRESS", address)
    began = time.monotonic()
    with pytest.raises(UserError) as told:
        check_cluster()
    assert time.monotonic() - began < 15
    assert str(told.value).isprintable() and "RAY_ADDRESS is " in str(told.value)
    return str(told.value)


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("127.0.0.1:1", "connection refused"),
        ("[::1]:1", "no cluster at ::1:1"),
        ("no-such-host.invalid:6379", "no cluster at no-such-host.invalid:6379"),
        (f"{70 * 'a'}.invalid:6379", "no cluster at"),
        ("127.0.0.1", "expected HOST:PORT"),
        ("127.0.0.1:port", "expected HOST:PORT"),
        ("127.0.0.1:65536", "expected HOST:PORT"),
        (":6379", "expected HOST:PORT"),
        ("a b\n:1", "expected HOST:PORT"),
        (" ", "expected HOST:PORT"),
        ("ray://127.0.0.1:10001", "Ray Client cannot train"),
        ("http://127.0.0.1:8265", "use sid-ray submit"),
        ("grpc://127.0.0.1:1", "expected HOST:PORT"),
    ],
)
def test_an_address_that_leads_nowhere(monkeypatch, address, words):
    assert words in refused(monkeypatch, address)


def test_a_port_of_another_program(monkeypatch):
    with listening("http") as address:
        assert "is no head of Ray" in refused(monkeypatch, address)


def test_a_head_that_hangs(monkeypatch):
    monkeypatch.setattr(start, "ANSWER_S", 0.5)
    with listening() as address:
        assert "gave no answer" in refused(monkeypatch, address)


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (Head(version="1.13.0"), f"has Ray 1.13.0, here it is {ray.__version__}"),
        (Head(python="3.8.1"), "has Python 3.8.1, here it is"),
        (Head(token="secret"), "the cluster asks for its token"),
        (Head(nodes=("ab" * 28,)), "this machine is no node of that cluster"),
    ],
)
def test_a_cluster_that_cannot_be_joined(monkeypatch, head, words):
    with serving(head) as address:
        assert words in refused(monkeypatch, address)


def test_a_cluster_that_can_be_joined(monkeypatch):
    from ray._private import services as ray_services

    monkeypatch.setattr(ray_services, "find_node_ids", lambda: ["ab" * 28])
    with serving(Head(nodes=("ab" * 28,))) as address:
        monkeypatch.setenv("RAY_ADDRESS", address)
        check_ray()


def test_no_cluster_on_this_machine(monkeypatch):
    from ray._private import services as ray_services

    monkeypatch.setattr(ray_services, "find_gcs_addresses", set)
    monkeypatch.setattr(ray_services, "find_bootstrap_address", lambda folder: None)
    assert "no Ray runs on this machine" in refused(monkeypatch, "auto")


@pytest.mark.parametrize("address", ["", "local"])
def test_an_address_that_means_this_machine(monkeypatch, address):
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert not joins_cluster()
    check_ray()


@pytest.mark.parametrize(
    "command",
    [
        ("distill", "digits-sid"),
        ("sweep", str(Path(__file__).parents[2] / "tune_spaces" / "digits-sida.yaml")),
        ("data", "prepare", "digits", "{0}/set", "--workers", "1"),
        ("evaluate", "builtin:digits-teacher", "--data", "digits", "--out", "{0}/e.json"),
    ],
    ids=lambda command: command[0],
)
def test_each_command_says_so_before_it_starts(monkeypatch, capsys, tmp_path, command):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(SystemExit, match="2"):
        main([part.format(tmp_path) for part in command])
    assert capsys.readouterr().err.count("connection refused") == 1
    assert list(tmp_path.iterdir()) == []


def test_finished_files_stay_where_the_cluster_is_gone_meanwhile(monkeypatch):
    ray.shutdown()  # one that other tests of this process have joined is not gone
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(StoppedError, match="connection refused"):
        next(reports([], None, 1, 0))


# Ray itself ---------------------------------------------------------------------------------------


def test_rays_own_words_become_one_line():
    def fail():
        try:
            raise ValueError("the cause\nand much more")
        except ValueError as cause:
            raise ConnectionError("Failed to connect") from cause

    with pytest.raises(UserError, match=r"^Ray does not start here: the cause$"):
        with_ray(fail, fail)


def test_a_bug_of_ours_stays_one():
    with pytest.raises(TypeError):
        with_ray(lambda: len(1), lambda: None)
