"""A pipeline as one graph in a file: scorer, selection and backbone together, uint8 frames in, logits out.

    pipeline -> torch.export -> .pt2            runs in torch
                             -> .onnx           runs in ONNX Runtime and what else reads ONNX
                             -> .aot.pt2        compiled by AOTInductor for this machine

Frames enter as bytes: a quarter of the traffic of floats, and nobody has to normalise for two networks. The number of
tubelets that are kept is part of the graph, so it has to be the same for every clip; the number of clips is free.

Letters: B clips, T frames of S x S pixels, K kept tokens.
"""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from ..backbones.timm_vit import TimmViT
from ..core.console import quiet_tracers
from ..core.errors import ConfigError, ExportError, StorageError
from ..core.files import storing
from ..pipeline import Pipeline
from ..pruning.budget import keep_count

INPUT, OUTPUTS = "frames", ("logits", "keep_idx")
Runner = Callable[[Tensor], tuple[Tensor, ...]]
"""frames (B, T, S, S, 3) uint8 -> logits (B, classes), and keep_idx (B, K) int64 where something is dropped."""


class Graph(nn.Module):
    """What is exported: frames (B, T, S, S, 3) uint8 -> logits (B, classes), keep_idx (B, K) unless all are kept."""

    def __init__(self, pipeline: Pipeline) -> None:
        super().__init__()
        self.pipeline = copy.deepcopy(pipeline)
        # X3D's weights lie channels-last. AOTInductor takes the strides of a depthwise convolution's weight for plain
        # ones, whereas the convolution does not, and reads its output askew (seen with torch 2.15).
        for weight in self.pipeline.parameters():
            weight.data = weight.data.clone(memory_format=torch.contiguous_format)

    def forward(self, frames: Tensor) -> tuple[Tensor, ...]:
        selection = self.pipeline.select(frames)
        if selection is None:
            return (self.pipeline.classify(frames, None),)
        return self.pipeline.classify(frames, replace(selection, scored=None)), selection.keep_idx


def check_exportable(pipeline: Pipeline) -> None:
    """Says in one line why a pipeline cannot become a graph.

    Raises ConfigError: clips keep unequal numbers of tokens, the choice is not made by tensor operations alone, tokens
    are merged, or the backbone is another library's.
    """
    if pipeline.backbone.closed or isinstance(pipeline.backbone, TimmViT):
        raise ConfigError(
            "backbones of timm and transformers cannot be exported yet: the other backbones can"
        )
    if pipeline.merger is not None:
        raise ConfigError(
            "merger=tome cannot be exported: merging inside the blocks is not supported in graphs; use merger=none"
        )
    if pipeline.pruner is not None:
        pipeline.pruner.check_exportable()


def kept_tokens(pipeline: Pipeline) -> int:
    """K, the tokens that every clip keeps; all of them when nothing prunes."""
    count, pruner = pipeline.backbone.grid.num_tokens, pipeline.pruner
    return count if pruner is None else keep_count(pruner.budget.value, count, getattr(pruner, "counted", 0))


def export_program(pipeline: Pipeline) -> ExportedProgram:
    """Traces a pipeline with `torch.export`: static K, any number of clips.

    Raises:
        ConfigError: see `check_exportable`.
        ExportError: torch cannot trace it.
    """
    check_exportable(pipeline)
    model = pipeline.backbone
    shape = (2, model.num_frames, *model.frame_size, 3)  # 1 clip would be taken for a constant
    frames = torch.zeros(shape, dtype=torch.uint8, device=next(model.parameters()).device)
    with _mendable("torch.export"), torch.no_grad():
        # Named like the argument, so that the graph's input is `frames` wherever it runs.
        return torch.export.export(
            Graph(pipeline).eval(), (frames,), dynamic_shapes={INPUT: {0: Dim("batch", min=1)}}
        )


def save_onnx(program: ExportedProgram, path: Path) -> Path:
    """Writes ONNX; weights above protobuf's 2 GB go into `<path>.data` beside it.

    Raises ExportError: onnx or onnxscript is missing, or an operation has no counterpart in ONNX.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise _missing(error) from None
    with _mendable("ONNX"), storing(path):
        made = torch.onnx.export(
            program,
            dynamo=True,
            verbose=False,
            output_names=list(OUTPUTS[: len(program.graph_signature.user_outputs)]),
            custom_translation_table={torch.ops.aten.sort.stable: _onnx_sort},
        )
        assert made is not None
        for value in (*made.model.graph.inputs, *made.model.graph.outputs):  # torch's name for it is a number
            if value.shape is not None:
                value.shape = type(value.shape)(["batch", *value.shape[1:]])
        made.save(path)
    return path


def _onnx_sort(values: Any, *, stable: bool = True, dim: int = -1, descending: bool = False) -> Any:
    """torch's stable sort in ONNX, whose TopK puts the lower index first among equals as well."""
    import onnxscript

    op: Any = onnxscript.opset18

    length = op.Slice(op.Shape(values), [dim], [dim + 1] if dim != -1 else [2**31 - 1], [0])
    return op.TopK(values, length, axis=dim, largest=int(descending), sorted=1)


def save_program(program: ExportedProgram, path: Path) -> Path:
    """Writes what `torch.export.load(path).module()` reads."""
    with _mendable("torch.export"), storing(path):
        torch.export.save(program, path)
    return path


def compiler() -> str | None:
    """The C++ compiler that AOTInductor would call, or None."""
    return shutil.which(os.environ.get("CXX", "g++"))


def save_aot(program: ExportedProgram, path: Path) -> Path:
    """Compiles for this machine's processor or GPU and writes what `torch._inductor.aoti_load_package(path)` reads.

    Raises ExportError: there is no compiler, or it fails.
    """
    if compiler() is None:
        raise ExportError("AOTInductor needs a C++ compiler (g++, or the one that CXX names); there is none")
    with _mendable("AOTInductor"), storing(path):
        torch._inductor.aoti_compile_and_package(program, package_path=str(path))
    return path


def run_onnx(path: Path) -> Runner:
    """A runner in ONNX Runtime on the processor.

    Raises ExportError: onnxruntime is missing, or cannot read the file.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise _missing(error) from None
    with _mendable("ONNX Runtime"):
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(frames: Tensor) -> tuple[Tensor, ...]:
        found = session.run(None, {INPUT: frames.cpu().numpy()})
        return tuple(torch.from_numpy(np.asarray(value)) for value in found)

    return run


def run_program(path: Path) -> Runner:
    """A runner of what `save_program` wrote."""
    return torch.export.load(path).module()


def run_aot(path: Path) -> Runner:
    """A runner of what `save_aot` wrote."""
    return torch._inductor.aoti_load_package(str(path))


def _missing(error: ImportError) -> ExportError:
    return ExportError(f'{error.name} is not installed: pip install "video_papr[export]"')


@contextmanager
def _mendable(what: str) -> Iterator[None]:
    """Gives a tool's error the name of the tool, in one line."""
    with quiet_tracers():
        try:
            yield
        except StorageError:
            raise
        except Exception as error:
            cause: BaseException = error
            while cause.__cause__ is not None:  # torch wraps what happened in advice on how to report it
                cause = cause.__cause__
            said = (str(cause).strip().splitlines() or [""])[0]
            raise ExportError(f"{what} failed: {type(cause).__name__}: {said}") from error
