"""Specs by name: those that ship, of packages, of a call; and what is refused."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

from sid_ray.config.registry import METRICS, OBJECTIVES, Registry
from sid_ray.errors import UserError

GROUP = "sid_ray.tests"


class Thing(NamedTuple):
    name: str


THING, OTHER = Thing("thing"), Thing("other")


def registry() -> Registry[Any]:
    return Registry("objective", GROUP, OBJECTIVES.home)


@pytest.fixture
def offer(tmp_path, monkeypatch):
    """Installs a package that offers NAME = TARGET."""

    def offer(name: str, target: str, package: str = "a-package") -> None:
        info = tmp_path / f"{package}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[{GROUP}]\n{name} = {target}\n")
        monkeypatch.syspath_prepend(tmp_path)

    return offer


def test_what_ships_has_a_spec_a_file():
    assert OBJECTIVES.names == ("lsg", "sid", "sida", "vsd")
    assert METRICS.names == ("clip", "cmmd", "fd", "hpsv2", "is", "kid", "pickscore", "pr")
    for known in (OBJECTIVES, METRICS):
        assert [spec.name for spec in known.specs] == list(known.names)


def test_a_call_adds_one_and_the_same_once():
    found = registry()
    found.register(THING)
    found.register(THING)
    assert found.get("thing") is THING and found.names[-1] == "thing"
    with pytest.raises(UserError, match="'sid' is registered already"):
        found.register(Thing("sid"))


def test_a_package_offers_one(offer):
    offer("thing", f"{__name__}:THING")
    found = registry()
    assert found.names[-1] == "thing" and found.find("thing") == THING
    assert found.find("nothing") is None
    with pytest.raises(UserError, match=r"unknown objective 'thign'; known: .*Did you mean thing"):
        found.get("thign")
    with pytest.raises(UserError, match="'thing' is registered already"):
        found.register(Thing("thing"))


@pytest.mark.parametrize(
    ("name", "target", "words"),
    [
        ("broken", "no_such_module:X", r"'broken' of a-package cannot be loaded \(ModuleNotFound"),
        ("broken", f"{__name__}:NOTHING", r"'broken' of a-package cannot be loaded \(Attribute"),
        ("broken", f"{__name__}:OTHER", r"is called 'other'; expected a spec of the entry point's"),
        ("sid", f"{__name__}:OTHER", "'sid' of a-package has the name of another objective"),
    ],
)
def test_a_package_that_is_wrong_is_named(offer, name, target, words):
    offer(name, target)
    with pytest.raises(UserError, match=words):
        assert registry().specs


def test_two_packages_may_not_offer_one_name(offer):
    offer("thing", f"{__name__}:THING")
    offer("thing", f"{__name__}:OTHER", "b-package")
    with pytest.raises(UserError, match=r"'thing' of .-package has the name of another objective"):
        assert registry().names
