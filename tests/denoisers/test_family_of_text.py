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
