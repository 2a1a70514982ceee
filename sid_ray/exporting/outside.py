"""Makes images of an exported folder as people do who have no sid_ray: run as a program.

    python -I outside.py ASKED.json

ASKED.json: ``folder`` of the pipeline or of a loader, ``lora`` to load into it or "", ``prompts``,
``call`` (arguments of the pipeline), ``left_out`` (its parts that are opened as None), ``inputs``
(a safetensors file with the first noise ``latents`` [N, C, H, W], already scaled, and perhaps
``noises`` [K - 1, N, C, H, W] of the steps after it and one-hot ``labels``), ``loader`` (its file's
name in the folder, or ""), and ``out``: a safetensors file, whose ``images`` [N, C, H, W] become
what was made, not rounded to 8 bits.
"""

import itertools
import json
import runpy
import sys
from pathlib import Path


def main() -> None:
    sys.modules["sid_ray"] = None  # type: ignore[assignment]  # importing it fails
    from safetensors.torch import load_file, save_file

    asked = json.loads(Path(sys.argv[1]).read_text())
    inputs = load_file(asked["inputs"])
    run = with_loader if asked["loader"] else with_pipeline
    images = run(asked, inputs)
    save_file({"images": images.float().contiguous()}, asked["out"])


def with_pipeline(asked, inputs):
    import diffusers
    import torch

    pipe = diffusers.DiffusionPipeline.from_pretrained(
        asked["folder"], torch_dtype=torch.float32, **dict.fromkeys(asked["left_out"])
    )
    if asked["lora"]:
        pipe.load_lora_weights(asked["lora"])
    pipe.set_progress_bar_config(disable=True)

    def as_pipe_has(latents):
        packed = getattr(pipe, "_pack_latents", None)
        return latents if packed is None else packed(latents, *latents.shape)

    noises = [as_pipe_has(noise) for noise in inputs.get("noises", ())]
    # Schedulers of flow matching draw once more at the end, and multiply that by 0.
    drawn = itertools.chain(noises, itertools.repeat(torch.zeros_like(noises[0])) if noises else ())

    def instead_of_randn(shape, **of):
        noise = next(drawn)
        assert tuple(shape) == tuple(noise.shape), (shape, noise.shape)
        return noise.to(of["dtype"])

    sys.modules[type(pipe.scheduler).__module__].randn_tensor = instead_of_randn  # type: ignore[attr-defined]
    call = {  # JSON knows no tuples
        name: tuple(value) if name.endswith("_size") else value
        for name, value in asked["call"].items()
    }
    given = {"latents": as_pipe_has(inputs["latents"]), "output_type": "pt"}
    return pipe(asked["prompts"], **call, **given).images


def with_loader(asked, inputs):
    import torch

    loader = runpy.run_path(str(Path(asked["folder"]) / asked["loader"]))
    generator = loader["load"](asked["folder"])
    with torch.no_grad():
        return generator(inputs["latents"], inputs.get("labels"), inputs.get("noises", ()))


if __name__ == "__main__":
    main()
