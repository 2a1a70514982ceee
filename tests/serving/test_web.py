"""The HTTP interface over painters without networks: what it answers, and what it refuses."""

import asyncio
import base64
import io
import json
import logging

import jsonschema
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from starlette.testclient import TestClient

from sid_ray.errors import UserError
from sid_ray.evaluation.pictures import pixel_scale, tile
from sid_ray.serving.contract import BusyError, Limits, LostError
from sid_ray.serving.guards import LOOPBACK_NAMES
from sid_ray.serving.page_files import INDEX, page_files
from sid_ray.serving.reading import JSON, PNG, answer_media
from sid_ray.serving.web import web_app
from tests.support.fake_painting import DIGITS, EMOJI, MODELS, FakePainting, picture_of

LONGEST_ERROR = 1000  # bytes
TOKEN = "a-token-for-tests"


def client_of(painting=None, limits=None, token="", hosts=LOOPBACK_NAMES):
    app = web_app(painting or FakePainting(), limits, token, hosts)
    return TestClient(app, base_url="http://localhost:8000")


@pytest.fixture(scope="module")
def client():
    return client_of()


@pytest.fixture(scope="module")
def described(client):
    """What /openapi.json says."""
    return client.get("/openapi.json").json()


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def refused(response, status, code, field=None):
    """The one shape of every refusal, short."""
    assert response.status_code == status, response.text
    assert len(response.content) <= LONGEST_ERROR
    error = response.json()["error"]
    assert error["code"] == code and error.get("field") == field
    assert error["message"] and "\n" not in error["message"]
    return error["message"]


def check_described(response, described, path, method):
    """Status and content are those of /openapi.json."""
    told = described["paths"][path][method]["responses"][str(response.status_code)]
    schema = told["content"][JSON]["schema"]
    jsonschema.validate(
        response.json(), {**schema, "components": described["components"]}, cls=Validator
    )


Validator = jsonschema.Draft202012Validator


def test_images_of_seeds_are_those_that_were_painted(client, described):
    asked = {"model": "emoji", "prompt": "a red heart", "seeds": [5, 2**32 - 1], "steps": 4}
    response = client.post("/v1/images", json=asked)
    assert response.status_code == 200
    check_described(response, described, "/v1/images", "post")
    answer = response.json()
    assert (answer["model"], answer["network"], answer["steps"]) == ("emoji", "generator", 4)
    assert answer["size"] == list(EMOJI.size) and answer["batch"] == 2
    # The fake's one batch took 1 ms, of which each of the two images has its half.
    assert answer["seconds"]["network"] == pytest.approx(1e-3) and answer["seconds"]["total"] > 0
    direct = FakePainting()
    client_of(direct).post("/v1/images", json=asked)
    [(name, wanted)] = direct.asked
    assert name == "emoji" and [one.seed for one in wanted] == asked["seeds"]
    for image, one in zip(answer["images"], wanted, strict=True):
        png = base64.b64decode(image.pop("png"))
        assert png == picture_of(EMOJI, one, None)
        assert pixels(png).shape == (*EMOJI.size, 3)
        assert image == {"seed": one.seed, "prompt": "a red heart"}


def test_a_class_that_was_drawn_is_told(client):
    answer = client.post("/v1/images", json={"seeds": [13]}).json()
    assert answer["model"] == "digits" and answer["images"][0]["class"] == 3
    answer = client.post("/v1/images", json={"seeds": [13], "class": 7}).json()
    assert answer["images"][0]["class"] == 7


def test_the_first_number_of_steps_is_taken_where_none_is_named():
    painting = FakePainting([EMOJI.model_copy(update={"steps": [4, 1]})])
    answer = client_of(painting).post("/v1/images", json={"prompt": "x"}).json()
    assert answer["steps"] == 4 and painting.asked[0][1][0].steps == 4


def test_the_teacher_takes_its_own_steps(client):
    answer = client.post("/v1/images", json={"network": "teacher"}).json()
    assert answer["network"] == "teacher" and "steps" not in answer


