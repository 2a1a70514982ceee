"""What pipelines take from CLIP, against transformers' own model."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("diffusers")

from sid_ray.denoisers.clip_states import clip_states, clip_widths
from sid_ray.errors import UserError
from tests.denoisers.tiny_pipeline import END
from tests.denoisers.tiny_text import CLIP_WIDTHS, write_clip, write_three_encoders

PROMPTS = ["a photo of a red dog", "", "a " * 100]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    write_three_encoders(folder, t5=False)
    write_clip(folder, 4, 12)
    return folder


@pytest.mark.parametrize(("part", "projected"), [("_2", True), ("_4", False)])
def test_states_are_transformers_own(made, part, projected):
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(made / f"tokenizer{part}")
    kind = CLIPTextModelWithProjection if projected else CLIPTextModel
    model = kind.from_pretrained(made / f"text_encoder{part}").eval()
    options = {"padding": "max_length", "max_length": 77, "truncation": True}
    tokens = tokenizer(PROMPTS, return_tensors="pt", **options).input_ids
    with torch.no_grad():
        expected = model(tokens, output_hidden_states=True)
    found = clip_states(made, f"text_encoder{part}")(PROMPTS)
    assert torch.equal(found.last, expected.last_hidden_state)
    assert torch.equal(found.penultimate, expected.hidden_states[-2])
    assert not torch.allclose(found.penultimate, found.last)
    ends = (tokens == tokenizer.eos_token_id).int().argmax(1)
    assert torch.equal(found.pooled, found.last[torch.arange(3), ends])
    assert len(found.pooled.unique(dim=0)) == 3
    if projected:
        assert torch.equal(found.projected, expected.text_embeds)
    else:
        assert found.projected is None


def test_half_precision_computes_in_it_and_returns_float32(made):
    half, whole = clip_states(made, precision="bfloat16")(PROMPTS), clip_states(made)(PROMPTS)
    for found, expected in zip(half, whole, strict=True):
        assert found.dtype == torch.float32
        assert torch.equal(found, found.bfloat16().float())
        assert 0 < (found - expected).abs().max() < 0.1 * expected.abs().max()


def test_widths_are_told_and_a_projection_can_be_asked_for(made):
    assert clip_widths(made, "text_encoder_2") == (CLIP_WIDTHS[1], 77, CLIP_WIDTHS[1])
    assert clip_widths(made, "text_encoder_4") == (12, 77, 0)
    with pytest.raises(UserError, match=r"CLIPTextModel, expected CLIPTextModelWithProjection"):
        clip_widths(made, "text_encoder_4", projected=True)
    with pytest.raises(UserError, match=r"no CLIPTextModel in .*text_encoder_3: config.json is mi"):
        clip_widths(made, "text_encoder_3")


def test_older_files_and_other_tokenizers_are_told(made, tmp_path):
    folder = shutil.copytree(made, tmp_path / "copy")
    path = folder / "text_encoder_2" / "model.safetensors"
    weights = load_file(path) | {"text_model.embeddings.position_ids": torch.arange(77)[None]}
    save_file(weights, path)
    found, expected = (clip_states(at, "text_encoder_2")(["a cat"]) for at in (folder, made))
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    shutil.rmtree(folder / "tokenizer_2")
    with pytest.raises(UserError, match=r"no tokenizer in .*tokenizer_2: vocab.json is missing"):
        clip_widths(folder, "text_encoder_2")


def test_each_tokenizer_pads_with_its_own_token(made, tmp_path):
    write_clip(tmp_path, pad="!")
    write_clip(tmp_path, 2, pad=END)
    shutil.rmtree(tmp_path / "text_encoder_2")
    shutil.copytree(tmp_path / "text_encoder", tmp_path / "text_encoder_2")
    first, second = (
        clip_states(tmp_path, p)(["a cat"]).last for p in ("text_encoder", "text_encoder_2")
    )
    assert torch.equal(first[:, :4], second[:, :4]) and not torch.equal(first[:, 5], second[:, 5])
