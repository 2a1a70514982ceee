"""Places that cannot be written are found before anything starts, in one line, without a trace."""

import errno
import os
import resource
import subprocess
import sys

import pytest
import torch

from sid_ray.cli import main
from sid_ray.errors import UserError
from sid_ray.storage.places import check_file, check_folder, expanded, in_words, one_line
from sid_ray.weights.description import write_safetensors


def refused(capsys, *args: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main(list(args))
    out, err = capsys.readouterr()
    assert stop.value.code == 2, err
    assert out == "" and err.count("\n") == 1 and err.startswith("sid-ray: "), err
    return err


TAKEN = ("{0}/file", "{0}/file/below", "{0}/link", "/proc/none", "{0}/" + 300 * "a")


@pytest.mark.parametrize("place", TAKEN)
@pytest.mark.parametrize(
    "command",
    [
        ("distill", "digits-sid", "--output.folder", "{}"),
        ("sweep", "tune_spaces/digits-sida.yaml", "--output.folder", "{}"),
        ("generate", "builtin:digits-teacher", "--out", "{}"),
        ("data", "prepare", "digits", "{}"),
        ("weights", "convert", "builtin:digits-teacher", "{}/x.safetensors"),
        ("compare", "none", "--out", "{}/x.html"),
        ("evaluate", "builtin:digits-teacher", "--out", "{}/x.json"),
        ("sweep", "report", "none", "--out", "{}/x.html"),
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_a_place_that_cannot_be_written_is_refused_at_once(tmp_path, capsys, command, place):
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    told = refused(capsys, *(part.format(place.format(tmp_path)) for part in command))
    assert "cannot be written" in told
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link"]


def test_a_place_that_can_be_written_is_left_as_it_was(tmp_path):
    check_folder(tmp_path / "new" / "below", "--out")
    check_file(tmp_path / "new" / "page.html", "--out")
    assert list(tmp_path.iterdir()) == []


def test_a_page_where_a_folder_is(tmp_path):
    with pytest.raises(UserError, match="it is a folder; name a file"):
        check_file(tmp_path, "--out")


def test_names_that_no_file_can_have(tmp_path):
    for name in ("a\0b", 256 * "ä"):
        with pytest.raises(UserError, match="cannot be written") as told:
            check_folder(tmp_path / name, "--out")
        assert str(told.value).isprintable()
    assert one_line("a\nb\udcff") == r"a\nb\udcff"


def test_a_home_that_is_not_there(tmp_path, capsys):
    with pytest.raises(UserError, match="no such home"):
        expanded("~nobody-of-this-name/runs")
    assert "no such home" in refused(
        capsys, "distill", "digits-sid", "--output.folder", "~nobody-of-this-name/runs"
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="another user's folder needs root to be tried")
def test_a_folder_of_another_user(tmp_path):
    """Root may write everywhere: a process that is not root is asked."""
    tmp_path.chmod(0o755)
    code = (
        "import os; from pathlib import Path; from sid_ray.storage.places import check_folder\n"
        f"os.setuid(12345); check_folder(Path({str(tmp_path / 'runs')!r}), 'x')"
    )
    for folder in (tmp_path, *tmp_path.parents[:-2]):
        folder.chmod(0o755)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "Permission denied; name a place that can be written" in done.stderr


def test_a_disk_that_takes_no_more_is_the_systems_error_whoever_writes(tmp_path):
    """safetensors has an error of its own for it; so a run's checkpoint, too, waits and retries."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large") as told:
            write_safetensors(tmp_path / "weights", {"a": torch.zeros(10_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert told.value.errno == errno.EFBIG


def test_what_to_do_about_a_full_disk():
    error = OSError(errno.ENOSPC, "No space left on device", "/data/x")
    assert in_words(error) == "/data/x: No space left on device; free some, or name another disk"
