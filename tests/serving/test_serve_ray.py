"""`sid-ray serve` as a person starts it: one server for the whole file, on two replicas."""

import base64
import io
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import psutil
import pytest
import requests
from PIL import Image

from sid_ray.commands.generate import generate_pictures
from tests.support.generators import write_generator
from tests.support.waiting import wait_for

WORD = "a-word-of-clients"
QUEUE, IMAGES, PATIENCE_S = 48, 32, 150


@dataclass
class Server:
    address: str
    process: subprocess.Popen
    said: list[str]

    def get(self, path: str, word: str = WORD) -> requests.Response:
        headers = {"Authorization": f"Bearer {word}"}
        return requests.get(self.address + path, headers=headers, timeout=PATIENCE_S)

    def ask(self, **body) -> requests.Response:
        headers = {"Authorization": f"Bearer {WORD}"}
        return requests.post(
            f"{self.address}/v1/images", json=body, headers=headers, timeout=PATIENCE_S
        )

    def replicas(self) -> list[psutil.Process]:
        below = psutil.Process(self.process.pid).children(recursive=True)
        return [each for each in below if "model-" in " ".join(each.cmdline())]


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return write_generator(tmp_path_factory.mktemp("digits"), "digits-sid")


@pytest.fixture(scope="module")
def server(digits, tmp_path_factory):
    token = tmp_path_factory.mktemp("token") / "token"
    token.write_text(f"{WORD}\n")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [
            sys.executable, "-m", "sid_ray.cli", "serve", f"digits={digits}", "--port", str(port),
            "--replicas", "2", "--queue", str(QUEUE), "--images", str(IMAGES),
            "--token-file", str(token),
        ],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    found = Server(f"http://127.0.0.1:{port}", process, [])
    for line in process.stdout:
        found.said.append(line.rstrip())
        if "Ctrl-C" in line:
            break
    rest = threading.Thread(target=lambda: found.said.extend(map(str.rstrip, process.stdout)))
    rest.start()
    yield found
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        process.wait(PATIENCE_S)
    rest.join()


def pixels(png: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(png)) as picture:
        return np.asarray(picture).astype(int)


def test_it_says_where_it_answers_and_nothing_else(server):
    assert server.said[-1] == f"{server.address}/   (Ctrl-C ends it)"
    assert "digits: 2 replicas" in server.said[-3]
    assert len(server.said) == 5, server.said


def test_images_over_http_are_those_of_generate(server, digits, tmp_path):
    generate_pictures(digits, range(5), None, (), tmp_path, batch=8)
    answer = server.ask(seeds=[*range(5)])
    assert answer.status_code == 200, answer.text
    for seed, image in enumerate(answer.json()["images"]):
        expected = pixels((tmp_path / f"seed{seed:06d}.png").read_bytes())
        assert abs(pixels(base64.b64decode(image["png"])) - expected).max() <= 1


def test_strangers_are_not_answered(server):
    assert server.get("/v1/models", word="another-word").status_code == 401
    assert server.get("/v1/models").json()["models"][0]["name"] == "digits"


def test_more_than_the_queue_holds_is_refused_with_when_to_ask_again(server):
    def slow(_: int) -> requests.Response:
        return server.ask(network="teacher", seeds=[*range(IMAGES)])

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(slow, range(4)))
    statuses = sorted(each.status_code for each in answers)
    assert statuses == [200, 429, 429, 429]
    assert all(int(a.headers["Retry-After"]) >= 1 for a in answers if a.status_code == 429)
    assert server.ask(seeds=[0]).status_code == 200


def test_a_replica_killed_under_load_costs_no_request(server):
    until = time.monotonic() + 6

    def client(_: int) -> list[int]:
        found = []
        while time.monotonic() < until:
            found.append(server.ask(seeds=[1, 2, 3]).status_code)
        return found

    with ThreadPoolExecutor(6) as pool:
        loads = [pool.submit(client, each) for each in range(6)]
        time.sleep(1.5)
        server.replicas()[0].kill()
        statuses = [status for each in loads for status in each.result()]
    assert len(statuses) > 6 and set(statuses) == {200}
    wait_for(
        lambda: server.get("/v1/health").json().get("replicas") == {"digits": 2},
        "another replica in its place",
        PATIENCE_S,
    )


def test_both_replicas_killed_at_once_are_waited_for(server):
    for each in server.replicas():
        each.kill()
    answer = server.ask(seeds=[7])
    assert answer.status_code == 200, answer.text


def test_who_waits_for_what_cannot_start_is_told_so(server, digits):
    away = digits.rename(digits.with_name("away"))
    try:
        for each in server.replicas():
            each.kill()
        answer = server.ask(seeds=[7])
        assert answer.status_code == 503, answer.text
        assert "no replica of digits is there" in answer.json()["error"]["message"]
        assert str(digits) not in answer.text and answer.headers["Retry-After"]
        said = f"digits: {digits} does not exist"
        wait_for(lambda: any(said in line for line in server.said), "the terminal's word", 60)
    finally:
        away.rename(digits)


def test_figures_are_exported(server):
    address = next(line for line in server.said if line.startswith("figures")).split()[1]

    def exported() -> bool:
        text = requests.get(address, timeout=30).text
        found = re.findall(r'^ray_sid_ray_(\w+)\{[^\n]*model="digits"[^\n]*\} (\S+)', text, re.M)
        values = {name: float(value) for name, value in found}
        return values.get("requests_total", 0) > 5 and values.get("refused_images_total") == 96

    wait_for(exported, "figures of what was asked", 60)


def test_ctrl_c_ends_it_in_order(server):
    before = psutil.Process(server.process.pid).children(recursive=True)
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(PATIENCE_S) == 0
    ending = "ending: requests under way are answered first"
    wait_for(lambda: server.said[-1] == ending, "its last word", 10)
    assert not [line for line in server.said if "Traceback" in line or "Error" in line]
    assert psutil.wait_procs(before, timeout=30)[1] == []
