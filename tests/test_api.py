"""The Python door: what may be overridden, what a caller is told, and that it is light.

The driver is a stand-in here (tests/support/stub_driver.py); tests/commands/test_driver.py has a
real one.
"""

import asyncio
import contextlib
import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import psutil
import pytest

import sid_ray
from sid_ray import api
from sid_ray.commands import driver
from sid_ray.config.distill_config import DistillConfig, differences, flatten, replace
from sid_ray.config.sections import ObjectiveConfig
from sid_ray.recipes.registry import RECIPES, recipe
from tests.support import stub_driver

DIGITS = recipe("digits-sid")


@pytest.fixture
def stub(monkeypatch, tmp_path):
    """Starts the stand-in, with what it is to do as the run's name."""
    monkeypatch.setattr(driver, "MODULE", "tests.support.stub_driver")

    def distill(what, progress=None, **more):
        return sid_ray.distill("digits-sid", progress, run=what, output__folder=tmp_path, **more)

    return distill


# The module ---------------------------------------------------------------------------------------


def test_importing_it_imports_nothing_else():
    code = (
        "import sys; before = set(sys.modules); import sid_ray; sid_ray.__version__; dir(sid_ray)\n"
        "print(*set(sys.modules) - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["sid_ray"]


def test_the_door_itself_loads_no_heavy_library():
    code = "import sys, sid_ray; sid_ray.distill, sid_ray.Generator; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"torch", "ray", "mlflow", "deepspeed", "sklearn", "pyarrow", "rich", "tyro", "PIL"}
    assert not heavy & set(done.stdout.split())


def test_it_offers_what_it_says():
    assert sid_ray.__all__ == api.__all__
    assert set(sid_ray.__all__) <= set(dir(sid_ray))
    assert all(getattr(sid_ray, name) is getattr(api, name) for name in api.__all__)
    folders = {path.stem for path in Path(sid_ray.__file__).parent.iterdir()}
    assert not folders & set(sid_ray.__all__), "a module's name would hide it"
    with pytest.raises(AttributeError, match="no attribute 'distil'"):
        sid_ray.distil  # noqa: B018
    assert Path(sid_ray.__file__).with_name("py.typed").is_file()


# Overrides ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "overrides",
    [
        {"training__batch_size": 128, "alpha": 1.2},
        {"training.batch_size": 128, "objective.alpha": 1.2},
        {"training": {"batch_size": 128}, "objective": {"alpha": 1.2}},
        {"training__batch_size": np.int64(128), "objective__alpha": np.float64(1.2)},
        {"training": {"batch_size": 128}, "objective": ObjectiveConfig(name="sid", alpha=1.2)},
    ],
)
def test_fields_may_be_written_in_several_ways(overrides):
    expected = replace(DIGITS, training__batch_size=128, objective__alpha=1.2)
    found = sid_ray.recipe("digits-sid", **overrides)
    assert found == expected
    assert type(found.training.batch_size) is int and type(found.objective.alpha) is float
    assert list(differences(DIGITS, found)) == [
        "objective.alpha: 1.0 -> 1.2",
        "training.batch_size: 64 -> 128",
    ]


def test_a_field_alone_is_taken_where_one_section_has_it():
    names = [name.rpartition(".")[2] for name in flatten(DistillConfig())]
    shared = {name for name in names if names.count(name) > 1}
    sections = {field.name for field in dataclasses.fields(DistillConfig)} - {"recipe"}
    for name, value in flatten(DIGITS).items():
        leaf = name.rpartition(".")[2]
        if leaf in shared:
            with pytest.raises(sid_ray.UserError, match=f"{leaf} may be .*{name}"):
                sid_ray.recipe("digits-sid", **{leaf: value})
        elif leaf not in sections:
            assert sid_ray.recipe("digits-sid", **{leaf: value}) == DIGITS


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"training__batchsize": 1}, "no field 'training.batchsize'.* training.batch_size"),
        ({"alfa": 1}, "no field 'alfa'.* Did you mean objective.alpha"),
        ({"training": 3}, "training is a section"),
        ({"training": {"alpha": 1}}, "no field 'training.alpha'"),
        ({"batch_size": 3}, "training.batch_size or evaluation.batch_size"),
        ({"alpha": "much"}, "objective.alpha is 'much': input should be a valid number"),
        ({"images": 1.5}, "training.images is 1.5"),
        ({"images": 0}, "training.images is 0"),
        ({"objective__name": "sidd"}, "objective.name is 'sidd'"),
        ({"data__name": "prompts"}, "data.source is empty"),
    ],
)
def test_what_is_wrong_is_said_before_anything_starts(overrides, said, stub, monkeypatch):
    monkeypatch.setattr(api, "run_driver", lambda *_: pytest.fail("started"))
    with pytest.raises(sid_ray.UserError, match=said) as refusal:
        stub("x", **overrides)
    assert "\n" not in str(refusal.value)


