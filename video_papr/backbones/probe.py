"""Linear probes: a classifier fitted on the features of a frozen backbone, in a file that names the backbone.

The file is small: head, class names, how the backbone is built and a checksum of its weights, how clips are read, and
the pruner that the features were computed with. The backbone's own weights stay where they are.

Letters: C classes, F features.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoints.files import PROBE, find_weights, load_exactly, read_described, write_weights
from ..core.errors import CheckpointError, ConfigError
from ..core.reading import ReadConfig
from .encoder import Encoder


@dataclass(frozen=True)
class Probe:
    """What the file of a probe holds.

    Attributes:
        weight, bias: (C, F) and (C,) float32, of the head.
        backbone: arguments of `build_backbone`. `weights` is a file's absolute path, or any other name that it takes.
        checksum: of the backbone's weights, see `checksum`.
        pruner: the name and the other keys of the group pruner; only the name "none": features were dense.
    """

    weight: Tensor
    bias: Tensor
    class_names: tuple[str, ...]
    backbone: Mapping[str, Any]
    checksum: str
    read: ReadConfig
    pruner: Mapping[str, Any]

    def save(self, path: Path, described: Mapping[str, Any]) -> None:
        """Writes the file, with more to say about it in `described`."""
        own = {
            "backbone": dict(self.backbone),
            "checksum": self.checksum,
            "pruner": dict(self.pruner),
            "class_names": self.class_names,
            "read": self.read.to_metadata(),
        }
        state = {"head.weight": self.weight, "head.bias": self.bias}
        write_weights(path, state, {**described, PROBE: own}, half=False)

    def attach(self, backbone: Encoder, *, source: str) -> None:
        """Puts the head onto the backbone that it was fitted on, in place.

        Raises CheckpointError: it is another one, or the head does not fit.
        """
        found = checksum(backbone)
        if found != self.checksum:
            raise CheckpointError(
                f"{source}: was fitted on other weights of {self.backbone.get('model') or self.backbone['name']} than "
                f"those at {self.backbone['weights']} (checksum {self.checksum[:12]}, found {found[:12]})"
            )
        plain = backbone.head.in_features if isinstance(backbone.head, nn.Linear) else None
        count = backbone.parts if backbone.pool == "concat" else 1
        if plain is not None and self.weight.shape[1] != plain * count:
            raise CheckpointError(
                f"{source}: its head reads {self.weight.shape[1]} features, not {plain * count}"
            )
        head = nn.utils.skip_init(nn.Linear, self.weight.shape[1], len(self.class_names))
        load_exactly(head, {"weight": self.weight, "bias": self.bias}, source=source)
        backbone.head = backbone.clip_head = nn.Identity()
        whole = backbone.parts == 1
        setattr(backbone, "head" if whole else "clip_head", head.eval().requires_grad_(False))
        backbone.num_classes, backbone.class_names = len(self.class_names), self.class_names
        backbone.read = self.read


def read_probe(weights: str | Path | None) -> Probe:
    """Reads the file of a probe.

    Raises:
        ConfigError: `weights` is None.
        CheckpointError: the file is missing, damaged or no probe, or the weights of its backbone are gone.
    """
    if weights is None:
        raise ConfigError(
            "backbone.weights is not set: backbone=probe needs the file that experiment=probe wrote"
        )
    source, path = f"backbone.weights={weights}", find_weights(weights, key="backbone.weights")
    state, described = read_described(path)
    stored = described.get(PROBE)
    if not isinstance(stored, Mapping) or set(state) != {"head.weight", "head.bias"}:
        raise CheckpointError(
            f"{source} is no linear probe; backbone=probe reads what experiment=probe wrote"
        )
    try:
        names, backbone, pruner = (
            tuple(stored["class_names"]),
            dict(stored["backbone"]),
            dict(stored["pruner"]),
        )
        digest, read = str(stored["checksum"]), stored["read"]
        where = str(backbone["weights"])
        right = all(isinstance(name, str) for name in (*names, backbone["name"], pruner["name"]))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{source} is damaged: {type(error).__name__}: {error}") from None
    weight, bias = state["head.weight"], state["head.bias"]
    if not right or weight.ndim != 2 or bias.shape != weight.shape[:1] or len(names) != len(bias):
        raise CheckpointError(f"{source} is damaged: its head, class names and backbone do not fit together")
    backbone["weights"] = _found_again(where, path, source)
    if isinstance(backbone.get("input_size"), list):
        backbone["input_size"] = tuple(backbone["input_size"])
    return Probe(weight, bias, names, backbone, digest, ReadConfig.from_metadata(read, source=source), pruner)


def _found_again(where: str, probe: Path, source: str) -> str:
    """The weights of the backbone: where they were, or beside the probe."""
    if not Path(where).is_absolute() or Path(where).exists():  # others are names
        return where
    beside = probe.parent / Path(where).name
    if not beside.exists():
        raise CheckpointError(
            f"{source}: the weights of its backbone are neither at {where} nor beside the probe"
        )
    return str(beside)


def checksum(network: nn.Module) -> str:
    """SHA-256 over the parameters but the classifier's, whatever their names and their order."""
    digests = []
    for name, value in network.named_parameters():
        if not name.startswith(("head", "clip_head")):
            flat = value.detach().float().cpu().contiguous().flatten().view(torch.uint8)
            digests.append(hashlib.sha256(flat.numpy().data).digest() + str(tuple(value.shape)).encode())
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()
