"""``Family``: all that differs between EDM, EDM2, Stable Diffusion and what comes after them.

A family is one subclass in one file, and one object of it that registry.py knows: built in (SPEC
of a file in families/), named by another package's entry point, or handed to ``register_family``.
Nothing outside this folder asks for a family's name, or whether something "is latent" or "reads
text" in any other way than through this contract.

A family's file is imported before anything is asked of its networks: it imports torch, diffusers
and the networks' own modules inside methods only.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from sid_ray.denoisers.latents import LatentConvention
from sid_ray.denoisers.noise import Noise
from sid_ray.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sid_ray.denoisers.prompt_layout import PromptLayout
    from sid_ray.denoisers.single_file import SingleFile
    from sid_ray.denoisers.stock import StockPipeline
    from sid_ray.denoisers.text import TextEmbeddings

    LoraNames = tuple[dict[str, Tensor], dict[str, float]]

Constrain = Callable[[str, "Tensor"], "Tensor | None"]
Arguments = Mapping[str, Any]  # of a network, as model.json holds them
# Endings of names of layers, as diffusers calls them: of attention, and what follows it.
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
FEED_FORWARD = ("ff.net.0.proj", "ff.net.2")
BASES = ("float32", "float16", "bfloat16", "8bit", "4bit")  # of torch's linear layers
# Of transformers whose blocks keep text and image apart: the same for both of them.
JOINT_BLOCKS = (
    *ATTENTION,
    *FEED_FORWARD,
    "add_q_proj",
    "add_k_proj",
    "add_v_proj",
    "to_add_out",
    "ff_context.net.0.proj",
    "ff_context.net.2",
)
PRECISIONS = ("float32", "float16", "bfloat16")  # of networks with a ``compute_dtype``


class Family(ABC):
    """A family of denoisers.

    ``network`` is everywhere what model.json holds of one network of the family: the arguments that
    ``build`` makes it of. Only ``name``, ``noise``, ``build`` and ``shape`` must be given: the
    rest, left alone, says a network of pixels that is told nothing but a noise level.

    Attributes:
        name: in model.json, messages and tables.
        noise: its kind of noise levels and the teacher's sampler on them.
        teacher_steps: of that sampler, where nobody asks for another number.
        precisions: of ``training.precision``, those that its networks can compute in. Any but
            float32 asks for the attribute ``compute_dtype`` of a denoiser (precondition.py).
        bases: of ``adapter.base``, how its networks can be held under adapters. Any but float32
            asks for the method ``cast_layers`` of a denoiser (adapters.hold_as_base).
        reads_text: whether networks are conditioned on prompts.
        text_parts: of a pipeline's folder, what embeds them: the encoders, then their tokenizers.
        text_classes: part with an encoder -> the classes that its config may name; folders of
            encoders alone are known by them.
        text_stays: whether the encoders stay in memory beside the networks, as small ones do, or
            leave it once the prompts of a run are embedded.
        latents: how pixels become what its networks see; None where all of them see pixels.
        adversarial_features: where in the network the discriminator's logits (Want.LOGITS) come
            from, in words; empty where there are none, and objectives cannot ask for them.
        adapter_targets: endings of names of the layers that adapters go into, where nobody names
            any; empty where adapters are refused.
        logvar_layer: the end of the log-variance head's name, where networks may have one.
        folder: of a pipeline's folder, the part that holds the network; empty where a network is
            a folder of its own.
        parts: of a pipeline's folder, what else is read: auto-encoder, text encoder and so on.
        bare_prefix: what the denoiser's own names have in front of those that the network has in
            other programs' files.
        memory_format: what resources.memory_format auto takes on GPUs: contiguous where networks
            normalise groups of channels, which on CUDA returns contiguous images.
        training_only: arguments of a network that no generator's image depends on.
        official_classes: classes of other programs' networks that ``from_official`` knows.
        by_place: official class -> names of the arguments that files record by place.
        single_file: what names of tensors begin with in files of whole pipelines that
            ``from_single_file`` may know; empty where there are none.
        loader: name of the file in loaders/ that evaluates its networks without this package;
            empty where programs of others do.
    """

    name: ClassVar[str]
    noise: ClassVar[Noise]
    teacher_steps: ClassVar[int] = 18
    precisions: ClassVar[tuple[str, ...]] = ("float32",)
    bases: ClassVar[tuple[str, ...]] = ("float32",)
    memory_format: ClassVar[str] = "channels_last"
    reads_text: ClassVar[bool] = False
    text_parts: ClassVar[tuple[str, ...]] = ()
    text_classes: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    text_stays: ClassVar[bool] = True
    latents: ClassVar[LatentConvention | None] = None
    adversarial_features: ClassVar[str] = ""
    adapter_targets: ClassVar[tuple[str, ...]] = ()
    logvar_layer: ClassVar[str] = ""
    folder: ClassVar[str] = ""
    parts: ClassVar[tuple[str, ...]] = ()
    bare_prefix: ClassVar[str] = ""
    training_only: ClassVar[tuple[str, ...]] = ()
    official_classes: ClassVar[tuple[str, ...]] = ()
    by_place: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    single_file: ClassVar[str] = ""
    loader: ClassVar[str] = ""

    # The network -----------------------------------------------------------------------------

    @abstractmethod
    def build(self, network: Arguments) -> nn.Module:
        """The denoiser (types.Denoiser) with random weights. Raises UserError, ValueError or
        TypeError for arguments that make none.
        """

    @abstractmethod
    def shape(self, network: Arguments) -> tuple[int, int, int]:
        """(C, H, W) of one sample as the network sees it."""

    def label_dim(self, network: Arguments) -> int:
        """Number of classes; 0 for none."""
        return 0

    def makes_latents(self, network: Arguments) -> bool:
        """Whether samples are latents of an auto-encoder, not pixels."""
        return False

    def latent_convention(self) -> LatentConvention:
        """``latents`` of a network that makes some. Raises UserError where the family has none."""
        if self.latents is None:
            raise UserError(f"family {self.name} does not say how its latents become pixels")
        return self.latents

    def logvar(self, network: Arguments) -> bool:
        """Whether there is a log-variance head."""
        return False

    def augment_dim(self, network: Arguments) -> int:
        """Numbers that tell the network how a sample was augmented; 0 where it reads none."""
        return int(network.get("augment_dim", 0))

    def with_dropout(self, network: Arguments, probability: float) -> Arguments | None:
        """The arguments of the same network with another dropout; None where it has none."""
        return dict(network) | {"dropout": probability} if "dropout" in network else None

    def at_resolution(self, network: Arguments, pixels: int, factor: int) -> Arguments | None:
        """The arguments of the same network for images of ``pixels`` a side, a multiple of
        ``factor``, by which samples are smaller; None where its networks have one size only.

        Raises UserError for a size that the network cannot have.
        """
        return None

    def teacher_guidance(self, network: Arguments) -> float:
        """Guidance scale of the teacher's sampler, where nobody gives one; 1 for none."""
        return 1.0

    def written_out(self, network: Arguments) -> dict[str, Any]:
        """All arguments that say which network it is (dropout does not), defaults filled in and
        each in one way of writing it. Raises ValueError, TypeError.
        """
        return {name: value for name, value in network.items() if name != "dropout"}

    @staticmethod
    def constrain(name: str, weight: Tensor) -> Tensor | None:
        """A whole parameter's new value, or None where it stays: what the published training does
        to weights around updates.
        """
        return None

    def adapted(self, network: Arguments, tensors: Mapping[str, Tensor]) -> Arguments:
        """The arguments of a network that is this one but for what its tensors (by name, with or
        without bare_prefix) say otherwise.
        """
        return network

    # Files of other programs -----------------------------------------------------------------

    def takes(self, class_name: str, recorded: Arguments) -> bool:
        """Whether a network is of this family, by its class and what a file records of it.

        Families that share a class differ in what is recorded: at most one of them takes it.
        """
        return class_name in self.official_classes

    def from_official(self, class_name: str, recorded: Arguments) -> dict[str, Any]:
        """All arguments of a network from what a file records of one of ``official_classes``.

        Raises UserError that names an argument not known, or out of range.
        """
        return dict(recorded)

    def beside(self, folder: Path) -> dict[str, Any]:
        """Arguments of a network in a folder of a pipeline that other files there hold."""
        return {}

    def from_single_file(
        self, tensors: Mapping[str, Tensor], prediction_type: str
    ) -> SingleFile | None:
        """A pipeline of this family that lies in one file, taken apart; None for any other file.

        Asked where one of the names begins with ``single_file``. ``prediction_type`` is the
        config's, for files that do not say it. Raises UserError for one that cannot be used.
        """
        return None

    def lora_names(self, tensors: dict[str, Tensor], network: Arguments) -> LoraNames:
        """A LoRA's tensors, which may be under a trainer's own names, under those of diffusers and
        PEFT (``unet.PATH.lora_A.weight``), and the alphas that it holds by PATH with its part.

        Raises UserError for names that are none.
        """
        return tensors, {}

    def pipeline(self, network: Arguments, text: Path, factor: int) -> StockPipeline:
        """The pipeline of diffusers that runs a network, with the text encoders of a folder and an
        auto-encoder that divides the sides of pictures by ``factor``, 1 for pixels.

        Raises UserError where there is none. Only asked where ``folder`` names a part.
        """
        raise UserError(f"family {self.name} does not say which pipeline runs its networks")

    # Text ------------------------------------------------------------------------------------

    def text_shape(self, network: Arguments) -> tuple[int, int] | None:
        """(tokens, width) of a prompt's embedding; None where no text is read."""
        return None

    def layout(self, network: Arguments) -> PromptLayout:
        """How a prompt is packed, as the network reads it. Only asked where ``reads_text``."""
        raise NotImplementedError(f"{self.name} reads no text")

    def check_text(self, network: Arguments, folder: Path) -> None:
        """Raises UserError where the text encoders in a folder cannot be loaded, or are another's.
        Only asked where ``reads_text``.
        """
        raise NotImplementedError(f"{self.name} reads no text")

    def load_text(
        self,
        folder: Path | None,
        device: Any = "cpu",
        precision: str = "float32",
        network: Arguments | None = None,
    ) -> TextEmbeddings:
        """The text encoders of a folder, computing in a precision; what they return is float32, as
        ``network`` reads it, or as published networks do. Only asked where ``reads_text``.
        """
        raise NotImplementedError(f"{self.name} reads no text")

    def text_shape_of_folder(self, folder: Path) -> tuple[int, int]:
        """(tokens, width) of what ``load_text`` makes where no network is given. Raises UserError
        where it cannot load the encoders; a family whose encoders are large looks at them without
        their numbers. Only asked where ``reads_text``.
        """
        tokens, width = self.load_text(folder).null().shape
        return tokens, width

    def text_rules(self, folder: Path) -> str:
        """What else in a folder than encoders and tokenizers embeddings of prompts depend on, in
        words; empty for nothing. Only asked where ``reads_text``.
        """
        return ""


leave_weight: Constrain = Family.constrain  # of families without constraints on their weights
