"""Exported model files (ONNX, torch.export, AOTInductor), each checked against PyTorch, with model.json beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch.export import ExportedProgram

from ..assembly.compose import as_fitted, build_reader
from ..config import ExportConfig
from ..core.console import warn
from ..core.files import atomic_write
from ..evaluation.results import to_json, versions
from ..pipeline import Pipeline
from . import export
from .export import Runner
from .export_check import check_clips, compare
from .predict import Recipe

Writer = Callable[[ExportedProgram, Path], Path]
DESCRIPTION = "model.json"


def export_files(config: ExportConfig, out: Path) -> dict[str, Any]:
    """Writes and checks the files, and model.json beside them, in `out`. Returns what model.json holds.

    Raises VideoPaprError: something in the configuration that the user can mend, or a file that does not do what
    PyTorch does; it is removed then.
    """
    config = as_fitted(config)
    pipeline, recipe = build_reader(replace(config, runtime=replace(config.runtime, engine="torch")))
    export.check_exportable(pipeline)
    formats = _formats(config)
    out.mkdir(parents=True, exist_ok=True)
    program = export.export_program(pipeline)
    frames = check_clips(pipeline, config.check_clips, seed=config.seed)
    checked: dict[str, dict[str, Any]] = {}
    for name, (write, read) in formats.items():
        path = write(program, out / name)
        try:
            checked[name] = asdict(compare(pipeline, read(path), frames, source=str(path)))
        except Exception:
            for wrong in out.glob(f"{name}*"):  # large weights of an ONNX file lie beside it
                wrong.unlink()
            raise
    facts = describe(config, pipeline, recipe, checked)
    atomic_write(out / DESCRIPTION, to_json(facts))
    return facts


def _formats(config: ExportConfig) -> dict[str, tuple[Writer, Callable[[Path], Runner]]]:
    """File name -> (how it is written, how it is run), of what is asked for and can be made."""
    made: dict[str, tuple[Writer, Callable[[Path], Runner]]] = {}
    if config.onnx:
        made["model.onnx"] = export.save_onnx, export.run_onnx
    if config.program:
        made["model.pt2"] = export.save_program, export.run_program
    if config.aot == "auto" and export.compiler() is None:
        warn("aot=auto: model.aot.pt2 is left out; AOTInductor needs a C++ compiler (g++, or what CXX names)")
    elif config.aot:
        made["model.aot.pt2"] = export.save_aot, export.run_aot
    return made


def describe(
    config: ExportConfig, pipeline: Pipeline, recipe: Recipe, checked: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """What a server has to know, for model.json; see docs/deploy.md."""
    model = pipeline.backbone
    kept, classes = export.kept_tokens(pipeline), model.num_classes
    size, _ = model.frame_size  # video backbones read squares
    shapes = {"logits": ["batch", classes], "keep_idx": ["batch", kept]}
    types = {"logits": "float32", "keep_idx": "int64"}
    names = export.OUTPUTS[: 1 if pipeline.pruner is None else 2]
    return {
        "files": list(checked),
        "inputs": [
            {
                "name": export.INPUT,
                "dtype": "uint8",
                "shape": ["batch", model.num_frames, size, size, 3],
                "layout": "clip, frame, row, column, RGB",
            }
        ],
        "outputs": [{"name": name, "dtype": types[name], "shape": shapes[name]} for name in names],
        "class_names": None if model.class_names is None else list(model.class_names),
        "normalization": {"inside_the_graph": True, "mean": list(model.mean), "std": list(model.std)},
        "reading": {
            "sampling": recipe.sampling,
            "frame_stride": recipe.frame_stride,
            "num_frames": model.num_frames,
            "short_side": recipe.short_side or size,
            "input_size": size,
            "clips": recipe.clips,
            "crops": recipe.crops,
        },
        "tokens": {"grid": list(model.grid.shape), "all": model.grid.num_tokens, "kept": kept},
        "keep_ratio": None if pipeline.pruner is None else config.pruner.keep_ratio,
        "backbone": {"name": config.backbone.name, "weights": config.backbone.weights},
        "pruner": {"name": config.pruner.name, **config.pruner.options},
        "checked": checked,
        "versions": versions("onnx", "onnxruntime", "onnxscript"),
    }
