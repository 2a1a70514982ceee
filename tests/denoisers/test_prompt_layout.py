"""A prompt packed into one tensor comes back as it was."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sid_ray.denoisers.prompt_layout import Prompt, PromptLayout


@given(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9), st.integers(0, 40), st.booleans())
def test_what_is_packed_comes_back(count, tokens, width, pooled, masked):
    layout = PromptLayout(tokens, width, pooled, masked)
    prompt = Prompt(
        torch.randn(count, tokens, width),
        torch.randn(count, pooled) if pooled else None,
        torch.randint(2, (count, tokens)).float() if masked else None,
    )
    packed = layout.pack(prompt)
    assert packed.shape == (count, *layout.shape)
    for found, expected in zip(layout.unpack(packed), prompt, strict=True):
        assert found is expected is None or torch.equal(found, expected)


def test_tokens_alone_are_themselves():
    tokens = torch.randn(2, 3, 4)
    assert torch.equal(PromptLayout(3, 4).pack(Prompt(tokens)), tokens)


def test_another_layout_is_refused():
    with pytest.raises(ValueError, match=r"a prompt of .* expected"):
        PromptLayout(3, 4, pooled=2).pack(Prompt(torch.zeros(1, 3, 4)))
    with pytest.raises(ValueError, match=r"prompts \[1, 3, 4\], expected"):
        PromptLayout(3, 4, pooled=2).unpack(torch.zeros(1, 3, 4))
