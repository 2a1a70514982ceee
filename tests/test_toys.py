"""A toy family, a toy objective and a toy metric, each in one file outside the package, go all the
way: through the real command on two workers into --help, tables, MLflow, model card and sweeps.

They are found by the entry points of one folder on PYTHONPATH, as of an installed package; no other
file knows of them.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import mlflow
import pytest

import sid_ray
from sid_ray.objectives.spec import Need
from tests.support.distill_runs import PATIENCE_S, hear_ctrl_c
from tests.support.toy_family import entry_point, write_teacher

REPOSITORY = Path(sid_ray.__file__).parents[1]
IMAGES, EVERY = 256, 128
NEEDS: tuple[Need, ...] = ("text", "log-variance head", "several steps")
UNSET = ("RAY_ADDRESS", "MLFLOW_TRACKING_URI")
RUN = (
    "digits-sid", "--run", "toy", "--output.folder", "runs", "--teacher.source", "teacher",
    "--objective.name", "toy", "--objective.strength", "0.5", "--evaluation.metrics", "toy,fd",
    "--images", str(IMAGES), "--evaluation.every", str(EVERY), "--evaluation.num-images", "128",
    "--evaluation.teacher-steps", "2", "--output.checkpoint-every", str(EVERY),
    "--output.report-every", "64",
)  # fmt: skip
SPACE = """\
metric: brightness
budget: {images: 256}
trials: 4
fields:
  objective.name: {choice: [sid, toy]}
  objective.strength: {uniform: [0, 2], when: {objective.name: toy}}
"""


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A process that finds the toys, in ``folder``."""
    path = os.pathsep.join([str(folder / "site"), str(REPOSITORY)])
    environment = {k: v for k, v in os.environ.items() if k not in UNSET} | {"PYTHONPATH": path}
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment,
        timeout=PATIENCE_S,
        preexec_fn=hear_ctrl_c,
        check=False,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """With a random teacher of the toy family, and the entry points of all three toys."""
    found = tmp_path_factory.mktemp("toys")
    write_teacher(found / "teacher")
    toys = {name: f"tests.support.toy_{name}:TOY" for name in ("objective", "metric")}
    entry_point(found / "site", **{f"{name}s": target for name, target in toys.items()})
    return found


@pytest.fixture(scope="module")
def distilled(folder) -> Path:
    """The run's folder, after the command."""
    done = python(folder, "-m", "sid_ray.cli", "distill", *RUN)
    run = folder / "runs" / "toy"
    assert done.returncode == 0, done.stdout + done.stderr
    assert "digits-sid: toy; " in done.stdout and "2 workers, a CPU each" in done.stdout
    assert "brightness" in done.stdout
    return run


@pytest.fixture(scope="module")
def views(folder, distilled) -> dict[str, Any]:
    """What ``look`` prints in a fresh process."""
    done = python(folder, "-c", "from tests.test_toys import look; look()")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def look() -> None:
    """Prints as JSON what a person sees of the toys beside the run; in the folder of the runs."""
    from sid_ray.cli import main
    from sid_ray.commands.compare import write_comparison
    from sid_ray.config.distill_config import DistillConfig, differences, flags, replace
    from sid_ray.errors import UserError
    from sid_ray.objectives.spec import register_objective
    from sid_ray.recipes.registry import Recipe, recipe
    from sid_ray.recipes.table import row
    from sid_ray.sweep.space import config_of
    from sid_ray.sweep.space_check import check_space
    from sid_ray.sweep.space_file import parse_space
    from sid_ray.training.assemble import find_start
    from tests.support.toy_objective import TOY

    def refused(act, *given) -> str:
        try:
            act(*given)
        except UserError as error:
            return str(error)
        return ""

    def start_of(need: Need) -> str:
        name = need.replace(" ", "-")
        register_objective(dataclasses.replace(TOY, name=name, needs=frozenset({need})))
        return refused(find_start, replace(base, objective__name=name, teacher__source="teacher"))

    def said(*arguments: str) -> str:
        with redirect_stdout(StringIO()) as out, pytest.raises(SystemExit, match=r"^0$"):
            main(list(arguments))
        return out.getvalue()

    own = ("digits-sid", "--objective.name", "toy")
    # First, so that it is the command that finds the toys.
    told, own_told = said("distill", "--help"), said("distill", *own, "--help")
    plan = said("plan", *own, "--teacher.source", "teacher", "--gpu-memory", "8")
    base = recipe("digits-sid")
    toy = replace(base, objective__name="toy", objective__strength=0.5)
    measured = replace(base, evaluation__metrics="toy")
    space = check_space(parse_space(SPACE, "space.yaml"), measured)
    trial = config_of(space, measured, {"objective.strength": 2.0, "objective.name": "toy"})
    write_comparison(["runs/toy"], Path("compare.html"), [0])
    wrong = '{"objective": {"name": "%s", "strength": "%s"}}'
    print()
    print(
        json.dumps(
            {
                "help": told,
                "own help": own_told,
                "plan": plan,
                "row": row(Recipe(toy, None, "")),
                "compare": Path("compare.html").read_text(),
                "same": DistillConfig.from_json(toy.to_json()) == toy.check(),
                "differences": list(differences(base, toy)),
                "back": list(differences(base, replace(toy, objective__name="sid"))),
                "flags": flags(base, toy),
                "trial": trial.objective.strength,
                "better": space.metrics[0].direction,
                "unmeasured": refused(check_space, space, base),
                "unvaried": refused(
                    parse_space, SPACE + "  objective.pace: {choice: [1, 2]}\n", "space.yaml"
                ),
                "useless": refused(
                    check_space,
                    parse_space(SPACE.replace("[sid, toy]", "[sid, vsd]"), "space.yaml"),
                    measured,
                ),
                "not a number": refused(DistillConfig.from_json, wrong % ("toy", "x")),
                "not its field": refused(DistillConfig.from_json, wrong % ("sid", "1")),
                "needs": [
                    start_of("text"),
                    start_of("log-variance head"),
                    start_of("several steps"),
                ],
                "unknown": refused(DistillConfig.from_json, wrong % ("tou", "1")),
            }
        )
    )


