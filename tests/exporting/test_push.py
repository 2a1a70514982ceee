"""Pushes, by the real huggingface_hub, to a hub on loopback: what arrives, and what goes wrong."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from sid_ray.cli import exit_code_of
from sid_ray.exporting.card import card_on_hub
from sid_ray.exporting.hub import HubRepository
from sid_ray.weights.address import HubFile
from tests.exporting.test_export import export, write_generator
from tests.support.canaries import canary, encodings
from tests.support.hub_server import DROPPED, Failure, PushHub, User
from tests.weights.server import serving

WRITER = canary("HF_TOKEN")
OWN = {"README.md", "generate.py", "grid.png", "model.json", "model.safetensors", "sid_ray.json"}
COMMIT, PUT = "POST /api/models/.*/commit", "PUT /lfs/"


@pytest.fixture(scope="module")
def generator(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("private-place") / "digits"
    write_generator(folder, "builtin:digits-teacher")
    return folder


@pytest.fixture(scope="module")
def exported(generator) -> Path:
    folder = generator.parent / "my-model"
    assert export(generator, folder, "--labels", "0-9", "--no-check") == 0
    return folder


@pytest.fixture
def hub():
    with serving(PushHub) as running:
        running.users |= {WRITER: User("me", orgs=("lab",)), "hf_reader": User("me", "read")}
        yield running


@pytest.fixture
def here(hub, tmp_path, monkeypatch) -> Path:
    """This process as one of a person with a token, whose large files go by Git LFS. The library
    reads its variables when it is imported.
    """
    from huggingface_hub import constants, hf_api

    monkeypatch.setattr(hf_api.api, "endpoint", hub.url)  # of the library's plain functions
    monkeypatch.setenv("HF_TOKEN", WRITER)
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("SID_RAY_CACHE", str(tmp_path / "cache"))
    address = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    for name, value in {
        "ENDPOINT": hub.url, "HUGGINGFACE_CO_URL_TEMPLATE": address, "HF_HUB_DISABLE_XET": True,
        "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_TOKEN_PATH": str(tmp_path / "token"),
    }.items():  # fmt: skip
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between two tries
    monkeypatch.chdir(tmp_path)
    return tmp_path


def push(*words: str | Path) -> int:
    return exit_code_of(["push", *map(str, words)])


def refused(capsys, *words: str | Path, code: int = 2) -> str:
    """The one line on stderr."""
    capsys.readouterr()
    assert push(*words) == code
    said = capsys.readouterr().err
    assert said.startswith("sid-ray: ") and said.count("\n") == 1, said
    assert WRITER not in said
    return said


# What arrives -------------------------------------------------------------------------------------


def test_a_run_and_back(hub, here, generator, capsys):
    """A generator's weights are exported, sent, and generate the same picture from there."""
    assert push(generator, "hf://me/digits", "--labels", "0-9", "--no-check") == 0
    out = capsys.readouterr().out
    assert f"{hub.url}/me/digits is new and will be private" in out
    assert re.search(rf"{hub.url}/me/digits: commit [0-9a-f]{{12}}\n$", out)
    assert set(hub.head("me/digits")) == OWN | {".gitattributes"}
    assert hub.private == {"me/digits"}
    assert "PUT" in f"{hub.asked('/lfs/')}" and hub.asked("/lfs-verify")
    assert list((here / "cache").iterdir()) == [], "the temporary export"

    for source, out_folder in (("hf://me/digits", "theirs"), (str(generator), "ours")):
        words = ["generate", source, "--seeds", "0-3", "--device", "cpu", "--out", out_folder]
        assert exit_code_of(words) == 0
    theirs, ours = (np.asarray(Image.open(here / out / "grid.png")) for out in ("theirs", "ours"))
    assert np.array_equal(theirs, ours) and ours.std() > 30