def test_one_seed_as_png_is_the_picture(client):
    response = client.post("/v1/images", json={"seeds": [4]}, headers={"accept": PNG})
    in_json = client.post("/v1/images", json={"seeds": [4]}).json()["images"][0]["png"]
    assert response.headers["content-type"] == PNG
    assert response.content == base64.b64decode(in_json)
    assert response.headers["sid-ray-model"] == "digits"
    assert response.headers["sid-ray-seeds"] == "4"
    assert response.headers["server-timing"].startswith("network;dur=1.00, total;dur=")


def test_several_seeds_as_png_are_a_contact_sheet(client):
    seeds = [0, 1, 2, 9]
    response = client.post("/v1/images", json={"seeds": seeds}, headers={"accept": PNG})
    assert response.headers["sid-ray-seeds"] == "0-2,9"
    painted = client.post("/v1/images", json={"seeds": seeds}).json()["images"]
    images = np.stack([pixels(base64.b64decode(each["png"])) for each in painted])
    scale = pixel_scale(DIGITS.size[1])
    expected = tile(torch.from_numpy(images).permute(0, 3, 1, 2), 2, scale)
    assert np.array_equal(pixels(response.content), np.asarray(expected))


def test_a_sheet_beyond_its_room_is_refused_before_it_is_painted():
    large = DIGITS.model_copy(update={"size": (2048, 2048)})
    painting = FakePainting([large])
    answer = client_of(painting).post(
        "/v1/images", json={"seeds": list(range(5))}, headers={"accept": PNG}
    )
    assert "room for 4 images" in refused(answer, 422, "sheet_too_large", "seeds")
    assert not painting.asked


def test_models_and_limits_are_told(client, described):
    response = client.get("/v1/models")
    check_described(response, described, "/v1/models", "get")
    answer = response.json()
    assert [model["name"] for model in answer["models"]] == [model.name for model in MODELS]
    assert answer["limits"] == Limits().model_dump()


def test_health_names_the_model_without_a_replica(described):
    painting = FakePainting()
    client = client_of(painting)
    response = client.get("/v1/health")
    check_described(response, described, "/v1/health", "get")
    assert response.json() == {"replicas": {"digits": 1, "emoji": 1, "plain": 1}}
    painting.replicas["emoji"] = 0
    response = client.get("/v1/health")
    check_described(response, described, "/v1/health", "get")
    words = refused(response, 503, "not_ready")
    assert "emoji" in words and "digits" not in words
    assert client.get("/healthz").status_code == 200  # the process itself answers


