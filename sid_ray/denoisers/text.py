"""Prompts to token embeddings, each prompt encoded once.

Symbols
    B, T, D   prompts, tokens a prompt (77), width of an embedding (768 or 1024)
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Tokenize = Callable[[Sequence[str]], Any]  # prompts -> token ids [B, T], padded and truncated
Encode = Callable[[Any], Tensor]  # what that returns -> embeddings [B, T, D]
Tell = Callable[[str], None]  # a line for a person


def say_aside(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class TextEmbeddings:
    """A bounded cache of prompt embeddings in front of a tokenizer and a text encoder.

    The encoder always sees ``batch`` prompts, filled up with the empty one: a matrix product of
    another size rounds otherwise, and a prompt's embedding must not depend on which others were
    missing from the cache. The least recently used prompts leave first; the empty prompt, which
    guidance needs at every step, never does.

    Args:
        tokenize, encode: the two halves; they own their device.
        max_prompts: how many embeddings are kept beside it (1,024 of 77 x 768 float32 are 231 MiB).
        batch: prompts an encoder call.
        store: the device that keeps the embeddings; the encoder's own when None.
    """

    def __init__(
        self,
        tokenize: Tokenize,
        encode: Encode,
        max_prompts: int = 1024,
        batch: int = 8,
        store: torch.device | str | None = None,
    ):
        if max_prompts < 1 or batch < 1:
            raise ValueError(f"max_prompts {max_prompts} and batch {batch} must be at least 1")
        self.tokenize, self.encode = tokenize, encode
        self.max_prompts, self.batch, self.store = max_prompts, batch, store
        self.kept: OrderedDict[str, Tensor] = OrderedDict()

    def embed(self, prompts: Sequence[str]) -> Tensor:
        """Prompts -> [B, T, D], on the device that stores them."""
        wanted = [p for p in dict.fromkeys(prompts) if p] + [""]
        self.kept |= self._encode([p for p in wanted if p not in self.kept])
        for prompt in wanted:  # the empty one last: it is never the oldest
            self.kept.move_to_end(prompt)
        rows = [self.kept[prompt] for prompt in prompts]
        while len(self.kept) > self.max_prompts + 1:
            self.kept.popitem(last=False)
        return torch.stack(rows) if rows else self.kept[""].new_zeros(0, *self.kept[""].shape)

    def null(self) -> Tensor:
        """The empty prompt's embedding [T, D]."""
        return self.embed([""])[0]

    def prepare(self, prompts: Sequence[str], more: int = 0, tell: Tell = say_aside) -> None:
        """Told which prompts will be asked for, before networks need the memory, and how many more
        at most that are not known yet; ``tell`` hears what a person should know. Nothing to do
        here: the encoder stays.
        """

    @torch.no_grad()
    def _encode(self, prompts: list[str]) -> dict[str, Tensor]:
        """Every prompt once, ``batch`` at a time."""
        found: dict[str, Tensor] = {}
        for start in range(0, len(prompts), self.batch):
            chunk = prompts[start : start + self.batch]
            padded = chunk + [""] * (self.batch - len(chunk))
            embeddings = self.encode(self.tokenize(padded))
            if self.store is not None:
                embeddings = embeddings.to(self.store)
            # A row of its own: a view would keep the whole batch alive in the cache.
            found |= {p: row.clone() for p, row in zip(chunk, embeddings, strict=False)}
        return found
