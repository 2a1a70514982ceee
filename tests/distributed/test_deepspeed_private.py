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


def source_of(function):
    """Of what instrument_w_nvtx wraps, too: its wrapper keeps the function in a cell alone."""
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    return inspect.getsource(next(filter(inspect.isfunction, cells), function))


def test_what_the_host_would_wait_for_is_still_there():
    """The day it is not, or is elsewhere, wait_on_the_device and host_goes_on may go."""
    stages = importlib.import_module("deepspeed.runtime.zero.stage_1_and_2")
    sharded = importlib.import_module("deepspeed.runtime.zero.stage3")
    halves, whole = stages.DeepSpeedZeroOptimizer, sharded.DeepSpeedZeroOptimizer_Stage3
    for function, waits in (
        (halves.update_offload_overflow_tracker, "self._has_inf_or_nan(grad.data)"),
        (halves.complete_grad_norm_calculation_for_cpu_offload, "param_norm.item()"),
        (halves.get_grad_norm_direct, "mask_nan_or_inf_with_val_inplace"),
        (halves.independent_gradient_partition_epilogue, "get_accelerator().synchronize()"),
        (halves.average_tensor, "stream.wait_stream(producer_stream)"),
        (whole.get_grad_norm_direct, "err = torch.tensor(-1.0, device=self.device"),
        (whole._post_step, "all_gather(self.persistent_parameters)"),
        (Init._allgather_params_coalesced, "get_accelerator().synchronize()"),
    ):
        assert waits in source_of(function)
    epilogue = source_of(whole.independent_gradient_partition_epilogue)
    assert "reduce_and_partition_stream.synchronize()" in epilogue


def test_the_throughput_timer_and_norms_of_gradients_are_off():
    from deepspeed.runtime.config import DeepSpeedConfig

    for stage in (0, 1, 2, 3):
        config = DeepSpeedConfig(deepspeed_role.deepspeed_config(stage, 1, 1))
        assert not config.timers_config.enabled and not config.timers_config.synchronized
        assert config.zero_config.compute_grad_norm == (stage not in (1, 2))
