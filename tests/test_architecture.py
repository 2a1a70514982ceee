"""Import directions: an arrow may only go down a level, and each heavy library has one home.

The levels are those of docs/design.md. Everything is read from the source, nothing is imported.
"""

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

import sid_ray

PACKAGE = Path(sid_ray.__file__).parent
LEVELS = {
    "errors": 0, "types": 0, "groups": 0, "config": 0, "sections": 0, "recipes": 0,
    "confidential": 0, "text_lines": 0,
    "published": 0, "published_edm": 0, "published_edm2": 0, "published_sd": 0, "recipe_table": 0,
    "health": 0,
    "memory": 0, "ray_environment": 0, "places": 0, "outlet": 0,
    "store": 1, "store_errors": 1, "store_new": 1, "shared": 1, "local_copies": 1, "journal": 1,
    "rng": 1, "schedules": 1, "ema": 1, "augment": 1, "allocator": 1,
    "objectives": 2, "denoisers": 2, "weights": 2, "data": 2, "metrics": 2,
    "known_networks": 2, "components": 2, "ray_start": 2,
    "sampling": 3, "pictures": 3, "assemble": 3, "step": 3, "checkpoint": 3, "checkpoint_parts": 3,
    "snapshot": 3, "spool": 3, "storage": 3, "recovery": 3, "began": 3, "stored": 3,
    "lease": 3, "leases": 3, "fence": 3,
    "fragments": 3, "adam": 3, "roles": 3, "shards": 3, "engine": 3, "deepspeed_import": 3,
    "update_rules": 3,
    "trace_memory": 3, "fit": 3,
    "mlflow_sqlite": 1, "mlflow_state": 3,
    "mlflow_run": 3, "mlflow_artifacts": 3, "best": 3, "tracking": 3, "history": 3,
    "model_card": 3,
    "evaluation": 3, "evaluations": 3, "page": 3, "real_images": 3, "release": 3,
    "best_weights": 3, "subject": 3, "looks": 3, "picture_looks": 3,
    "run_folder": 3, "copies": 3, "report": 3, "generate": 3, "generate_options": 0,
    "console": 3,
    "actors": 4,
    "sweep": 5, "distill": 5, "plan": 5, "doctor": 5, "parsing": 5, "compare": 5, "ui": 5, "cli": 5,
    "jobs": 5, "evaluate": 5, "evaluate_options": 5, "evaluate_result": 5,
}  # fmt: skip
HOMES = {
    "deepspeed": ("engine",),
    "ray": (
        "actors",
        "data/pipeline",
        "jobs/client",
        "jobs/local_nodes",
        "jobs/upload",
        "ray_start",
        "sweep",
    ),
    "mlflow": ("mlflow_run", "mlflow_artifacts", "mlflow_state", "history"),
    "optuna": ("sweep",),
    "diffusers": ("denoisers/stable_diffusion",),
    "transformers": ("denoisers/stable_diffusion", "metrics/transformers_folder"),
    "efficientnet_lite_pytorch": ("metrics/lite0",),
    "rich": (
        "console",
        "distill",
        "doctor",
        "plan",
        "weights",
        "data/command",
        "evaluate",
        "evaluate_result",
    ),
    "tyro": ("cli", "parsing", "weights/command", "sweep/command"),
}
MODULES = sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").as_posix()


@functools.cache
def imports(path: Path) -> list[tuple[str, bool]]:
    """(module, whether only for type checking) of every import, wherever it stands."""
    tree = ast.parse(path.read_text())
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) in typing_only) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            found.append((node.module, id(node) in typing_only))
    return found


def level_of(module: str) -> int:
    return LEVELS[module.split("/")[0].split(".")[0]]


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_arrows_go_down(path):
    name = name_of(path)
    if path.name == "__init__.py":
        assert imports(path) == [], f"{name}: package __init__ files import nothing"
        return
    for module, typing_only in imports(path):
        if module.startswith("sid_ray.") and not typing_only:
            target = module.removeprefix("sid_ray.")
            assert level_of(target) <= level_of(name), f"{name} imports {module}, a level above it"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_heavy_libraries_have_one_home(path):
    name = name_of(path)
    for module, _ in imports(path):
        homes = HOMES.get(module.split(".")[0])
        if homes is not None:
            allowed = any(name == home or name.startswith(home + "/") for home in homes)
            assert allowed, f"{name} imports {module}; its home is {', '.join(homes)}"


def test_every_module_has_a_level():
    for path in MODULES:
        if path.name != "__init__.py":
            level_of(name_of(path))


def test_there_is_no_cycle_among_modules():
    edges = {
        name_of(path): {
            module.removeprefix("sid_ray.").replace(".", "/")
            for module, typing_only in imports(path)
            if module.startswith("sid_ray.") and not typing_only
        }
        for path in MODULES
    }
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " -> ".join((*above, name))
        if name not in done:
            for target in edges.get(name, ()):
                visit(target, (*above, name))
            done.add(name)

    for name in edges:
        visit(name, ())


def test_the_command_starts_without_heavy_libraries():
    """Wrong input is refused before torch, Ray or MLflow are loaded."""
    code = "import sys; import sid_ray.cli; print(*(m for m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert not loaded & {"torch", "ray", "mlflow", "deepspeed", "sklearn", "pyarrow"}