def test_a_folder_goes_as_it_is(hub, here, exported, capsys):
    assert push(exported, "hf://lab/digits", "--public", "--message", "First") == 0
    sent = hub.head("lab/digits")
    for name in OWN - {"README.md"}:
        assert sent[name] == (exported / name).read_bytes()
    assert hub.private == set() and hub.titles == ["First"]
    assert "will be public" in capsys.readouterr().out

    before, received = dict(hub.refs), hub.received
    assert push(exported, "hf://lab/digits") == 0
    out = capsys.readouterr().out
    assert "is there and public, which a push does not change" in out
    assert "it held the same already" in out
    assert hub.refs == before and len(hub.titles) == 1
    assert hub.received - received < 20_000, "no file is sent twice"


def test_the_card_opens_the_repository(hub, here, exported):
    assert push(exported, "hf://me/digits") == 0
    lines = re.search(r"```python\n(.*?)```", hub.head("me/digits")["README.md"].decode(), re.S)
    code = "import sys; sys.modules['sid_ray'] = None\n" + lines[1]
    environment = os.environ | {
        "HF_ENDPOINT": hub.url, "HF_HOME": str(here / "other"), "HF_HUB_CACHE": "", "no_proxy": "*",
    }  # fmt: skip
    subprocess.run([sys.executable, "-c", code], cwd=here, env=environment, check=True)
    assert np.asarray(Image.open(here / "images.png")).std() > 30


def test_what_an_endpoint_holds_is_not_shown(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "https://me:secret@mirror.example")
    assert HubRepository(HubFile("me/x", "", "main")).url == "https://mirror.example/me/x"
    url = HubRepository(HubFile("me/x", "", "a/b#c")).url
    assert url == "https://mirror.example/me/x/tree/a%2Fb%23c"


def test_a_card_names_repository_and_branch():
    lines = 'pipe = DiffusionPipeline.from_pretrained("cat", torch_dtype=x)\nimage = pipe("cat")\n'
    card = f'---\na: b\n---\n# cat\n\n```python\n{lines}```\n\nThe `cat`, "cat".\n'
    moved = card_on_hub(card, "cat", "me/pet", "v1")
    assert 'from_pretrained("me/pet", revision="v1", torch_dtype=x)\nimage = pipe("cat")' in moved
    assert moved.replace('"me/pet", revision="v1"', '"cat"') == card
    card = card.replace('pipe("cat")', 'pipe("cat/dog")')
    moved = card_on_hub(card, "cat", "me/pet", "v1")
    assert moved.replace('"me/pet", revision="v1"', '"cat"') == card, "a prompt is no folder"
    assert card_on_hub("no lines", "cat", "me/pet", "main") == "no lines"


@pytest.mark.parametrize(
    ("lines", "moved"),
    [
        ('import sys\n\nfolder = "cat"\nload(folder)', "import sys\nIMPORT\nload(folder)"),
        ('import x\n\nx("cat/model.onnx")', 'import x\nIMPORT\nx(f"{folder}/model.onnx")'),
        (
            'import x\n\nx.from_pretrained("cat/base")\nx.load_lora_weights("cat")\nx("cat")',
            'import x\nIMPORT\nx.from_pretrained(f"{folder}/base")\n'
            'x.load_lora_weights(folder)\nx("cat")',
        ),
    ],
    ids=["loader", "graph", "adapter of pixels"],
)  # fmt: skip
def test_what_opens_files_reads_a_snapshot(lines, moved):
    fetched = (
        'from huggingface_hub import snapshot_download\n\nfolder = snapshot_download("me/pet")'
    )
    card = card_on_hub(f"```python\n{lines}\n```\n", "cat", "me/pet", "main")
    assert card == f"```python\n{moved.replace('IMPORT', fetched)}\n```\n"


