"""Painters without networks behind the real web part: ``-m tests.support.fake_painting PORT``.

Their pictures are colours of (model, seed, class or prompt, network, steps): the same request has
the same picture, another one another.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import io
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from sid_ray.serving.contract import (
    BusyError,
    Painted,
    ServedModel,
    Teacher,
    WantedImage,
)
from sid_ray.serving.contract import Limits as ServerLimits

CLASSES = [str(digit) for digit in range(10)]
DIGITS = ServedModel(
    name="digits",
    label="SiD of an EDM network",
    condition="class",
    classes=CLASSES,
    size=(8, 8),
    steps=[1],
    teacher=Teacher(evaluations=35, label="35 evaluations"),
    images_seen=30_016,
    scores={"FD": 4.02},
    base="digits-teacher",
    licence="CC BY 4.0",
)
EMOJI = ServedModel(
    name="emoji",
    label="SiD-LSG of a U-Net of pixels",
    condition="prompt",
    examples=["a red heart", "a smiling face with sunglasses", "a blue car"],
    size=(16, 24),
    steps=[1, 2, 4],
    teacher=Teacher(evaluations=100, label="50 steps, guided"),
    scores={"FD": 3.3, "CLIP": 0.31},
)
PLAIN = ServedModel(name="plain", label="SiDA", condition="none", size=(64, 64), steps=[1])
MODELS = (DIGITS, EMOJI, PLAIN)


def picture_of(model: ServedModel, one: WantedImage, class_: int | None) -> bytes:
    """PNG: a gradient in colours of the request."""
    key = repr((model.name, one.role, one.seed, one.prompt, class_, one.steps))
    bits = np.frombuffer(hashlib.sha256(key.encode()).digest(), np.uint8)
    corners = bits[:12].reshape(2, 2, 3)
    size = (model.size[1], model.size[0])
    picture = Image.fromarray(corners).resize(size, Image.Resampling.BILINEAR)
    written = io.BytesIO()
    picture.save(written, "PNG")
    return written.getvalue()


class FakePainting:
    """A Painting whose requests each take ``delay_s``, a teacher's ten times that.

    ``failure`` is raised in place of pictures. ``begun``, ``done`` and ``cancelled`` count calls.
    """

    def __init__(
        self,
        models: Sequence[ServedModel] = MODELS,
        delay_s: float = 0.0,
        most_at_once: int = 1000,
        failure: Exception | None = None,
    ):
        self.served = {model.name: model for model in models}
        self.delay_s, self.most_at_once, self.failure = delay_s, most_at_once, failure
        self.replicas = dict.fromkeys(self.served, 1)
        self.begun = self.done = self.cancelled = 0
        self.asked: list[tuple[str, list[WantedImage]]] = []

    async def models(self) -> Sequence[ServedModel]:
        return list(self.served.values())

    async def ready(self) -> Mapping[str, int]:
        return self.replicas

    async def paint(self, model: str, wanted: Sequence[WantedImage]) -> Sequence[Painted]:
        if self.begun - self.done - self.cancelled >= self.most_at_once:
            raise BusyError(2)
        self.begun += 1
        try:
            return await self._paint(self.served[model], list(wanted))
        except asyncio.CancelledError:
            self.cancelled += 1
            self.done -= 1
            raise
        finally:
            self.done += 1

    async def _paint(self, model: ServedModel, wanted: list[WantedImage]) -> Sequence[Painted]:
        self.asked.append((model.name, wanted))
        seconds = self.delay_s * (10 if wanted[0].role == "teacher" else 1)
        await asyncio.sleep(seconds)
        if self.failure is not None:
            raise self.failure
        made = []
        for one in wanted:
            class_ = one.class_
            if model.condition == "class" and class_ is None:
                class_ = one.seed % len(model.classes)
            png = picture_of(model, one, class_)
            made.append(Painted(png, seconds or 1e-3, len(wanted), class_))
        return made


def main() -> None:
    """A server on loopback, until it is interrupted."""
    import uvicorn

    from sid_ray.serving.web import web_app

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("--delay", type=float, default=0.05, help="seconds per request")
    parser.add_argument("--token", default="")
    parser.add_argument("--most-at-once", type=int, default=16, help="beyond it: 429")
    asked = parser.parse_args()
    painting = FakePainting(delay_s=asked.delay, most_at_once=asked.most_at_once)
    app = web_app(painting, ServerLimits(), asked.token)
    uvicorn.run(app, host="127.0.0.1", port=asked.port, log_level="warning")


if __name__ == "__main__":
    main()
