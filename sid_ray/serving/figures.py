"""What a server counts, for Prometheus: Ray exports it on every node's metrics port.

    sid_ray_requests_total       answered
    sid_ray_images_total         of answered requests
    sid_ray_refused_images_total of requests that found the queue full
    sid_ray_lost_images_total    that a replica took along when it ended; they were asked again
    sid_ray_queued_images        that wait or are being made
    sid_ray_batch_images         per batch, a histogram
    sid_ray_network_seconds      per batch, a histogram

Each has the tag ``model``; the last two ``role``, too. Ray puts ``ray_`` before the names.
"""

from __future__ import annotations

from sid_ray.serving.contract import Role

SECONDS = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0]
SIZES = [1, 2, 4, 8, 16, 32, 64, 128, 256]


class Figures:
    """Told what happens; this one forgets it."""

    def answered(self, images: int) -> None:
        """A request, with all its images."""

    def refused(self, images: int) -> None:
        """A request that found the queue full."""

    def lost(self, images: int) -> None:
        """What a replica took along when it ended."""

    def waiting(self, images: int) -> None:
        """How many there are now."""

    def made(self, role: Role, images: int, seconds: float) -> None:
        """A batch, and how long the network worked on it."""


class RayFigures(Figures):
    """In Ray's metrics, within one of its processes."""

    def __init__(self, model: str):
        from ray.util.metrics import Counter, Gauge, Histogram

        tags = ("model",)
        counters = {
            "requests": "Requests that were answered.",
            "images": "Images of requests that were answered.",
            "refused_images": "Images of requests that found the queue full.",
            "lost_images": "Images that a replica took along when it ended; asked again once.",
        }
        self._model = {"model": model}
        self._counters = {
            name: Counter(f"sid_ray_{name}_total", what, tags) for name, what in counters.items()
        }
        self._queued = Gauge("sid_ray_queued_images", "Images that wait or are being made.", tags)
        by_role = ("model", "role")
        self._sizes = Histogram("sid_ray_batch_images", "Images per batch.", SIZES, by_role)
        self._seconds = Histogram(
            "sid_ray_network_seconds", "Seconds of the network per batch.", SECONDS, by_role
        )

    def answered(self, images: int) -> None:
        self._counters["requests"].inc(1, self._model)
        self._counters["images"].inc(images, self._model)

    def refused(self, images: int) -> None:
        self._counters["refused_images"].inc(images, self._model)

    def lost(self, images: int) -> None:
        self._counters["lost_images"].inc(images, self._model)

    def waiting(self, images: int) -> None:
        self._queued.set(images, self._model)

    def made(self, role: Role, images: int, seconds: float) -> None:
        tags = self._model | {"role": role}
        self._sizes.observe(images, tags)
        self._seconds.observe(seconds, tags)
