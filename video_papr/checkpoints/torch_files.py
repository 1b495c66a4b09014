"""Torch files from anywhere: read without running code, and refused when they claim more than they contain."""

from __future__ import annotations

import argparse
import pathlib
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.errors import CheckpointError, CheckpointWarning
from ..core.escape import shorten
from .wrappers import AVERAGE

WRAPPERS = ("model_state", "model", "module", "state_dict")  # usual keys, best first
MAX_NESTING = 8  # of the wrappers
MAX_BLOAT, SMALL = 4, 16 << 20  # what tensors may claim: so many times the file's bytes, and 16 MiB


def read_torch(path: Path) -> Any:
    """What `torch.save` wrote, as far as it is made of tensors, numbers, texts and containers.

    Raises CheckpointError: the file is damaged, claims more than it contains, or would need code to be run to be read.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:  # `torch.save` does not compress
                size = sum(entry.file_size for entry in archive.infolist())
                _check_claim(size, path, "its compressed parts")
                parts = [entry.filename for entry in archive.infolist()]
            if any(part.endswith("/constants.pkl") for part in parts):
                raise CheckpointError(
                    f"{path} is a TorchScript program, not weights; save the model's state_dict()"
                )
            if parts and not any(part.endswith("data.pkl") for part in parts):
                raise CheckpointError(f"{path} contains no weights: it is a ZIP archive ({few(parts)})")
        with path.open("rb") as file, torch.serialization.safe_globals(_harmless()):
            return torch.load(file, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:  # also for a text that is no pickle at all
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise CheckpointError(
            f"{path} is not read: it is no torch file, or it holds more than tensors"
            f"{f' ({named[1]})' if named else ''}, which could run code"
        ) from None
    except Exception as error:  # damaged bytes raise whatever the unpickler stumbles over
        raise CheckpointError(f"{path} is damaged or not a torch file: {first_line(error)}") from None


def _harmless() -> list[Any]:
    """Classes that training scripts store beside the weights, and that only hold values; these are checked too."""
    scalars = [type(np.dtype(kind)) for kind in "fdeilqbBHILQ?"]
    scalar: Any = np.float64(0).__reduce__()[0]
    return [argparse.Namespace, np.dtype, scalar, pathlib.PosixPath, pathlib.PurePosixPath, *scalars]


def state_dict(stored: Any, path: Path) -> dict[str, Tensor]:
    """The tensors by name, bare or under keys of wrappers, which may be nested."""
    for _ in range(MAX_NESTING):
        inner = _wrappers(stored)
        averages = [key for key in inner if AVERAGE.search(f"{key}.")]
        plain = [key for key in inner if key not in averages]
        if not inner:
            break
        if len(plain) > 1 and plain[0] not in WRAPPERS:
            raise CheckpointError(
                f"{path} holds several state dicts, under {few(plain)}; store the one that is meant"
            )
        if plain and averages:
            warnings.warn(
                f"{path} also contains an average of the weights ({', '.join(averages)}); {plain[0]} is used",
                CheckpointWarning,
                stacklevel=4,
            )
        stored = stored[(plain or averages)[0]]
    else:
        raise CheckpointError(f"{path} holds no state dict: its dictionaries are nested too deeply")
    state = {k: v for k, v in stored.items() if isinstance(v, Tensor)} if isinstance(stored, Mapping) else {}
    if not state:
        raise CheckpointError(
            f"{path} holds no state dict, neither bare nor under one key such as {', '.join(WRAPPERS)}"
        )
    unnamed = [key for key in state if not isinstance(key, str)]
    if unnamed:
        raise CheckpointError(f"{path} holds no state dict: tensors are named {few(unnamed)}, not by texts")
    return state


def _wrappers(stored: Any) -> list[str]:
    """Keys that weights may be under: usual ones first, then any other with more tensors than lie beside it."""
    if not isinstance(stored, Mapping):
        return []
    inner = {key: value for key, value in stored.items() if isinstance(value, Mapping)}
    beside = _count(stored)
    return [key for key in WRAPPERS if key in inner] + [
        key for key, value in inner.items() if key not in WRAPPERS and _count(value) > beside
    ]


def _count(stored: Mapping[Any, Any]) -> int:
    return sum(isinstance(value, Tensor) for value in stored.values())


def check_sizes(state: Mapping[str, Tensor], path: Path) -> None:
    """Refuses tensors that are not simply stored, or claim more values than the file has bytes for."""
    claimed = 0
    for name, value in state.items():
        kinds = {
            "nested": value.is_nested,
            "meta": value.is_meta,
            "quantized": value.is_quantized,
            "complex": value.is_complex(),
            str(value.layout).removeprefix("torch."): value.layout != torch.strided,
        }
        kind = next((name for name, found in kinds.items() if found), None)
        if kind:
            raise CheckpointError(
                f"{path}: {name} is a {kind} tensor; only plain (dense, real) ones are read"
            )
        size = value.numel() * value.element_size()
        claimed += size
        if size > value.untyped_storage().nbytes():
            raise CheckpointError(
                f"{path}: {name} {shape(value)} claims {size} bytes, and {value.untyped_storage().nbytes()} are stored"
            )
    _check_claim(claimed, path, "its tensors")


def _check_claim(claimed: int, path: Path, what: str) -> None:
    stored = path.stat().st_size
    if claimed > MAX_BLOAT * stored + SMALL:
        raise CheckpointError(
            f"{path} is not read: {what} claim {claimed >> 20} MiB, and the file has {stored >> 20} MiB"
        )


def shape(value: Tensor) -> str:
    return str(tuple(value.shape))


def few(keys: list[str]) -> str:
    return ", ".join(shorten(str(key), 100) for key in keys[:4]) + (
        f" and {len(keys) - 4} more" if len(keys) > 4 else ""
    )


def first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".strip().splitlines()[0]
