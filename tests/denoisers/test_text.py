"""The prompt cache, with a tokenizer and an encoder that only count."""

from __future__ import annotations

import pytest
import torch

from sid_ray.denoisers.text import TextEmbeddings


class Fake:
    """Embeds a prompt as its length and the position in the batch it came with."""

    def __init__(self):
        self.batches: list[list[str]] = []

    def tokenize(self, prompts):
        self.batches.append(list(prompts))
        return torch.tensor([[len(p)] for p in prompts])

    def encode(self, tokens):
        return tokens[:, :, None].float().expand(-1, 3, 2)

    def embeddings(self, **options) -> TextEmbeddings:
        return TextEmbeddings(self.tokenize, self.encode, **options)


def test_each_prompt_is_encoded_once_in_full_batches():
    fake = Fake()
    text = fake.embeddings(batch=2)
    rows = text.embed(["aaa", "b", "aaa", ""])
    assert rows.shape == (4, 3, 2)
    assert rows[:, 0, 0].tolist() == [3, 1, 3, 0]
    assert fake.batches == [["aaa", "b"], ["", ""]]
    text.embed(["b", "cc", "aaa"])
    assert fake.batches[2:] == [["cc", ""]]
    assert text.null().shape == (3, 2)
    assert len(fake.batches) == 3


def test_the_least_recently_used_prompt_leaves_first_and_the_empty_one_never():
    fake = Fake()
    text = fake.embeddings(max_prompts=2, batch=1)
    text.embed(["a", "bb"])
    text.embed(["a"])
    text.embed(["ccc"])  # bb leaves
    fake.batches.clear()
    text.embed(["a", "ccc", ""])
    assert fake.batches == []
    text.embed(["bb"])
    assert fake.batches == [["bb"]]


def test_more_prompts_at_once_than_are_kept():
    fake = Fake()
    text = fake.embeddings(max_prompts=2, batch=4)
    prompts = ["x" * n for n in range(1, 8)]
    assert text.embed(prompts)[:, 0, 0].tolist() == list(range(1, 8))
    assert sorted(text.kept) == ["", "x" * 6, "x" * 7]


def test_kept_embeddings_hold_no_batch_alive_and_no_graph():
    fake = Fake()
    weight = torch.ones(1, requires_grad=True)
    text = TextEmbeddings(fake.tokenize, lambda tokens: fake.encode(tokens) * weight)
    assert not text.embed(["a"]).requires_grad
    assert text.kept["a"].untyped_storage().nbytes() == 3 * 2 * 4


def test_no_prompts_and_no_room():
    text = Fake().embeddings(store="cpu")
    assert text.embed([]).shape == (0, 3, 2)
    with pytest.raises(ValueError, match="max_prompts 0 and batch 8"):
        Fake().embeddings(max_prompts=0)
