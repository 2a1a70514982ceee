"""What the web part and the painters of ``sid-ray serve`` say to each other, and to a client.

The web part (web.py) reads requests and answers them; behind ``Painting`` there are the replicas
that hold the networks. Nothing here knows HTTP or Ray.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, model_validator

SEED_MAX = 2**32 - 1

Role = Literal["generator", "teacher"]
ConditionKind = Literal["prompt", "class", "none"]


class Limits(BaseModel):
    """What a server takes, per request and in all."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    images: Annotated[int, Field(ge=1, le=1024)] = 64
    """Images per request."""
    prompt_chars: Annotated[int, Field(ge=1, le=20_000)] = 2000
    body_bytes: Annotated[int, Field(ge=1024)] = 65_536
    """Bytes of a request's body."""
    queued_images: Annotated[int, Field(ge=1)] = 1024
    """Images of all requests that wait or are being made, per model; more are answered with 429."""
    requests: Annotated[int, Field(ge=1)] = 256
    """Requests of any kind that are being answered at once, per process that listens."""
    body_s: Annotated[float, Field(gt=0)] = 10
    """Seconds in which a body has to come."""
    answer_s: Annotated[float, Field(gt=0)] = 300
    """Seconds in which images have to be made."""

    @model_validator(mode="after")
    def check(self) -> Limits:
        """Raises ValueError for a request that fits and would always find the queue full."""
        if self.images > self.queued_images:
            raise ValueError(
                f"queued_images is {self.queued_images} and images {self.images}: a request of so "
                "many would always be refused"
            )
        return self


class Teacher(BaseModel):
    """A generator's teacher, where the server can open it."""

    evaluations: int
    """Network evaluations per image."""
    label: str
    """Like '35 evaluations'."""


class ServedModel(BaseModel):
    """A generator that is served, as ``GET /v1/models`` tells it."""

    name: str
    """Of its run, unique in a server."""
    label: str
    """Its objective and family, for a person: 'SiDA of an EDM network'."""
    condition: ConditionKind
    classes: Sequence[str] = ()
    """Names of its classes, or their numbers as text; empty without classes."""
    examples: Sequence[str] = ()
    """Prompts to begin with."""
    size: tuple[int, int]
    """Height and width of its images, in pixels."""
    steps: Sequence[int]
    """Numbers of steps that it generates in; the first is its own."""
    teacher: Teacher | None = None
    images_seen: int | None = None
    scores: Mapping[str, float] = Field(default_factory=dict)
    """Of these very weights, by display name."""
    base: str = ""
    """Its teacher, without paths of the machine."""
    licence: str = ""


class ImagesRequest(BaseModel):
    """The body of ``POST /v1/images``."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str = Field("", max_length=200, description="one of GET /v1/models; empty for the first")
    network: Role = "generator"
    prompt: str | None = Field(None, description="of generators that read text")
    class_: int | None = Field(
        None, alias="class", ge=0, description="a class's number; without one it is drawn by seed"
    )
    seeds: list[int] = Field([0], min_length=1, description="one image each, 0 to 2^32 - 1")
    steps: int | None = Field(None, ge=1, description="one of the model's steps")
    size: tuple[int, int] | None = Field(None, description="height and width; the model's own")


@dataclass(frozen=True)
class WantedImage:
    """One image."""

    role: Role
    seed: int
    prompt: str = ""
    class_: int | None = None
    steps: int | None = None


@dataclass(frozen=True)
class Painted:
    """One image, as PNG; ``class_`` is the one that was drawn.

    ``network_s`` is the time of the batch that it was in, ``batch`` how many images that had.
    """

    png: bytes
    network_s: float
    batch: int
    class_: int | None = None


class BusyError(Exception):
    """More is waiting than a server takes: to be asked again after ``retry_after_s``."""

    def __init__(self, retry_after_s: int):
        super().__init__(f"the queue is full; ask again in {retry_after_s} s")
        self.retry_after_s = retry_after_s


class LostError(Exception):
    """What made the images ended, and could not be asked again; the text says so."""


class Painting(Protocol):
    """Makes images, somewhere."""

    async def models(self) -> Sequence[ServedModel]:
        """Those that are served."""
        ...

    async def paint(self, model: str, wanted: Sequence[WantedImage]) -> Sequence[Painted]:
        """In the order of ``wanted``. Raises BusyError, LostError, UserError."""
        ...

    async def ready(self) -> Mapping[str, int]:
        """Replicas that take requests, by model."""
        ...
