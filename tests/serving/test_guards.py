"""What stands before every request: by itself, and on a real server's sockets."""

import asyncio
import json
import pickle
import socket
import threading
import time

import pytest
import uvicorn
from starlette.middleware import Middleware

from sid_ray.serving.contract import Limits
from sid_ray.serving.guards import LOOPBACK_NAMES, Guards
from sid_ray.serving.web import web_app
from tests.support.fake_painting import FakePainting

LIMITS = Limits(body_bytes=2048, body_s=0.3, requests=2)


async def echo(scope, receive, send):
    """Answers with the body that it was given."""
    message = await receive()
    assert not message["more_body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": message["body"]})


def ask(
    guards, path="/v1/models", headers=((b"host", b"localhost"),), parts=(b"",), wait_s=0.0, **scope
):
    """(status, headers, body, parts that were read) of a request whose body comes in ``parts``."""
    waiting, sent = list(parts), []

    async def receive():
        if wait_s:
            await asyncio.sleep(wait_s)
        if not waiting:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": waiting.pop(0), "more_body": bool(waiting)}

    async def send(message):
        sent.append(message)

    told = {"type": "http", "method": "POST", "path": path, "headers": list(headers), **scope}
    asyncio.run(guards(told, receive, send))
    if not sent:
        return None
    start, *rest = sent
    body = b"".join(message["body"] for message in rest)
    return start["status"], dict(start["headers"]), body, len(parts) - len(waiting)


def code_of(answer):
    return json.loads(answer[2])["error"]["code"]


@pytest.mark.parametrize(
    ("hosts", "host", "status"),
    [
        (LOOPBACK_NAMES, b"localhost", 200),
        (LOOPBACK_NAMES, b"LocalHost:8000", 200),
        (LOOPBACK_NAMES, b"localhost.", 200),
        (LOOPBACK_NAMES, b"127.0.0.1:80", 200),
        (LOOPBACK_NAMES, b"[::1]:8000", 200),
        (LOOPBACK_NAMES, b"127.0.0.1.evil.example", 421),
        (LOOPBACK_NAMES, b"evil.example:8000", 421),
        (LOOPBACK_NAMES, b"localhost@evil.example", 400),
        (LOOPBACK_NAMES, b"localhost:8000:1", 400),
        (LOOPBACK_NAMES, b"localhost/evil", 400),
        (LOOPBACK_NAMES, b"", 400),
        (LOOPBACK_NAMES, None, 400),
        (("box.example",), b"box.example:1", 200),
        (("box.example",), b"localhost", 421),
        (("*",), b"evil.example", 200),
    ],
)
def test_names_of_the_server(hosts, host, status):
    headers = [] if host is None else [(b"host", host)]
    assert ask(Guards(echo, LIMITS, hosts=hosts), headers=headers)[0] == status


def test_two_hosts_are_none():
    headers = [(b"host", b"localhost"), (b"host", b"evil.example")]
    assert code_of(ask(Guards(echo, LIMITS), headers=headers)) == "bad_host"


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        (b"http://localhost:8000", 200),
        (b"https://localhost:8000", 200),
        (b"HTTP://LOCALHOST:8000", 200),
        (b"http://localhost:3000", 403),
        (b"http://127.0.0.1:8000", 403),
        (b"https://evil.example", 403),
        (b"https://localhost:8000@evil.example", 403),
        (b"ftp://localhost:8000", 403),
        (b"null", 403),
        (b"http://[", 403),
        (b"", 403),
    ],
)
def test_pages_that_may_ask(origin, status):
    headers = [(b"host", b"localhost:8000"), (b"origin", origin)]
    assert ask(Guards(echo, LIMITS), headers=headers)[0] == status


@pytest.mark.parametrize(
    ("path", "root", "open_"),
    [
        ("/", "", True),
        ("/page/page.js", "", True),
        ("/healthz", "", True),
        ("/openapi.json", "", True),
        ("/v1/models", "", False),
        ("/page", "", False),
        ("//page/page.js", "", False),
        ("/V1/models", "", False),
        ("/page/v1/models", "/page", False),  # mounted at /page
        ("/x/page/page.js", "/x", True),
        ("/x/v1/models", "/x", False),
        ("/x/v1/models", "/x/", False),
    ],
)
def test_what_is_open_without_the_token(path, root, open_):
    guards = Guards(echo, LIMITS, token="word")
    assert ask(guards, path, root_path=root)[0] == (200 if open_ else 401)
    right = ((b"host", b"localhost"), (b"authorization", b"bearer word"))
    assert ask(guards, path, right, root_path=root)[0] == 200
    twice = (*right, (b"authorization", b"Bearer other"))
    assert ask(guards, path, twice, root_path=root)[0] == (200 if open_ else 401)


def test_a_body_is_counted_as_it_comes():
    parts = [b"x" * 1024] * 100
    status, headers, body, read = ask(Guards(echo, LIMITS), parts=parts)
    assert (status, read) == (413, 3) and headers[b"connection"] == b"close"
    assert json.loads(body)["error"]["message"] == "the body has more than 2,048 bytes"
    assert ask(Guards(echo, LIMITS), parts=parts[:2])[2] == b"x" * 2048


