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
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

import sid_ray
from sid_ray import api
from sid_ray.commands import driver
from sid_ray.commands.generate import generate_pictures
from sid_ray.config.distill_config import DistillConfig, differences, flatten, replace
from sid_ray.config.registry import OBJECTIVES
from sid_ray.config.sections import ObjectiveConfig
from sid_ray.recipes.registry import RECIPES, recipe
from tests.checkpoint.test_manifest import write
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
    own = [name for name in flatten(DistillConfig()) if not name.startswith("adapter.")]
    names = [name.rpartition(".")[2] for name in own]  # those of adapters come last
    shared = {name for name in names if names.count(name) > 1}
    sections = {field.name for field in dataclasses.fields(DistillConfig)} - {"recipe"}
    for name, value in flatten(DIGITS).items():
        leaf = name.rpartition(".")[2]
        if name.startswith("adapter.") and leaf in names:
            continue
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
        ({"objective__name": "sidd"}, "unknown objective 'sidd'; known: .* Did you mean sid"),
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
    assert api.config_from(own, {"seed": 3}) == replace(own, training__seed=3)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OwnConfig(ObjectiveConfig):
    strength: float = 0.25


def test_an_objectives_own_fields_are_taken_with_it(monkeypatch):
    spec = dataclasses.replace(OBJECTIVES.get("sid"), name="own", config=OwnConfig)
    monkeypatch.setitem(OBJECTIVES._called, "own", spec)
    config = sid_ray.recipe("digits-sid", strength=2, objective__name="own")
    own = {"name": "own", "strength": 2.0}
    assert config.objective == OwnConfig(**vars(DIGITS.objective) | own)
    with pytest.raises(sid_ray.UserError, match="strength is no field of objective 'sid'"):
        sid_ray.recipe("digits-sid", strength=2)


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


# The page -----------------------------------------------------------------------------------------


def test_what_the_page_shows_runs(monkeypatch, tmp_path):
    """Its code in its order; the runs are one that is there already."""
    run = tmp_path / "runs" / "first"
    write(run, 64)
    asked = []

    def driven(config, tell):
        asked.append(config)
        return sid_ray.Result(**stub_driver.RESULT | {"weights": str(run)})

    monkeypatch.setattr(api, "run_driver", driven)
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[1] / "docs" / "python.md").read_text()
    found = {}
    for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(code, found)
    assert (asked[0].run_name, asked[0].training.images) == ("first", 30_000)
    assert asked[1] == asked[2] == asked[3] == asked[4] != asked[0]
    assert found["images"].shape == (3, 1, 8, 8)
    assert (tmp_path / "first.png").is_file()


@pytest.fixture(scope="module")
def generator(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    write(folder, 64)
    return sid_ray.load_generator(folder, batch=4)


def test_a_generator_makes_the_pictures_of_the_command(generator, tmp_path):
    generate_pictures(generator.source, range(6), None, (), tmp_path, batch=4)
    for seed, picture in enumerate(generator.pictures(range(6))):
        with Image.open(tmp_path / f"seed{seed:06d}.png") as made:
            assert picture.tobytes() == made.tobytes()
    assert torch.equal(generator([5, 2])[1], generator(range(3))[2]), "in any call"


def test_labels_are_one_for_all_or_one_for_each(generator):
    assert generator.classes == 10 and not generator.reads_text
    each = generator([3, 4, 5, 6, 7], labels=[0, 1, 2, 3, 4])
    for place, seed in enumerate((3, 4, 5, 6, 7)):
        assert torch.equal(each[place], generator([seed], labels=place)[0])
    assert not torch.equal(each[0], generator([3], labels=9)[0])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"seeds": []}, "seeds: expected some"),
        ({"seeds": [-1]}, "seeds: expected some"),
        ({"seeds": [1], "labels": 10}, "labels holds 10; this generator knows 0 to 9"),
        ({"seeds": [1, 2], "labels": [1]}, "labels has 1 entries for 2 seeds"),
        ({"seeds": [1], "prompts": "a cat"}, "this generator reads no text; give labels"),
    ],
)
def test_what_does_not_fit_a_generator_is_refused(generator, given, said):
    with pytest.raises(sid_ray.UserError, match=said):
        generator(**given)


def test_a_generator_that_is_not_there_is_said_when_it_is_used(tmp_path):
    generator = sid_ray.load_generator(tmp_path / "none")
    with pytest.raises(sid_ray.UserError, match="none"):
        generator([1])
