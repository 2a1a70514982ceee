"""One reader of text: the same file holds the same lines for every command."""

import ast
import json
from pathlib import Path

import pytest

import sid_ray
from sid_ray.data.annotations import read_annotations
from sid_ray.data.ingest import open_samples
from sid_ray.data.left_out import account_lines
from sid_ray.data.options import PrepareOptions
from sid_ray.data.prompts import read_prompts
from sid_ray.errors import UserError
from sid_ray.storage.durable import append_line, read_values
from sid_ray.storage.text_lines import json_lines, lines_in, numbered_lines, read_text, text_of

# What str.splitlines takes for the end of a line, and is none.
OTHER_ENDS = ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\r"]


@pytest.mark.parametrize("end", OTHER_ENDS, ids=ascii)
def test_a_line_ends_at_lf_or_crlf_and_nowhere_else(end, tmp_path):
    lines = ["a red heart", f"b{end}c", "d"]
    assert lines_in("\n".join(lines)) == lines
    assert lines_in("\r\n".join(lines) + "\r\n") == lines
    path = tmp_path / "p.txt"
    path.write_bytes("\n".join(lines).encode())
    prepared = open_samples(PrepareOptions(str(path), "x", shuffle=False)).prompts
    assert list(read_prompts(str(path))) == list(prepared) == lines
    text = json.dumps({"file_name": "a.png", "text": f"b{end}c"}, ensure_ascii=False)
    assert read_annotations("metadata.jsonl", text.encode(), "m").prompts == {"a.png": f"b{end}c"}


def test_lines_of_a_sweep_end_where_they_were_written(tmp_path):
    path = tmp_path / "lines.jsonl"
    append_line(path, {"why": "a"})
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"why": "b\u2028c"}, ensure_ascii=False) + '\n{"half')
    assert read_values(path) == [{"why": "a"}, {"why": "b\u2028c"}]


def test_a_byte_order_mark_is_no_text(tmp_path):
    mark = b"\xef\xbb\xbf"
    path = tmp_path / "p.txt"
    path.write_bytes(mark + b"a cat\n" + mark + b"a dog\n")  # two files put together
    assert read_prompts(str(path)) == ("a cat", "a dog")
    assert read_text(path).startswith("a cat")
    assert list(json_lines(mark + b'{"a": 1}\n', "x")) == [(1, {"a": 1})]
    listed = read_annotations("metadata.csv", mark + b"file_name,text\na.png,x\n", "m")
    assert listed.prompts == {"a.png": "x"}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"a\nb\xff\n", "p.txt, line 2: not UTF-8 (byte 0xff)"),
        ("a\nKäfer".encode("latin-1"), "p.txt, line 2: not UTF-8 (byte 0xe4)"),
        ("a cat".encode("utf-16"), "p.txt, line 1: UTF-16, not UTF-8"),
        ("a cat".encode("utf-32"), "p.txt, line 1: UTF-32, not UTF-8"),
        ("a cat".encode("utf-16-le"), "p.txt, line 1: a zero byte"),
        (b"a cat\ra dog\r", "carriage return alone"),
        (b"", "holds no prompts"),
        (b"x\n" + b"a" * 10_001, "line 2: 10,001 characters"),
    ],
)
def test_what_is_no_text_is_refused_with_its_line(data, words, tmp_path):
    path = tmp_path / "p.txt"
    path.write_bytes(data)
    with pytest.raises(UserError) as caught:
        read_prompts(str(path))
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_places_that_hold_no_text(tmp_path):
    for name in (tmp_path, tmp_path / "none", "a\0b"):
        with pytest.raises(UserError):
            read_prompts(str(name))
    with pytest.raises(UserError, match="line 3 is not JSON"):
        list(json_lines(b"1\n2\n{\n", "x"))
    with pytest.raises(UserError, match="line 1 is not JSON"):
        list(json_lines(b"[" * 100_000, "x"))


def test_a_table_is_a_table_for_every_command(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text('id,caption\n1,"a cat, asleep"\n2,\n3,"two\nlines"\n')
    assert read_prompts(str(path)) == ("a cat, asleep", "two\nlines")
    path.write_text("id,text\n1,a cat\n")
    with pytest.raises(UserError, match="no column 'caption'; it has id, text"):
        read_prompts(str(path))
    path.write_text("caption\na cat\na cat, asleep\n")
    with pytest.raises(UserError, match="line 3: 2 columns, 1 are expected: a text with commas"):
        read_prompts(str(path))
    path.write_text("id,caption\n1,x\n2,\n")
    found = open_samples(PrepareOptions(str(path), "x"))
    assert account_lines(found.account, ()) == [
        "not used    1 empty in column caption, 1 column (id)"
    ]


def test_half_a_character_is_refused():
    text = b'{"file_name": "a.png", "text": "\\ud800"}'
    with pytest.raises(UserError, match="lone surrogate"):
        read_annotations("metadata.jsonl", text, "m")


def test_numbers_are_those_of_the_file():
    assert numbered_lines(b"\n a\n\n b", "x") == [(2, " a"), (4, " b")]
    assert text_of(b"", "x") == "" and lines_in("") == [] and lines_in("\n") == [""]


MESSAGES = {  # lines of what a library or a process said, shown to a person
    "serving/health",
    "actors/pool", "actors/nodes", "actors/trainer", "actors/scaling", "jobs/client",
    "jobs/cluster", "jobs/submit", "tracking/history", "tracking/mlflow_run", "commands/arguments",
    "sweep/yaml_lines", "commands/ui", "commands/driver", "data/pipeline", "ray_setup/start",
    "actors/signals", "commands/benching/rank", "commands/device/apart", "commands/device/facts",
    "commands/device/ranks", "commands/device/snapshots", "device/found",
    "exporting/compared",
}  # fmt: skip


def test_no_file_is_read_by_other_lines():
    """splitlines stands where the text is a message, and nowhere that a file is read."""
    package = Path(sid_ray.__file__).parent
    found = set()
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr in ("splitlines", "readlines"):
                found.add(path.relative_to(package).with_suffix("").as_posix())
    assert found <= MESSAGES
