"""Names of families, and of what else is registered, stand as literals at their home alone.

Everything else asks the contract. A kind of names is an entry of KINDS: who knows the names, where
they may stand, and single exceptions with their reasons. Read from the source, by its literals:
docstrings and comments may say what they like.
"""

import ast
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

import sid_ray
from sid_ray.denoisers.registry import conventions, families, network_folders, noises
from sid_ray.metrics.spec import metric_specs
from sid_ray.objectives.spec import objective_specs

PACKAGE = Path(sid_ray.__file__).parent


class Kind(NamedTuple):
    """``names()`` stand in files that begin with one of ``homes`` only; ``modules`` (without
    sid_ray.) are imported there only. ``exceptions``: (file, name) -> why.
    """

    names: Callable[[], set[str]]
    homes: tuple[str, ...]
    exceptions: Mapping[tuple[str, str], str] = {}
    modules: tuple[str, ...] = ()


def family_names() -> set[str]:
    """Families, their kinds of noise and latents, folders, classes, and prefixes of recipes."""
    found = {
        *families(),
        *noises(),
        *conventions(),
        *network_folders(),
        "img512-",
        "sd15-",
        "sd21-",
        "sdxl-",
    }
    for family in families().values():
        found |= {*family.official_classes, family.bare_prefix} - {""}
    return found


def objective_names() -> set[str]:
    """Names and labels of objectives, and the fields that only some of them read."""
    found = set()
    for spec in objective_specs():
        found |= {spec.name, spec.label, *spec.own_fields}
    return found


def metric_names() -> set[str]:
    """Names of metrics, and of their scores in tables."""
    found = set()
    for spec in metric_specs():
        found.add(spec.name)
        for score in spec.scores:
            found |= {score.name, score.in_inception} - {""}
    return found


KINDS = {
    "family": Kind(
        family_names,
        ("denoisers/", "recipes/"),
        {
            ("config/sections.py", "edm"): "the default of schedule.kind, in every run's identity",
            ("data/options.py", "edm2"): "the default of --convention, which manifests record",
        },
        (
            "denoisers.edm",
            "denoisers.edm2",
            "denoisers.edm_layers",
            "denoisers.families",
            "denoisers.sdxl",
            "denoisers.stable_diffusion",
        ),
    ),
    "objective": Kind(
        objective_names,
        ("objectives/", "recipes/"),
        {("config/sections.py", "sid"): "the default of objective.name, in every run's identity"},
        ("objectives.built_in", "objectives.sid", "objectives.sida", "objectives.vsd"),
    ),
    "metric": Kind(
        metric_names,
        ("metrics/",),
        {("config/sections.py", "fd"): "the default of evaluation.metrics, which results record"},
        ("metrics.built_in",),
    ),
}


def literals(tree: ast.AST) -> Iterator[str]:
    """Strings of a source but for docstrings."""
    said = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in said:
            yield node.value


def imported(tree: ast.AST) -> Iterator[str]:
    """Modules of sid_ray that a source imports, without sid_ray."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            modules = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        else:
            continue
        yield from (name.removeprefix("sid_ray.") for name in modules)


def strays(text: str, names: set[str], modules: tuple[str, ...] = ()) -> set[str]:
    """Names that a source holds as a literal or as a part of a path in one, and modules that it
    imports, or something below them.
    """
    tree = ast.parse(text)
    found = {name for text in literals(tree) for name in (text, *text.split("/")) if name in names}
    for module in imported(tree):
        found |= {own for own in modules if module == own or module.startswith(f"{own}.")}
    return found


def strays_of(kind: Kind) -> set[tuple[str, str]]:
    """(file, name) of all that stands outside its home."""
    names, found = kind.names(), set()
    for path in PACKAGE.rglob("*.py"):
        place = path.relative_to(PACKAGE).as_posix()
        if not place.startswith(kind.homes):
            found |= {(place, name) for name in strays(path.read_text(), names, kind.modules)}
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_names_stand_at_home(kind):
    """And each exception is still one."""
    found, allowed = strays_of(KINDS[kind]), set(KINDS[kind].exceptions)
    assert found - allowed == set(), f"names of a {kind} outside {KINDS[kind].homes}"
    assert allowed - found == set(), "exceptions that nobody needs any more"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('"""Speaks of edm."""\nx = "edm of old"  # edm', set()),
        ('if family == "edm": pass', {"edm"}),
        ('x = {"vp": 1, "other": 2}', {"vp"}),
        ('path = folder / f"{part}/unet/config.json"', {"unet"}),
        ("from sid_ray.denoisers.edm2 import EDM2Network", {"denoisers.edm2"}),
        ("from sid_ray.denoisers import edm2", {"denoisers.edm2"}),
        ("from sid_ray.denoisers.edm2_other import x", set()),
    ],
)
def test_what_counts_as_a_name(text, expected):
    assert strays(text, {"edm", "vp", "unet"}, ("denoisers.edm2",)) == expected
