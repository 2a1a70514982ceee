"""sid-ray weights inspect and convert."""

from __future__ import annotations

import json
import re
import stat

import pytest
import torch
from safetensors.torch import load_file

from sid_ray.cli import main
from sid_ray.weights import networks
from sid_ray.weights.folder import load_model
from tests.support import hostile
from tests.support import weights_writer as writer


@pytest.fixture
def snapshot(tmp_path):
    path = tmp_path / "edm.pkl"
    path.write_bytes(writer.edm_snapshot()[0])
    return path


def run(capsys, *args) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(["weights", *map(str, args)])
    out, err = capsys.readouterr()
    assert err.count("\n") <= 1
    return int(stop.value.code or 0), out, err


def test_inspect_a_snapshot(snapshot, capsys):
    code, out, _ = run(capsys, "inspect", snapshot)
    assert code == 0
    for line in (
        "class       EDMPrecond",
        "family      edm",
        "parameters  178,915 in 147 tensors, and 96 numbers in 6 buffers",
        "dtype       float32 (153 tensors), 0.7 MiB",
        "model_channels = 16",
        "container   pickle",
        "'torch_utils.persistence._reconstruct_persistent_obj'",
    ):
        assert line in out
    assert re.search(r"executed  54 characters of source, sha256 [0-9a-f]{16}: .*SongUNet", out)
    assert "SystemExit" not in out  # the text itself is the file's


def test_inspect_of_a_training_state_without_a_record(tmp_path, capsys):
    path = tmp_path / "state.pt"
    path.write_bytes(writer.sida_edm2_training_state()[0])
    code, out, _ = run(capsys, "inspect", path, "--part", "G")
    assert code == 0 and "part G_state" in out and "float16 (6 tensors)" in out
    assert "family      unknown" in out and "--like" in out


def test_inspect_of_a_hostile_file_tells_and_fails(tmp_path, capsys):
    canary = tmp_path / "canary"
    path = tmp_path / "evil.pkl"
    for data in (hostile.nested_payloads(canary) | hostile.payloads(canary)).values():
        path.write_bytes(data)
        code, out, err = run(capsys, "inspect", path)
        assert code == 2 and err.startswith("sid-ray: ") and not canary.exists()
        assert "unpickled naively" in out
    path.write_bytes(hostile.nested_payloads(canary)["storage blob"])
    assert "'os.system', called 1 times: REFUSED" in run(capsys, "inspect", path)[1]


def test_inspect_prints_no_control_characters(tmp_path, capsys):
    path = tmp_path / "evil.pkl"
    module = writer.edm_module(recorded_class="\x1b[2J\x07\ud800Net")
    module.__dict__["_init_kwargs"] = {"a\x1b[31m": "b\nc"}
    path.write_bytes(writer.pickled({"ema": module}))
    code, out, _ = run(capsys, "inspect", path)
    assert code == 0 and "\x1b" not in out and "\x07" not in out and r"a\x1b[31m = b\nc" in out


@pytest.mark.parametrize("suffix", [".safetensors", ""])
def test_convert(suffix, snapshot, tmp_path, capsys):
    made = tmp_path / "made" / f"net{suffix}"
    code, out, _ = run(capsys, "convert", snapshot, made)
    assert code == 0 and "153 tensors of a network of family edm" in out
    expected, expected_description = load_model(snapshot)
    model, description = load_model(made)
    assert description.network == expected_description.network
    for name, value in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)
    beside = (made if made.is_dir() else made.parent) / "model.json"
    assert json.loads(beside.read_text())["family"] == "edm"
    weights = made / "model.safetensors" if made.is_dir() else made
    assert stat.S_IMODE(weights.stat().st_mode) == stat.S_IMODE(beside.stat().st_mode)
    assert not [p for p in made.parent.iterdir() if p.name.startswith(".")]


@pytest.mark.parametrize("suffix", [".safetensors", ""])
def test_convert_replaces_only_when_told(suffix, snapshot, tmp_path, capsys):
    made = tmp_path / f"net{suffix}"
    run(capsys, "convert", snapshot, made)
    code, _, err = run(capsys, "convert", snapshot, made)
    assert code == 2 and "--force" in err
    assert run(capsys, "convert", snapshot, made, "--force")[0] == 0
    assert load_model(made)[1].family == "edm"


def test_convert_keeps_what_is_not_a_network(snapshot, tmp_path, capsys):
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "chapter.txt").write_text("work of years")
    code, _, err = run(capsys, "convert", snapshot, folder, "--force")
    assert code == 2 and "is not replaced" in err and (folder / "chapter.txt").exists()
    (tmp_path / "model.json").write_text("{}")
    code, _, err = run(capsys, "convert", snapshot, tmp_path / "x.safetensors")
    assert code == 2 and "model.json exists" in err
    file = tmp_path / "file"
    file.write_text("")
    code, _, err = run(capsys, "convert", snapshot, file, "--force")
    assert code == 2 and "is not replaced" in err and file.is_file()
    code, _, err = run(capsys, "convert", snapshot, tmp_path / "x.pkl")
    assert code == 2 and ".safetensors" in err


def test_convert_a_bare_state_dict(snapshot, tmp_path, capsys):
    state = tmp_path / "state.pt"
    state.write_bytes(writer.sida_training_state()[0])
    made = tmp_path / "net.safetensors"
    code, _, err = run(capsys, "convert", state, made)
    assert code == 2 and "--like" in err and not made.exists()
    assert run(capsys, "convert", state, made, "--like", snapshot, "--part", "G")[0] == 0
    expected = writer.edm_network(2).state_dict()
    assert all(torch.equal(load_file(made)[n], v) for n, v in expected.items())
    model, _ = networks.load(str(made))
    assert torch.equal(
        model.state_dict()["model.map_layer0.bias"], expected["model.map_layer0.bias"]
    )


def test_convert_refuses_weights_of_another_network(snapshot, tmp_path, capsys):
    state = tmp_path / "state.pt"
    state.write_bytes(writer.sida_edm2_training_state()[0])
    code, _, err = run(capsys, "convert", state, tmp_path / "n.safetensors", "--like", snapshot)
    assert code == 2 and "does not fit the network" in err


def test_shared_numbers_are_written_for_each_name(tmp_path, capsys):
    net = writer.edm_network()
    module = writer.edm_module()
    unet = module._modules["model"]
    layers = unet._modules
    layers["map_layer1"]._parameters["bias"] = layers["map_layer0"]._parameters["bias"]
    path = tmp_path / "tied.pkl"
    path.write_bytes(writer.pickled({"ema": module}))
    assert run(capsys, "convert", path, tmp_path / "n.safetensors")[0] == 0
    found = load_file(tmp_path / "n.safetensors")
    assert torch.equal(found["model.map_layer1.bias"], net.state_dict()["model.map_layer0.bias"])


@pytest.mark.parametrize(
    "args", [(), ("frob",), ("inspect",), ("convert", "a"), ("inspect", "/no/x")]
)
def test_wrong_arguments_are_one_line(args, capsys):
    code, _, err = run(capsys, *args)
    assert code == 2 and err.startswith("sid-ray: ")


def test_help(capsys):
    assert "sid-ray weights inspect SRC" in run(capsys, "--help")[1]