def test_help_names_them_and_explains_their_fields(views):
    told, own = views["help"], views["own help"]
    assert "toy (ToyLoss)" in told and "toy (mean of all values)" in told
    assert "--objective.strength FLOAT" in own and "is multiplied by 1 plus this" in own


def test_two_workers_distil_with_them(distilled):
    summary = json.loads((distilled / "summary.json").read_text())
    assert (summary["num_workers"], summary["trained_images"]) == (2, IMAGES)
    config = json.loads(json.loads((distilled / "run.json").read_text())["config"])
    assert (config["objective"]["name"], config["objective"]["strength"]) == ("toy", 0.5)
    assert json.loads((distilled / "model" / "model.json").read_text())["family"] == "toy"


def test_mlflow_has_the_score_and_the_field(folder, distilled):
    client = mlflow.MlflowClient(f"sqlite:///{folder}/runs/mlflow.db")
    run_id = json.loads((distilled / "run.json").read_text())["tracker_run_id"]
    run = client.get_run(run_id)
    assert run.data.params["objective.strength"] == "0.5"
    assert run.data.tags["objective"] == "toy"
    points = {p.step: p.value for p in client.get_metric_history(run_id, "eval/brightness")}
    assert list(points) == [0, EVERY, IMAGES] and all(0 < v < 255 for v in points.values())
    assert run.data.metrics["best/brightness"] == max(points.values())  # larger is better


def test_the_model_card_speaks_of_them(distilled):
    card = (distilled / "model" / "README.md").read_text()
    for part in (
        "family `toy`",
        "* objective: a toy objective, SiD with another strength",
        "* strength: 0.5",
        "- toy",
    ):
        assert part in card
    (line,) = (line for line in card.splitlines() if line.startswith("| brightness |"))
    assert line.endswith("| - | larger |")


def test_tables_and_pages_speak_of_them(views):
    assert "ToyLoss" in views["row"] and "str. 0.5" in views["row"]
    assert "<td>ToyLoss</td>" in views["compare"] and "brightness" in views["compare"]
    assert "ToyLoss: three networks of" in views["plan"]


def test_its_fields_are_part_of_a_config(views):
    assert views["same"]
    assert views["differences"] == [
        "objective.name: 'sid' -> 'toy'",
        "objective.strength: 'none' -> 0.5",
        "objective.pace: 'none' -> 1",
    ]
    assert views["back"] == []
    assert views["flags"] == ["--objective.name", "toy", "--objective.strength", "0.5"]
    assert views["not a number"].startswith("the config: objective.strength is ")
    assert views["not its field"].startswith("the config: objective.strength: ")
    assert "unknown objective 'tou'" in views["unknown"]
    assert "did you mean toy" in views["unknown"].lower()


def test_what_an_objective_needs_is_asked_before_a_run(views):
    """Of objectives that one call registered."""
    words = ("is text, but teacher teacher reads no text", "log-variance-head needs a log-variance",
             "set --objective.num-steps to 2 or more")  # fmt: skip
    for said, expected in zip(views["needs"], words, strict=True):
        assert expected in said


def test_a_sweep_varies_its_field_and_looks_at_the_metric(views):
    assert (views["trial"], views["better"]) == (2.0, "max")
    assert "evaluation.metrics: fd,toy under fields" in views["unmeasured"]
    assert "objective.pace may not vary: nothing reads it" in views["unvaried"]
    assert "strength has no effect: objective.name is sid, vsd; it needs toy" in views["useless"]