def test_a_newer_export_replaces_an_older_one(hub, here, exported, capsys):
    """Files that it has no longer go, in the same commit; a person's own need --force."""
    assert push(exported, "hf://me/digits") == 0
    newer = shutil.copytree(exported, here / "newer")
    (newer / "grid.png").unlink()
    record = json.loads((newer / "sid_ray.json").read_text())
    record["files"].remove("grid.png")
    (newer / "sid_ray.json").write_text(json.dumps(record))
    assert push(newer, "hf://me/digits") == 0
    assert set(hub.head("me/digits")) == OWN - {"grid.png"} | {".gitattributes"}
    assert len(hub.titles) == 2

    head = hub.head("me/digits")
    hub.publish("me/digits", {**head, "LICENSE": b"mine", "notes/a": b"", "b": b"", "c": b""})
    said = refused(capsys, exported, "hf://me/digits")
    assert "holds LICENSE, b, c and 1 more" in said and "--force" in said
    assert push(newer, "hf://me/digits", "--force") == 0
    assert set(hub.head("me/digits")) == OWN - {"grid.png"} | {".gitattributes"}


def test_what_running_the_card_leaves_is_not_sent(hub, here, exported, capsys):
    """Compiled Python holds paths of this machine; and the push after it is not refused."""
    mine = shutil.copytree(exported, here / "my-model")
    (lines,) = re.findall(r"```python\n(.*?)```", (mine / "README.md").read_text(), re.DOTALL)
    compiling = os.environ | {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": ""}
    subprocess.run([sys.executable, "-c", lines], cwd=here, env=compiling, check=True)
    assert list(mine.glob("__pycache__/generate.*.pyc"))
    (mine / "notes.txt").write_text("mine")
    for _ in range(2):
        assert push(mine, "hf://me/digits") == 0
        said = capsys.readouterr().out
        assert re.search("so not sent: __pycache__/generate.*pyc, notes.txt\n", said)
        assert set(hub.head("me/digits")) == OWN | {".gitattributes"}
    assert len(hub.titles) == 1


def test_what_is_no_export_stays(hub, here, exported, generator, capsys):
    """Found before anything is exported."""
    hub.publish("me/other", {".gitattributes": b"", "model.safetensors": b"1", "README.md": b"x"})
    for source in (exported, generator):
        said = refused(capsys, source, "hf://me/other")
        assert "holds README.md, model.safetensors, which" in said
    hub.publish("me/other", {"sid_ray.json": b"[]", "weights.bin": b""})
    assert "holds sid_ray.json, weights.bin" in refused(capsys, generator, "hf://me/other")
    assert hub.titles == [] and not (here / "cache").exists()


def test_a_branch_is_made_and_filled(hub, here, exported, capsys):
    assert push(exported, "hf://me/digits@v1") == 0
    assert set(hub.head("me/digits", "v1")) == OWN | {".gitattributes"}
    assert set(hub.head("me/digits")) == {".gitattributes"}
    assert 'revision="v1"' in hub.head("me/digits", "v1")["README.md"].decode()
    capsys.readouterr()
    assert push(exported, "hf://me/digits", "--branch", "half") == 0
    out = capsys.readouterr().out
    assert "branch half is new, made of main" in out
    assert f"{hub.url}/me/digits/tree/half: commit" in out
    assert push(exported, "hf://me/digits@half") == 0
    assert "it held the same already" in capsys.readouterr().out


def test_a_dry_run_needs_nothing(hub, here, exported, monkeypatch, capsys):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (exported / ".env").write_text("SECRET=1")
    card = (exported / "README.md").read_text()
    assert 'license: "cc-by-4.0"\n' in card, "of the built-in teacher"
    told = card.replace('license: "cc-by-4.0"', "license: mit\nbase_model: you/big")
    folder = shutil.copytree(exported, here / "mine")
    (exported / ".env").unlink()
    (folder / "README.md").write_text(told)
    assert push(folder, "hf://me/digits", "--dry-run") == 0
    out = capsys.readouterr().out
    sizes = {name: int(size.replace(",", "")) for size, name in re.findall(r" ([\d,]+)  (.*)", out)}
    total = sizes.pop("bytes in 6 files")
    assert set(sizes) == OWN and total == sum(sizes.values())
    assert sizes["model.safetensors"] == (folder / "model.safetensors").stat().st_size
    assert "the card names the licence mit (Optical Recognition of" in out
    assert ") and the base you/big" in out
    assert "nothing was sent" in out
    assert hub.requests == []


def test_a_base_on_the_hub_is_named_with_its_licence(hub, here, generator, capsys):
    hub.publish(
        "you/base",
        {"README.md": b"---\nlicense: other\nlicense_name: ours\nlicense_link: L.md\n---\n"},
    )
    mine = shutil.copytree(generator, here / "mine")
    description = json.loads((mine / "model.json").read_text())
    description["notes"]["teacher"] = "hf://you/base/net.pkl"
    (mine / "model.json").write_text(json.dumps(description))
    assert push(mine, "hf://me/digits", "--no-check") == 0
    assert "the card names the licence ours and the base you/base" in capsys.readouterr().out
    front = yaml.safe_load(hub.head("me/digits")["README.md"].decode().split("---")[1])
    assert front["base_model"] == "you/base" and front["license"] == "other"
    assert front["license_name"] == "ours"
    assert front["license_link"] == "https://huggingface.co/you/base/blob/main/L.md"
    hub.failures = [Failure("GET /you/base", 503)]
    assert push(mine, "hf://me/digits", "--no-check", "--dry-run") == 0, "what is kept is used"
    assert "the licence ours" in capsys.readouterr().out


# What goes wrong ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["me/digits"], "a push goes to hf://OWNER/REPO"),
        (["s3://bucket/x"], "a push goes to hf://OWNER/REPO"),
        (["hf://me"], "expected hf://owner/repo"),
        (["hf://me/a--b"], "no repository can have that name"),
        (["hf://me/" + "x" * 120], "no repository can have that name"),
        (["hf://me/digits/part"], "fills a whole repository"),
        (["hf://me/digits@a", "--branch", "b"], "names another one"),
        (["hf://me/digits@" + "a1" * 20], "is a commit, to which nothing can be added"),
        (["hf://me/digits", "--prompt", "a cat"], "--prompt is for a run or weights"),
        (["hf://me/digits", "--dtype", "float16"], "--dtype is for a run or weights"),
        (["hf://me/digits", "--message", "a\nb"], "several lines"),
        (["hf://you/digits"], "the token can make none of you: it can for me or lab"),
        *(
            (["hf://me/digits", "--branch", name], "git allows no branch of that name")
            for name in ("weird branch~^", "a..b", "a.lock", ".a", "a/", "a@{1")
        ),
    ],
)
def test_what_makes_no_sense_is_refused(hub, here, exported, words, said, capsys):
    assert said in refused(capsys, exported, *words)
    assert hub.repositories == {}


