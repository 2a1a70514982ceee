"""Import directions: an arrow may only go down a level, and each heavy library has one home.

The levels are those of docs/design.md. Everything is read from the source, nothing is imported.
"""

import ast
import functools
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import sid_ray

PACKAGE = Path(sid_ray.__file__).parent
ORDER = (  # a folder, or a file of the root, imports only what stands above it here
    ("errors",),
    ("types", "groups", "device"),
    ("storage",),
    ("ray_setup",),
    ("config", "diffusion"),
    ("run_folder", "tensor_files"),
    ("denoisers",),
    ("weights",),
    ("objectives", "distributed"),
    ("data", "metrics"),
    ("recipes", "console"),
    ("checkpoint",),
    ("training", "tracking"),
    ("planning",),
    ("evaluation",),
    ("exporting",),
    ("actors",),
    ("commands",),
    ("sweep", "jobs", "serving", "api"),
    ("cli",),
)
HOMES = {
    "fcntl": ("sid_ray/storage/durable.py", "sid_ray/weights/cache.py"),
    "boto3": ("sid_ray/storage/s3.py",),
    "deepspeed": (
        "sid_ray/distributed/deepspeed_private.py",
        "sid_ray/distributed/deepspeed_role.py",
    ),
    "ray": (
        "sid_ray/actors/",
        "sid_ray/data/pipeline.py",
        "sid_ray/jobs/",
        "sid_ray/ray_setup/",
        "sid_ray/serving/",
        "sid_ray/sweep/",
    ),
    "fastapi": ("sid_ray/serving/web.py",),
    "onnx": ("sid_ray/exporting/onnx_file.py",),
    "onnxruntime": ("sid_ray/exporting/outside_onnx.py",),
    "mlflow": (
        "sid_ray/tracking/mlflow_run.py",
        "sid_ray/tracking/mlflow_artifacts.py",
        "sid_ray/tracking/mlflow_state.py",
        "sid_ray/tracking/history.py",
    ),
    "optuna": ("sid_ray/sweep/",),
    "diffusers": (
        "sid_ray/denoisers/autoencoder.py",
        "sid_ray/denoisers/flux.py",
        "sid_ray/denoisers/sana.py",
        "sid_ray/denoisers/sana_body.py",
        "sid_ray/denoisers/sd3.py",
        "sid_ray/denoisers/flow_prompts.py",
        "sid_ray/denoisers/stable_diffusion.py",
        "sid_ray/denoisers/ldm_checkpoint.py",
        "sid_ray/denoisers/lora.py",
        "sid_ray/denoisers/pass_through.py",
        "sid_ray/exporting/outside.py",
        "sid_ray/exporting/stock_folder.py",
    ),
    "transformers": (
        "sid_ray/denoisers/encoder_parts.py",
        "sid_ray/denoisers/flow_prompts.py",
        "sid_ray/denoisers/prompt_encoders.py",
        "sid_ray/metrics/transformers_folder.py",
    ),
    "huggingface_hub": ("sid_ray/exporting/hub.py", "sid_ray/weights/hub.py"),
    "fsspec": ("sid_ray/weights/remotes.py",),
    "efficientnet_lite_pytorch": ("sid_ray/metrics/lite0.py",),
    "rich": (
        "sid_ray/console.py",
        "sid_ray/commands/bench.py",
        "sid_ray/commands/benching/report.py",
        "sid_ray/commands/distill.py",
        "sid_ray/commands/doctor.py",
        "sid_ray/commands/plan.py",
        "sid_ray/weights/",
        "sid_ray/data/command.py",
        "sid_ray/commands/evaluate.py",
        "sid_ray/evaluation/result.py",
    ),
    "tyro": (
        # Dataclasses of arguments, which say what stands first in tyro's words.
        "sid_ray/commands/",
        "sid_ray/data/options.py",
        "sid_ray/evaluation/options.py",
        "sid_ray/serving/options.py",
        "sid_ray/sweep/command.py",
        "sid_ray/weights/options.py",
    ),
}
LEVELS = {name: level for level, names in enumerate(ORDER) for name in names}
LOADERS = PACKAGE / "denoisers" / "loaders"  # programs that exports hold; nothing imports them
PROGRAMS = (*LOADERS.glob("*.py"), *(PACKAGE / "exporting").glob("outside*.py"))
MODULES = sorted(
    path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py" and path.parent != LOADERS
)


def folder_of(module: str) -> str:
    """The folder of sid_ray.folder.module, or the root's file."""
    return module.split(".")[1]


