"""Graphs make the generator's images in ONNX Runtime, of any batch, without torch."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import onnx
import onnxruntime

from sid_ray.commands.export_options import ExportOptions
from sid_ray.commands.generate import OneStepNetwork
from sid_ray.denoisers.codecs import IdentityCodec
from sid_ray.denoisers.registry import family_of
from sid_ray.errors import UserError
from sid_ray.evaluation.samplers import Inputs, generator_sampler
from sid_ray.exporting import onnx_file
from sid_ray.exporting.onnx_file import GRAPH, OPSET, OnnxGraph
from sid_ray.exporting.onnx_graph import Signature, signature_of
from sid_ray.training.assemble import generation_of
from sid_ray.types import Condition, Prediction
from sid_ray.weights.description import ModelDescription
from sid_ray.weights.networks import load_path
from sid_ray.weights.sources import resolve_source
from tests.exporting.test_export import export, own_cache, write_generator

__all__ = ["own_cache"]  # a fixture
EDM2 = {
    "img_resolution": 8,
    "img_channels": 3,
    "label_dim": 4,
    "model_channels": 8,
    "channel_mult": [1, 2],
    "num_blocks": 1,
    "attn_resolutions": [8],
    "channels_per_head": 8,
}
BATCHES = 1, 5, 70  # none of them that of the trace; 70 is beyond its range


def run_card_without_torch(folder: Path) -> Image.Image:
    """The picture that the card's own lines make, of ONNX Runtime and NumPy alone."""
    (lines,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    no = "import sys; sys.modules |= dict.fromkeys(('sid_ray', 'torch', 'PIL', 'diffusers'))\n"
    command = [sys.executable, "-I", "-c", no + lines]
    subprocess.run(command, cwd=folder.parent, check=True, capture_output=True)
    return Image.open(folder.parent / "images.ppm")


def runs_as(path: Path, given: dict[str, Tensor]) -> Tensor:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    inputs = {name: value.numpy() for name, value in given.items()}
    return torch.from_numpy(session.run(["images"], inputs)[0])


@torch.no_grad()
def test_an_edm2_generator_of_two_steps(tmp_path):
    """Weights of unit magnitude, fresh noise between steps, classes by number and none at all."""
    torch.manual_seed(0)
    net = family_of("edm2").build(EDM2).eval()
    for name, value in net.named_parameters():  # a gain of 0 would leave the network out
        value.fill_(1.0) if "gain" in name else None
    said = ModelDescription("edm2", EDM2, {"sigma": 2.5, "num_steps": 2}, {})
    kind = OnnxGraph(said, IdentityCodec, lambda: torch.zeros(0))
    kind.write(tmp_path, net)
    schedule, steps = generation_of(said)
    for count in BATCHES:
        latents, more = torch.randn(count, 3, 8, 8), torch.randn(count, 1, 3, 8, 8)
        labels = torch.nn.functional.one_hot(torch.arange(count) % 4, 4).float()
        for labels_or_none in (labels, None):
            inputs = Inputs(latents, Condition(labels_or_none), more)
            ours = (generator_sampler(net, schedule, steps)(inputs) / 2 + 0.5).clip(0, 1)
            found = runs_as(tmp_path / GRAPH, signature_of(said).inputs(inputs))
            assert found.shape == ours.shape and (found - ours).abs().max() < 1e-5
            assert ours.std() > 0.1
    graph = onnx.load(tmp_path / GRAPH)
    assert [found.version for found in graph.opset_import if not found.domain] == [OPSET]
    data = (tmp_path / GRAPH).read_bytes()
    assert b"sid_ray" not in data and b"site-packages" not in data


def test_digits_run_without_torch(tmp_path, capsys):
    """The whole way, a card's lines as printed among it."""
    write_generator(tmp_path / "digits", "builtin:digits-teacher")
    assert export("digits", "out", "--format", "onnx", "--labels", "0-9", "--seeds", "0-9") == 0
    said = capsys.readouterr().out
    assert "an ONNX graph" in said and "at most" in said
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"README.md", "grid.png", "model.onnx", "sid_ray.json"}
    picture = run_card_without_torch(tmp_path / "out")
    assert picture.size == (4 * 8, 8) and np.asarray(picture).std() > 30
    given = {"latents": torch.zeros(2, 1, 8, 8)}
    with pytest.raises(Exception, match="classes"):
        runs_as(tmp_path / "out" / GRAPH, given)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"dtype": "float16"}, "--dtype is for --format native"),
        ({"variant": "fp16"}, "--variant is for --format native"),
        ({"only_network": True}, "--only-network is for --format native"),
    ],
)
def test_what_a_graph_does_not_have(words, said, tmp_path):
    options: Any = {"source": "gen", "folder": tmp_path / "out", "format": "onnx", **words}
    with pytest.raises(UserError, match=said):
        ExportOptions(**options).check()


def test_without_the_extra_a_line_names_it(tmp_path, monkeypatch, capsys):
    write_generator(tmp_path / "digits", "builtin:digits-teacher")
    monkeypatch.setattr(onnx_file, "NEEDED", ("onnx", "onnxruntime_of_nobody"))
    assert export("digits", "out", "--format", "onnx") == 2
    said = capsys.readouterr().err
    assert "onnxruntime_of_nobody, not installed" in said and "'sid_ray[onnx]'" in said
    assert said.count("\n") == 1 and not (tmp_path / "out").exists()


class Divided(torch.nn.Module):
    def forward(self, x_t: Tensor, *_: Any) -> Prediction:
        positive = x_t.relu()
        return Prediction(positive / (positive.sum((1, 2, 3), keepdim=True) + 1e-15))


