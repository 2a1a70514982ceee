"""Prompts of a .jsonl, as benchmarks publish them."""

from __future__ import annotations

import json

import pytest

from sid_ray.commands.generate_options import GenerateOptions
from sid_ray.data.prompts import prompts_of, read_prompts
from sid_ray.errors import UserError

LINES = [
    {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a bench"},
    {"tag": "counting", "include": [{"class": "cup", "count": 2}], "prompt": "two cups"},
]


def test_the_prompts_of_genevals_file_in_its_order(tmp_path):
    path = tmp_path / "evaluation_metadata.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    assert read_prompts(str(path)) == ("a bench", "two cups")
    assert GenerateOptions("x", prompts=path).texts() == ("a bench", "two cups")


def test_a_caption_is_taken_first_and_another_field_where_it_is_asked_for():
    data = b'{"caption": "one", "prompt": "two", "long": "three"}\n'
    assert prompts_of(data, ".jsonl", "x").prompts == ["one"]
    assert prompts_of(data, ".JSONL", "x", "long").prompts == ["three"]


@pytest.mark.parametrize(
    ("line", "what"),
    [
        (b"a cat", "line 2 is not JSON"),
        (b'"a cat"', "line 2: expected an object"),
        (b'{"text": "a cat"}', "line 2: no column 'prompt or caption'; it has text"),
        (b'{"prompt": 3}', "line 2: expected a text, found 3"),
        (b'{"prompt": null}', "line 2: expected a text, found None"),
    ],
)
def test_a_line_without_a_prompt_is_refused_by_its_number(line, what):
    with pytest.raises(UserError, match=what):
        prompts_of(b'{"prompt": "a dog"}\n' + line + b"\n", ".jsonl", "x.jsonl")
