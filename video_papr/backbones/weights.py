"""Weights for a backbone: found, read, compared with what was asked for, and changed where that is wanted.

`weights` is, tried in this order,
    a path         a file of any format in `formats`, or a folder in Hugging Face's layout (config.json and weights)
    NAME           a bundled model
    org/name       a model of the Hugging Face Hub, downloaded once
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..checkpoints.files import BUNDLED, find_weights, parse_object, read_weights, weight_files
from ..checkpoints.formats import (
    ANCHORS,
    HOSTED,
    Format,
    State,
    architecture,
    class_names,
    recognise,
    shape_of,
)
from ..checkpoints.hub import HUB_CONFIG, hub_folder, is_hub_id
from ..checkpoints.wrappers import unwrap
from ..core.errors import CheckpointError
from ..core.reading import ReadConfig
from .depth_pruned import REMOVED, check_blocks
from .layers import ACTIVATIONS

ACTIVATION = {"videomae": "gelu", "vivit": "gelu_fast", "vjepa2": "gelu"}  # of the families
CLIP = ("num_frames", "input_size")


@dataclass(frozen=True)
class Checkpoint:
    """Weights under our own names, and what is known of them.

    Attributes:
        format: what it was, see `formats`.
        settings: the part of the architecture and the clip that it gives away, under the names of
            `builders.BACKBONES`.
        complete: these settings are the whole architecture.
        norm_eps: epsilon of (the blocks' norms, the last norm), where the reference implementation's differs from ours.
        model: name of the backbone, where the file says it.
        blocks: of a backbone whose depth was pruned, what became of each of its blocks; see `shortened`.
        config: all that config.json says, of a model that runs as transformers has it.
    """

    source: str
    path: Path
    format: Format
    state: State
    settings: dict[str, Any] = field(default_factory=dict)
    complete: bool = False
    norm_eps: tuple[float, float] | None = None
    model: str | None = None
    blocks: tuple[str, ...] | None = None
    names: tuple[str, ...] | None = None
    read: ReadConfig | None = None
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def num_classes(self) -> int | None:
        """Rows of the classifier; None where there is none."""
        weight = self.state.get("head.weight")
        return None if weight is None else weight.shape[0] if weight.ndim else 0


def find_backbone(weights: str | Path, *, key: str) -> Path:
    """The file or folder that `weights` names, see the top of this module; downloads it if it must.

    Raises CheckpointError: there is no such thing.
    """
    path = Path(weights).expanduser()
    if path.is_dir():
        return path
    if path.is_file() or (BUNDLED / f"{weights}.safetensors").is_file() or not is_hub_id(str(weights)):
        return find_weights(weights, key=key, others=", nor a model of the Hugging Face Hub (org/name)")
    return hub_folder(str(weights), key=key)


def read_checkpoint(weights: str | Path, *, key: str) -> Checkpoint:
    """Reads the weights of a backbone in any of the known formats.

    Raises CheckpointError: they are missing, damaged, in no known format, or would need code to be run.
    """
    path = find_backbone(weights, key=key)
    files = weight_files(path) if path.is_dir() else [path]
    if not files:
        raise CheckpointError(
            f"{key}={weights} holds neither model.safetensors nor pytorch_model.bin in whole"
        )
    raw: State = {}
    described: dict[str, Any] = {}
    for file in files:
        state, described = read_weights(file, key=key)
        raw.update(state)
    source = f"{key}={weights}"
    raw = unwrap(raw, ANCHORS, source=source)
    config = {} if "model" in described else _read_config(files[0].parent / HUB_CONFIG)
    kind = recognise(set(raw), config)
    if not kind.title.startswith("Hugging Face"):
        config = {}  # it belongs to something else in the folder
    if kind.family is None:
        return Checkpoint(source, path, kind, raw)
    checkpoint = Checkpoint(source, path, kind, kind.to_own(raw))
    if config:
        return _with_config(checkpoint, config, files[0].parent / HUB_CONFIG)
    checkpoint = replace(checkpoint, settings=shape_of(checkpoint.state))
    return (
        _with_args(checkpoint, described["args"]) if "args" in described else _with_own(checkpoint, described)
    )


def _with_own(checkpoint: Checkpoint, described: Mapping[str, Any]) -> Checkpoint:
    """Adds what the description in a file of our own says.

    Raises CheckpointError: it says something that cannot be.
    """
    source, settings = checkpoint.source, dict(checkpoint.settings)
    names, eps, blocks = (described.get(key) for key in ("class_names", "norm_eps", "blocks"))
    if not (names is None or (isinstance(names, list) and all(isinstance(name, str) for name in names))):
        raise CheckpointError(f"{source}: its class_names are {names!r:.80}, not a list of texts")
    if not (
        eps is None or (isinstance(eps, list) and len(eps) == 2 and all(_is_eps(value) for value in eps))
    ):
        raise CheckpointError(f"{source}: its norm_eps is {eps!r:.80}, not a pair of small positive numbers")
    if blocks is not None:
        removed = sum(kind == REMOVED for kind in blocks) if isinstance(blocks, list) else 0
        settings["depth"] = settings.get("depth", 0) + removed
        blocks = check_blocks(blocks, settings["depth"], source=source)
    read = ReadConfig.from_metadata(described["read"], source=source) if "read" in described else None
    return replace(
        checkpoint,
        settings={**settings, **_clip(read)},
        blocks=blocks,
        norm_eps=(eps[0], eps[1]) if eps else None,
        model=described.get("model"),
        names=tuple(names) if names else None,
        read=read,
    )


def _with_args(checkpoint: Checkpoint, args: Mapping[str, Any]) -> Checkpoint:
    """Adds what VideoMAE's training script stores of its command line: the clip that the weights were trained on."""
    names = {
        "num_frames": "num_frames",
        "input_size": "input_size",
        "sampling_rate": "frame_stride",
        "short_side_size": "short_side",
    }
    stored = {ours: args[theirs] for theirs, ours in names.items() if args.get(theirs) is not None}
    dataset = str(args.get("data_set"))
    if dataset == "SSV2":
        stored["sampling"] = "videomae_uniform"
    elif dataset.startswith("Kinetics") or dataset in ("UCF101", "HMDB51"):
        stored["sampling"] = "videomae_dense"
    read = ReadConfig.from_metadata(stored, source=f"{checkpoint.source}, args")
    return replace(checkpoint, settings={**checkpoint.settings, **_clip(read)}, read=read)


def _clip(read: ReadConfig | None) -> dict[str, Any]:
    """The part of a reading recipe that decides about the token grid."""
    stored = {} if read is None else read.to_metadata()
    return {key: stored[key] for key in CLIP if key in stored}


def _is_eps(value: Any) -> bool:
    return isinstance(value, float) and 0 < value < 1


def _with_config(checkpoint: Checkpoint, config: dict[str, Any], path: Path) -> Checkpoint:
    """Adds what config.json says of the model."""
    family = str(checkpoint.format.family)
    try:
        settings, names = architecture(config), class_names(config)
        eps = float(config.get("layer_norm_eps", 1e-12 if family == "videomae" else 1e-6))
        if not _is_eps(eps):
            raise ValueError(f"layer_norm_eps={eps}")
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise CheckpointError(f"{path} does not describe a model: {type(error).__name__}: {error}") from None
    if checkpoint.format in HOSTED.values():
        layers = sum(value for key, value in config.items() if key.endswith("_layers") and type(value) is int)
        if layers > len(checkpoint.state):  # before so many are built
            raise CheckpointError(f"{path} says {layers} layers: it belongs to other weights")
        return replace(checkpoint, settings=settings, complete=True, names=names, config=config)
    activation = config.get("hidden_act", ACTIVATION[family])
    if activation != ACTIVATION[family]:
        settings["activation"] = activation
    if str(activation) not in ACTIVATIONS:
        raise CheckpointError(
            f"{path} says hidden_act={activation!r:.40}; {', '.join(ACTIVATIONS)} can be loaded"
        )
    if family == "videomae" and config.get("use_mean_pooling", True) is not True:
        raise CheckpointError(
            f"{path} says use_mean_pooling=false, an answer from the first tubelet; load it with transformers and "
            "prune it with video_papr.prune"
        )
    stored = shape_of(checkpoint.state)
    contradicted = [
        f"{key}={settings[key]} (the tensors have {value})"
        for key, value in stored.items()
        if settings[key] != value
    ]
    if contradicted:
        raise CheckpointError(f"{path} says {', '.join(contradicted)}: it belongs to other weights")
    # transformers' VideoMAE leaves the norm of the mean at torch's default whatever the file says.
    last = 1e-5 if family == "videomae" else eps
    return replace(checkpoint, settings=settings, complete=True, norm_eps=(eps, last), names=names)


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return parse_object(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from None
