"""Adam of the trained roles: torch's fused kernel, and no first moment where beta1 is 0.

With beta1 = 0 the first moment is the gradient of this very step. The gradients stand in for it:
the kernel reads each element, finds it equal to its own new value and writes that back.

Whether gradients are finite is known to the device that has them, and the host does not ask: the
kernels read it themselves, from ``Adam.found_inf``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor, nn
from torch.optim.adam import adam

from sid_ray.distributed.fragments import EXP_AVG, KINDS, MASTER, MOMENTS

FUSED_DEVICES = ("cpu", "cuda")
MOMENT_BYTES = 1 + 4 / 256  # an element in 8 bits: eight_bits.py
AT_ONCE = 1 << 26  # elements of which there are copies at one time
Values = tuple[Mapping[str, Tensor], Callable[[str, Tensor], None] | None]


@dataclass(frozen=True)
class AdamSettings:
    """Adam's settings of one role.

    ``eight_bits``: moments are kept in 8 bits (eight_bits.py). ``half_weights``: the weights are
    bfloat16, and what that lacks of float32 is the optimizer's (half_weights.py).
    """

    lr: float
    beta1: float
    beta2: float
    epsilon: float
    eight_bits: bool = False
    half_weights: bool = False

    @property
    def moments(self) -> tuple[str, ...]:
        """Adam's state of a tensor, its step aside: with beta1 = 0 no first moment."""
        return tuple(kind for kind in MOMENTS if kind != EXP_AVG or self.beta1)

    @property
    def moment_words(self) -> float:
        """The bytes of these, in float32: tensors too small for 8 bits are not looked at."""
        return len(self.moments) * (MOMENT_BYTES / 4 if self.eight_bits else 1)

    @property
    def kinds(self) -> tuple[str, ...]:
        """What a role is in a checkpoint."""
        return tuple(kind for kind in KINDS if kind not in MOMENTS or kind in self.moments)


class Adam(torch.optim.Adam):
    """torch.optim.Adam's numbers to rounding, its state made here.

    DeepSpeed puts flat tensors of its own into the groups, on whatever device: state and kernel
    are chosen tensor by tensor, at the step. Its own Adam would compile C++ for minutes on a CPU.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], settings: AdamSettings):
        betas = (float(settings.beta1), float(settings.beta2))  # torch refuses int next to float
        super().__init__(parameters, lr=settings.lr, betas=betas, eps=settings.epsilon)
        self.moments = settings.moments
        # float32 [] on any device: a step where it is 1 changes nothing and is not counted. Named
        # as torch's GradScaler names what it leaves on optimizers.
        self.found_inf: Tensor | None = None

    def state_of(self, parameter: Tensor) -> dict[str, Tensor]:
        """The state of one tensor, created as zeros when there was no step yet."""
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), device=parameter.device)  # where fused kernels want it
            for moment in self.moments:
                state[moment] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        return state

    def gradient_of(self, parameter: nn.Parameter) -> Tensor:
        """What the next step reads: zeros, from then on, where no loss reached the parameter."""
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        return parameter.grad

    def master_of(self, parameter: nn.Parameter) -> Tensor:
        """The weight as it is stepped, in the parameter's shape."""
        return parameter.data

    def values_of(self, parameter: nn.Parameter) -> Values:
        """A parameter's state by kind, flat, and how it is set where writing that does not."""
        state = self.state_of(parameter)
        values = {MASTER: parameter.data} | {kind: state[kind] for kind in self.moments}
        return {kind: value.view(-1) for kind, value in values.items()}, None

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Steps every parameter that has a gradient; gradients keep their values."""
        for group in self.param_groups:
            self._step_all(group, [each for each in group["params"] if each.grad is not None])

    def _step_all(self, group: dict, stepped: Iterable[Tensor]) -> None:
        kernels: dict[bool, list[Tensor]] = {True: [], False: []}
        for parameter in stepped:
            kernels[self._fits_fused(parameter)].append(parameter)
        for fused, parameters in kernels.items():
            if parameters:
                self._step(group, parameters, fused)

    def _fits_fused(self, parameter: Tensor) -> bool:
        """Fused kernels walk through memory: parameter, gradient and state must lie alike.

        Along a dimension of size 1 nobody walks. cuDNN's gradients of 1x1 convolutions in the order
        channels_last have strides of their own there, which autograd keeps.
        """
        gradient, state = parameter.grad, self.state_of(parameter)
        assert gradient is not None
        like = (gradient, *(state[moment] for moment in self.moments))
        return (
            parameter.device.type in FUSED_DEVICES
            and parameter.is_floating_point()
            and all(
                (steps_of(other), other.dtype, other.device)
                == (steps_of(parameter), parameter.dtype, parameter.device)
                for other in like
            )
        )

    def _step(self, group: dict, parameters: list[Tensor], fused: bool) -> None:
        states = [self.state_of(parameter) for parameter in parameters]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        first, second = (
            [state[moment] for state in states] if moment in self.moments else gradients
            for moment in MOMENTS
        )
        self._kernel(group, parameters, gradients, first, second, states, fused)

    def _kernel(
        self,
        group: dict,
        parameters: list[Tensor],
        gradients: list[Tensor],
        first: list[Tensor],
        second: list[Tensor],
        states: Sequence[Mapping[str, Tensor]],
        fused: bool,
    ) -> None:
        # Only fused kernels read found_inf: for others the host has to.
        if not fused and self.found_inf is not None and bool(self.found_inf):
            return
        beta1, beta2 = group["betas"]
        adam(
            parameters,
            gradients,
            first,
            second,
            [],
            [state["step"] for state in states],
            fused=fused,
            foreach=not fused,
            found_inf=self.found_inf if fused else None,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=0.0,
            eps=group["eps"],
            maximize=False,
        )

    def steps(self) -> int:
        """Steps made. A parameter that no loss reached may have made fewer. Read all at once."""
        found = [state["step"] for state in self.state.values()]
        return int(torch.stack(found).max()) if found else 0

    def set_steps(self, steps: int) -> None:
        """Of every tensor that has a state."""
        for state in self.state.values():
            state["step"].fill_(float(steps))


def in_batches(sizes: Sequence[int], most: int = AT_ONCE) -> Iterator[tuple[int, int]]:
    """(start, stop) of neighbours with at most so many elements together, one at least."""
    start, elements = 0, 0
    for place, size in enumerate(sizes):
        if place > start and elements + size > most:
            yield start, place
            start, elements = place, 0
        elements += size
    if sizes:
        yield start, len(sizes)


def steps_of(tensor: Tensor) -> list[tuple[int, int]]:
    """How a tensor lies in memory: (dimension, stride) of those that are longer than 1."""
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    return [(place, stride) for place, (size, stride) in enumerate(sizes) if size > 1]


@torch.no_grad()
def found_inf_in(tensors: list[Tensor]) -> Tensor:
    """1 where any element is infinite or NaN, else 0: float32 [] where the tensors are.

    Without temporaries of their size; on a GPU the host does not wait. The largest element decides,
    for sums overflow. On a CPU a sum of squares is ten times as fast and finite only where all
    elements are: it is asked first.
    """
    if not tensors:
        return torch.zeros(())
    if tensors[0].device.type == "cpu" and not beyond(tensors, 2):
        return torch.zeros(())
    return beyond(tensors, inf).float()


def beyond(tensors: list[Tensor], order: float) -> Tensor:
    """Whether any tensor's norm is not finite, bool []."""
    return torch.stack(torch._foreach_norm(tensors, order)).isfinite().all().logical_not()