def test_folders_that_are_no_whole_export_are_refused(hub, here, exported, capsys):
    folder = shutil.copytree(exported, here / "mine")
    (folder / "model.safetensors").unlink()
    assert "it lacks model.safetensors" in refused(capsys, folder, "hf://me/digits")
    for rubbish in (
        "{", "[]", '{"format": 9}', '{"format": 1, "files": 3}', '{"format": 1}',
        '{"format": 1, "files": [3]}', '{"format": 1, "files": ["../token"]}',
        '{"format": 1, "files": ["/etc/passwd"]}',
    ):  # fmt: skip
        (folder / "sid_ray.json").write_text(rubbish)
        assert "was not written by sid-ray export" in refused(capsys, folder, "hf://me/digits")
    assert "nowhere" in refused(capsys, "nowhere", "hf://me/digits", "--dry-run")
    assert hub.repositories == {}


def test_tokens_that_may_not_write_are_told_first(hub, here, generator, monkeypatch, capsys):
    """Nothing is exported for them."""
    for token, said in {
        "": "there is no token: set HF_TOKEN",
        "hf_unknown": "the hub takes no such token (HTTP 401): check HF_TOKEN",
        "hf_reader": f"the token may only read: make one that may write at {hub.url}/settings",
    }.items():
        monkeypatch.setenv("HF_TOKEN", token)
        told = refused(capsys, generator, "hf://me/digits")
        assert said in told and (not token or token not in told)
    assert hub.repositories == {} and not (here / "cache").exists()


