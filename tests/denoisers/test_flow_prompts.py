"""Prompts of SD3, FLUX and SANA against encode_prompt of their pipelines in diffusers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("diffusers")

from sid_ray.denoisers import flow_prompts
from sid_ray.denoisers.flow_prompts import (
    FLUX_PROMPTS,
    SANA_PROMPTS,
    SD3_PROMPTS,
)
from sid_ray.denoisers.prompt_layout import PromptLayout
from sid_ray.denoisers.registry import family_of_text
from sid_ray.errors import UserError
from tests.denoisers.tiny_text import (
    CLIP_WIDTHS,
    GEMMA_WIDTH,
    T5_WIDTH,
    write_gemma,
    write_three_encoders,
    write_two_encoders,
)

PROMPTS = ["a photo of a red dog", "", " A Cat of " + "word " * 300]
SD3 = PromptLayout(154, T5_WIDTH, sum(CLIP_WIDTHS))
FLUX = PromptLayout(512, T5_WIDTH, 12)
SANA = PromptLayout(300, GEMMA_WIDTH, masked=True)


INSTRUCTION, TOLD = flow_prompts.instruction, "Make it\nlonger: "


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """And an instruction that takes fewer tokens of one letter."""
    monkeypatch.setenv("SID_RAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(flow_prompts, "instruction", lambda: TOLD)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("made")
    write_three_encoders(home / "sd3")
    write_two_encoders(home / "flux")
    write_gemma(home / "sana")
    return {path.name: path for path in home.iterdir()}


@pytest.fixture
def folders(made, tmp_path) -> dict[str, Path]:
    """Copies to damage."""
    return {name: Path(shutil.copytree(at, tmp_path / name)) for name, at in made.items()}


def pipeline_of(name: str, folder: Path, **others):
    """The library's pipeline with its text parts alone, as it loads them itself."""
    import diffusers
    import transformers

    kinds = {
        "SD3": (diffusers.StableDiffusion3Pipeline, ["CLIPTextModelWithProjection"] * 2
                + ["T5EncoderModel"], ["CLIPTokenizer", "CLIPTokenizer", "T5TokenizerFast"]),
        "FLUX": (diffusers.FluxPipeline, ["CLIPTextModel", "T5EncoderModel"],
                 ["CLIPTokenizer", "T5TokenizerFast"]),
        "SANA": (diffusers.SanaPipeline, ["Gemma2Model"], ["GemmaTokenizerFast"]),
    }  # fmt: skip
    pipeline, encoders, tokenizers = kinds[name]
    parts = {"vae": None, "scheduler": None, "transformer": None} | others
    for number, names in enumerate(zip(encoders, tokenizers, strict=True), start=1):
        ending = "" if number == 1 else f"_{number}"
        for part, kind in zip(("text_encoder", "tokenizer"), names, strict=True):
            at = folder / f"{part}{ending}"
            loaded = getattr(transformers, kind).from_pretrained(at) if at.is_dir() else None
            parts[part + ending] = loaded
    return pipeline(**parts)


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("t5", [True, False], ids=["with T5", "without T5"])
def test_three_encoders_are_the_pipelines(folders, t5):
    if not t5:
        shutil.rmtree(folders["sd3"] / "text_encoder_3")
        shutil.rmtree(folders["sd3"] / "tokenizer_3")
    SD3_PROMPTS.check(folders["sd3"], SD3)
    network = SimpleNamespace(config=SimpleNamespace(
        joint_attention_dim=T5_WIDTH, sample_size=8, patch_size=2))  # fmt: skip
    pipeline = pipeline_of("SD3", folders["sd3"])
    pipeline.transformer = network
    with torch.no_grad():
        tokens, _, pooled, _ = pipeline.encode_prompt(
            PROMPTS, None, None, "cpu", do_classifier_free_guidance=False, max_sequence_length=77
        )
    found = SD3.unpack(SD3_PROMPTS.load_text(folders["sd3"], "cpu", "float32", SD3).embed(PROMPTS))
    close(found.tokens, tokens)
    close(found.pooled, pooled)
    assert bool(found.tokens[:, 77:].any()) == t5


def test_clip_and_t5_are_the_pipelines(made):
    FLUX_PROMPTS.check(made["flux"], FLUX)
    with torch.no_grad():
        tokens, pooled, _ = pipeline_of("FLUX", made["flux"]).encode_prompt(
            PROMPTS, device="cpu", max_sequence_length=512
        )
    found = FLUX.unpack(FLUX_PROMPTS.load_text(made["flux"], "cpu", "float32", FLUX).embed(PROMPTS))
    close(found.tokens, tokens)
    close(found.pooled, pooled)


