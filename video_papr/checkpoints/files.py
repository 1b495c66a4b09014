"""Reading and writing weights. Nothing here ever executes what a file contains.

A weights file is one of
    NAME          a bundled model: `video_papr/weights/NAME.safetensors`
    *.safetensors our own format: tensors (fp16 or fp32) with a JSON description in the metadata
    *.pyth, *.pt, *.pth, *.bin   a torch file with a state dict, bare or under `model_state`, `model` or `module`
"""

from __future__ import annotations

import argparse
import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..core.errors import CheckpointError

BUNDLED = Path(__file__).parents[1] / "weights"
WRAPPERS = ("model_state", "model", "module", "state_dict")
# What a folder in Hugging Face's layout may hold, best first: whole, or in parts that an index names.
FOLDER_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def bundled_names() -> list[str]:
    """The models that come with the package."""
    return sorted(path.stem for path in BUNDLED.glob("*.safetensors"))


def find_weights(weights: str | Path, *, key: str = "weights", others: str = "") -> Path:
    """The file of a bundled name or a path.

    Args:
        key: of the option that gave it, for the error.
        others: what else the option understands, for the error.

    Raises:
        CheckpointError: there is neither.
    """
    for path in (Path(weights).expanduser(), BUNDLED / f"{weights}.safetensors"):
        if path.is_file():
            return path
    names = ", ".join(bundled_names()) or "none"
    raise CheckpointError(f"{key}={weights} is neither a file nor a bundled model (bundled: {names}){others}")


def weight_files(folder: Path) -> list[Path]:
    """The files of weights in a folder in Hugging Face's layout; none when there are none or a part is missing.

    Raises:
        CheckpointError: an index is damaged.
    """
    for name in FOLDER_WEIGHTS:
        if (folder / name).is_file():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if index.is_file():
            try:
                parts = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                raise CheckpointError(f"{index} is damaged: {_first_line(error)}") from None
            files = [folder / Path(str(part)).name for part in parts]  # .name: nothing outside the folder
            if files and all(file.is_file() for file in files):
                return files
    return []


def read_weights(weights: str | Path, *, key: str = "weights") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Returns the tensors, in float32, and the description ({} for torch files).

    Raises:
        CheckpointError: the file is missing, damaged, or would need code to be run to be read.
    """
    path = find_weights(weights, key=key)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    stored = read_torch(path)
    while isinstance(stored, Mapping) and (
        inner := [k for k in WRAPPERS if isinstance(stored.get(k), Mapping)]
    ):
        stored = stored[inner[0]]
    if not isinstance(stored, Mapping) or not any(isinstance(v, Tensor) for v in stored.values()):
        raise CheckpointError(f"{path} holds no state dict, neither bare nor under {', '.join(WRAPPERS)}")
    return {
        k: v.float() if v.is_floating_point() else v for k, v in stored.items() if isinstance(v, Tensor)
    }, {}


def read_torch(path: Path) -> Any:
    """What `torch.save` wrote, as far as it is made of tensors, numbers, texts and containers.

    Raises:
        CheckpointError: the file is damaged, or would need code to be run to be read.
    """
    # Training scripts store their command line beside the weights. A Namespace only holds values; they are checked too.
    torch.serialization.add_safe_globals([argparse.Namespace])
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (
        pickle.UnpicklingError
    ):  # torch raises it for other objects, and for a text that is no pickle at all
        raise CheckpointError(
            f"{path} is not read: it is no torch file, or it holds more than tensors, which could run code"
        ) from None
    except Exception as error:  # damaged bytes raise whatever the unpickler stumbles over
        raise CheckpointError(f"{path} is damaged or not a torch file: {_first_line(error)}") from None


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
            described = json.loads((file.metadata() or {}).get("video_papr", "{}"))
        if not isinstance(described, dict):
            raise ValueError("its description is no JSON object")
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged or not a safetensors file: {_first_line(error)}") from None
    return {k: v.float() if v.is_floating_point() else v for k, v in state.items()}, described


def write_weights(
    path: Path, state: Mapping[str, Tensor], described: Mapping[str, Any], *, half: bool = True
) -> None:
    """Writes our own format; `half` stores floating-point tensors as fp16."""
    tensors = {k: v.detach().cpu().contiguous() for k, v in state.items()}
    if half:
        tensors = {k: v.half() if v.is_floating_point() else v for k, v in tensors.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata={"video_papr": json.dumps(dict(described), sort_keys=True)})


def load_exactly(module: nn.Module, state: Mapping[str, Tensor], *, source: str) -> None:
    """Loads a state dict into `module`.

    Raises:
        CheckpointError: keys are missing, left over, or of another shape; the line names the first few.
    """
    own = module.state_dict()
    missing = [k for k in own if k not in state]
    extra = [k for k in state if k not in own]
    misshapen = [
        f"{k} {tuple(state[k].shape)} instead of {tuple(own[k].shape)}"
        for k in own
        if k in state and state[k].shape != own[k].shape
    ]
    faults = [f"{name}: {_few(keys)}" for name, keys in _named(missing, extra, misshapen) if keys]
    if faults:
        raise CheckpointError(f"{source} does not fit {type(module).__name__}; {'; '.join(faults)}")
    module.load_state_dict(dict(state))


def _named(missing: list[str], extra: list[str], misshapen: list[str]) -> tuple[tuple[str, list[str]], ...]:
    return ("missing", missing), ("unexpected", extra), ("of another shape", misshapen)


def _few(keys: list[str]) -> str:
    return ", ".join(map(str, keys[:4])) + (f" and {len(keys) - 4} more" if len(keys) > 4 else "")


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".strip().splitlines()[0]