def test_what_keeps_a_divisor_from_0_stays(tmp_path):
    """SANA's attention and auto-encoder add 1e-15, which torch.onnx's own simplifying removes."""
    said = ModelDescription("edm2", EDM2 | {"label_dim": 0}, {"sigma": 2.5}, {})
    kind = OnnxGraph(said, IdentityCodec, lambda: torch.zeros(0))
    kind.write(tmp_path, Divided())
    found = runs_as(tmp_path / GRAPH, {"latents": torch.full((3, 3, 8, 8), -1.0)})
    assert (found == 0.5).all()


class Untraceable(torch.nn.Module):
    def forward(self, x_t: Tensor, *_: Any) -> Any:
        assert float(x_t.sum()) > 0, "of numbers, which a trace has not"


def test_a_network_that_torch_cannot_trace_is_refused_in_a_line(tmp_path):
    said = ModelDescription("edm2", EDM2, {"sigma": 2.5}, {})
    kind = OnnxGraph(said, IdentityCodec, lambda: torch.zeros(0))
    with pytest.raises(UserError, match=r"cannot trace this network \(Untraceable\)") as found:
        kind.write(tmp_path, Untraceable())
    assert "\n" not in str(found.value)


def test_a_graph_reads_as_many_tokens_as_the_encoder_makes():
    """Of the emoji 16, where those of published networks make 77."""
    folder = resolve_source("builtin:emoji-teacher")
    _, own = load_path(folder)
    family = family_of(own.family)
    shape = family.text_shape_of_folder(folder)
    said = Signature(family.shape(own.network), 0, family.layout(own.network), 0)
    of = said.of_prompts(torch.randn(3, *shape))
    assert of.layout is not None and of.layout.shape == shape
    text = of.text(torch.randn(3, *shape))
    traced = {found: tuple(value.shape) for found, value in of.example(3).items()}
    assert {found: tuple(value.shape) for found, value in text.items()}.items() <= traced.items()


# Text-to-image ------------------------------------------------------------------------------------


def check_prompts(folder: Path, generator: Path, prompt: str) -> None:
    """Of a batch that is not the trace's, by the embeddings that the folder holds."""
    net = OneStepNetwork(generator, 5)
    rows = dict(np.load(folder / "prompts.npz"))
    assert all(len(value) == len(prompt.split("|")) for value in rows.values())
    seeds = range(5)
    cond = net.conditions(None, prompt.split("|"))(seeds)
    torch.manual_seed(0)
    latents = torch.randn(5, *net.shape)
    inputs = Inputs(latents, cond)
    with torch.no_grad():
        ours = (net.codec.decode(net.sampler[0](inputs)) / 2 + 0.5).clip(0, 1)
    which = [seed % len(prompt.split("|")) for seed in seeds]
    given = {name: torch.from_numpy(value[which]) for name, value in rows.items()}
    found = runs_as(folder / GRAPH, {"latents": latents} | given)
    assert (found - ours).abs().max() < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "steps"),
    [("stable-diffusion", 1), ("sdxl", 1), ("sd3", 1), ("flux", 1), ("sana", 1), ("sd3", 4)],
)
def test_pipelines_as_graphs(name, steps, tmp_path):
    """Text enters under diffusers' names; the VAE is part of the graph."""
    from tests.weights.test_adapters_in_diffusers import write_base

    write_base(tmp_path / "base", name)
    write_generator(tmp_path / "gen", str(tmp_path / "base"), steps)
    assert export("gen", "out", "--format", "onnx", "--prompt", "a red cat|dog") == 0
    assert min(run_card_without_torch(tmp_path / "out").size) >= 16
    if steps == 1:
        check_prompts(tmp_path / "out", tmp_path / "gen", "a red cat|dog")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["emoji-teacher", "emoji-flow"])
def test_generators_of_pixels_as_graphs(name, tmp_path):
    write_generator(tmp_path / "gen", f"builtin:{name}")
    assert export("gen", "out", "--format", "onnx", "--prompt", "red heart|star") == 0
    assert run_card_without_torch(tmp_path / "out").size == (4 * 16, 16)


@pytest.mark.slow
def test_an_adapter_is_fused(tmp_path):
    pytest.importorskip("peft")
    from tests.weights.adapters import write_adapter
    from tests.weights.test_adapters_in_diffusers import write_base

    write_base(tmp_path / "base", "sd3")
    write_adapter(tmp_path / "lora", tmp_path / "base")
    assert export("lora", "out", "--format", "onnx", "--prompt", "a red cat") == 0
    check_prompts(tmp_path / "out", tmp_path / "lora", "a red cat")


@pytest.mark.slow
def test_large_weights_lie_beside_the_graph(tmp_path, monkeypatch, capsys):
    """As torch decides it, above its own limit, which is lowered here."""
    from torch.onnx._internal.exporter import _onnx_program

    monkeypatch.setattr(_onnx_program, "_LARGE_MODEL_THRESHOLD", 2**20)
    write_generator(tmp_path / "digits", "builtin:digits-teacher")
    assert export("digits", "out", "--format", "onnx") == 0
    assert (tmp_path / "out" / "model.onnx.data").stat().st_size > 2**20
    assert (tmp_path / "out" / "model.onnx").stat().st_size < 2**20
    run_card_without_torch(tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / "elsewhere")  # by a relative place
    onnx.checker.check_model(str(tmp_path / "elsewhere" / "model.onnx"))