def test_recipes_and_configs_are_taken_and_nothing_else():
    assert sid_ray.recipe_names() == list(RECIPES)
    with pytest.raises(sid_ray.UserError, match=r"no recipe .* Did you mean .*digits-sid"):
        sid_ray.distill("digits-sd")
    with pytest.raises(sid_ray.UserError, match="expected a DistillConfig or a recipe's name"):
        sid_ray.distill({"recipe": "digits-sid"})
    own = dataclasses.replace(DIGITS, recipe="mine")
    assert api.configured(own, {"seed": 3}) == replace(own, training__seed=3)


# What a caller hears ------------------------------------------------------------------------------


def test_a_result_has_what_the_driver_found(stub):
    result = stub("finishes")
    assert dataclasses.asdict(result) | {"summary": None} == stub_driver.RESULT | {"summary": None}
    assert math.isnan(result.summary["score"])
    assert result.generator is result.generator
    assert result.generator.source == "/runs/x/model"


def test_nothing_is_printed_that_was_not_asked_for(stub, capfd):
    stub("finishes")
    assert capfd.readouterr() == ("", "")
    lines = []
    stub("finishes", lines.append)
    assert lines == ["one", "two ä"]
    assert capfd.readouterr() == ("", "")
    stub("finishes", True)
    assert capfd.readouterr() == ("one\ntwo ä\n", "")


def test_a_terminal_is_the_drivers_own():
    """There the live line of the command is drawn; no pipe could have told."""
    code = (
        "import pty, sys; sys.exit(pty.spawn([sys.executable, '-c', "
        '"import sid_ray; from sid_ray import api\\n'
        "api.run_driver = lambda config, tell, on_terminal=False: print(tell, on_terminal)\\n"
        "sid_ray.distill('digits-sid', True)\"]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert done.stdout.split() == ["None", "True"]


def test_a_process_that_is_left_behind_is_not_waited_for(stub):
    lines = []
    assert stub("leaves-one-behind", lines.append).images_seen == 64
    assert lines == ["one"]


def test_errors_are_raised_and_never_end_the_process(stub):
    with pytest.raises(sid_ray.UserError, match=r"^teacher.source: no such file$") as refused:
        stub("refuses")
    assert not isinstance(refused.value, sid_ray.RunFailedError)
    with pytest.raises(sid_ray.RunFailedError, match=r"^failed: no disk$") as failed:
        stub("fails")
    assert (failed.value.exit_code, failed.value.folder) == (3, "/runs/x")
    with pytest.raises(sid_ray.RunFailedError, match=r"run 'dies' ended by signal 9: the same"):
        stub("dies")
    with pytest.raises(sid_ray.RunFailedError, match="ended by ZeroDivisionError: a bug") as bug:
        stub("breaks")
    assert "Traceback" in bug.value.__notes__[0]
    with pytest.raises(sid_ray.RunFailedError, match="was stopped by a signal") as stopped:
        stub("is-stopped")
    assert stopped.value.exit_code == 130


def interrupted_by(exception, times=1):
    """Takes lines; raises at the first ones."""
    lines = []

    def tell(line):
        lines.append(line)
        if len(lines) <= times:
            raise exception

    return lines, tell


def test_ctrl_c_waits_until_the_state_is_saved(stub):
    lines, tell = interrupted_by(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        stub("goes-on", tell)
    assert lines[1:] == ["asked 1", "saved"]
    assert not psutil.pid_exists(int(lines[0].split()[1]))


def test_another_ctrl_c_is_passed_on(stub):
    lines, tell = interrupted_by(KeyboardInterrupt(), times=2)
    with pytest.raises(KeyboardInterrupt):
        stub("goes-on", tell)
    assert lines[1:] == ["asked 1", "asked 2", "saved"]


def test_an_error_of_progress_stops_the_run_and_is_raised(stub):
    lines, tell = interrupted_by(ValueError("my own"))
    with pytest.raises(ValueError, match="my own"):
        stub("goes-on", tell)
    assert not psutil.pid_exists(int(lines[0].split()[1]))


def test_the_driver_imports_what_its_caller_does(stub, monkeypatch, tmp_path):
    """A folder of the caller's own is found; the one that it works in is none of them."""
    monkeypatch.syspath_prepend(tmp_path / "plugins")
    monkeypatch.chdir(tmp_path)
    lines = []
    stub("says-where", lines.append)
    folder, path, variable = json.loads(lines[0])
    assert folder == str(tmp_path)
    assert str(tmp_path / "plugins") in path
    assert str(tmp_path) not in path
    assert not {place for place in variable.split(":") if "site-packages" in place}


def test_it_works_where_an_event_loop_runs_and_beside_the_main_thread(stub):
    async def cell():
        return stub("finishes"), await asyncio.to_thread(stub, "finishes")

    assert [result.images_seen for result in asyncio.run(cell())] == [64, 64]


def test_descriptors_and_threads_are_given_back(stub):
    def held():
        return len(list(Path("/proc/self/fd").iterdir())), threading.active_count()

    before = held()
    for what in ("finishes", "refuses", "dies", "goes-on"):
        _, tell = interrupted_by(KeyboardInterrupt())
        with contextlib.suppress(sid_ray.UserError, KeyboardInterrupt):
            stub(what, tell if what == "goes-on" else None)
    assert held() == before
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert "PYTHONPATH" not in os.environ or "plugins" not in os.environ["PYTHONPATH"]
