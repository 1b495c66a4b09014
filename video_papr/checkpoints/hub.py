"""Files from the network, each kept in the cache of the library that fetches it. A cached copy is used as it is.

org/name        a model of the Hugging Face Hub, through huggingface_hub: resumed, checked, with progress bars
https://...     a single file, through torch.hub: written in whole or not at all, with a progress bar
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import torch
from huggingface_hub import constants, snapshot_download, try_to_load_from_cache

from ..core.errors import CheckpointError
from .files import weight_files
from .torch_files import first_line

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
HUB_CONFIG = "config.json"
# Most models have both kinds; the second is fetched only where there is none of the first.
HUB_WEIGHTS = ("model*.safetensors*", "pytorch_model*.bin*")


def is_offline() -> bool:
    """Whether `HF_HUB_OFFLINE` forbids the network."""
    return os.environ.get("HF_HUB_OFFLINE", "").strip().upper() in {"1", "ON", "YES", "TRUE"}


def is_hub_id(text: str) -> bool:
    """Whether `text` has the form org/name; a name that ends like a file of weights is taken for a path."""
    ends = (".safetensors", ".bin", ".pt", ".pth", ".pyth")
    return HUB_ID.fullmatch(text) is not None and not text.endswith(ends)


def hub_folder(hub_id: str, *, key: str) -> Path:
    """The folder with config.json and the weights of a model of the Hugging Face Hub.

    Raises CheckpointError: it is not in the cache, and cannot be downloaded.
    """
    cached = try_to_load_from_cache(hub_id, HUB_CONFIG)
    if isinstance(cached, str) and weight_files(Path(cached).parent):
        return Path(cached).parent
    reason = "HF_HUB_OFFLINE is set"
    if not is_offline():
        try:
            for weights in HUB_WEIGHTS:
                folder = Path(snapshot_download(hub_id, allow_patterns=[HUB_CONFIG, weights]))
                if weight_files(folder):
                    return folder
            reason = "it has no weights for torch"
        except Exception as error:  # the library's own errors, and those of whatever carries its requests
            reason = first_line(error).rstrip(".")
    raise CheckpointError(
        f"{key}={hub_id} is not in the cache {constants.HF_HUB_CACHE} and was not downloaded ({reason}). On a machine "
        f"with a network fetch {HUB_CONFIG} and model.safetensors (or pytorch_model.bin) from "
        f"{constants.ENDPOINT}/{hub_id}, put them into one folder, and give {key}=FOLDER"
    )


def url_file(url: str, *, key: str, value: str) -> Path:
    """A file in torch.hub's cache, downloaded if it is not there yet.

    Args:
        url: its address; the last part is its name in the cache.
        key, value: the option that asked for it, for errors.

    Raises CheckpointError: it is not in the cache, and cannot be downloaded.
    """
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    if path.is_file():
        return path
    reason = "HF_HUB_OFFLINE is set"
    if not is_offline():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path))
            return path
        except OSError as error:  # urllib's errors are OSErrors
            reason = first_line(error).rstrip(".")
    raise CheckpointError(
        f"{key}={value} is not in the cache and was not downloaded ({reason}). On a machine with a network fetch {url} "
        f"and put it at {path}"
    )
