"""Whatever a file holds: tensors and plain values, or one UserError; never anything else.

benchmarks/fuzz_loader.py does the same for as long as it is given.
"""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sid_ray.errors import UserError
from sid_ray.weights.command import inspect
from sid_ray.weights.formats import read_weights
from tests.support import hostile, mutate

BOUNDED = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
WATCH = mutate.Watch()


@pytest.fixture(scope="module")
def files():
    return mutate.small_files()


@pytest.fixture
def target(tmp_path, files):
    path = tmp_path / "file.pkl"
    for data in files.values():  # what is imported on first use is not the file's
        path.write_bytes(data)
        read_weights(path)
        list(inspect(str(path)))
    return path


def loads_or_refuses(path, data: bytes) -> bool:
    """Whether it loaded. Fails for any other exception, and for anything executed."""
    path.write_bytes(data)
    with WATCH.watching():
        try:
            read_weights(path)
        except UserError as error:
            assert str(error).isprintable() and len(str(error)) < 1000
            return False
    return True


@pytest.mark.parametrize("name", ["snapshot", "state dicts", "modules"])
def test_flipped_bits(name, target, files):
    """Each bit of the byte in turn along the file; the benchmark flips every bit."""
    data = files[name]
    for index in range(0, len(data), 1 + len(data) // 1500):
        flipped = data[index] ^ (1 << index % 8)
        loads_or_refuses(target, data[:index] + bytes([flipped]) + data[index + 1 :])


@pytest.mark.parametrize("name", ["snapshot", "older state dicts", "training state", "modules"])
def test_every_cut(name, target, files):
    data = files[name]
    for length in range(0, len(data) - 1, 1 + len(data) // 300):
        assert not loads_or_refuses(target, data[:length])


@BOUNDED
@given(seed=st.integers(0, 1 << 32), name=st.sampled_from(list(mutate.small_files())))
def test_mutations(seed, name, target, files):
    others = list(files.values())
    loads_or_refuses(target, mutate.mutated(files[name], others, random.Random(seed)))


@BOUNDED
@given(body=st.binary(max_size=200))
def test_random_instructions(body, target):
    loads_or_refuses(target, b"\x80\x04" + body)
    loads_or_refuses(target, hostile.ema(body))


OPCODES = list(b"(.0NRQ}]bcsuaetl)\x81\x85\x86\x87\x88\x8f\x90\x91\x92\x93\x94h")


@BOUNDED
@given(
    parts=st.lists(
        st.one_of(
            st.sampled_from([bytes([code]) for code in OPCODES]),
            st.sampled_from(
                [
                    b"ccollections\nOrderedDict\n",
                    b"cbuiltins\ngetattr\n",
                    b"ctorch._utils\n_rebuild_tensor_v2\n",
                    b"ctorch._utils\n_rebuild_parameter\n",
                    b"ctorch.storage\n_load_from_bytes\n",
                    b"ctorch_utils.persistence\n_reconstruct_persistent_obj\n",
                    b"cnumpy\ndtype\n",
                    b"cnumpy.core.multiarray\n_reconstruct\n",
                    b"ctorch.nn\nModule\n",
                    b"cos\nsystem\n",
                    hostile.text("f4"),
                    hostile.text("_parameters"),
                    hostile.number(7),
                    b"h\x00",
                    b"C\x04abcd",
                ]
            ),
        ),
        max_size=40,
    )
)
def test_instructions_that_belong_together(parts, target):
    loads_or_refuses(target, b"\x80\x04" + b"".join(parts) + b".")


@BOUNDED
@given(seed=st.integers(0, 1 << 32), name=st.sampled_from(list(mutate.small_files())))
def test_inspect_of_mutations(seed, name, target, files):
    """Looking at a hostile file is as safe as loading it, and prints on any terminal."""
    target.write_bytes(mutate.mutated(files[name], list(files.values()), random.Random(seed)))
    lines = inspect(str(target))
    with WATCH.watching():
        try:
            for line in lines:
                assert line.isprintable() and line.encode()
        except UserError as error:
            assert str(error).isprintable()