@pytest.mark.parametrize(
    ("failure", "code", "said"),
    [
        (Failure(COMMIT, 403, "Private storage limit reached"), 2, "Private storage limit reached"),
        (Failure(COMMIT, 402), 2, "there is no room for it (HTTP 402)"),
        (Failure(COMMIT, 400, "bad tag"), 2, "the hub refuses it (HTTP 400: bad tag)"),
        (Failure(COMMIT, 404), 2, "the hub refuses it (HTTP 404)"),
        (Failure(COMMIT, 412, "A commit has happened since."), 1, "another one has changed it"),
        (Failure(COMMIT, 429), 1, "asked too much (HTTP 429): try again in some minutes"),
        (Failure("xet-write-token", 404), 2, "(HTTP 404); HF_HUB_DISABLE_XET=1 sends by Git LFS"),
        (Failure("xet-write-token", 403), 2, "the token may not write there (HTTP 403)"),
        (Failure(COMMIT, 503), 1, "the hub fails (HTTP 503)"),
        (Failure(COMMIT, DROPPED), 1, "no answer ("),
        (Failure(PUT, DROPPED, after_bytes=100_000), 1, "no answer ("),
        (Failure(PUT, 503), 1, "the hub fails (HTTP 503)"),
        (Failure("/lfs-verify", 404), 2, "the hub refuses it (HTTP 404)"),
        (Failure("/validate-yaml", 502), 1, ""),
        (Failure("/preupload/", 500), 1, "the hub fails (HTTP 500)"),
    ],
)
def test_what_fails_meanwhile_leaves_all_or_nothing(
    hub, here, exported, failure, code, said, monkeypatch, capsys
):
    """And the same command goes on."""
    hub.failures = [failure]
    by_xet = "xet" in failure.request
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", not by_xet)
    told = refused(capsys, exported, "hf://me/digits", code=code)
    assert said in told and "hf://me/digits is there, without files" in told
    assert code == 2 or "the same command goes on" in told
    assert set(hub.head("me/digits")) == {".gitattributes"}
    hub.failures.clear()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    arrived, hub.requests = set(hub.stored), []
    assert push(exported, "hf://me/digits") == 0
    assert set(hub.head("me/digits")) == OWN | {".gitattributes"}
    assert len(hub.asked("PUT")) == (0 if arrived else 1), "what has arrived is not sent again"
    assert hub.titles == ["Generator of sid_ray"]


@pytest.mark.parametrize(
    ("failure", "code", "said"),
    [
        (Failure("/whoami", 429), 1, "asked too much"),
        (Failure("/whoami", 500), 1, "the hub fails (HTTP 500)"),
        (Failure("/whoami", DROPPED), 1, "no answer ("),
        (Failure("/whoami", 404), 2, "refuses it (HTTP 404)"),
        (Failure("/api/models/", 503), 1, "the hub fails (HTTP 503)"),
        (Failure("/repos/create", 403, "no right"), 2, "may not write there (HTTP 403: no right)"),
        (Failure("/repos/create", 409, "You already"), 1, "another one has changed it meanwhile"),
    ],
)
def test_what_fails_first_leaves_nothing(hub, here, exported, failure, code, said, capsys):
    hub.failures = [failure]
    told = refused(capsys, exported, "hf://me/digits", code=code)
    assert said in told and "nothing was sent" in told
    assert hub.repositories == {}


def test_a_break_is_lived_through(hub, here, exported):
    """The library tries again by itself."""
    hub.failures = [Failure(PUT, DROPPED, times=1, after_bytes=50_000), Failure(PUT, 503, times=1)]
    assert push(exported, "hf://me/digits") == 0
    assert len(hub.asked("PUT")) == 3
    assert set(hub.head("me/digits")) == OWN | {".gitattributes"}