@pytest.mark.parametrize("length", [b"2049", b"9" * 5000, b"-1", b"1e3", b"", b"\xb2"])
def test_a_length_that_cannot_be_is_not_begun(length):
    headers = [(b"host", b"localhost"), (b"content-length", length)]
    status, _, _, read = ask(Guards(echo, LIMITS), headers=headers, parts=[b"{}"])
    assert status in (400, 413) and read == 0


def test_a_body_that_drips_is_given_up():
    began = time.monotonic()
    answer = ask(Guards(echo, LIMITS), parts=[b"x"] * 1000, wait_s=0.05)
    assert (answer[0], code_of(answer)) == (408, "body_too_slow")
    assert answer[1][b"connection"] == b"close" and time.monotonic() - began < 5


def test_a_client_that_leaves_its_body_is_not_answered():
    assert ask(Guards(echo, LIMITS), parts=()) is None


def test_requests_at_once_are_counted_and_counted_down():
    leave = asyncio.Event()

    async def slow(scope, receive, send):
        await leave.wait()
        await echo(scope, receive, send)

    async def one(guards, path):
        sent = []

        async def receive():
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message):
            sent.append(message)

        headers = [(b"host", b"localhost")]
        await guards(
            {"type": "http", "method": "GET", "path": path, "headers": headers}, receive, send
        )
        return sent[0]

    async def crowd():
        guards = Guards(slow, LIMITS)
        first = [asyncio.create_task(one(guards, "/v1/models")) for _ in range(2)]
        await asyncio.sleep(0)
        third = await asyncio.wait_for(one(guards, "/v1/models"), 5)
        probe = asyncio.create_task(one(guards, "/healthz"))
        await asyncio.sleep(0)
        leave.set()
        assert third["status"] == 429 and (b"retry-after", b"1") in third["headers"]
        assert [start["status"] for start in await asyncio.gather(*first, probe)] == [200] * 3
        assert (await one(guards, "/v1/models"))["status"] == 200

    asyncio.run(crowd())


def test_it_travels_to_the_proxies_of_a_cluster():
    middleware = pickle.loads(pickle.dumps(Middleware(Guards, LIMITS, hosts=("box.example",))))
    guards = middleware.cls(echo, *middleware.args, **middleware.kwargs)
    assert ask(guards, headers=[(b"host", b"box.example")])[0] == 200


def test_no_websockets():
    sent = []

    async def send(message):
        sent.append(message)

    asyncio.run(Guards(echo, LIMITS)({"type": "websocket"}, None, send))
    assert [message["type"] for message in sent] == ["websocket.close"]


@pytest.fixture(scope="module", params=["h11", "httptools"])
def live(request):
    """(painting, port) of a server on loopback, with each of uvicorn's readers of HTTP."""
    painting = FakePainting(delay_s=30)
    app = web_app(painting, Limits(body_s=0.5))
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, http=request.param, log_level="critical"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    yield painting, listening.getsockname()[1]
    server.should_exit = server.force_exit = True
    thread.join(10)
    listening.close()


HEAD = b"POST /v1/images HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


def connected(port, sent):
    connection = socket.create_connection(("127.0.0.1", port), timeout=10)
    connection.sendall(sent)
    return connection


def all_of(connection):
    """What comes until the server closes."""
    found = b""
    while part := connection.recv(65_536):
        found += part
    return found


def test_an_endless_body_is_refused_and_the_connection_closed(live):
    _, port = live
    with connected(port, HEAD + b"Transfer-Encoding: chunked\r\n\r\n") as connection:
        sent = 0
        with pytest.raises(ConnectionError):  # it does not take 100 MB
            while sent < 100e6:
                connection.sendall(b"1000\r\n" + b"x" * 4096 + b"\r\n")
                sent += 4096
        assert sent < 20e6
    with connected(port, HEAD + b"Content-Length: 10000000\r\n\r\n{") as connection:
        answer = all_of(connection)
    assert answer.startswith(b"HTTP/1.1 413 ") and b"body_too_large" in answer


def test_a_slow_body_is_refused_and_the_connection_closed(live):
    _, port = live
    with connected(port, HEAD + b"Content-Length: 100\r\n\r\n{") as connection:
        answer = all_of(connection)
    assert answer.startswith(b"HTTP/1.1 408 ")


def test_a_connection_that_closes_cancels_the_work(live):
    painting, port = live
    cancelled = painting.cancelled
    with connected(port, HEAD + b"Content-Length: 2\r\n\r\n{}"):
        until = time.monotonic() + 10
        while painting.begun == painting.cancelled and time.monotonic() < until:
            time.sleep(0.01)
    while painting.cancelled == cancelled and time.monotonic() < until:
        time.sleep(0.01)
    assert painting.cancelled == cancelled + 1


def test_a_page_needs_no_reader_of_its_tricks(live):
    """Paths are not resolved by anything before the router either."""
    _, port = live
    for path in (b"/page/../../contract.py", b"/page/..%2f..%2fcontract.py", b"/page//etc/passwd"):
        request = b"GET " + path + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        with connected(port, request) as connection:
            assert all_of(connection).startswith(b"HTTP/1.1 404 ")
