"""Writes files in the layouts of the published weights, with made-up classes and source text.

The modules that the pickles name exist only while a file is written.
"""

from __future__ import annotations

import collections
import contextlib
import io
import pickle
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sid_ray.denoisers.edm import EDMDenoiser, EDMNetwork

SOURCE = 'raise SystemExit("the source of a file was executed")\n'

TINY = {
    "img_resolution": 8,
    "img_channels": 3,
    "label_dim": 4,
    "augment_dim": 9,
    "model_channels": 16,
    "channel_mult": [1, 2],
    "channel_mult_emb": 2,
    "channel_mult_noise": 2,
    "num_blocks": 1,
    "attn_resolutions": [4],
    "embedding_type": "fourier",
    "encoder_type": "residual",
    "resample_filter": [1, 3, 3, 1],
    "dropout": 0.05,
}
EDM2_ARGUMENTS = {
    "img_resolution": 64,
    "img_channels": 4,
    "label_dim": 1000,
    "model_channels": 8,
    "use_fp16": True,
    "sigma_data": 0.5,
}


class EasyDict(dict):
    """A dict class of the made-up module dnnlib.util."""


class FrozenDict(collections.OrderedDict):
    """A dict class of the made-up module diffusers.configuration_utils."""


class Persistent(nn.Module):
    """A module that pickles in the persistence layout."""

    def __reduce__(self) -> Any:
        own = {"recorded_class", "source"}
        state = {name: value for name, value in self.__dict__.items() if name not in own}
        meta = {
            "type": "class",
            "version": 6,
            "module_src": self.source,
            "class_name": self.recorded_class,
            "state": state,
        }
        return _reconstruct_persistent_obj, (meta,)

    def hook(self, *_: Any) -> None:
        """What a bound-method hook is bound to."""


def _reconstruct_persistent_obj(meta: Any) -> Any:
    raise AssertionError("a file's object was built")


HOMES: dict[Any, str] = {
    _reconstruct_persistent_obj: "torch_utils.persistence",
    EasyDict: "dnnlib.util",
    FrozenDict: "diffusers.configuration_utils",
}


@contextlib.contextmanager
def made_up_modules(extra: dict[Any, str] | None = None) -> Iterator[None]:
    """The made-up modules are importable inside, gone outside."""
    homes = HOMES | (extra or {})
    tops = {module.partition(".")[0] for module in homes.values()}

    def take_out() -> dict[str, types.ModuleType]:
        names = [name for name in sys.modules if name.partition(".")[0] in tops]
        return {name: sys.modules.pop(name) for name in names}

    real, own = take_out(), {thing: thing.__module__ for thing in homes}
    try:
        for thing, module in homes.items():
            parts = module.split(".")
            for end in range(1, len(parts) + 1):
                name = ".".join(parts[:end])
                sys.modules.setdefault(name, types.ModuleType(name))
            setattr(sys.modules[module], thing.__name__, thing)
            thing.__module__ = module
        yield
    finally:
        for thing, module in own.items():
            thing.__module__ = module
        take_out()
        sys.modules.update(real)


def persistent(module: nn.Module, recorded_class: str, arguments: dict | None = None) -> Persistent:
    """A tree of modules as persistence objects; ModuleDict stays torch's own, as published."""
    written = Persistent()
    written.__dict__ |= {"_parameters": module._parameters, "_buffers": module._buffers}
    written.__dict__["_non_persistent_buffers_set"] = module._non_persistent_buffers_set
    written.__dict__ |= {"_init_args": (), "_init_kwargs": EasyDict(arguments or {})}
    written.__dict__ |= {"recorded_class": recorded_class, "source": SOURCE, "sigma_data": 0.5}
    for name, child in module._modules.items():
        if isinstance(child, nn.ModuleDict):
            kept = nn.ModuleDict()
            for key, layer in child._modules.items():
                kept._modules[key] = persistent(layer, type(layer).__name__)
            written._modules[name] = kept
        elif child is not None:
            written._modules[name] = persistent(child, type(child).__name__)
        else:
            written._modules[name] = None
    return written


def plain_arguments(values: dict) -> dict:
    """Without EasyDict around them, for layouts whose list of imports lacks it."""
    return dict(values)


def edm_network(seed: int = 0) -> EDMDenoiser:
    """A small network with weights that differ everywhere."""
    torch.manual_seed(seed)
    tuples = {k: tuple(v) if isinstance(v, list) else v for k, v in TINY.items()}
    net = EDMDenoiser(EDMNetwork(**tuples))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return net


