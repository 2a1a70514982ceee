"""Networks whose weights are bfloat16, beside float32 weights with a body in bfloat16.

Bodies cast weights to bfloat16 in any case. What differs is what reads them in float32: embeddings
of the time, and in flow transformers tables and norms.
"""

import copy

import pytest
import torch
from torch import nn

pytest.importorskip("diffusers")

from sid_ray.denoisers.precondition import set_precision
from sid_ray.types import Condition
from tests.conftest import relative_error
from tests.denoisers import test_flow_transformers as flow
from tests.denoisers import test_precision as nets

LIMIT = 10 * 2.0**-8  # of bfloat16's rounding


def passed(net: nn.Module, family: str) -> tuple[torch.Tensor, torch.Tensor]:
    """x_0, and the gradient of all weights as one vector."""
    if family in nets.FAMILIES:
        x, level, cond = nets.inputs(family)
    else:
        x, level, text = flow.inputs(net)
        cond = Condition(text=text)
    x0 = net(x, level, cond).x0
    assert x0.dtype == torch.float32
    x0.square().sum().backward()
    grads = [p.grad for p in net.parameters() if p.grad is not None]
    return x0.detach(), torch.cat([grad.float().flatten() for grad in grads])


@pytest.mark.parametrize("family", ["edm", "stable-diffusion", *flow.NETS], ids=str)
def test_bfloat16_weights_are_as_near_as_a_bfloat16_body(family):
    name = family if family in nets.FAMILIES else "flow"
    net = nets.network(family) if name != "flow" else flow.network(family)
    net.requires_grad_(True)
    set_precision(net, "bfloat16")
    half = copy.deepcopy(net)
    for parameter in half.parameters():
        parameter.data = parameter.data.bfloat16()
    ours, theirs = passed(half, name), passed(net, name)
    for found, expected in zip(ours, theirs, strict=True):
        assert relative_error(found, expected) < LIMIT
