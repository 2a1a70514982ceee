"""Why lists of people are not read by pyarrow: what its readers make of them, and what ours say.

The day one of these fails, that reader has become stricter: then it may take ours' place.
"""

import io

import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pytest

from sid_ray.data.annotations import read_annotations
from sid_ray.errors import UserError

HEAD = b"file_name,text\n"


def by_pyarrow(data: bytes) -> list[dict]:
    """All columns as text, texts with line ends: the settings that are nearest to ours."""
    reader = pyarrow.csv.read_csv if data.startswith(b"file") else pyarrow.json.read_json
    options = {}
    if reader is pyarrow.csv.read_csv:
        types = dict.fromkeys(("file_name", "text", "label"), pa.string())
        options = {
            "read_options": pyarrow.csv.ReadOptions(use_threads=False),  # else rows have no numbers
            "parse_options": pyarrow.csv.ParseOptions(newlines_in_values=True),
            "convert_options": pyarrow.csv.ConvertOptions(column_types=types),
        }
    return reader(io.BytesIO(data), **options).to_pylist()


@pytest.mark.parametrize(
    ("data", "theirs", "ours"),
    [
        (HEAD + b'a.png,"x\nb.png,y\n', [{"file_name": "a.png", "text": "x\nb.png,y\n"}], "line 3"),
        (HEAD + b'a.png,"x"y\n', [{"file_name": "a.png", "text": "xy"}], "line 2"),
        (
            HEAD + b"a.png,x\rb.png,y\n",
            [{"file_name": "a.png", "text": "x"}, {"file_name": "b.png", "text": "y"}],
            "line 2: a carriage return alone",
        ),
        (
            b"file_name,text,text\na.png,x,y\n",
            [{"file_name": "a.png", "text": "y"}],
            "line 1: two columns of one name",
        ),
    ],
)
def test_a_table_that_says_nothing_clear(data, theirs, ours):
    assert by_pyarrow(data) == theirs
    with pytest.raises(UserError, match=ours):
        read_annotations("metadata.csv", data, "m")


def test_a_row_that_is_too_long_is_named_by_its_line():
    data = HEAD + b'a.png,"x\ny\nz"\n\nb.png,y,z\n'
    with pytest.raises(pa.ArrowInvalid, match="Row #3"):
        by_pyarrow(data)
    with pytest.raises(UserError, match="line 6: 3 columns, 2 are expected"):
        read_annotations("metadata.csv", data, "m")


def test_captions_that_look_like_times_stay_captions():
    data = b'{"file_name": "a", "text": "2020-01-01"}\n'
    assert not isinstance(by_pyarrow(data)[0]["text"], str)
    assert read_annotations("metadata.jsonl", data, "m").prompts == {"a": "2020-01-01"}


def test_labels_of_two_kinds_are_kept_for_a_message_that_names_both():
    data = b'{"file_name": "a", "label": 1}\n{"file_name": "b", "label": "x"}\n'
    with pytest.raises(pa.ArrowInvalid, match="changed from number to string"):
        by_pyarrow(data)
    assert read_annotations("metadata.jsonl", data, "m").labels == {"a": 1, "b": "x"}


def test_a_list_of_files_and_labels_alone_has_no_header():
    found = read_annotations("labels.csv", b"a.png,1\nb.png,2\n", "m")
    assert found.labels == {"a.png": "1", "b.png": "2"}
    with pytest.raises(UserError, match="line 1: 3 columns, file and label are expected"):
        read_annotations("labels.csv", b"a.png,1,x\n", "m")
