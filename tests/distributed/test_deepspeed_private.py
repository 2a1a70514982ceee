"""The private parts of DeepSpeed are what deepspeed_private.py takes them for.

That state is found where it says is what test_deepspeed_role.py, test_zero3.py and test_adam.py
show at every stage; that each part is still needed, and still there, is shown here.
"""

import importlib
import inspect
import logging

import pytest
import torch

from sid_ray.distributed import deepspeed_private, deepspeed_role

deepspeed_private.import_deepspeed()

from deepspeed.runtime.engine import DeepSpeedEngine  # noqa: E402
from deepspeed.runtime.zero.parameter_offload import DeepSpeedZeRoOffload  # noqa: E402
from deepspeed.runtime.zero.partition_parameters import Init  # noqa: E402


@pytest.mark.parametrize("broadcast", [DeepSpeedEngine._broadcast_model, Init._zero_init_param])
def test_deepspeeds_broadcasts_still_raise_on_parameters_without_dimensions(broadcast):
    """The day they do not, rank_zero_weights may go."""
    assert ".view(torch.uint8)" in inspect.getsource(broadcast)
    with pytest.raises(RuntimeError, match="cannot be 0"):
        torch.tensor(1.0).view(torch.uint8)


def test_what_is_replaced_is_there_again():
    before = DeepSpeedZeRoOffload.post_sub_module_forward_function
    with deepspeed_private.kept_gathered():
        assert DeepSpeedZeRoOffload.post_sub_module_forward_function is not before
    assert DeepSpeedZeRoOffload.post_sub_module_forward_function is before
    assert list(inspect.signature(before).parameters) == ["self", "sub_module"]


def test_no_operator_is_built_for_inference():
    comm = importlib.import_module("deepspeed.comm.torch")
    assert "build_shm_op()" in inspect.getsource(comm.TorchBackend.__init__)
    deepspeed_private.build_no_inference_operator()
    assert comm.build_shm_op() is None


def test_the_warning_that_is_left_out_is_still_worded_so():
    source = inspect.getsource(inspect.getmodule(DeepSpeedEngine))
    assert 'logger.warning("**** You are using ZeRO with an untested optimizer' in source
    record = logging.LogRecord("x", logging.WARNING, "", 0, "an untested optimizer", (), None)
    assert not deepspeed_role.say_no_untested(record)
