"""Embeddings on disk: made once, read as they were made, bounded; and encoders that leave."""

from __future__ import annotations

import os
import shutil
import threading
import weakref
from collections.abc import Sequence

import pytest
import torch

from sid_ray.denoisers import stored_text
from sid_ray.denoisers.stored_text import QUIET_CALLS, PromptFolder, StoredEmbeddings
from sid_ray.errors import UserError

SHAPE = (3, 2)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SID_RAY_CACHE", str(tmp_path))
    monkeypatch.delenv(stored_text.CAP, raising=False)
    return tmp_path / "prompts"


class Encoders:
    """Thirds of the prompt's length and its last letter: numbers that bfloat16 rounds."""

    def __init__(self, made: Fake):
        self.made = made

    def __call__(self, prompts: Sequence[str]) -> torch.Tensor:
        self.made.calls.append(list(prompts))
        rows = [[len(p) / 3, ord(p[-1]) / 3 if p else 0.0] for p in prompts]
        return torch.tensor(rows)[:, None].expand(-1, *SHAPE)


class Fake:
    """Counts how often encoders were opened, and knows whether they are alive."""

    def __init__(self, dtype: torch.dtype = torch.float32, making: str = "one"):
        self.dtype, self.making = dtype, making
        self.opened: list[weakref.ref] = []
        self.calls: list[list[str]] = []

    def open(self) -> Encoders:
        made = Encoders(self)
        self.opened.append(weakref.ref(made))
        return made

    @property
    def alive(self) -> int:
        return sum(found() is not None for found in self.opened)

    def text(self, **options) -> StoredEmbeddings:
        folder = PromptFolder(self.making, SHAPE, self.dtype)
        return StoredEmbeddings(self.open, lambda: folder, batch=2, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_numbers_whether_made_or_read(dtype):
    first, again = Fake(dtype), Fake(dtype)
    rows = first.text().embed(["aaa", "b", ""])
    assert rows.dtype == torch.float32 and first.calls == [["aaa", "b"], ["", ""]]
    assert torch.equal(again.text().embed(["aaa", "b", ""]), rows)
    assert again.opened == []
    expected = torch.tensor([1.0, ord("a") / 3]).to(dtype).float()
    assert torch.equal(rows[0], expected.expand(SHAPE))
    assert Fake(making="other").text().folder.read("aaa") is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_of_the_disk_do_not_keep_each_other_in_memory(dtype):
    Fake(dtype).text().embed(["a", "b"])
    text = Fake(dtype).text()
    text.embed(["a", "b"])
    sizes = {row.untyped_storage().nbytes() for row in text.kept.values()}
    assert (len(text.kept), sizes) == (3, {4 * SHAPE[0] * SHAPE[1]})


def test_rows_of_the_disk_go_to_the_device_in_one_copy_as_they_are_stored(monkeypatch):
    Fake(torch.bfloat16).text().embed(["a", "b"])
    copies: list[tuple] = []
    monkeypatch.setattr(
        stored_text, "to_device", lambda rows, to: copies.append((rows.dtype, rows.shape)) or rows
    )
    Fake(torch.bfloat16).text().embed(["a", "b"])
    assert copies == [(torch.bfloat16, (3, *SHAPE))]


def test_encoders_leave_after_calls_without_a_new_prompt():
    fake = Fake()
    text = fake.text()
    for prompt in "abcdefghijkl":
        text.embed([prompt])
    assert (len(fake.opened), fake.alive) == (1, 1)  # while there is something new
    for _ in range(QUIET_CALLS):
        assert fake.alive == 1
        text.embed(["a", "b"])
    assert fake.alive == 0
    text.embed(["new"])
    assert (len(fake.opened), fake.alive) == (2, 1)


def test_prepared_prompts_need_no_encoders():
    fake = Fake()
    text = fake.text(max_prompts=1)
    text.prepare(["a", "bb", "a", "ccc"])
    assert fake.calls == [["", "a"], ["bb", "ccc"]]
    assert fake.alive == 0
    text.prepare(["bb"])
    assert text.embed(["bb", "a", "ccc", ""])[:, 0, 0].tolist() == pytest.approx(
        [2 / 3, 1 / 3, 1, 0]
    )
    assert len(fake.opened) == 1


def test_of_several_processes_one_embeds():
    fakes, ready = [Fake() for _ in range(4)], threading.Barrier(4)

    def run(fake: Fake) -> None:
        ready.wait()
        fake.text().prepare([f"prompt {i}" for i in range(20)])

    threads = [threading.Thread(target=run, args=[fake]) for fake in fakes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(len(fake.opened) for fake in fakes) == [0, 0, 0, 1]


@pytest.mark.parametrize("damage", [b"", b"00000000", None])
def test_damaged_rows_are_made_again(damage):
    fake = Fake()
    rows = fake.text().embed(["a"])
    path = fake.text().folder.path("a")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data) if damage is None else damage)
    assert torch.equal(fake.text().embed(["a"]), rows)
    assert len(fake.opened) == 2
    assert fake.text().folder.read("a") is not None


