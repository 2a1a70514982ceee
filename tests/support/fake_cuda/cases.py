"""The paths of a run on a GPU, each with tiny networks: what to rehearse, as data.

Loads no torch: tests choose cases, a process of its own rehearses them (run.py).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

# Arguments of the smallest networks that have every kind of layer, by family and by variant.
EDM: dict[str, Any] = {
    "img_resolution": 8,
    "img_channels": 3,
    "label_dim": 10,
    "augment_dim": 9,
    "model_channels": 16,
    "channel_mult": [1],
    "channel_mult_emb": 2,
    "num_blocks": 1,
    "attn_resolutions": [8],
    "dropout": 0.1,
}
EDM2: dict[str, Any] = {
    "img_resolution": 8,
    "img_channels": 4,
    "label_dim": 10,
    "model_channels": 16,
    "channel_mult": [1],
    "num_blocks": 1,
    "attn_resolutions": [8],
    "channels_per_head": 16,
    "logvar_channels": 16,
}
STABLE_DIFFUSION: dict[str, Any] = {
    "sample_size": 8,
    "layers_per_block": 1,
    "block_out_channels": [8],
    "down_block_types": ["CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D"],
    "cross_attention_dim": 24,
    "attention_head_dim": 4,
    "norm_num_groups": 4,
    "prediction_type": "epsilon",
}
SD3: dict[str, Any] = {
    "sample_size": 8,
    "patch_size": 2,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 2,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "joint_attention_dim": 12,
    "caption_projection_dim": 16,
    "pooled_projection_dim": 10,
    "pos_embed_max_size": 6,
    "text_tokens": 80,
}
SANA: dict[str, Any] = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 2,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "cross_attention_head_dim": 8,
    "num_cross_attention_heads": 2,
    "cross_attention_dim": 16,
    "caption_channels": 12,
    "text_tokens": 6,
}
FLUX: dict[str, Any] = {
    "in_channels": 16,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "joint_attention_dim": 12,
    "pooled_projection_dim": 10,
    "axes_dims_rope": [2, 2, 4],
    "guidance_embeds": True,
    "latent_size": 8,
    "text_tokens": 6,
}
SDXL: dict[str, Any] = STABLE_DIFFUSION | {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 12 + 6 * 8,
    "use_linear_projection": True,
}
NETWORKS: dict[tuple[str, str], dict[str, Any]] = {
    ("edm", ""): EDM,
    ("edm", "levels"): EDM | {"channel_mult": [1, 2]},
    ("edm", "ncsnpp"): EDM
    | {
        "channel_mult": [1, 2],
        "embedding_type": "fourier",
        "channel_mult_noise": 2,
        "encoder_type": "residual",
        "resample_filter": [1, 3, 3, 1],
    },
    ("edm", "adm"): EDM
    | {
        "model_type": "DhariwalUNet",
        "channel_mult": [1, 2],
        "augment_dim": 0,
        "model_channels": 64,
    },
    ("edm2", ""): EDM2,
    ("edm2", "levels"): EDM2 | {"channel_mult": [1, 2], "dropout": 0.1},
    ("stable-diffusion", ""): STABLE_DIFFUSION,
    ("stable-diffusion", "velocity"): STABLE_DIFFUSION | {"prediction_type": "v_prediction"},
    ("sd3", ""): SD3,
    ("sd3", "3.5"): SD3 | {"qk_norm": "rms_norm", "dual_attention_layers": [0]},
    ("sana", ""): SANA,
    ("sana", "sprint"): SANA | {"qk_norm": "rms_norm_across_heads", "timestep_scale": 0.001},
    ("flux", ""): FLUX,
    ("flux", "schnell"): FLUX | {"guidance_embeds": False},
    ("sdxl", ""): SDXL,
    ("sdxl", "velocity"): SDXL | {"prediction_type": "v_prediction"},
}
GROUP = 4
# A rank's (images an iteration, images a pass): a group, two groups one after the other or both in
# one pass, a group in halves.
PASSES = {
    "one": (GROUP, GROUP),
    "two": (2 * GROUP, GROUP),
    "packed": (2 * GROUP, 2 * GROUP),
    "halves": (GROUP, GROUP // 2),
}


@dataclass(frozen=True)
class Case:
    """One path.

    Args:
        path: "train" (iterations), "run" (and report, hand-over of weights and snapshot behind
            them), "sample", "features", "codec", "text": see paths.py and others.py; "fault",
            which ``variant`` names; "recipe", iterations of the recipe that it names.
        family, variant: which network of NETWORKS.
        objective: its name in the registry.
        precision: of the networks' bodies; of codec and text encoder, where it is their path.
        passes: of PASSES, on one rank.
        recompute: activation checkpointing.
        world_size: ranks of the made-up group; above 1 roles are DeepSpeed's.
        stage, teacher_stage: ZeRO stages.
        offload: optimizer in host memory.
        iterations: of which the last is counted: the first makes what is kept.
        config: further fields of the config, dotted with __ as config.replace takes them.
    """

    path: str = "train"
    family: str = "edm"
    variant: str = ""
    objective: str = "sid"
    precision: str = "float32"
    passes: str = "one"
    recompute: bool = False
    world_size: int = 1
    stage: int = 0
    teacher_stage: int = 0
    offload: bool = False
    iterations: int = 1
    config: dict[str, Any] = field(default_factory=dict)

    @property
    def shares(self) -> bool:
        """Whether roles are DeepSpeed's."""
        return self.world_size > 1 or self.offload

    @property
    def name(self) -> str:
        """What differs from the plainest case, in a few words."""
        words = [self.path, self.family, self.variant, self.objective, self.precision]
        words.append("" if self.passes == "one" else f"{self.passes} passes")
        words.append("recompute" if self.recompute else "")
        if self.shares:
            words.append(f"{self.world_size} ranks ZeRO {self.stage}")
        words.append("sharded teacher" if self.teacher_stage else "")
        words.append("offload" if self.offload else "")
        words += [f"{key.partition('__')[2]}={value}" for key, value in self.config.items()]
        return " ".join(filter(None, words))

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Part:
    """What was seen in one part of a path: see watch.Counts."""

    waits: dict[str, int]
    launches: int
    wide: int
    to_device: int
    to_device_bytes: int
    collectives: int
    whole: int = 0


@dataclass(frozen=True)
class Rehearsed:
    """One case's outcome.

    ``error`` is what was raised, empty for nothing; ``faults`` what a GPU would refuse. ``parts``
    are those of the last iteration and of what comes between two iterations, by name.
    """

    case: Case
    error: str
    faults: dict[str, int]
    parts: dict[str, Part]

    def waits(self, *parts: str) -> dict[str, int]:
        """What the host waited for in these parts, by what and where."""
        found: dict[str, int] = {}
        for name in parts:
            for what, count in self.parts[name].waits.items() if name in self.parts else ():
                found[f"{name}: {what}"] = count
        return found

    def total(self, field_name: str, *parts: str) -> int:
        return sum(getattr(self.parts[name], field_name) for name in parts if name in self.parts)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Rehearsed:
        parts = {name: Part(**part) for name, part in values["parts"].items()}
        return cls(Case(**values["case"]), values["error"], values["faults"], parts)


PASS_PARTS = ("forward", "backward")
ITERATION = ("draws", *PASS_PARTS, "update", "average", "step")
