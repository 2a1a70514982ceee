"""``--format onnx``: a generator as one file that ONNX Runtime runs, without torch or a scheduler.

DIR/model.onnx       the network, its noise levels, all its steps, the VAE's decoder
DIR/model.onnx.data  its weights, where they are more than 2 GB, which a file of protobuf may hold
DIR/prompts.npz      of networks that read text, the embeddings of the sample pictures' prompts

What the graph reads and returns is in onnx_graph.py.
"""

from __future__ import annotations

import importlib.util
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from sid_ray.denoisers.codecs import Codec
from sid_ray.denoisers.convolution import weights_ready
from sid_ray.denoisers.registry import family_of
from sid_ray.errors import UserError
from sid_ray.evaluation.samplers import Inputs
from sid_ray.exporting.card import CardText, Story, in_prose, quoted
from sid_ray.exporting.compared import run_outside
from sid_ray.exporting.kinds import Kind
from sid_ray.exporting.onnx_graph import Signature, WholeGenerator, signature_of
from sid_ray.storage.text_lines import lines_in
from sid_ray.weights.description import ModelDescription

OPSET = 20
GRAPH, PROMPTS = "model.onnx", "prompts.npz"
PROGRAM = Path(__file__).with_name("outside_onnx.py")
NEEDED = ("onnx", "onnxruntime", "onnxscript")
TRACED = 2  # images of the batch that the graph is traced with: 1 would be taken for a constant
# diffusers' U-Nets and VAEs copy batches of 64 and more, which is no arithmetic: the graph of a
# smaller one is the same, and runs larger ones.
LARGEST_TRACED = 63


def require_onnx() -> None:
    """Raises UserError naming the extra where a package is missing."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"--format onnx needs {', '.join(missing)}, not installed here: "
            "pip install 'sid_ray[onnx]'"
        )


class OnnxGraph(Kind):
    """A generator and all that turns its noise into pixels, in one graph.

    Args:
        codec: its own; called when the graph is written.
        prompts: embeddings [P, T, D] of the sample pictures' prompts; called where text is read.
    """

    title = "an ONNX graph"
    # Other kernels and fused operations: see docs/export.md for what was measured.
    rounding: ClassVar[float] = 1e-4

    def __init__(
        self,
        description: ModelDescription,
        codec: Callable[[], Codec],
        prompts: Callable[[], Tensor],
    ):
        require_onnx()
        self.description, self.codec, self.prompts = description, codec, prompts

    @cached_property
    def packed(self) -> Tensor | None:
        """The prompts' embeddings [P, T, D]; None where no text is read."""
        return self.prompts() if family_of(self.description.family).reads_text else None

    @cached_property
    def signature(self) -> Signature:
        return signature_of(self.description, self.packed)

    def write(self, folder: Path, network: nn.Module) -> None:
        with weights_ready(network):  # constants of the graph, not computed in each call
            whole = WholeGenerator(network, self.description, self.signature, self.codec()).eval()
            write_graph(folder / GRAPH, whole)
        if self.packed is not None:
            save_arrays(folder / PROMPTS, self.signature.text(self.packed))

    def made_outside(
        self, folder: Path, scratch: Path, inputs: Inputs, prompts: Sequence[str]
    ) -> Tensor:
        given = self.signature.inputs(inputs)
        with tempfile.TemporaryDirectory(dir=scratch) as named:
            place = Path(named)
            save_arrays(place / "inputs.npz", given)
            asked = {
                "graph": str(folder / GRAPH),
                "inputs": str(place / "inputs.npz"),
                "out": str(place / "images.npy"),
            }
            run_outside(PROGRAM, asked, place)
            return torch.from_numpy(np.load(place / "images.npy"))

    def card(self, story: Story, name: str) -> CardText:
        return CardText(how_run(self.description, story), graph_lines(name, self.signature), "onnx")