def test_the_least_recently_used_rows_leave(cache, monkeypatch):
    text = Fake().text()
    text.embed(["a"])
    size = text.folder.path("a").stat().st_size
    monkeypatch.setenv(stored_text.CAP, str(10.5 * size / 2**30))
    text = Fake().text()
    for number, prompt in enumerate("bcdefghi"):  # and the empty one: ten rows
        text.embed([prompt])
        os.utime(text.folder.path(prompt), (number, number))
    assert text.folder.read("b") is not None  # b is used, c is the oldest then
    text.embed(["more"])
    there = [p for p in ("b", "c", "d", "e", "more") if text.folder.has(p)]
    assert there == ["b", "e", "more"]
    held = sum(path.stat().st_size for path in cache.rglob("*") if path.is_file())
    assert held <= 10.5 * size


def small_disk(monkeypatch, rows: float) -> None:
    size = Fake().text().folder.file_bytes
    monkeypatch.setenv(stored_text.CAP, str(rows * size / 2**30))


def test_more_prompts_than_the_disk_may_hold_keep_it_as_it_is(monkeypatch):
    """Each would leave before it is asked for again: a write for nothing every time."""
    small_disk(monkeypatch, 4.5)
    fake, told = Fake(), []
    text, prompts = fake.text(max_prompts=1), "abcdefghij"
    text.prepare(prompts, tell=told.append)
    assert fake.calls == [["", ""]]
    kept = []
    for _ in range(2):
        for _ in range(2 * QUIET_CALLS):  # the encoders are needed at any time
            text.embed(["a"])
        text.embed(list(prompts))
        assert (len(fake.opened), fake.alive) == (1, 1)
        kept.append([prompt for prompt in prompts if text.folder.has(prompt)])
    assert kept == [list("abc")] * 2  # and the empty one
    (line,) = told
    assert "of 11 prompts take 1 GiB" in line and f"set {stored_text.CAP}=1 where" in line
    assert "sid-ray data prepare --encode-text" in line and "\n" not in line


def test_prompts_that_are_not_known_yet_do_not_drive_out_what_is_there(monkeypatch):
    small_disk(monkeypatch, 4.5)
    fake, told = Fake(), []
    Fake().text().embed(["old"])
    text = fake.text(max_prompts=1)
    text.prepare((), more=10, tell=told.append)
    text.embed(list("abcdefghij"))
    assert [prompt for prompt in ("old", *"abcdefghij") if text.folder.has(prompt)] == [
        "old", "a", "b",
    ]  # fmt: skip
    assert len(told) == 1
    for _ in range(QUIET_CALLS):  # there may be fewer than that
        text.embed(["a"])
    assert fake.alive == 0


def test_processes_that_write_at_once_do_not_fill_the_disk_beyond_its_share(monkeypatch):
    monkeypatch.setattr(stored_text, "LOOK_AGAIN", 2)
    small_disk(monkeypatch, 8.5)
    first, second = Fake().text(max_prompts=1), Fake().text(max_prompts=1)
    for text in (first, second):
        text.prepare((), more=100)
    for number in range(20):
        first.embed([f"a{number}"])
        second.embed([f"b{number}"])
    assert len(list(first.folder.folder.glob("*/*"))) <= 8 + 2


@pytest.mark.parametrize("cap", ["0", "full"])
def test_without_a_disk_encoders_stay(monkeypatch, capsys, cap):
    if cap == "full":
        usage = shutil.disk_usage("/")._replace(free=10)
        monkeypatch.setattr(stored_text.shutil, "disk_usage", lambda path: usage)
    else:
        monkeypatch.setenv(stored_text.CAP, cap)
    fake = Fake()
    text = fake.text()
    text.prepare(["a", "b", "c"])
    for _ in range(2 * QUIET_CALLS):
        text.embed(["a"])
    assert text.embed(["b"])[0, 0].tolist() == pytest.approx([1 / 3, ord("b") / 3])
    assert len(fake.opened) == 1
    assert capsys.readouterr().err.count("text encoders stay in memory") == (cap == "full")


@pytest.mark.parametrize("said", ["much", "-1", "nan"])
def test_a_size_that_is_none_is_refused(monkeypatch, said):
    monkeypatch.setenv(stored_text.CAP, said)
    with pytest.raises(UserError, match=f"SID_RAY_TEXT_CACHE_GIB is '{said}'"):
        Fake().text()