def edm_module(seed: int = 0, recorded_class: str = "EDMPrecond") -> Persistent:
    arguments = TINY | {"use_fp16": False, "sigma_min": 0, "model_type": "SongUNet"}
    if recorded_class.endswith("_EncoderDecoder"):
        arguments["model_type"] = "SongUNet_EncoderDecoder"
    module = persistent(edm_network(seed), recorded_class, arguments)
    module.__dict__["_init_kwargs"] = dict(arguments)
    return module


class Layer(nn.Module):
    """A weight alone, scalar or not."""

    def __init__(self, *shape: int, dtype: torch.dtype = torch.float16):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape).to(dtype))


class Fourier(nn.Module):
    """Buffers, one of which is not kept."""

    def __init__(self, dtype: torch.dtype = torch.float16):
        super().__init__()
        self.register_buffer("freqs", torch.randn(8).to(dtype))
        self.register_buffer("phases", torch.rand(8).to(dtype))
        self.register_buffer("scratch", torch.zeros(3), persistent=False)


def edm2_tree(logvar: bool = True, dtype: torch.dtype = torch.float16) -> nn.Module:
    """A tree shaped like EDM2's: a scalar parameter, buffers, encoder and decoder."""
    torch.manual_seed(2)
    root, unet = nn.Module(), nn.Module()
    unet.out_gain = nn.Parameter(torch.tensor(0.25).to(dtype))
    unet.emb_fourier = Fourier(dtype)
    unet.emb_label = Layer(8, 1000, dtype=dtype)
    unet.enc = nn.ModuleDict({"64x64_conv": Layer(8, 5, 3, 3, dtype=dtype)})
    unet.dec = nn.ModuleDict({"64x64_block0": Layer(8, 16, 1, 1, dtype=dtype)})
    root.unet = unet
    if logvar:
        root.logvar_fourier = Fourier(dtype)
        root.logvar_linear = Layer(1, 8, dtype=dtype)
    return root


def add_hook(module: Persistent) -> None:
    """A hook that is a bound method: builtins.getattr in the file."""
    owner = persistent(nn.Module(), "Owner")
    module.__dict__["_forward_pre_hooks"] = collections.OrderedDict({0: owner.hook})


# One function a layout: (bytes of the file, the state dict it must load as)

Written = tuple[bytes, dict[str, Tensor]]


def pickled(value: Any, protocol: int | None = None, extra: dict | None = None) -> bytes:
    with made_up_modules(extra):
        return pickle.dumps(value, protocol=protocol)


def torch_saved(value: Any, extra: dict | None = None, **options: Any) -> bytes:
    file = io.BytesIO()
    with made_up_modules(extra):
        torch.save(value, file, **options)
    return file.getvalue()


def edm_snapshot() -> Written:
    loss = persistent(nn.Module(), "EDMLoss")
    loss.__dict__["P_mean"] = np.float64(-1.2)
    loss.__dict__["_init_kwargs"] = {}
    value = {
        "ema": edm_module(),
        "loss_fn": loss,
        "augment_pipe": persistent(nn.Module(), "AugmentPipe"),
        "dataset_kwargs": {"path": "data.zip", "use_labels": True, "max_size": None},
    }
    return pickled(value), edm_network().state_dict()


def edm_training_state() -> Written:
    net = edm_module()
    state = {"state": {0: {"step": 3.0, "exp_avg": torch.ones(4)}}, "param_groups": [{"lr": 1e-3}]}
    return torch_saved({"net": net, "optimizer_state": state}), edm_network().state_dict()


def edm2_snapshot() -> Written:
    tree = edm2_tree()
    encoder = persistent(nn.Module(), "StabilityVAEEncoder")
    encoder.__dict__["scale"] = np.arange(4, dtype=np.float32).reshape(1, 4, 1, 1)
    encoder.__dict__["order"] = np.asfortranarray(np.eye(3, dtype=">i4"))
    value = EasyDict(
        encoder=encoder,
        dataset_kwargs=EasyDict(path="x.zip", resolution=64),
        loss_fn=persistent(nn.Module(), "EDM2Loss"),
        ema=persistent(tree, "Precond", EDM2_ARGUMENTS),
    )
    return pickled(value), tree.state_dict()


def sid_snapshot() -> Written:
    return pickled({"ema": edm_module()}), edm_network().state_dict()


