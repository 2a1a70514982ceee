"""The wheel holds all that an installed sid_ray needs, and what is installed from it works.

Installed without its dependencies into a folder, which stands first on the import path: those of
this environment are used. Nothing of a checkout is in the folder that commands run in.
"""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
SOURCES = ("pyproject.toml", "README.md", "LICENSE")
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")


def run(*command, **options):
    return subprocess.run(command, capture_output=True, text=True, **options)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, as from a clean checkout: no build/ is left here, or read."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        shutil.copy(REPOSITORY / name, source)
    shutil.copytree(REPOSITORY / "tune_spaces", source / "tune_spaces")
    shutil.copytree(
        REPOSITORY / "sid_ray", source / "sid_ray", symlinks=True,
        ignore=shutil.ignore_patterns("__pycache__"),
    )  # fmt: skip
    done = run(
        *PIP, "wheel", str(source), "--no-deps", "--no-build-isolation", "--no-index",
        "--wheel-dir", str(out),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return next(out.glob("sid_ray-*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    folder = tmp_path_factory.mktemp("installed")
    done = run(*PIP, "install", "--no-deps", "--no-index", "--target", str(folder), str(wheel))
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def sid_ray(installed, tmp_path):
    """The installed command, in an empty folder."""

    def command(*args):
        return run(
            sys.executable, "-m", "sid_ray.cli", *args, cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(installed)},
        )  # fmt: skip

    return command


def test_the_wheel_holds_every_file_of_the_package(wheel):
    there = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    package = {
        path.relative_to(REPOSITORY).as_posix()
        for path in (REPOSITORY / "sid_ray").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    spaces = {f"sid_ray/tune_spaces/{p.name}" for p in (REPOSITORY / "tune_spaces").iterdir()}
    assert len(spaces) >= 5
    assert there == package | spaces
    assert "sid_ray/py.typed" in there


def test_commands_work_from_the_wheel(sid_ray, installed, tmp_path):
    assert "sid-ray distill RECIPE" in sid_ray("--help").stdout
    assert "digits-sid" in sid_ray("recipes").stdout
    where = run(
        sys.executable, "-c", "import sid_ray; print(sid_ray.__file__)", cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(installed)},
    )  # fmt: skip
    assert where.stdout.strip() == str(installed / "sid_ray" / "__init__.py")


def test_a_sweep_is_found_by_its_name_and_checked(sid_ray):
    done = sid_ray("sweep", "digits-sida", "--trials", "2", "--alpha", "1")
    assert done.returncode == 2
    space = f"{Path('sid_ray', 'tune_spaces', 'digits-sida.yaml')}"
    assert space in done.stderr and "sets objective.alpha" in done.stderr
    unknown = sid_ray("sweep", "digits-sda")
    assert unknown.returncode == 2
    assert "Did you mean digits-sida" in unknown.stderr


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_job_is_sent_from_the_wheel_and_runs_to_its_end(installed, tmp_path):
    """From an empty folder, to a head that finds another sid_ray than the one that was sent."""
    from tests.support.ray_head import ray_head

    empty, runs, other = tmp_path / "empty", tmp_path / "runs", tmp_path / "other"
    empty.mkdir()
    (other / "sid_ray").mkdir(parents=True)
    (other / "sid_ray" / "__init__.py").write_text("raise ImportError('not the one that was sent')")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    with ray_head({"PATH": path, "PYTHONPATH": str(other)}) as head:
        sent = run(
            sys.executable, "-m", "sid_ray.cli", "submit", "digits-sid", "--address", head.url,
            "--run", "sent", "--output.folder", str(runs), "--images", "256", "--evaluation.every",
            "0", "--evaluation.no-final-report", cwd=empty,
            env=head.environment | {"PYTHONPATH": str(installed)},
        )  # fmt: skip
    assert sent.returncode == 0, sent.stdout + sent.stderr
    assert "upload    0 files, 0.0 MiB and sid_ray: " in sent.stdout
    assert "256 images seen, 256 of them now" in sent.stdout
    assert (runs / "sent" / "summary.json").is_file()
