"""Tiny text encoders in the layout of pipelines' folders: CLIP, T5 and Gemma-2, with tokenizers.

Random weights under a fixed seed, from configs; tokenizers are built of a few words.
"""

from __future__ import annotations

import string
from pathlib import Path

import torch

from tests.denoisers.tiny_pipeline import END, START, WORDS, write_tokenizer

CLIP_WIDTHS = (12, 20)  # of the two CLIPs of three encoders
T5_WIDTH = 40
GEMMA_WIDTH = 24


def write_clip(
    folder: Path, number: int = 1, width: int = 12, projection: int = 0, pad: str = END
) -> None:
    """text_encoder and tokenizer, or the parts of a ``number``; with a projection of a width."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    ending = "" if number == 1 else f"_{number}"
    vocabulary = write_tokenizer(folder / f"tokenizer{ending}", pad)
    config = CLIPTextConfig(
        vocab_size=len(vocabulary),
        hidden_size=width,
        intermediate_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=77,
        projection_dim=projection or 512,
        bos_token_id=vocabulary[START],
        eos_token_id=vocabulary[END],
    )
    torch.manual_seed(number)
    made = CLIPTextModelWithProjection if projection else CLIPTextModel
    spread(made(config)).save_pretrained(folder / f"text_encoder{ending}")


def write_t5(folder: Path, number: int, width: int = T5_WIDTH) -> None:
    """text_encoder_N and tokenizer_N."""
    from transformers import T5Config, T5EncoderModel, T5TokenizerFast

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(f"▁{word}", -1.0) for word in WORDS] + [(c, -4.0) for c in string.ascii_lowercase]
    tokenizer = T5TokenizerFast(vocab=pieces, extra_ids=0, model_max_length=512)
    tokenizer.save_pretrained(folder / f"tokenizer_{number}")
    config = T5Config(
        vocab_size=len(pieces),
        d_model=width,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=2,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
    )
    torch.manual_seed(number)
    spread(T5EncoderModel(config)).save_pretrained(folder / f"text_encoder_{number}")


def write_gemma(folder: Path, width: int = GEMMA_WIDTH) -> None:
    """text_encoder and tokenizer."""
    from tokenizers.processors import TemplateProcessing
    from transformers import Gemma2Config, Gemma2Model, GemmaTokenizerFast

    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    tokens = [*special, "▁", *string.ascii_letters, *string.digits, *".,:;'-\n>", "▁a"]
    tokens += [f"<0x{byte:02X}>" for byte in range(256)]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = GemmaTokenizerFast(vocab=vocabulary, merges=[("▁", "a")])
    begin = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", vocabulary["<bos>"])])
    tokenizer.backend_tokenizer.post_processor = begin
    tokenizer.save_pretrained(folder / "tokenizer")
    config = Gemma2Config(
        vocab_size=len(vocabulary),
        hidden_size=width,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        query_pre_attn_scalar=8,
    )
    torch.manual_seed(0)
    spread(Gemma2Model(config)).save_pretrained(folder / "text_encoder")


def write_three_encoders(folder: Path, t5: bool = True) -> None:
    """Two CLIPs with projections and a T5, as SD3 has them; or without the T5."""
    for number, width in enumerate(CLIP_WIDTHS, start=1):
        write_clip(folder, number, width, projection=width, pad=END if number == 1 else "!")
    if t5:
        write_t5(folder, 3)


def write_two_encoders(folder: Path) -> None:
    """A CLIP and a T5, as FLUX has them."""
    write_clip(folder)
    write_t5(folder, 2)


def spread(model: torch.nn.Module) -> torch.nn.Module:
    """Weights larger than a library's first ones, so that words are told apart."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.3)
    return model.eval()