def sid_snapshot_protocol_2() -> Written:
    return pickled({"ema": edm_module()}, protocol=2), edm_network().state_dict()


def sida_snapshot() -> Written:
    module = edm_module(recorded_class="EDMPrecond_EncoderDecoder")
    return pickled({"ema": module}), edm_network().state_dict()


def sida_edm2_snapshot() -> Written:
    tree = edm2_tree(logvar=False, dtype=torch.float32)
    arguments = EDM2_ARGUMENTS | {"force_normalization": 1, "use_gan": 1}
    module = persistent(tree, "EDM_2_Precond_Generator", arguments)
    add_hook(module)
    return pickled({"ema": module}), tree.state_dict()


def sid_training_state() -> Written:
    value = {
        "fake_score": edm_module(1),
        "G": edm_module(2),
        "G_ema": edm_module(0),
        "fake_score_optimizer_state": {"state": {}, "param_groups": []},
    }
    return torch_saved(value), edm_network().state_dict()


def sida_training_state() -> Written:
    value = {
        "fake_score_state": edm_network(1).state_dict(),
        "G_state": edm_network(2).state_dict(),
        "G_ema_state": edm_network(0).state_dict(),
        "g_optimizer_state": {"state": {0: {"exp_avg": torch.ones(2)}}},
    }
    return torch_saved(value), edm_network().state_dict()


def older_training_state() -> Written:
    value = {"G_ema_state": edm_network(0).state_dict()}
    saved = torch_saved(value, _use_new_zipfile_serialization=False)
    return saved, edm_network().state_dict()


def sida_edm2_training_state() -> Written:
    halved = {n: v.half() for n, v in edm2_tree(logvar=False).state_dict().items()}
    value = {"fake_score_state": halved, "G_state": halved, "G_ema_state": halved}
    return torch_saved(value), halved


def bfloat16_state_dict() -> Written:
    values = {
        "a": torch.randn(3, 4).bfloat16().t(),
        "b": torch.arange(12)[2:8:2],
        "c": torch.tensor([True, False]),
        "d": torch.empty(0, 3),
        "e": torch.tensor(1.5, dtype=torch.float64),
    }
    return torch_saved(values), values


def lsg_tree() -> tuple[nn.Module, dict[Any, str]]:
    """A UNet made of made-up diffusers classes and real torch.nn ones, and where they live."""

    def made(name: str, module: str) -> Any:
        made_class: Any = type(name, (nn.Module,), {})
        homes[made_class] = f"diffusers.models.{module}"
        return made_class()

    homes: dict[Any, str] = {}
    torch.manual_seed(3)
    unet = made("UNet2DConditionModel", "unets.unet_2d_condition")
    unet._internal_dict = FrozenDict(sample_size=64, act_fn="silu", _use_default_values=["dropout"])
    unet.conv_in = nn.Conv2d(4, 8, 3, padding=1)
    unet.time_proj = made("Timesteps", "embeddings")
    block = made("CrossAttnDownBlock2D", "unets.unet_2d_blocks")
    attention = made("Attention", "attention_processor")
    attention.to_q = nn.Linear(8, 8, bias=False)
    attention.to_out = nn.ModuleList([nn.Linear(8, 8), nn.Dropout(0.0)])
    block.attentions = nn.ModuleList([attention])
    block.nonlinearity = nn.SiLU()
    unet.down_blocks = nn.ModuleList([block])
    unet.conv_norm_out = nn.GroupNorm(2, 8)
    unet.dtype_used = torch.float32
    return unet, homes


def lsg_snapshot() -> Written:
    unet, homes = lsg_tree()
    return pickled({"ema": unet}, extra=homes), unet.state_dict()


def lsg_training_state() -> Written:
    unet, homes = lsg_tree()
    value = {"fake_score": unet, "G": unet, "G_ema": unet, "g_optimizer_state": {}}
    return torch_saved(value, extra=homes), unet.state_dict()


LAYOUTS: dict[str, Callable[[], Written]] = {
    function.__name__: function
    for function in (
        edm_snapshot,
        edm_training_state,
        edm2_snapshot,
        sid_snapshot,
        sid_snapshot_protocol_2,
        sida_snapshot,
        sida_edm2_snapshot,
        sid_training_state,
        sida_training_state,
        older_training_state,
        sida_edm2_training_state,
        bfloat16_state_dict,
        lsg_snapshot,
        lsg_training_state,
    )
}