def test_instructed_gemma_is_the_pipelines(made):
    """The empty prompt is the pipeline's negative one, which gets no instruction."""
    SANA_PROMPTS.check(made["sana"], SANA)
    pipeline = pipeline_of("SANA", made["sana"])
    with torch.no_grad():
        tokens, mask, null, null_mask = pipeline.encode_prompt(
            PROMPTS, device="cpu", complex_human_instruction=TOLD.split("\n")
        )
    text = SANA_PROMPTS.load_text(made["sana"], "cpu", "float32", SANA)
    found, empty = SANA.unpack(text.embed(PROMPTS)), SANA.unpack(text.null()[None])
    for place in (0, 2):
        close(found.tokens[place], tokens[place])
        assert torch.equal(found.mask[place], mask[place].float())
    close(empty.tokens[0], null[0])
    assert torch.equal(empty.mask[0], null_mask[0].float())
    assert torch.equal(found.tokens[1], empty.tokens[0])
    assert not torch.allclose(tokens[1], null[1])
    assert found.mask.sum(1).tolist() == [*mask.sum(1).tolist()[:1], 1, 300]


def test_layouts_of_folders_are_the_published_ones(made, folders):
    for prompts, name, layout in ((SD3_PROMPTS, "sd3", SD3), (FLUX_PROMPTS, "flux", FLUX),
                                  (SANA_PROMPTS, "sana", SANA)):  # fmt: skip
        assert prompts.layout_of(made[name]) == layout
        assert prompts.load_text(made[name]).null().shape == layout.shape
    shutil.rmtree(folders["sd3"] / "text_encoder_3")
    assert SD3_PROMPTS.layout_of(folders["sd3"]) == PromptLayout(154, 4096, sum(CLIP_WIDTHS))


def test_the_instruction_is_the_librarys_own():
    found = INSTRUCTION()
    assert found.count("\n") > 3 and found.endswith(": ")


def test_half_precision_is_bfloat16_and_the_same_from_disk(made):
    first = SANA_PROMPTS.load_text(made["sana"], "cpu", "float16", SANA)
    rows = first.embed(PROMPTS)
    assert torch.equal(rows, rows.bfloat16().float())
    assert {p.dtype for p in loaded(first).parameters()} == {torch.bfloat16}
    again = SANA_PROMPTS.load_text(made["sana"], "cpu", "float16", SANA)
    again.open_encoders = None  # must not be asked for
    assert torch.equal(again.embed(PROMPTS), rows)
    whole = SANA_PROMPTS.load_text(made["sana"], "cpu", "float32", SANA).embed(PROMPTS)
    assert not torch.equal(whole, rows) and torch.allclose(whole, rows, atol=0.2)


def loaded(text) -> torch.nn.Module:
    """The module inside the function that encodes."""
    inner = dict(zip(text.encoders.__wrapped__.__code__.co_freevars,
                     text.encoders.__wrapped__.__closure__, strict=True))  # fmt: skip
    rows = inner["rows"].cell_contents
    names = dict(zip(rows.__code__.co_freevars, rows.__closure__, strict=True))
    return names["gemma"].cell_contents.encoder


def test_rows_belong_to_their_encoders(folders):
    """Another tokenizer, another layout: other rows, not those on the disk."""

    def making(layout: PromptLayout = SANA) -> str:
        return SANA_PROMPTS.making(folders["sana"], "cpu", torch.float32, layout)

    first = making()
    path = folders["sana"] / "tokenizer" / "tokenizer_config.json"
    assert making() == first
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": 9}))
    assert len({first, making(), making(PromptLayout(200, GEMMA_WIDTH, masked=True))}) == 3