REFUSED = {
    "no JSON": (b"seeds=1", 400, "bad_json", None),
    "empty": (b"", 400, "no_body", None),
    "half": (b'{"seeds": [1', 400, "bad_json", None),
    "not UTF-8": (b'{"prompt": "\xff"}', 400, "bad_json", None),
    "UTF-16": ('{"seeds": [1]}'.encode("utf-16"), 400, "bad_json", None),
    "a field twice": (b'{"seeds": [1], "seeds": [2]}', 400, "bad_json", None),
    "twice below": (b'{"seeds": [{"a": 1, "a": 2}]}', 400, "bad_json", None),
    "NaN": (b'{"seeds": [NaN]}', 400, "bad_json", None),
    "a lone surrogate": (b'{"prompt": "\\ud800"}', 400, "bad_json", None),
    "deep": (b"[" * 60_000, 400, "bad_json", None),
    "deep and closed": (b"[" * 30_000 + b"]" * 30_000, 400, "bad_json", None),
    "deep in a field": (b'{"seeds": ' + b"[" * 500 + b"]" * 500 + b"}", 400, "bad_json", None),
    "long number": (b'{"seeds": [' + b"9" * 5000 + b"]}", 400, "bad_json", None),
    "a list": (b"[]", 422, "wrong_type", None),
    "null": (b"null", 422, "wrong_type", None),
    "an unknown field": ({"promt": "x"}, 422, "unknown_field", "promt"),
    "its Python name": ({"class_": 1}, 422, "unknown_field", "class_"),
    "an unknown model": ({"model": "digit"}, 422, "unknown_model", "model"),
    "an unknown network": ({"network": "tutor"}, 422, "wrong_value", "network"),
    "no seeds": ({"seeds": []}, 422, "wrong_value", "seeds"),
    "how many": ({"seeds": 10**9}, 422, "wrong_value", "seeds"),
    "a number as text": ({"seeds": ["1"]}, 422, "wrong_value", "seeds[0]"),
    "a fraction": ({"seeds": [0, 1.5]}, 422, "wrong_value", "seeds[1]"),
    "true": ({"seeds": [True]}, 422, "wrong_value", "seeds[0]"),
    "65 seeds": ({"seeds": list(range(65))}, 422, "too_many_images", "seeds"),
    "seed -1": ({"seeds": [0, -1]}, 422, "seed_out_of_range", "seeds[1]"),
    "seed 2^32": ({"seeds": [2**32]}, 422, "seed_out_of_range", "seeds[0]"),
    "seed 10^4000": (b'{"seeds": [' + b"9" * 4000 + b"]}", 422, "seed_out_of_range", "seeds[0]"),
    "a prompt for classes": ({"prompt": "x"}, 422, "prompt_not_taken", "prompt"),
    "a class for prompts": (
        {"model": "emoji", "prompt": "x", "class": 1}, 422, "class_not_taken", "class",
    ),
    "a class for none": ({"model": "plain", "class": 1}, 422, "class_not_taken", "class"),
    "no prompt": ({"model": "emoji"}, 422, "prompt_missing", "prompt"),
    "a long prompt": ({"model": "emoji", "prompt": "x" * 2001}, 422, "prompt_too_long", "prompt"),
    "NUL": ({"model": "emoji", "prompt": "a\0b"}, 422, "prompt_not_text", "prompt"),
    "class 10": ({"class": 10}, 422, "unknown_class", "class"),
    "class -1": ({"class": -1}, 422, "wrong_value", "class"),
    "2 steps": ({"steps": 2}, 422, "wrong_steps", "steps"),
    "0 steps": ({"steps": 0}, 422, "wrong_value", "steps"),
    "steps for a teacher": (
        {"network": "teacher", "steps": 1}, 422, "steps_not_taken", "steps",
    ),
    "no such teacher": ({"model": "plain", "network": "teacher"}, 422, "no_teacher", "network"),
    "another size": ({"size": [8, 16]}, 422, "wrong_size", "size"),
    "half a size": ({"size": [8]}, 422, "wrong_value", "size[1]"),
    "a size of huge numbers": ({"size": [10**300, 8]}, 422, "wrong_size", "size"),
    "a long field": ({"x" * 60_000: 1}, 422, "unknown_field", "x" * 57 + "..."),
    "16,000 wrong seeds": ({"seeds": ["a"] * 12_000}, 422, "wrong_value", "seeds[0]"),
    "a large body": (b" " * 65_537, 413, "body_too_large", None),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(client, described, name):
    body, status, code, field = REFUSED[name]
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    response = client.post("/v1/images", content=content, headers={"content-type": JSON})
    refused(response, status, code, field)
    check_described(response, described, "/v1/images", "post")


def test_refusals_speak_plainly(client):
    def told(**body):
        return client.post("/v1/images", json=body).json()["error"]["message"]

    assert told(model="emoji", prompt="x" * 3000) == (
        "prompt has 3,000 characters; at most 2,000 are taken"
    )
    assert told(promt="x").endswith("seeds, steps, size. Did you mean prompt?")
    assert told(model="emojy") == (
        'there is no model "emojy"; served are digits, emoji, plain. Did you mean emoji?'
    )
    assert told(seeds=[1, "a"]) == 'seeds[1] is "a"; it should be a valid integer'
    assert told(steps=3) == "steps is 3; digits generates in 1"
    assert told(size=[8, 9]) == "size is [8, 9]; digits makes [8, 8] alone (height, width)"


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({"content-type": "text/plain"}, 415, "not_json"),
        ({"content-type": "application/x-www-form-urlencoded"}, 415, "not_json"),
        ({"content-type": ""}, 415, "not_json"),
        ({"content-type": "application/json; charset=utf-16"}, 415, "not_json"),
        ({"content-type": JSON, "content-encoding": "gzip"}, 415, "encoded_body"),
        ({"content-type": JSON, "accept": "text/html"}, 406, "not_acceptable"),
        ({"content-type": JSON, "origin": "https://evil.example"}, 403, "foreign_origin"),
        ({"content-type": JSON, "host": "evil.example"}, 421, "unknown_host"),
        ({"content-type": JSON, "x-long": "x" * 20_000}, 431, "headers_too_large"),
    ],
)
def test_refused_headers(client, described, headers, status, code):
    response = client.post("/v1/images", content=b"{}", headers=headers)
    refused(response, status, code)
    check_described(response, described, "/v1/images", "post")


