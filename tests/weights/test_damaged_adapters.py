"""Whatever an adapter's file says of itself: a network, or one line of refusal, and no memory made
on its word.
"""

from __future__ import annotations

import json
import random
import resource
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

pytest.importorskip("peft")

from sid_ray.errors import UserError
from sid_ray.weights.command import inspect
from sid_ray.weights.folder import load_model
from sid_ray.weights.networks import describe
from sid_ray.weights.sources import resolve_source
from tests.weights.adapters import write_adapter

BASES = ("builtin:digits-teacher", "builtin:emoji-teacher")  # with layers of our own, and PEFT's


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SID_RAY_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("adapters")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SID_RAY_CACHE", str(home / "cache"))
        for base in BASES:
            name = base.rpartition(":")[2]
            write_adapter(home / name, resolve_source(base), notes={"teacher": base})
    return home


@pytest.fixture(params=BASES)
def adapter(request, made, tmp_path) -> Path:
    return Path(shutil.copytree(made / request.param.rpartition(":")[2], tmp_path / "model"))


def described(adapter: Path, **changes: object) -> Path:
    """The same file with another account of the adapter."""
    values = json.loads((adapter / "model.json").read_text())
    values["adapter"] = {**values["adapter"], **changes}
    (adapter / "model.json").write_text(json.dumps(values))
    return adapter


def refusal(adapter: Path) -> str:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for look in (describe, load_model):
        with pytest.raises(UserError) as caught:
            look(adapter)
    assert str(caught.value).isprintable()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 256 << 10, "KiB"
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rank": 0}, "of rank 0 on"),
        ({"rank": -3}, "of rank -3 on"),
        ({"rank": 10**12}, "of rank 1000000000000 on"),
        ({"rank": 60_000}, "lora"),
        ({"rank": 4}, "lora"),
        ({"rank": float("inf")}, "not whole"),
        ({"rank": [3]}, "not whole"),
        ({"alpha": float("nan")}, "a finite number is expected"),
        ({"alpha": float("inf")}, "a finite number is expected"),
        ({"alpha": "much"}, "not whole"),
        ({"targets": []}, "on 0 kinds of layers"),
        ({"targets": ["nothing_like_it"]}, "no linear layer or convolution"),
        ({"targets": ["*"]}, "lora"),
        ({"targets": 7}, "not whole"),
        ({"targets": ["a"] * 100_000}, "on 100000 kinds of layers"),
        ({"targets": ["*a*a*a*a*a*a*a*a*a*a*a*a*a*a*b"]}, "no linear layer or convolution"),
    ],
)
def test_what_an_adapter_cannot_be_is_refused(adapter, changes, words):
    assert words in refusal(described(adapter, **changes))


def test_tensors_of_another_network_are_refused(adapter):
    tensors = load_file(adapter / "model.safetensors")
    for change in ("missing", "more", "wide"):
        found = dict(tensors)
        name = sorted(found)[0]
        if change == "missing":
            del found[name]
        elif change == "more":
            found[f"x.{name}"] = found[name].clone()
        else:
            found[name] = found[name].repeat(2, *[1] * (found[name].ndim - 1))
        save_file(found, adapter / "model.safetensors")
        assert "lora_A" in refusal(adapter)


def test_mutated_accounts_load_or_are_refused(adapter):
    """Bytes of model.json changed at random: a network or one line, nothing else."""
    rng, text = random.Random(0), (adapter / "model.json").read_bytes()
    refused = 0
    for _ in range(60):
        data = bytearray(text)
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] = rng.choice(b'0123456789{}[]",:-eNaI ')
        (adapter / "model.json").write_bytes(bytes(data))
        try:
            describe(adapter)
        except UserError as error:
            refused += 1
            assert len(str(error)) < 1000
    assert refused > 10


def test_inspect_tells_rank_alpha_and_base(adapter):
    found = "\n".join(inspect(str(adapter)))
    assert "adapter     rank 3, alpha 7.5, over builtin:" in found
    assert "targets     " in found and "sha256 of its numbers" in found