def save_arrays(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """A file of NumPy with these by name. Raises OSError."""
    arrays: Any = {name: value.cpu().numpy() for name, value in tensors.items()}
    np.savez(path, **arrays)


# Writing ------------------------------------------------------------------------------------------


@torch.no_grad()
def write_graph(path: Path, whole: WholeGenerator) -> None:
    """The file of a graph, checked; its weights beside it where they are large. Raises UserError
    for a network that cannot be traced, OSError.
    """
    import onnx

    names = whole.signature.names
    given = whole.signature.example(TRACED)
    batch = torch.export.Dim("N", min=1, max=LARGEST_TRACED)
    with hushed():
        try:
            traced = torch.export.export(
                whole,
                tuple(given[name] for name in names),
                dynamic_shapes=(tuple({0: batch} for _ in names),),
            )
            program = torch.onnx.export(
                traced,
                dynamo=True,
                opset_version=OPSET,
                input_names=names,
                output_names=("images",),
                verbose=False,
                optimize=False,
            )
        except RuntimeError as error:  # of torch.export and of torch.onnx alike
            said = next((line for line in lines_in(str(error)) if line.strip()), "no reason")
            kind = type(whole.net).__name__
            raise UserError(
                f"--format onnx: torch cannot trace this network ({kind}): {said:.200}"
            ) from error
        assert program is not None
        simplify(program.model)
        without_origins(program.model)
        program.save(path)
        onnx.checker.check_model(str(path), full_check=True)


def simplify(model: Any) -> None:
    """Computes what is constant, once. ``optimize`` of torch.onnx does so, too, but its rules take
    a number below 1e-8 for 0 and remove its addition: SANA's attention then divides 0 by 0 where
    it divides by 1e-15 here. What rules would fuse, ONNX Runtime does when it opens the graph.
    """
    import onnx_ir.passes.common as passes
    import onnxscript.optimizer

    passes.CommonSubexpressionEliminationPass()(model)  # weights are laid out once for all steps
    onnxscript.optimizer.fold_constants(model)
    passes.RemoveUnusedNodesPass()(model)
    passes.DeduplicateInitializersPass()(model)


def without_origins(model: Any) -> None:
    """Removes what the exporter notes of the Python that an operation came from, lines and paths of
    this machine among them.
    """
    for graph in (model.graph, *(function.graph for function in model.functions.values())):
        graph.metadata_props.clear()
        for node in graph.all_nodes():
            node.metadata_props.clear()
            node.doc_string = None
            for value in node.outputs:
                value.metadata_props.clear()
        for value in (*graph.inputs, *graph.initializers.values()):
            value.metadata_props.clear()
    model.metadata_props.clear()


@contextmanager
def hushed() -> Iterator[None]:
    """The exporter tells what it skips, by warnings and by the log: nothing for a person to do."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


# The card's part ----------------------------------------------------------------------------------

COUNT = 4  # pictures that the card's lines make


def how_run(description: ModelDescription, story: Story) -> str:
    """A few sentences on the graph."""
    steps = dict(description.one_step or {}).get("num_steps", 1)
    count = "one network evaluation" if steps == 1 else f"{steps} network evaluations"
    told = (
        f"`{GRAPH}` (ONNX, opset {OPSET}) is the whole generator: from noise to images in [0, 1], "
        f"[N, channels, height, width], with {count}; N is free. It needs ONNX Runtime and NumPy, "
        "and no scheduler."
    )
    if story.prompts:
        listed = "; ".join(f"{row}: {in_prose(prompt)}" for row, prompt in enumerate(story.prompts))
        told += (
            f" Prompts enter as embeddings of the base's text encoders, under the names that they "
            f"have in diffusers. `{PROMPTS}` holds a row for each of these: {listed}."
        )
    return told


def graph_lines(folder: str, signature: Signature) -> str:
    """Python that makes a picture with ONNX Runtime and NumPy alone."""
    channels, height, width = signature.shape
    lines = [
        "import numpy as np",
        "import onnxruntime",
        "",
        f"session = onnxruntime.InferenceSession({quoted(f'{folder}/{GRAPH}')})",
        "rng = np.random.default_rng(0)",
        f"latents = rng.standard_normal(({COUNT}, {channels}, {height}, {width}), np.float32)",
        'given = {"latents": latents}',
    ]
    if signature.classes:
        lines.append(f'given["classes"] = np.arange({COUNT}) % {signature.classes}  # -1 for none')
    if signature.layout is not None:
        lines += [
            f"prompts = np.load({quoted(f'{folder}/{PROMPTS}')})",
            f"given |= {{name: prompts[name][{COUNT} * [0]] for name in prompts.files}}",
        ]
    if signature.noises:
        shape = f"{COUNT}, {signature.noises}, {channels}, {height}, {width}"
        lines.append(f'given["noises"] = rng.standard_normal(({shape}), np.float32)')
    lines += [
        "(images,) = session.run(None, given)",
        "row = np.concatenate((255 * images + 0.5).astype(np.uint8), axis=2)  # side by side",
        'kind, (height, width) = "P6" if len(row) == 3 else "P5", row.shape[1:]',
        'with open("images.ppm", "wb") as file:',
        '    file.write(f"{kind} {width} {height} 255 ".encode())',
        "    file.write(row.transpose(1, 2, 0).tobytes())",
    ]
    return "\n".join(lines) + "\n"