def test_the_charset_may_be_named(client):
    headers = {"content-type": "application/json; charset=UTF-8"}
    assert client.post("/v1/images", content=b"{}", headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("accept", "media"),
    [
        ("", JSON),
        ("*/*", JSON),
        ("image/*", PNG),
        ("image/png, application/json;q=0.5", PNG),
        ("image/png;q=0.5, */*", JSON),
        ("text/html, image/avif, */*;q=0.1", JSON),
        ("application/json;q=0, */*", PNG),
    ],
)
def test_what_is_liked_best_is_answered(accept, media):
    assert answer_media(accept) == media


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/image", 404, "not_found"),
        ("GET", "/v1/models/", 404, "not_found"),
        ("GET", "/docs", 404, "not_found"),
        ("GET", "/page/..%2f..%2fcontract.py", 404, "not_found"),
        ("GET", "/page/%2e%2e/contract.py", 404, "not_found"),
        ("GET", "/page/../contract.py", 404, "not_found"),
        ("GET", "/page/index.html%00", 404, "not_found"),
        ("GET", "/page/C:%5Cx", 404, "not_found"),
        ("GET", "/page/" + "x" * 3000, 414, "path_too_long"),
        ("GET", "/v1/images", 405, "wrong_method"),
        ("DELETE", "/v1/models", 405, "wrong_method"),
    ],
)
def test_wrong_addresses(client, method, path, status, code):
    response = client.request(method, path)
    refused(response, status, code)
    assert (status == 405) == ("allow" in response.headers)


def test_the_page_and_its_files(client):
    found = page_files()
    assert INDEX in found
    for path, name in [("/", INDEX), *((f"/page/{name}", name) for name in found)]:
        response = client.get(path)
        assert response.content == found[name].content
        assert response.headers["content-type"] == found[name].kind
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["referrer-policy"] == "no-referrer"
        assert response.headers["content-security-policy"].startswith("default-src 'self';")
        assert client.head(path).status_code == 200
        again = client.get(path, headers={"if-none-match": response.headers["etag"]})
        assert again.status_code == 304 and not again.content


@pytest.mark.parametrize(
    ("failure", "status", "code", "words"),
    [
        (BusyError(7), 429, "busy", "ask again in 7 s"),
        (LostError("the replica ended"), 503, "lost", "the replica ended"),
        (UserError("no such adapter"), 422, "refused", "no such adapter"),
    ],
)
def test_failures_of_painters_are_told(described, failure, status, code, words):
    response = client_of(FakePainting(failure=failure)).post("/v1/images", json={})
    assert words in refused(response, status, code)
    check_described(response, described, "/v1/images", "post")
    if status == 429:
        assert response.headers["retry-after"] == "7"


def test_what_nobody_foresaw_is_logged_and_not_told(caplog):
    client = client_of(FakePainting(failure=RuntimeError("secret of the house")))
    with caplog.at_level(logging.ERROR):
        words = refused(client.post("/v1/images", json={}), 500, "failed")
    assert "secret" not in words
    [record] = [each for each in caplog.records if each.exc_info]
    assert "secret of the house" in str(record.exc_info[1])
    assert words.split()[-1] in record.getMessage()  # the reference


def test_images_that_take_too_long_are_given_up():
    painting = FakePainting(delay_s=30)
    client = client_of(painting, Limits(answer_s=0.05))
    words = refused(client.post("/v1/images", json={}), 504, "too_slow")
    assert painting.cancelled == 1 and "fewer" not in words  # than one
    words = refused(client.post("/v1/images", json={"seeds": [1, 2]}), 504, "too_slow")
    assert "ask for fewer" in words
    painting.replicas["digits"] = 0
    words = refused(client.post("/v1/images", json={"seeds": [1, 2]}), 503, "lost")
    assert "no replica of digits" in words and "fewer" not in words