def name_of(path: Path) -> str:
    return ".".join(("sid_ray", *path.relative_to(PACKAGE).with_suffix("").parts))


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
            below = PACKAGE.parent / node.module.replace(".", "/")
            parts = [f"{node.module}.{alias.name}" for alias in node.names]
            is_folder = node.module.startswith("sid_ray") and below.is_dir()
            for module in parts if is_folder else [node.module]:
                found.append((module, id(node) in typing_only))
    return found


def arrows(path: Path) -> list[str]:
    """What a module needs of sid_ray when it runs."""
    return [
        module
        for module, typing_only in imports(path)
        if module.startswith("sid_ray.") and module != "sid_ray.__version__" and not typing_only
    ]


def test_arrows_go_down():
    """A level is a folder: inside one, and to folders above it in ORDER, arrows are free."""
    wrong = []
    for path in MODULES:
        name = name_of(path)
        for module in arrows(path):
            here, there = folder_of(name), folder_of(module)
            if here != there and LEVELS[there] >= LEVELS[here]:
                wrong.append(f"{name} imports {module}, which does not stand below it")
    assert not wrong, "\n".join(wrong)


OWN_MEANS = re.compile(
    r"os\.replace|\.rename\((self\.)?_?(path|target|file)\b|\.replace\((self\.)?_?(path|target|file|note)\)"
    r"|\"\.(new|written|fetched)\"|split\(b?\"\\\\n\"\)\[:-1\]"
)


def test_files_are_replaced_and_lines_of_json_are_read_in_one_place():
    """storage/durable.py, whole folders scratch.py; weights/ moves what it has fetched itself."""
    elsewhere = [path for path in MODULES if path.parent.name != "weights"]
    found = {
        f"{path.relative_to(PACKAGE)}: {match[0]}"
        for path in elsewhere
        for match in OWN_MEANS.finditer(path.read_text())
    }
    assert found == {f"storage/{name}.py: .replace(target)" for name in ("durable", "scratch")}


def test_kinds_of_addresses_are_named_in_their_table_alone():
    """Elsewhere an address is asked what it can do. confidential.py takes text apart that may be
    an address; weights/ fetches by kind."""
    asks = re.compile(
        r"is_s3|(startswith|removeprefix)\(\(?\"(s3|file|gs):|kind (==|!=|in) \(?\"s3"
    )
    for path in MODULES:
        if path.parent.name != "weights":
            assert not asks.search(path.read_text()), path


def test_folders_import_nothing():
    """But for the root, which offers api.py's names (PEP 562): inside a function, and to type
    checkers. That it loads nothing, test_api.py shows.
    """
    for path in PACKAGE.rglob("__init__.py"):
        wanted = [("sid_ray.api", True), ("sid_ray.api", False)] if path.parent == PACKAGE else []
        assert imports(path) == wanted, f"{path}: package __init__ files import nothing"


def test_heavy_libraries_have_one_home():
    wrong = []
    for path in MODULES:
        place = path.relative_to(PACKAGE.parent).as_posix()
        for module, _ in imports(path):
            homes = HOMES.get(module.split(".")[0])
            if homes is not None and not place.startswith(homes):
                wrong.append(f"{place} imports {module}; its home is {', '.join(homes)}")
    assert not wrong, "\n".join(wrong)


def test_programs_without_the_package_import_nothing_of_it():
    for path in PROGRAMS:
        assert not any(module.startswith("sid_ray") for module, _ in imports(path)), path


def test_there_is_no_cycle_among_modules():
    edges = {name_of(path): set(arrows(path)) for path in MODULES}
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
    heavy = {"torch", "ray", "mlflow", "deepspeed", "sklearn", "pyarrow", "huggingface_hub"}
    assert not loaded & heavy


NAMED_TWICE = {
    "main": "what `python -m` and the console script call",
    "recipe": "the door's is the registry's, with overrides",
}


def test_a_name_means_one_thing():
    """Classes and functions at the top of a module: one meaning across the package."""
    homes: dict[str, list[str]] = {}
    for path in MODULES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                homes.setdefault(node.name, []).append(name_of(path))
    twice = {name: found for name, found in homes.items() if len(found) > 1}
    assert twice.keys() == NAMED_TWICE.keys(), {
        name: found for name, found in twice.items() if name not in NAMED_TWICE
    }


def test_places_in_tables_are_there():
    """Commands and checks are named as MODULE:NAME: nothing is loaded before it is needed."""
    places = [
        node.value
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant)
        and re.fullmatch(r"[a-z_]+(\.[a-z_]+)+:\w+", str(node.value))
    ]
    assert len(places) > 40
    for place in places:
        pkgutil.resolve_name(f"sid_ray.{place}")
