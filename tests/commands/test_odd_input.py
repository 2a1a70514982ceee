"""Odd words for the command's options: one line and exit code 2, before anything is started.

benchmarks/fuzz_cli.py tries many more; what it found stays here.
"""

import os
import socket

import pytest

from sid_ray.cli import main

DISTILL = [
    ("training.images", "1" + "0" * 30, "at most"),
    ("training.seed", "9" * 19, "at most"),
    ("training.generator-lr", "nan", "finite"),
    ("training.generator-lr", "inf", "finite"),
    ("training.clip-value", "nan", "finite"),
    ("training.ema-rampup", "nan", "finite"),
    ("objective.alpha", "nan", "finite"),
    ("objective.kappa2", "inf", "finite"),
    ("objective.augment", "1.5", "at most 1"),
    ("objective.num-steps", "1000000", "at most"),
    ("teacher.dropout", "nan", "finite"),
    ("schedule.sigma-min", "100", "below schedule.sigma_max"),
    ("schedule.p-mean", "nan", "finite"),
    ("schedule.t-max", "2", "at most 1"),
    ("health.loss-growth", "nan", "finite"),
    ("resources.num-workers", "9" * 18, "at most"),
    ("evaluation.batch-size", "9" * 9, "at most"),
    ("evaluation.teacher-guidance", "nan", "finite"),
    ("output.run", "-x", "plain folder name"),
    ("output.run", "..", "plain folder name"),
    ("output.run", "a/b", "plain folder name"),
    ("output.run", " a", "plain folder name"),
    ("output.run", "a\nb", "line break"),
    ("output.run", "a\u2028b", "plain folder name"),
    ("output.run", "x" * 300, "300 bytes"),
    ("output.run", "\u00e9" * 150, "300 bytes"),
    ("output.run", "mlflow.db", "plain folder name"),
    ("output.experiment", "a\tb", "control character"),
    ("data.source", "\udcff", "not UTF-8"),
    ("teacher.source", "x" * 5000, "at most 4,096"),
    ("teacher.source", "x" * 300, "File name too long"),
]


def refused(capsys, *args: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main(list(args))
    said = capsys.readouterr()
    assert stop.value.code == 2, said
    assert said.err.startswith("sid-ray: ") and said.err.count("\n") == 1
    return said.err


@pytest.mark.parametrize(("field", "value", "words"), DISTILL)
def test_a_value_that_a_field_cannot_have(capsys, tmp_path, monkeypatch, field, value, words):
    monkeypatch.chdir(tmp_path)
    assert words in refused(capsys, "distill", "digits-sid", f"--{field}={value}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--seeds", "5-1"], "5-1 is empty"),
        (["--seeds", "1-"], "--seeds '1-'"),
        (["--seeds=-3"], "--seeds '-3'"),
        (["--seeds", "0-1e9"], "--seeds '0-1e9'"),
        (["--seeds", "\u0663"], "expected numbers"),
        (["--seeds", ""], "expected numbers"),
        (["--seeds", "0-99999999999"], "at most 1,000,000,000"),
        (["--seeds", "9" * 5000], "at most 18 digits"),
        (["--labels", "0-999999999"], "at most 100,000"),
        (["--batch", "0"], "at least 1"),
        (["--batch", "999999999"], "at most 4096"),
        (["--out", "s3://bucket/x"], "this machine's disk"),
        (["--prompt", "a", "--prompts", "b"], "give one of them"),
        (["--prompts", "blank"], "holds no prompts"),
        (["--prompts", "binary"], "not UTF-8"),
        (["--prompts", "folder"], "folder"),
        (["--prompts", "nowhere"], "nowhere"),
        ([], "not a one-step generator"),
    ],
)
def test_generate(capsys, tmp_path, monkeypatch, args, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "blank").write_text("\n \n\n")
    (tmp_path / "binary").write_bytes(bytes(range(128, 256)))
    (tmp_path / "folder").mkdir()
    assert words in refused(capsys, "generate", "builtin:digits-teacher", *args)
    assert not (tmp_path / "samples").exists()


@pytest.mark.parametrize(
    "args",
    [
        ["evaluate", "THING"],
        ["evaluate", "builtin:digits-teacher", "--reference", "THING"],
        ["evaluate", "builtin:digits-teacher", "--num-images", "1" + "0" * 12],
        ["evaluate", "builtin:digits-teacher", "--batch-size", "1" + "0" * 12],
        ["evaluate", "builtin:emoji-teacher", "--guidance", "nan"],
        ["evaluate", "builtin:digits-teacher", "--out", "s3://bucket/x.json"],
        ["generate", "THING"],
        ["compare", "THING"],
        ["compare", "THING", "--seeds", "0-999"],
        ["weights", "inspect", "THING"],
        ["ui", "--port", "-1"],
        ["ui", "--port", "65536"],
    ],
)
@pytest.mark.parametrize("thing", ["empty", "socket", "text", "other.npz", "/dev/null"])
def test_places_that_hold_something_else(capsys, tmp_path, monkeypatch, args, thing):
    if "THING" not in args and thing != "empty":
        pytest.skip("names no place")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").write_text("words\n")
    (tmp_path / "other.npz").write_bytes(b"PK\x05\x06" + bytes(18))
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket")
    refused(capsys, *(thing if arg == "THING" else arg for arg in args))


def test_a_pipe_is_not_waited_for(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    for command in (["evaluate"], ["generate"], ["weights", "inspect"]):
        refused(capsys, *command, "pipe")


@pytest.mark.parametrize("source", ["s3://", "s3:///x", "s3://b/../c"])
def test_addresses_without_a_bucket_are_no_address(capsys, source):
    for command in (["evaluate"], ["weights", "inspect"], ["generate"]):
        assert "expected s3://BUCKET/" in refused(capsys, *command, source)