def test_another_commit_meanwhile_is_not_lost(hub, here, exported, monkeypatch, capsys):
    assert push(exported, "hf://me/digits") == 0
    from huggingface_hub import HfApi

    newer = shutil.copytree(exported, here / "newer")
    (newer / "README.md").write_text("new")
    create = HfApi.create_commit

    def late(*args, **named):
        hub.publish("me/digits", {**hub.head("me/digits"), "theirs": b""})
        return create(*args, **named)

    monkeypatch.setattr(HfApi, "create_commit", late)
    told = refused(capsys, newer, "hf://me/digits", code=1)
    assert "another one has changed it" in told and "its files are as they were" in told
    assert "theirs" in hub.head("me/digits") and hub.head("me/digits")["README.md"] != b"new"


def test_a_hub_that_is_away(here, exported, monkeypatch, capsys):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    told = refused(capsys, exported, "hf://me/digits", code=1)
    assert "no answer (" in told and "check the network and HF_ENDPOINT" in told
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    told = refused(capsys, exported, "hf://me/digits")
    assert "HF_HUB_OFFLINE is set: unset it, or give --dry-run" in told


def test_a_server_that_is_no_hub(hub, here, exported, monkeypatch, capsys):
    from tests.support import hub_server

    monkeypatch.setattr(hub_server.PushHandler, "whoami", lambda self: self.say([]))
    told = refused(capsys, exported, "hf://me/digits", code=1)
    assert "answers otherwise than a hub" in told
    monkeypatch.setattr(hub_server.PushHandler, "whoami", lambda self: self.answer(200, {}, b"<p>"))
    told = refused(capsys, exported, "hf://me/digits", code=1)
    assert "answers otherwise than a hub" in told


# In a process of its own, with the library's variables --------------------------------------------


def test_by_xet_and_nothing_private_gets_out(hub, generator, tmp_path):
    """The real hf_xet, into a folder: large files arrive with their checksums. Neither what
    was sent nor what was said holds the token, the home, or a path of this machine.
    """
    hub.xet = tmp_path / "cas"
    home = tmp_path / "somebody"
    home.mkdir()
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))} | {
        "HF_TOKEN": WRITER, "HF_HOME": str(home / "hf"), "HF_ENDPOINT": hub.url, "HOME": str(home),
        "no_proxy": "*", "SID_RAY_CACHE": str(home / "cache"),
    }  # fmt: skip
    command = [sys.executable, "-m", "sid_ray.cli", "push", generator, "hf://me/digits"]
    command += ["--no-check"]
    done = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "commit " in done.stdout.splitlines()[-1] and done.stderr == ""
    private = [str(tmp_path), str(generator.parent), str(home), sys.prefix]
    sent = hub.head("me/digits")
    weights = [p.read_bytes() for p in hub.xet.rglob("*") if p.is_file()]
    for content in (done.stdout.encode(), *sent.values(), *weights):
        assert not any(text in content for text in encodings(WRITER))
        assert not any(place.encode() in content for place in private)
    assert sent["model.safetensors"].startswith(b"xet ")
    assert not hub.asked("/lfs") and len(hub.titles) == 1


@pytest.mark.slow
def test_a_pipeline_from_the_hub(hub, here):
    """Of text, in diffusers, by the card's own lines: the picture of the folder on this disk."""
    pytest.importorskip("diffusers")
    from tests.exporting.test_export import run_card

    write_generator(here / "emoji", "builtin:emoji-teacher")
    assert export("emoji", "out", "--prompt", "red heart", "--no-check") == 0
    ours = np.asarray(run_card(here / "out"))
    assert push("out", "hf://me/hearts") == 0
    lines = re.search(r"```python\n(.*?)```", hub.head("me/hearts")["README.md"].decode(), re.S)
    assert 'from_pretrained("me/hearts", torch_dtype=torch.float32)' in lines[1]
    environment = os.environ | {
        "HF_ENDPOINT": hub.url, "HF_HOME": str(here / "other"), "HF_HUB_CACHE": "", "no_proxy": "*",
    }  # fmt: skip
    place = here / "elsewhere"
    place.mkdir()
    subprocess.run([sys.executable, "-c", lines[1]], cwd=place, env=environment, check=True)
    assert np.array_equal(np.asarray(Image.open(place / "image.png")), ours)
