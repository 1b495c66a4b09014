"""Reading and writing weights. Nothing here ever executes what a file contains.

A weights file is one of
    NAME          a bundled model: `video_papr/weights/NAME.safetensors`
    *.safetensors our own format: tensors (fp16 or fp32) with a JSON description in the metadata
    *.pyth, *.pt, *.pth, *.bin   a torch file with a state dict, bare or under `model_state`, `model` or `module`
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from ..core.errors import CheckpointError
from ..core.escape import printable, shorten
from ..core.file_kinds import file_kind
from ..core.files import atomic_write
from .torch_files import check_sizes, few, first_line, read_torch, shape, state_dict

BUNDLED = Path(__file__).parents[1] / "weights"
PROBE = "probe"  # the key of a description that makes the file a linear probe, see `backbones.probe`
TORCH_STARTS = (b"PK", b"\x80\x02")  # a zip archive, or a bare pickle of older releases
# What a folder in Hugging Face's layout may hold, best first: whole, or in parts that an index names.
FOLDER_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def bundled_names() -> list[str]:
    """The models that come with the package."""
    return sorted(path.stem for path in BUNDLED.glob("*.safetensors"))


def find_weights(weights: str | Path, *, key: str = "weights", others: str = "") -> Path:
    """The file of a bundled name or a path. `others`: what else the option understands, for the error.

    Raises CheckpointError: there is neither.
    """
    for path in (Path(weights).expanduser(), BUNDLED / f"{weights}.safetensors"):
        if path.is_file():
            return path
    names = ", ".join(bundled_names()) or "none"
    raise CheckpointError(f"{key}={weights} is neither a file nor a bundled model (bundled: {names}){others}")


def weight_files(folder: Path) -> list[Path]:
    """The files of weights in a folder in Hugging Face's layout; none when there are none or a part is missing.

    Raises CheckpointError: an index is damaged.
    """
    for name in FOLDER_WEIGHTS:
        if (folder / name).is_file():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if index.is_file():
            try:
                text = index.read_text(encoding="utf-8")
                parts = sorted(set(parse_object(text, str(index))["weight_map"].values()))
            except CheckpointError:
                raise
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                raise CheckpointError(f"{index} is damaged: {first_line(error)}") from None
            files = [folder / Path(str(part)).name for part in parts]  # .name: nothing outside the folder
            if files and all(file.is_file() for file in files):
                return files
    return []


def read_weights(weights: str | Path, *, key: str = "weights") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Returns the tensors as they are stored, and the description.

    The description of a torch file has what a training script stored of its command line, as `args`, if anything.
    The file's content decides how it is read, not the end of its name.

    Raises CheckpointError: the file is missing, damaged, claims more than it contains, or would need code to be run to
    be read.
    """
    path = find_weights(weights, key=key)
    _refuse_foreign(path)
    with path.open("rb") as file:
        head = file.read(9)
    by_name = path.suffix == ".safetensors" and head[:2] not in TORCH_STARTS
    if head[8:] == b"{" or by_name:  # behind the length of its header
        state, described = read_described(path)
        _check_names(state, path)
        if PROBE in described:
            raise CheckpointError(
                f"{key}={weights} holds a linear probe; use backbone=probe backbone.weights=FILE"
            )
        return state, described
    stored = read_torch(path)
    args = stored.get("args") if isinstance(stored, Mapping) else None
    args = vars(args) if isinstance(args, argparse.Namespace) else args
    state = state_dict(stored, path)
    _check_names(state, path)
    check_sizes(state, path)
    return state, {"args": dict(args)} if isinstance(args, Mapping) else {}


def _check_names(state: Mapping[str, Tensor], path: Path) -> None:
    """Refuses names that no module has, before a message shows them."""
    for name in state:
        if not name.isprintable():
            raise CheckpointError(f"{path} is damaged: it names a tensor {shorten(printable(name), 100)}")


def _refuse_foreign(path: Path) -> None:
    try:
        found = file_kind(path) if path.stat().st_size else "an empty file"
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {first_line(error)}") from None
    if found not in (None, "a ZIP archive"):  # `torch.save` writes one
        raise CheckpointError(f"{path} contains no weights: it is {found}")


def read_described(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """`read_weights` of a file of our own format, probes among them."""
    try:
        with safe_open(path, framework="pt") as file:
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
            text = (file.metadata() or {}).get("video_papr", "{}")
    except (SafetensorError, OSError, ValueError, AttributeError, RuntimeError) as error:
        raise CheckpointError(f"{path} is damaged or not a safetensors file: {first_line(error)}") from None
    return state, parse_object(text, f"{path}: its description")


def parse_object(text: str, source: str) -> dict[str, Any]:
    """A JSON object of finite numbers. Raises CheckpointError: it is something else; the line begins with `source`."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON number")

    try:
        value = json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{source} is damaged: {first_line(error)}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{source} is damaged: it is no JSON object")
    return value


def write_weights(
    path: Path, state: Mapping[str, Tensor], described: Mapping[str, Any], *, half: bool = True
) -> None:
    """Writes our own format; `half` stores floating-point tensors as fp16, but for those that it cannot hold.

    Raises StorageError: the disk is full, or fails; what was there before is left as it was.
    """
    tensors = {k: v.detach().cpu().contiguous() for k, v in state.items()}
    if half:
        fits = {
            k for k, v in tensors.items() if v.is_floating_point() and _is_finite(v.half()) is _is_finite(v)
        }
        tensors = {k: v.half() if k in fits else v for k, v in tensors.items()}
    atomic_write(path, save(tensors, {"video_papr": json.dumps(dict(described), sort_keys=True)}))


def load_exactly(module: nn.Module, state: Mapping[str, Tensor], *, source: str) -> None:
    """Loads a state dict into `module`. Raises CheckpointError: see `check_fit`; or a value is not finite."""
    check_fit(state, module.state_dict(), name=type(module).__name__, source=source)
    for key, value in module.state_dict().items():
        if not _is_finite(state[key].to(value.dtype)):
            raise CheckpointError(f"{source}: {key} contains values that are not finite (NaN or infinity)")
    module.load_state_dict(dict(state))


def check_fit(state: Mapping[str, Tensor], own: Mapping[str, Tensor], *, name: str, source: str) -> None:
    """Compares weights with those that a network has, before anything is copied.

    Raises CheckpointError: keys are missing, left over, or of another shape or kind; the line names the first few.
    """
    both = [key for key in own if key in state]
    faults = {
        "missing": [key for key in own if key not in state],
        "unexpected": [key for key in state if key not in own],
        "of another shape": [
            f"{key} {shape(state[key])} instead of {shape(own[key])}"
            for key in both
            if state[key].shape != own[key].shape
        ],
        "of another kind": [
            f"{key} {state[key].dtype} instead of {own[key].dtype}".replace("torch.", "")
            for key in both
            if state[key].is_floating_point() != own[key].is_floating_point()
        ],
    }
    found = [f"{fault}: {few(keys)}" for fault, keys in faults.items() if keys]
    if found:
        raise CheckpointError(f"{source} does not fit {name}; {'; '.join(found)}")


def _is_finite(value: Tensor) -> bool:
    if not value.is_floating_point() or value.numel() == 0:
        return True
    low, high = torch.aminmax(value.detach())  # NaN stays NaN, and nothing is allocated
    return bool(low.isfinite() & high.isfinite())
