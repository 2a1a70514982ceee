"""torch.compile of the networks, and where what it has compiled is kept.

"default" compiles each block by itself: equal blocks, of one network or of all three, are traced
and compiled once, where a whole network is one graph without repeats that takes far longer. What is
between blocks (embeddings, concatenations) stays as it is. "cudagraphs" compiles whole networks,
because a CUDA graph a block, with weights at fixed places, would be recorded for every block.

Shapes are static. A graph belongs to what varies in a run: gradients or none, weights trained or
frozen, dropout keys or none, and which outputs are wanted. Parameters keep their names; a copy of a
network (copy.deepcopy) is not compiled.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sid_ray.errors import UserError

MODES = ("off", "default", "cudagraphs")
# Of diffusers' networks: what they repeat. By name, as only the families' files import diffusers.
DIFFUSERS_BLOCKS = (
    "BasicTransformerBlock",
    "ResnetBlock2D",
    "JointTransformerBlock",
    "SanaTransformerBlock",
    "FluxTransformerBlock",
    "FluxSingleTransformerBlock",
)
# Kinds of blocks times what varies, with room; torch's 8 would leave all further ones uncompiled.
VARIANTS, ALL_VARIANTS = 512, 4096
CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"


def set_compile(network: nn.Module, mode: str, backend: str = "inductor") -> None:
    """Has a denoiser compiled, at its first call, as a mode of resources.compile says.

    For a network in its place: after precision, attention and recomputation were set, and before an
    engine takes it. Whatever cannot be compiled raises at the first call; nothing falls back to
    running uncompiled. ``backend`` is for tests.
    """
    if mode not in MODES:
        raise ValueError(f"compile must be one of {MODES}, found {mode!r}")
    if mode == "off":
        return
    limit_loudly()
    share_sites(network)
    if mode == "cudagraphs":
        Recorded.graphs = True
        own_gradients(network)
    how: dict[str, Any] = {"dynamic": False, "backend": backend}
    # xformers' dispatch is plain Python between its kernels.
    how["fullgraph"] = "xformers" not in attention_backends(network)
    if mode == "cudagraphs" and backend == "inductor":
        how = how | {"mode": "reduce-overhead"}
    for part in blocks_to_compile(network) if mode == "default" else [body(network)]:
        part.compile(**how)


class Recorded:
    """Whether this process runs networks as recorded CUDA graphs."""

    graphs = False


def begin_pass() -> None:
    """Called before each forward pass of a step, and of a look ahead.

    What graphs return lies in memory that the next pass writes again. Left to itself, torch takes
    every call of a compiled network for a new pass while no backward pass is pending
    (torch/_inductor/cudagraph_trees.py:2557): the fake score's call would end the life of the
    image that the generator made without gradient just before. Once told, it goes by what it is
    told alone.
    """
    if Recorded.graphs:
        torch.compiler.cudagraph_mark_step_begin()


def own_gradients(network: nn.Module) -> None:
    """Has every parameter's gradient live outside the graphs' memory.

    Where there is no gradient yet, autograd takes the tensor that it is given
    (torch/include/torch/csrc/autograd/functions/accumulate_grad.h:188), here one of the graph's
    memory: the next pass would add to a gradient that it has just overwritten. So the first one is
    copied; later ones are added to the copy. Before any engine takes the parameters.
    """
    for parameter in network.parameters():
        trained = parameter.requires_grad
        parameter.requires_grad_(True)  # or torch takes no hook
        parameter.register_hook(partial(copied_where_first, weakref.ref(parameter)))
        parameter.requires_grad_(trained)


def copied_where_first(of: weakref.ref[nn.Parameter], gradient: Tensor) -> Tensor | None:
    """A gradient that nothing was added to yet, in memory of its own; None leaves it as it is."""
    parameter = of()
    return gradient.clone() if parameter is None or parameter.grad is None else None


def blocks_to_compile(network: nn.Module) -> Iterator[nn.Module]:
    """The residual and transformer blocks of a denoiser."""
    for module in network.modules():
        if hasattr(module, "dropout_site") or type(module).__name__ in DIFFUSERS_BLOCKS:
            yield module


def body(network: nn.Module) -> nn.Module:
    """The raw U-Net of an EDM or EDM2 denoiser; another denoiser itself."""
    for name in ("model", "unet"):
        inner = getattr(network, name, None)
        if isinstance(inner, nn.Module) and hasattr(inner, "dec"):
            return inner
    return network


def attention_backends(network: nn.Module) -> Iterator[str]:
    for module in network.modules():
        if hasattr(module, "attention_backend"):
            yield str(module.attention_backend)


def share_sites(network: nn.Module) -> None:
    """Makes the number of each dropout layer a tensor: as a number it would be part of the code.

    Equal blocks then share theirs. The masks are the same to the bit.
    """
    for module in network.modules():
        site = getattr(module, "dropout_site", None)
        if isinstance(site, int):
            del module.dropout_site
            # The blocks of a frozen base hold buffers alone.
            device = next(chain(module.parameters(), module.buffers())).device
            value = torch.tensor(site, dtype=torch.int64, device=device)
            module.register_buffer("dropout_site", value, persistent=False)


def limit_loudly() -> None:
    """Room for every variant of a run; one more raises instead of running uncompiled."""
    import torch._dynamo.config as dynamo

    dynamo.recompile_limit = max(dynamo.recompile_limit, VARIANTS)
    dynamo.accumulated_recompile_limit = max(dynamo.accumulated_recompile_limit, ALL_VARIANTS)
    dynamo.fail_on_recompile_limit_hit = True


def keep_compiled(folder: Path) -> None:
    """Keeps compiled code in a folder of this node's own disk, for all processes to come.

    Before anything is compiled. Inductor's and AOTAutograd's caches lie there, keyed by the code,
    versions and machine, written whole or not at all, so that processes may share the folder. A
    TORCHINDUCTOR_CACHE_DIR of the user's own is left as it is. What lies there is executed: the
    folder is this user's alone. Raises UserError where it is somebody else's.
    """
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    # Importing dynamo, which diffusers or DeepSpeed may have done, sets it to torch's default.
    if os.environ.get(CACHE_VARIABLE) not in (None, default_cache_dir()):
        return
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise UserError(
            f"{folder}, for compiled code, belongs to another user; set output.local_folder, or "
            f"{CACHE_VARIABLE} on every node"
        )
    os.environ[CACHE_VARIABLE] = str(folder)
