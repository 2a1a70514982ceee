"""EDM: DDPM++, NCSN++ and ADM teachers of pixels (NVlabs/edm), and SiD's and SiDA's generators."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sid_ray.denoisers.family import PRECISIONS, Arguments, Family
from sid_ray.denoisers.noise import EDM_NOISE
from sid_ray.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn

LAST_BLOCK = "the channel mean of the last encoder block"
BY_PLACE = (
    "img_resolution",
    "img_channels",
    "label_dim",
    "use_fp16",
    "sigma_min",
    "sigma_max",
    "sigma_data",
    "model_type",
)
# Official defaults of a DhariwalUNet, which its files may leave out. EDMNetwork's are SongUNet's.
ADM_DEFAULTS = {
    "model_channels": 192,
    "channel_mult": (1, 2, 3, 4),
    "num_blocks": 3,
    "attn_resolutions": (32, 16, 8),
}
# Official class -> the model_type it takes where none is recorded.
CLASSES = {
    "EDMPrecond": "DhariwalUNet",
    "EDMPrecond_EncoderDecoder": "SongUNet_EncoderDecoder",
}


class EDM(Family):
    name = "edm"
    noise = EDM_NOISE
    precisions = PRECISIONS
    # ``bases`` is float32 alone: W' = W + B A is made before it is cast (low_rank.py), so that a W
    # held in half precision would be other numbers in every precision.
    memory_format = "contiguous"
    adversarial_features = LAST_BLOCK
    adapter_targets = ("conv0", "conv1", "qkv", "proj")
    loader = "edm.py"
    training_only = ("label_dropout", "augment_dim")
    official_classes = tuple(CLASSES)
    by_place = dict.fromkeys(CLASSES, BY_PLACE)

    def build(self, network: Arguments) -> nn.Module:
        from sid_ray.denoisers.edm import EDMDenoiser, EDMNetwork

        try:
            return EDMDenoiser(EDMNetwork.from_json(dict(network)))
        except (TypeError, ValueError) as error:
            raise UserError(f"not an EDM network's arguments: {error}") from error

    def shape(self, network: Arguments) -> tuple[int, int, int]:
        size = network["img_resolution"]
        return network["img_channels"], size, size

    def label_dim(self, network: Arguments) -> int:
        return network.get("label_dim", 0)

    def written_out(self, network: Arguments) -> dict[str, Any]:
        from sid_ray.denoisers.edm import EDMNetwork

        return levels_attended(EDMNetwork.from_json(dict(network)).to_json())

    def adapted(self, network: Arguments, tensors: Mapping[str, Tensor]) -> Arguments:
        return dict(network) | {"augment_dim": inputs_of(tensors, "model.map_augment.weight")}

    def from_official(self, class_name: str, recorded: Arguments) -> dict[str, Any]:
        from sid_ray.denoisers.edm import SONG_ONLY, EDMNetwork

        model_type = str(recorded.get("model_type", CLASSES[class_name]))
        model_type = model_type.removesuffix("_EncoderDecoder")
        dhariwal = model_type == "DhariwalUNet"
        defaults = ADM_DEFAULTS if dhariwal else {}
        excluded = SONG_ONLY if dhariwal else ()
        own = {"model_type": model_type}
        return EDMNetwork.from_recorded(class_name, recorded, defaults, own, excluded)


def levels_attended(values: dict[str, Any]) -> dict[str, Any]:
    """Without dropout; of the resolutions with attention those that the network has."""
    levels = [values["img_resolution"] >> level for level in range(len(values["channel_mult"]))]
    attended = [resolution for resolution in levels if resolution in values["attn_resolutions"]]
    del values["dropout"]
    return values | {"attn_resolutions": attended}


def inputs_of(tensors: Mapping[str, Tensor], name: str) -> int:
    """Inputs of a layer; 0 where it is not there."""
    weight = tensors.get(name)
    return 0 if weight is None or weight.ndim < 2 else weight.shape[1]


SPEC = EDM()
