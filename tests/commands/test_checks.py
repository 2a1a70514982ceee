"""What doctor prints is what distill refuses: one list of checks, in one order."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sid_ray.actors import trainer
from sid_ray.cli import main
from sid_ray.commands import checks
from sid_ray.commands.checks import CHECKS, DISTILL, DOCTOR, FAILED, SKIPPED, checks_of


class StartedError(Exception):
    """The run would have started."""


def a_file(name: str, data: bytes = b"words") -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)

    return write


# case: (check, flags, what is wrong in the folder, part of the line)
CASES: dict[str, tuple[str, list[str], Callable[[Path], None] | None, str]] = {
    "a range": ("config", ["--training.beta2", "1"], None, "training.beta2 is 1.0; it must be"),
    "fields": ("config", ["--training.batch-size", "100"], None, "multiple of group size"),
    "a metric": ("config", ["--evaluation.metrics", "fid"], None, "unknown metric 'fid'"),
    "a run's name": ("config", ["--run", "a/b"], None, "plain folder name"),
    "prompts": ("given", ["--data.name", "prompts"], None, "data.source is empty"),
    "a runs folder that is a file": ("folder", [], a_file("runs"), "runs"),
    "another file for MLflow's": (
        "tracking", [], a_file("runs/mlflow.db", b"something else" * 100), "no sqlite database",
    ),
    "no teacher": ("teacher", ["--teacher.source", "none"], None, "no network at none"),
    "another teacher": (
        "teacher", ["--teacher.source", "builtin:emoji-teacher"], None, "needs 'vp'",
    ),
    "guided without text": ("teacher", ["--guidance", "zero"], None, "reads no text"),
    "an extractor": (
        "scores", ["--evaluation.feature-space", "cnn"], None, "unknown feature extractor",
    ),
    "no reference": ("scores", ["--evaluation.reference", "none"], None, "none"),
    "no CLIP": ("scores", ["--evaluation.metrics", "fd,clip"], None, "clip"),
}  # fmt: skip


def said_by_doctor(folder: Path, flags: list[str], capsys) -> dict[str, list[str]]:
    """Check -> lines of what failed."""
    with pytest.raises(SystemExit) as stop:
        main(["doctor", "digits-sid", *flags])
    found: dict[str, list[str]] = {}
    for line in capsys.readouterr().out.splitlines():
        if line.startswith(FAILED):
            name, text = line.removeprefix(FAILED).strip().split(maxsplit=1)
            found.setdefault(name, []).append(text)
    assert stop.value.code == int(bool(found))
    return found


@pytest.fixture
def quiet(monkeypatch, tmp_path):
    """A folder to start in, without Ray, and without doctor's checks of this machine."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def started(*args):
        raise StartedError

    monkeypatch.setattr(trainer, "run_training", started)
    monkeypatch.setattr(checks, "CHECKS", tuple(each for each in CHECKS if DISTILL in each.places))
    return tmp_path


@pytest.mark.parametrize("case", CASES)
def test_doctor_and_distill_say_the_same(case, quiet, capsys):
    name, flags, damage, words = CASES[case]
    if damage is not None:
        damage(quiet)
    found = said_by_doctor(quiet, flags, capsys)
    assert words in found[name][0]
    with pytest.raises(SystemExit) as stop:
        main(["distill", "digits-sid", *flags])
    assert stop.value.code == 2
    refused = capsys.readouterr().err
    first = next(each.name for each in checks_of(DISTILL) if each.name in found)
    assert refused == f"sid-ray: {found[first][0]}\n"


def test_a_run_that_is_well_starts(quiet, capsys):
    assert said_by_doctor(quiet, [], capsys) == {}
    with pytest.raises(StartedError):
        main(["distill", "digits-sid"])


def test_a_cluster_that_is_not_there_is_said_by_both(quiet, capsys, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "nowhere:")
    found = said_by_doctor(quiet, [], capsys)
    with pytest.raises(SystemExit):
        main(["distill", "digits-sid"])
    assert capsys.readouterr().err == f"sid-ray: {found['ray'][0]}\n"


def test_what_follows_a_wrong_config_is_not_looked_at(quiet):
    config = checks.DistillConfig()
    states = {
        name: finding.state
        for name, finding in checks.examine(checks.Patient(config, str(quiet / "runs")))
    }
    assert states["config"] == FAILED
    assert states["given"] == states["teacher"] == states["scores"] == SKIPPED


def test_the_list_names_functions_that_exist_and_doctor_runs_all():
    names = [each.name for each in CHECKS]
    assert len(set(names)) == len(names)
    for each in CHECKS:
        assert callable(checks.pkgutil.resolve_name(f"sid_ray.{each.look}"))
        assert DOCTOR in each.places and each.looks_at
