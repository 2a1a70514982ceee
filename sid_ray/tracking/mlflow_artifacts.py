"""Files of one run in MLflow: artifacts, images that its pages show by step, registered models.

Each may be written again: what is there already stays one file, one image, one version.
"""

from __future__ import annotations

import os
import re
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MODEL_FILES = ("model.json", "README.md", "model.safetensors")
MODELS, IMAGES = "generator", "images"  # folders of artifacts
SLOWEST = 4 << 20  # bytes a second that an upload of weights is given time for
WAIT = "MLFLOW_HTTP_REQUEST_TIMEOUT"
EXISTS = "RESOURCE_ALREADY_EXISTS"


class Artifacts:
    """Writes files to a run. Raises what MLflow raises.

    Args:
        client: MlflowClient of its store.
        run_id, artifact_uri: MLflow's.
        key: of the run (RunRecord.key).
    """

    def __init__(self, client: Any, run_id: str, artifact_uri: str, key: str):
        self._client, self._run_id, self._uri, self._key = client, run_id, artifact_uri, key
        self._images: dict[str, set[str]] | None = None  # names by the image's uuid

    def file(self, file: Path, folder: str) -> None:
        self._client.log_artifact(self._run_id, str(file), folder or None)

    def image(self, key: str, file: Path, step: int, stamp: int) -> None:
        """An image that MLflow's pages show by key and step; one that is there already stays.

        ``MlflowClient.log_image`` draws a new file name at each try; here a second try replaces
        what the first one left. Source of the names: MLflow 3.17, tracking/client.py.
        """
        from mlflow.tracking.multimedia import compress_image_size
        from PIL import Image

        unique = str(uuid.uuid5(uuid.NAMESPACE_URL, f"{self._key}/{key}/{step}"))
        there = self._images_there().setdefault(unique, set())
        if there:  # perhaps half of it: goes on under the time of the first try
            stamp = int(re.findall(r"timestamp\+(\d+)", min(there))[0])
        name = f"{key.replace('/', '~')}+step+{step}+timestamp+{stamp}+{unique}"
        whole, small = f"{name}.png", f"{name}+compressed.webp"
        if {whole, small} <= there:
            return
        with Image.open(file) as opened:
            image = opened.convert("RGB")
        with tempfile.TemporaryDirectory() as folder:
            image.save(Path(folder, whole))
            compress_image_size(image).save(Path(folder, small))
            for part in (whole, small):
                self._client.log_artifact(self._run_id, str(Path(folder, part)), IMAGES)
                there.add(part)
        self._client.set_tag(self._run_id, "mlflow.loggedImages", "True")

    def model(
        self, folder: Path, step: int, name: str, description: str, scores: Mapping[str, float]
    ) -> None:
        """A network's folder as generator/STEP, and a version of the registered model ``name``.

        A folder a step, so that an earlier version's weights stay what they were.
        """
        place = f"{MODELS}/{step:012d}"
        there = {Path(i.path).name: i.file_size for i in self._list(place)}
        for file in model_files(folder):
            size = file.stat().st_size
            if there.get(file.name) != size:
                with time_for(size):
                    self._client.log_artifact(self._run_id, str(file), place)
        if name:
            self._register(name, place, step, description, scores)

    def _register(
        self, name: str, place: str, step: int, description: str, scores: Mapping[str, float]
    ) -> None:
        """At most one version for a run's key and step, also where a confirmation was lost."""
        from mlflow.exceptions import MlflowException
        from mlflow.utils.uri import append_to_uri_path

        try:
            self._client.create_registered_model(name, description="One-step generators of sid_ray")
        except MlflowException as error:
            if error.error_code != EXISTS:
                raise
        same = f"name = '{name}' and tags.run_key = '{self._key}' and tags.images_seen = '{step}'"
        if self._client.search_model_versions(same, max_results=1):
            return
        tags = {"run_key": self._key, "images_seen": str(step)}
        tags |= {score: f"{value:.6g}" for score, value in scores.items()}
        self._client.create_model_version(
            name,
            append_to_uri_path(self._uri, place),
            self._run_id,
            tags=tags,
            description=description,
            await_creation_for=0,
        )

    def _list(self, folder: str) -> list[Any]:
        return list(self._client.list_artifacts(self._run_id, folder))

    def _images_there(self) -> dict[str, set[str]]:
        if self._images is None:
            self._images = {}
            for item in self._list(IMAGES):
                name = Path(item.path).name
                unique = re.split(r"[+.]", name.partition("timestamp+")[2] + "+")[1]
                self._images.setdefault(unique, set()).add(name)
        return self._images


def model_files(folder: Path) -> list[Path]:
    """What of a network's folder goes to MLflow: its weights last."""
    return [folder / name for name in MODEL_FILES if (folder / name).is_file()]


@contextmanager
def time_for(size: int) -> Iterator[None]:
    """MLflow's requests may take as long as so many bytes need on a slow line."""
    before = os.environ.get(WAIT)
    os.environ[WAIT] = str(max(int(before or 0), 15 + size // SLOWEST))
    try:
        yield
    finally:
        if before is None:
            del os.environ[WAIT]
        else:
            os.environ[WAIT] = before