@pytest.mark.parametrize(
    ("name", "gone", "message"),
    [
        ("sd3", "text_encoder_2", r"no CLIPTextModelWithProjection in .*text_encoder_2: config.js"),
        ("sd3", "tokenizer_3", r"no tokenizer in .*tokenizer_3: tokenizer.json is missing"),
        ("sd3", "text_encoder_3/model.safetensors", r"no weights in .*text_encoder_3"),
        ("flux", "text_encoder_2", r"no T5EncoderModel in .*text_encoder_2: config.json is"),
        ("flux", "tokenizer/merges.txt", r"no tokenizer in .*merges.txt is missing"),
        ("sana", "text_encoder", r"no Gemma2Model or Gemma2ForCausalLM in .*text_encoder: config"),
        ("sana", "tokenizer", r"no tokenizer in .*tokenizer: tokenizer.json is missing"),
    ],
)  # fmt: skip
def test_a_missing_part_is_named(folders, name, gone, message):
    path = folders[name] / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    prompts, layout = {"sd3": (SD3_PROMPTS, SD3), "flux": (FLUX_PROMPTS, FLUX),
                       "sana": (SANA_PROMPTS, SANA)}[name]  # fmt: skip
    with pytest.raises(UserError, match=message) as caught:
        prompts.check(folders[name], layout)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("prompts", "name", "layout", "message"),
    [
        (SD3_PROMPTS, "sd3", PromptLayout(154, 40, 99), "pooled embeddings of width 32, .* 99:"),
        (SD3_PROMPTS, "sd3", PromptLayout(77, 40, 32), "reads 77 tokens, the CLIP in .* 77: set"),
        (SD3_PROMPTS, "sd3", PromptLayout(154, 20, 32), "embeddings of width 32, .* reads 20:"),
        (SD3_PROMPTS, "sd3", PromptLayout(154, 64, 32), "embeddings of width 40, .* reads 64:"),
        (FLUX_PROMPTS, "flux", PromptLayout(512, 40, 99), "pooled embeddings of width 12, .* 99:"),
        (FLUX_PROMPTS, "flux", PromptLayout(512, 64, 12), "embeddings of width 40, .* reads 64:"),
        (SANA_PROMPTS, "sana", PromptLayout(300, 64), "embeddings of width 24, .* reads 64:"),
        (
            FLUX_PROMPTS,
            "sd3",
            FLUX,
            "describes CLIPTextModelWithProjection, expected CLIPTextModel",
        ),
        (SANA_PROMPTS, "flux", SANA, "describes CLIPTextModel, expected Gemma2Model"),
    ],
)
def test_other_encoders_are_refused(made, prompts, name, layout, message):
    with pytest.raises(UserError, match=message) as caught:
        prompts.check(made[name], layout)
    assert "\n" not in str(caught.value)


def test_files_of_the_language_model_and_of_one_name_load(made, folders):
    from safetensors.torch import load_file, save_file

    path = folders["sana"] / "text_encoder" / "model.safetensors"
    weights = {f"model.{name}": value for name, value in load_file(path).items()}
    save_file(weights | {"lm_head.weight": torch.zeros(3, GEMMA_WIDTH)}, path)
    config = path.with_name("config.json")
    config.write_text(config.read_text().replace("Gemma2Model", "Gemma2ForCausalLM"))
    path = folders["flux"] / "text_encoder_2" / "model.safetensors"
    weights = load_file(path)
    twin = weights.pop("shared.weight", None)
    save_file({"encoder.embed_tokens.weight": twin} | weights, path)
    for prompts, name, layout in ((SANA_PROMPTS, "sana", SANA), (FLUX_PROMPTS, "flux", FLUX)):
        prompts.check(folders[name], layout)
        found, expected = (
            prompts.open(at[name], "cpu", torch.float32, layout)(PROMPTS[:1])
            for at in (folders, made)
        )
        assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("name", "prompts", "network"),
    [
        ("sd3", SD3_PROMPTS, {"joint_attention_dim": T5_WIDTH, "text_tokens": 100,
                              "pooled_projection_dim": sum(CLIP_WIDTHS)}),
        ("flux", FLUX_PROMPTS, {"joint_attention_dim": T5_WIDTH, "pooled_projection_dim": 12}),
        ("sana", SANA_PROMPTS, {"caption_channels": GEMMA_WIDTH, "text_tokens": 40}),
    ],
)  # fmt: skip
def test_families_read_their_folders(made, name, prompts, network):
    family = family_of_text(made[name])
    assert (family.name, family.prompts()) == (name, prompts)
    assert (prompts.parts, prompts.classes) == (family.text_parts, family.text_classes)
    family.check_text(network, made[name])
    text = family.load_text(made[name], network=network)
    assert text.embed(["a red dog"]).shape[1:] == family.text_shape(network)
    with pytest.raises(UserError, match=r"embeddings of width \d+, the network reads"):
        family.check_text({}, made[name])