def test_a_client_that_goes_away_cancels_its_work():
    painting = FakePainting(delay_s=30)
    app = web_app(painting)
    sent = []

    async def ask():
        async def receive():
            if not painting.begun:
                return {"type": "http.request", "body": b"{}"}
            return {"type": "http.disconnect"}

        async def send(message):
            sent.append(message)

        headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
        scope = {
            "type": "http", "method": "POST", "path": "/v1/images", "query_string": b"",
            "headers": headers, "app": app,
        }  # fmt: skip
        await asyncio.wait_for(app(scope, receive, send), 5)

    asyncio.run(ask())
    assert (painting.begun, painting.cancelled) == (1, 1)


def interface_paths(described):
    return [(method, path) for path, methods in described["paths"].items() for method in methods]


def test_a_token_stands_before_everything_but_the_page(described, caplog):
    client = client_of(token=TOKEN)
    caplog.set_level(logging.DEBUG)
    told = client.get("/openapi.json").json()
    assert interface_paths(told) == interface_paths(described)
    for method, path in interface_paths(told):
        for sent in ("", f"Bearer {TOKEN}x", "Bearer ", f"Basic {TOKEN}", TOKEN, "Bearer \xff"):
            headers = {"authorization": sent.encode("latin-1")} if sent else {}
            response = client.request(method, path, headers=headers)
            assert TOKEN not in refused(response, 401, "token_wanted")
            assert response.headers["www-authenticate"].startswith("Bearer")
            check_described(response, told, path, method)
        assert told["paths"][path][method]["security"]
    headers = {"authorization": f"Bearer {TOKEN}"}
    assert client.get("/v1/models", headers=headers).status_code == 200
    assert client.post("/v1/images", json={}, headers=headers).status_code == 200
    for path in ("/", "/page/index.html", "/healthz", "/openapi.json"):
        assert client.get(path).status_code == 200
    refused(client.get("/v2/anything"), 401, "token_wanted")
    assert TOKEN not in caplog.text


def test_the_limit_of_a_prompt_is_described_at_its_text(described):
    body = described["paths"]["/v1/images"]["post"]["requestBody"]["content"][JSON]["schema"]
    prompt = body["properties"]["prompt"]
    assert {"type": "string", "maxLength": Limits().prompt_chars} in prompt["anyOf"]
    assert "maxLength" not in prompt


def test_what_is_described_needs_no_network(client, described):
    assert "security" not in described["paths"]["/v1/images"]["post"]
    for path in ("/docs", "/redoc"):
        assert client.get(path).status_code == 404


texts = st.text(st.characters(exclude_categories=()), max_size=20)  # with lone surrogates
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner),
    max_leaves=8,
)
fields = st.fixed_dictionaries(
    {},
    optional={
        "model": st.sampled_from(["", "digits", "emoji", "plain"]) | anything,
        "network": st.sampled_from(["generator", "teacher"]) | anything,
        "prompt": texts | anything,
        "class": st.integers(-1, 12) | anything,
        "seeds": st.lists(st.integers(-1, 2**32), max_size=70) | anything,
        "steps": st.integers(-1, 5) | anything,
        "size": st.sampled_from([[8, 8], [16, 24], [64, 64]]) | anything,
        "other": anything,
    },
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(body=fields | anything | st.binary(max_size=200))
def test_any_body_is_answered_or_refused_shortly(client, described, body):
    """And what is answered with images is what /openapi.json lets in."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode("utf-8", "replace")
    response = client.post("/v1/images", content=content, headers={"content-type": JSON})
    check_described(response, described, "/v1/images", "post")
    if response.status_code == 200:
        told = described["paths"]["/v1/images"]["post"]["requestBody"]["content"][JSON]
        jsonschema.validate(json.loads(content), told["schema"], cls=Validator)
        assert len(response.json()["images"]) == len(json.loads(content).get("seeds", [0]))
    else:
        assert response.status_code in (400, 422)
        assert len(response.content) <= LONGEST_ERROR
