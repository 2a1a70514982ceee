"""Which family reads the text encoders of a folder, told by their classes."""

from __future__ import annotations

import json

import pytest

from sid_ray.denoisers.registry import family_of_text
from sid_ray.errors import UserError


def write(folder, **classes: str) -> None:
    for part, name in classes.items():
        path = folder / part / "config.json" if part != "alone" else folder / "config.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"architectures": [name]}))


@pytest.mark.parametrize("part", ["text_encoder", "alone"])
def test_a_clip_is_stable_diffusions(tmp_path, part):
    write(tmp_path, **{part: "CLIPTextModel"})
    assert family_of_text(tmp_path).name == "stable-diffusion"


@pytest.mark.parametrize("part", ["text_encoder", "alone"])
@pytest.mark.parametrize("name", ["Gemma2Model", "Gemma2ForCausalLM"])
def test_files_of_the_language_model_are_sanas_too(tmp_path, part, name):
    """A config may name the language model whose file holds the encoder."""
    write(tmp_path, **{part: name})
    assert family_of_text(tmp_path).name == "sana"


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        ({}, "none"),
        ({"text_encoder": "BertModel"}, "text_encoder BertModel"),
        ({"text_encoder_2": "CLIPTextModel"}, "none|text_encoder_2 CLIPTextModel"),
    ],
)
def test_others_are_refused(tmp_path, classes, said):
    write(tmp_path, **classes)
    with pytest.raises(UserError, match=rf"reads the text encoders in .*: ({said})$"):
        family_of_text(tmp_path)


def test_memory_of_encoders_that_stay_and_of_those_that_leave(tmp_path):
    pytest.importorskip("transformers")
    from sid_ray.config.distill_config import replace
    from sid_ray.denoisers.clip_text import CACHE_BYTES
    from sid_ray.recipes.known_networks import text_bytes
    from sid_ray.recipes.registry import recipe
    from tests.denoisers.tiny_text import write_clip, write_gemma

    write_clip(tmp_path / "small")
    write_gemma(tmp_path / "large")
    (tmp_path / "none").mkdir()

    def counted(name: str) -> int:
        return text_bytes(replace(recipe("emoji-lsg"), teacher__text_encoder=str(tmp_path / name)))

    size = (tmp_path / "small" / "text_encoder" / "model.safetensors").stat().st_size
    assert CACHE_BYTES + 0.8 * size < counted("small") < CACHE_BYTES + size
    assert (counted("large"), counted("none")) == (CACHE_BYTES, 0)


def test_memory_of_large_encoders_whose_prompts_have_no_room(tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    from sid_ray.config.distill_config import replace
    from sid_ray.denoisers.clip_text import CACHE_BYTES
    from sid_ray.denoisers.stored_text import CAP
    from sid_ray.recipes.known_networks import FLOW, text_bytes
    from sid_ray.recipes.registry import recipe
    from tests.denoisers.tiny_text import write_gemma

    write_gemma(tmp_path / "gemma")
    size = (tmp_path / "gemma" / "text_encoder" / "model.safetensors").stat().st_size
    (tmp_path / "prompts.txt").write_text("".join(f"prompt {i}\n" for i in range(100)))
    source, (*_, count) = next(item for item in FLOW.items() if item[1][0] == "flux")
    prompts = {"data__name": "prompts", "data__source": str(tmp_path / "prompts.txt")}
    config = replace(recipe("emoji-lsg"), **prompts, training__precision="bfloat16")
    here = replace(config, teacher__text_encoder=str(tmp_path / "gemma"))
    published = replace(config, teacher__source=f"hf://{source}")
    row = 2 * 513 * 4096  # 768 pooled numbers are in a row of their own

    def room_for(rows: float) -> None:
        monkeypatch.setenv(CAP, str(rows * row / 2**30))

    room_for(102)
    assert (text_bytes(here), text_bytes(published)) == (CACHE_BYTES, CACHE_BYTES)
    room_for(100)
    assert text_bytes(published) == CACHE_BYTES + 2 * count
    wide = replace(published, training__precision="float32")
    assert text_bytes(wide) == CACHE_BYTES + 4 * count
    room_for(0.001)
    assert CACHE_BYTES + 0.4 * size < text_bytes(here) < CACHE_BYTES + 0.6 * size
    unknown = replace(published, data__source="s3://bucket/set")
    assert text_bytes(unknown) == CACHE_BYTES
    room_for(0)  # keeps none, so they always stay
    assert text_bytes(unknown) == CACHE_BYTES + 2 * count
