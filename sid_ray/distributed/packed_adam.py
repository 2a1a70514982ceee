"""Adam on state that is kept in fewer bits, and opened to float32 for the step alone.

Moments in 8 bits (eight_bits.py) and weights in two halves (half_weights.py), in any mixture, a
batch of at most adam.AT_ONCE elements at a time. The step between is that of Adam, found_inf
included: where it is 1, everything keeps its bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from sid_ray.distributed import adam
from sid_ray.distributed.adam import Adam, AdamSettings, Values, in_batches
from sid_ray.distributed.eight_bits import LEAST, EightBits, require_functions
from sid_ray.distributed.fragments import EXP_AVG, MASTER, MOMENTS, OnDemand
from sid_ray.distributed.half_weights import join_halves, split_halves

LOW = "low"  # of a weight in two halves, what bfloat16 lacks


class PackedAdam(Adam):
    """Adam of settings with ``eight_bits``, ``half_weights`` or both.

    With ``half_weights`` float32 parameters become bfloat16 here, and gradients of several passes
    are added up in float32: a pass leaves none in ``parameter.grad``.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], settings: AdamSettings):
        parameters = list(parameters)
        super().__init__(parameters, settings)
        self.eight_bits = settings.eight_bits
        if self.eight_bits:
            require_functions()
        self._sums = dict[Tensor, Tensor]()  # of gradients, where weights are in two halves
        for parameter in parameters if settings.half_weights else ():
            parameter.data, low = split_halves(parameter.data)
            self.state_of(parameter)[LOW] = low
            parameter.register_post_accumulate_grad_hook(self._add_up)

    def state_of(self, parameter: Tensor) -> dict[str, Any]:
        state: dict[str, Any] = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), device=parameter.device)
            for moment in self.moments:
                packed = self.eight_bits and parameter.numel() >= LEAST
                wide = torch.promote_types(parameter.dtype, torch.float32)
                state[moment] = (
                    EightBits(parameter, signed=moment == EXP_AVG)
                    if packed
                    else torch.zeros_like(parameter, dtype=wide)
                )
        return state

    def _add_up(self, parameter: Tensor) -> None:
        gradient, parameter.grad = parameter.grad, None
        assert gradient is not None
        total = self._sums.get(parameter)
        self._sums[parameter] = gradient.float() if total is None else total.add_(gradient)

    def is_packed(self, parameter: Tensor) -> bool:
        state = self.state_of(parameter)
        return LOW in state or any(isinstance(state[kind], EightBits) for kind in self.moments)

    def gradient_of(self, parameter: nn.Parameter) -> Tensor:
        if LOW not in self.state_of(parameter):
            return super().gradient_of(parameter)
        if parameter not in self._sums:
            self._sums[parameter] = torch.zeros_like(parameter, dtype=torch.float32)
        return self._sums[parameter]

    def zero_grad(self, set_to_none: bool = True) -> None:
        super().zero_grad(set_to_none)
        self._sums.clear()

    def master_of(self, parameter: nn.Parameter) -> Tensor:
        low = self.state_of(parameter).get(LOW)
        return parameter.data if low is None else join_halves(parameter.data, low)

    def values_of(self, parameter: nn.Parameter) -> Values:
        if not self.is_packed(parameter):
            return super().values_of(parameter)

        def maker(kind: str) -> Callable[[], Tensor]:
            return lambda: self._open(parameter, kind)

        def write(kind: str, value: Tensor) -> None:
            self._close(parameter, kind, value.to(parameter.device, torch.float32))

        return OnDemand({kind: maker(kind) for kind in (MASTER, *self.moments)}), write

    def _open(self, parameter: Any, kind: str) -> Tensor:
        """A kind of state, flat; the state itself where it is float32."""
        if kind == MASTER:
            return self.master_of(parameter).view(-1)
        found = self.state_of(parameter)[kind]
        return found.open() if isinstance(found, EightBits) else found.view(-1)

    def _close(
        self, parameter: Tensor, kind: str, value: Tensor, applied: Tensor | None = None
    ) -> None:
        """Keeps a flat float32 tensor as a kind of state; where ``applied`` is False, nothing."""
        state = self.state_of(parameter)
        if kind != MASTER:
            found = state[kind]
            if isinstance(found, EightBits):
                found.close(value, applied)
            elif found.data_ptr() != value.data_ptr():
                found.view(-1).copy_(value)
        elif LOW in state:  # to the same bits, where nothing was changed
            near, low = split_halves(value)
            parameter.data.view(-1).copy_(near)
            state[LOW].view(-1).copy_(low)
        elif parameter.data_ptr() != value.data_ptr():
            parameter.data.view(-1).copy_(value)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            stepped = [p for p in group["params"] if p.grad is not None or p in self._sums]
            packed = [parameter for parameter in stepped if self.is_packed(parameter)]
            self._step_all(group, [each for each in stepped if not self.is_packed(each)])
            for start, stop in in_batches([parameter.numel() for parameter in packed]):
                self._step_opened(group, packed[start:stop])

    def _step_opened(self, group: dict, parameters: list[nn.Parameter]) -> None:
        """Opens the state of these, steps, and closes it."""
        applied = None if self.found_inf is None else self.found_inf == 0
        kinds = (MASTER, *self.moments)
        opened = {kind: [self._open(each, kind) for each in parameters] for kind in kinds}
        gradients = [self.gradient_of(parameter).reshape(-1) for parameter in parameters]
        first, second = (opened.get(moment, gradients) for moment in MOMENTS)
        fused = parameters[0].device.type in adam.FUSED_DEVICES
        states = [self.state_of(parameter) for parameter in parameters]
        self._kernel(group, opened[MASTER], gradients, first, second, states, fused)
        for kind, values in opened.items():
            for parameter, value in zip(parameters, values, strict=True):
                self._close(parameter, kind, value, applied)


def build_adam(settings: AdamSettings, parameters: Iterable[nn.Parameter]) -> Adam:
    """Raises UserError where 8 bits are asked for and bitsandbytes is not installed."""
    packed = settings.eight_bits or settings.half_weights
    return (PackedAdam if packed else Adam)(parameters, settings)
