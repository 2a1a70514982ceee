"""What the server answers, as JSON or as a picture."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field

from sid_ray.serving.contract import ImagesRequest, Limits, Painted, ServedModel, WantedImage
from sid_ray.serving.problems import Problem

SHEET_PIXELS = 2**24
SHEET_IMAGES = 256


class ServerAnswer(BaseModel):
    """What all have: no fields but those that are told in /openapi.json."""

    model_config = ConfigDict(extra="forbid")

    def json_bytes(self) -> bytes:
        """Fields without a value are left out."""
        return self.model_dump_json(by_alias=True, exclude_none=True).encode()


class ModelsAnswer(ServerAnswer):
    """Of ``GET /v1/models``."""

    models: Sequence[ServedModel]
    limits: Limits


class ImageAnswer(ServerAnswer):
    """One image."""

    seed: int
    class_: int | None = Field(
        None, serialization_alias="class", description="that was asked for or drawn"
    )
    prompt: str | None = None
    png: str = Field(description="the PNG file in base64")


class Seconds(ServerAnswer):
    """What a request took."""

    network: float = Field(description="of the networks: its images' share of their batches")
    total: float = Field(description="in the server, waiting included")


class ImagesAnswer(ServerAnswer):
    """Of ``POST /v1/images``."""

    model: str
    network: str = Field(description="generator or teacher")
    steps: int | None = Field(None, description="of the generator")
    size: tuple[int, int] = Field(description="height and width in pixels")
    images: Sequence[ImageAnswer] = Field(description="in the order of the seeds")
    seconds: Seconds
    batch: int = Field(description="images of the largest batch that these were in")


class HealthAnswer(ServerAnswer):
    """Of ``GET /v1/health``."""

    replicas: dict[str, int] = Field(description="that take requests, by model")


class AliveAnswer(ServerAnswer):
    """Of ``GET /healthz``."""

    alive: bool = True


class ErrorDetail(ServerAnswer):
    """What is wrong."""

    code: str = Field(description="for programs, like prompt_too_long")
    message: str = Field(description="for people")
    field: str | None = Field(None, description="of the request's body that it is about")


class ErrorAnswer(ServerAnswer):
    """Of every request that is not done."""

    error: ErrorDetail


def images_answer(
    asked: ImagesRequest,
    model: ServedModel,
    wanted: Sequence[WantedImage],
    painted: Sequence[Painted],
    total_s: float,
) -> ImagesAnswer:
    """In JSON."""
    return ImagesAnswer(
        model=model.name,
        network=asked.network,
        steps=wanted[0].steps,
        size=model.size,
        images=[
            ImageAnswer(
                seed=one.seed,
                class_=one.class_ if made.class_ is None else made.class_,
                prompt=asked.prompt,
                png=base64.b64encode(made.png).decode(),
            )
            for one, made in zip(wanted, painted, strict=True)
        ],
        seconds=Seconds(network=network_share(painted), total=total_s),
        batch=max(made.batch for made in painted),
    )


def network_share(painted: Sequence[Painted]) -> float:
    """Seconds of the networks that these images are to blame for."""
    return sum(made.network_s / made.batch for made in painted)


def picture_headers(
    model: ServedModel, wanted: Sequence[WantedImage], painted: Sequence[Painted], total_s: float
) -> dict[str, str]:
    """What is in an answer of JSON beside the picture."""
    name, seeds = quote(model.name, safe=""), seed_ranges([one.seed for one in wanted])
    network, total = network_share(painted) * 1e3, total_s * 1e3
    return {
        "sid-ray-model": name,
        "sid-ray-network": wanted[0].role,
        "sid-ray-seeds": seeds,
        "server-timing": f"network;dur={network:.2f}, total;dur={total:.2f}",
        "content-disposition": f'inline; filename="{name}-{seeds.split(",")[0]}.png"',
    }


def seed_ranges(seeds: Sequence[int]) -> str:
    """Like ``0-63,100``, in their order."""
    runs: list[list[int]] = []
    for seed in seeds:
        if runs and seed == runs[-1][1] + 1:
            runs[-1][1] = seed
        else:
            runs.append([seed, seed])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def check_sheet(count: int, size: tuple[int, int]) -> None:
    """That so many images fit a contact sheet. Raises Problem."""
    fit = min(SHEET_IMAGES, max(1, SHEET_PIXELS // (size[0] * size[1])))
    if count > fit:
        words = (
            f"a contact sheet has room for {fit:,} images of {size[0]} x {size[1]}, not {count:,}; "
            "ask for fewer seeds or for application/json"
        )
        raise Problem(422, "sheet_too_large", words, "seeds")


def picture(pngs: Sequence[bytes]) -> bytes:
    """The one PNG as it is, or a contact sheet of several."""
    return pngs[0] if len(pngs) == 1 else _sheet(pngs)


def _sheet(pngs: Sequence[bytes]) -> bytes:
    import numpy as np
    import torch
    from PIL import Image

    from sid_ray.evaluation.pictures import pixel_scale, tile

    arrays = [np.asarray(Image.open(io.BytesIO(png)).convert("RGB")) for png in pngs]
    images = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)
    columns = int(np.ceil(np.sqrt(len(pngs))))
    written = io.BytesIO()
    tile(images, columns, pixel_scale(images.shape[3])).save(written, "PNG")
    return written.getvalue()
