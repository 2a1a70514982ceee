"""What the families of flow-matching transformers share. Light: torch is imported in methods."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from sid_ray.denoisers.family import BASES, PRECISIONS, Arguments, Family

if TYPE_CHECKING:
    from sid_ray.denoisers.prompt_encoders import PromptEncoders
    from sid_ray.denoisers.prompt_layout import PromptLayout
    from sid_ray.denoisers.stock import StockPipeline
    from sid_ray.denoisers.text import TextEmbeddings


class FlowFamily(Family):
    """A transformer in the folder ``transformer`` of a pipeline, on latents, told prompts.

    ``tokens`` of a prompt where ``network`` does not say ``text_tokens``.
    """

    tokens: ClassVar[int]
    precisions = PRECISIONS
    bases = BASES
    reads_text = True
    text_stays = False
    adversarial_features = "the mean of the last image tokens, a logit for each of their channels"
    folder = "transformer"
    bare_prefix = "transformer."

    @abstractmethod
    def layout(self, network: Arguments) -> PromptLayout:
        """Of a prompt as the network reads it."""

    def makes_latents(self, network: Arguments) -> bool:
        """Small networks of these classes make grey or coloured pixels."""
        return self.shape(network)[0] not in (1, 3)

    def at_resolution(self, network: Arguments, pixels: int, factor: int) -> Arguments:
        made = dict(network) | {"latent_size": pixels // factor}
        self.written_out(made)  # refuses what does not split into patches, or has no positions
        return made

    def stock_pipeline(
        self, network: Arguments, text: Path, name: str, latent_size: int, tokens: int, usual: int
    ) -> StockPipeline:
        """What their pipelines share; ``tokens`` is max_sequence_length, which they take for
        ``usual`` where nobody says it.
        """
        from sid_ray.denoisers.flow_options import OURS
        from sid_ray.denoisers.stock import StockPipeline, stock_arguments, stock_encoders

        return StockPipeline(
            name,
            self.folder,
            self.official_classes[0],
            stock_arguments(network, *OURS),
            "AutoencoderKL",
            stock_encoders(text, self.text_classes),
            {"guidance_scale": 0.0} | ({} if tokens == usual else {"max_sequence_length": tokens}),
            latent_size,
            {"image_encoder": None, "feature_extractor": None},
        )

    def text_shape(self, network: Arguments) -> tuple[int, int]:
        return self.layout(network).shape

    @abstractmethod
    def prompts(self) -> PromptEncoders:
        """What makes embeddings of prompts."""

    def check_text(self, network: Arguments, folder: Path) -> None:
        self.prompts().check(folder, self.layout(network))

    def load_text(
        self,
        folder: Path | None,
        device: Any = "cpu",
        precision: str = "float32",
        network: Arguments | None = None,
    ) -> TextEmbeddings:
        assert folder is not None  # find_components has seen to it
        layout = None if network is None else self.layout(network)
        return self.prompts().load_text(folder, device, precision, layout)

    def text_shape_of_folder(self, folder: Path) -> tuple[int, int]:
        layout = self.prompts().layout_of(folder)
        self.prompts().check(folder, layout)
        return layout.shape
