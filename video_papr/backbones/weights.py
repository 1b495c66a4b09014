"""Weights for a backbone: found, read, compared with what was asked for, and changed where that is wanted.

`weights` is, tried in this order,
    a path         a file of any format in `formats`, or a folder in Hugging Face's layout (config.json and weights)
    NAME           a bundled model
    org/name       a model of the Hugging Face Hub, downloaded once
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoints.files import BUNDLED, find_weights, load_exactly, read_weights, weight_files
from ..checkpoints.formats import OWN_VIDEOMAE, Format, State, architecture, class_names, recognise, shape_of
from ..checkpoints.hub import HUB_CONFIG, hub_folder, is_hub_id, url_file
from ..core.errors import CheckpointError, CheckpointWarning, ConfigError
from ..core.types import TokenGrid
from .depth_pruned import REMOVED, check_blocks
from .layers import interpolate_positions

# VideoMAE V2's published lists: the rows of a Kinetics-710 head that are the classes of Kinetics-400, and the names of
# these, one on each line. Their order is V2's own, not the alphabetical one of other releases.
K710_MAP = "https://raw.githubusercontent.com/OpenGVLab/VideoMAEv2/master/misc/label_710to400.json"
K400_NAMES = "https://raw.githubusercontent.com/OpenGVLab/VideoMAEv2/master/misc/label_map_k400.txt"
# The published folders of VideoMAE-S name 16 heads, a slip of the script that converted them: the model was trained
# with 6 (`vit_small_patch16_224` of the original release). Heads leave no trace in the weights' shapes.
WRONG_HEADS = {"videomae-small-finetuned-kinetics": 16, "videomae-small-finetuned-ssv2": 16}
# What a model of transformers has beside the keys of `architecture`, and what it must be for our classes.
FIXED: dict[str, dict[str, Any]] = {
    "videomae": {"hidden_act": "gelu", "use_mean_pooling": True},
    "vivit": {"hidden_act": "gelu_fast"},
}


@dataclass(frozen=True)
class Checkpoint:
    """Weights under our own names, and what is known of them.

    Attributes:
        source: the option and its value, for messages.
        path: the file or folder.
        format: what it was, see `formats`.
        settings: the part of the architecture that it gives away, under the names of `builders.BACKBONES`.
        norm_eps: epsilon of (the blocks' norms, the last norm), where the reference implementation's differs from ours.
        model: name of the backbone, where the file says it.
        blocks: of a backbone whose depth was pruned, what became of each of its blocks; see `shortened`.
        names: of the classes.
    """

    source: str
    path: Path
    format: Format
    state: State
    settings: dict[str, Any] = field(default_factory=dict)
    norm_eps: tuple[float, float] | None = None
    model: str | None = None
    blocks: tuple[str, ...] | None = None
    names: tuple[str, ...] | None = None

    @property
    def num_classes(self) -> int | None:
        """Rows of the classifier; None where there is none."""
        weight = self.state.get("head.weight")
        return None if weight is None else len(weight)


def find_backbone(weights: str | Path, *, key: str) -> Path:
    """The file or folder that `weights` names, see the top of this module; downloads it if it must.

    Raises:
        CheckpointError: there is no such thing.
    """
    path = Path(weights).expanduser()
    if path.is_dir():
        return path
    if path.is_file() or (BUNDLED / f"{weights}.safetensors").is_file() or not is_hub_id(str(weights)):
        return find_weights(weights, key=key, others=", nor a model of the Hugging Face Hub (org/name)")
    return hub_folder(str(weights), key=key)


def read_checkpoint(weights: str | Path, *, key: str) -> Checkpoint:
    """Reads the weights of a backbone in any of the known formats.

    Raises:
        CheckpointError: they are missing, damaged, in no known format, or would need code to be run.
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
    config = {} if described else _read_config(files[0].parent / HUB_CONFIG)
    kind = recognise(set(raw), config)
    if not kind.title.startswith("Hugging Face"):
        config = {}  # it belongs to something else in the folder
    source = f"{key}={weights}"
    if kind.family is None:
        return Checkpoint(source, path, kind, raw)
    state = kind.to_own(raw)
    if config:
        return _with_config(Checkpoint(source, path, kind, state), config, files[0].parent / HUB_CONFIG)
    names, eps = described.get("class_names"), described.get("norm_eps")
    settings, blocks = shape_of(state), described.get("blocks")
    if blocks is not None:
        removed = sum(kind == REMOVED for kind in blocks) if isinstance(blocks, list) else 0
        settings["depth"] = settings.get("depth", 0) + removed
        blocks = check_blocks(blocks, settings["depth"], source=source)
    return Checkpoint(
        source,
        path,
        kind,
        state,
        settings=settings,
        blocks=blocks,
        norm_eps=(eps[0], eps[1]) if eps else None,
        model=described.get("model"),
        names=tuple(names) if names else None,
    )


def check_model(
    checkpoint: Checkpoint, name: str, family: str, settings: Mapping[str, Any], asked: set[str]
) -> None:
    """Compares what the weights are with the backbone that was asked for.

    Args:
        name, family, settings: of the backbone, as it is to be built.
        asked: the settings that the user chose; the clip may then differ from the one that the weights were trained on.

    Raises:
        CheckpointError: they are of another model; the line says what they are and what was expected.
    """
    if checkpoint.model not in (None, name):
        raise CheckpointError(
            f"{checkpoint.source} holds {checkpoint.model}, but backbone={name} was asked for"
        )
    if checkpoint.format.family != family:
        raise CheckpointError(
            f"{checkpoint.source} holds {checkpoint.format.title}, but backbone={name} was asked for"
        )
    faults = []
    for key, theirs in checkpoint.settings.items():
        if theirs == settings[key] or key in asked:
            continue
        if key == "num_heads" and WRONG_HEADS.get(Path(checkpoint.source).name) == theirs:
            _warn(
                f"{checkpoint.source}: its config.json names {theirs} heads; trained with, and used: {settings[key]}"
            )
            continue
        faults.append(f"{key} is {theirs}, {name} has {settings[key]}")
    if faults:
        clip = {"num_frames", "input_size"} & {fault.split()[0] for fault in faults}
        hint = f"; give {' and '.join(f'backbone.{key}=' for key in sorted(clip))} to choose" if clip else ""
        raise CheckpointError(f"{checkpoint.source} is not a {name}: {'; '.join(faults)}{hint}")


def choose_head(checkpoint: Checkpoint, num_classes: int | None, *, fresh: bool) -> tuple[int, Checkpoint]:
    """The number of classes to build for, and the weights without the classifier where a fresh one is wanted.

    Args:
        num_classes: that was asked for; None is what the weights have.
        fresh: leave their classifier out.

    Raises:
        ConfigError: a fresh classifier of unknown size.
        CheckpointError: the weights have another number of classes, or none.
    """
    stored = checkpoint.num_classes
    if fresh:
        if num_classes is None:
            raise ConfigError("backbone.replace_head=true needs backbone.num_classes=")
        _warn(
            f"{checkpoint.source}: the classifier is new and untrained ({num_classes} classes instead of {stored})"
        )
        rest = {key: value for key, value in checkpoint.state.items() if not key.startswith("head.")}
        return num_classes, replace(checkpoint, state=rest, names=None)
    if stored is None:
        raise CheckpointError(
            f"{checkpoint.source} has no classifier (head.weight, head.bias are missing); backbone.num_classes= with "
            "backbone.replace_head=true gives it a new one, to be trained"
        )
    if checkpoint.names is not None and len(checkpoint.names) != stored:
        raise CheckpointError(
            f"{checkpoint.source} names {len(checkpoint.names)} classes and has {stored} logits"
        )
    if num_classes in (None, stored):
        if stored == 710:
            _warn(
                f"{checkpoint.source} answers with the 710 classes of Kinetics-710; backbone.num_classes=400 takes "
                "those of Kinetics-400"
            )
        return stored, checkpoint
    if (stored, num_classes) == (710, 400):
        rows = k710_rows(checkpoint)
        heads: State = {
            key: value[rows] for key, value in checkpoint.state.items() if key.startswith("head.")
        }
        _warn(f"{checkpoint.source}: of its 710 classes the 400 of Kinetics-400 are used")
        return 400, replace(checkpoint, state={**checkpoint.state, **heads}, names=k400_names(checkpoint))
    raise CheckpointError(
        f"{checkpoint.source} was trained for {stored} classes, but {num_classes} were asked for; leave "
        "backbone.num_classes out, or give backbone.replace_head=true for a new classifier, to be trained"
    )


def k710_rows(checkpoint: Checkpoint) -> Tensor:
    """The 400 rows of a Kinetics-710 classifier that are Kinetics-400, from VideoMAE V2's published list.

    Raises:
        CheckpointError: it cannot be had, or is not such a list.
    """
    path = _beside(checkpoint, K710_MAP, "the list of Kinetics-400 in Kinetics-710")
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        right = len(rows) == len(set(rows)) == 400 and all(type(r) is int and 0 <= r < 710 for r in rows)
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from None
    if not right:
        raise CheckpointError(f"{path} must list 400 different rows of 0 to 709")
    return torch.tensor(rows)


def k400_names(checkpoint: Checkpoint) -> tuple[str, ...]:
    """The names of these 400 classes, in the order of `k710_rows`.

    Raises:
        CheckpointError: they cannot be had, or are not 400 different names.
    """
    path = _beside(checkpoint, K400_NAMES, "the names of its classes")
    try:
        names = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from None
    if len(names) != 400 or len(set(names)) != 400:
        raise CheckpointError(
            f"{path} must name 400 different classes, one on each line, got {len(set(names))}"
        )
    return names


def _beside(checkpoint: Checkpoint, url: str, what: str) -> Path:
    """A published file that lies beside the weights, or else is fetched."""
    folder = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
    path = folder / url.rsplit("/", 1)[-1]
    return path if path.is_file() else url_file(url, key="backbone.num_classes", value=f"400: {what}")


def fit_positions(checkpoint: Checkpoint, grid: TokenGrid, trained: TokenGrid) -> Checkpoint:
    """Makes the positions fit `grid` where the weights were trained on another one, `trained`, and says so.

    Learned positions are interpolated; VideoMAE's are computed for every grid by the model itself.
    """
    positions = checkpoint.state.get("positions")
    if checkpoint.format is OWN_VIDEOMAE:  # our files do not say which clip they were trained on
        return checkpoint
    if grid == trained or (positions is not None and positions.shape[1] != 1 + trained.num_tokens):
        return checkpoint
    how = "computed for" if positions is None else "interpolated to"
    shapes = ["x".join(map(str, shape)) for shape in (grid.shape, trained.shape)]
    _warn(
        f"{checkpoint.source}: positions are {how} {shapes[0]} tokens; the weights were trained on {shapes[1]}"
    )
    if positions is None:
        return checkpoint
    fitted = interpolate_positions(positions, trained, grid)
    return replace(checkpoint, state={**checkpoint.state, "positions": fitted})


def load(backbone: nn.Module, checkpoint: Checkpoint) -> None:
    """Loads the weights; a backbone keeps its own classifier where they have none.

    Raises:
        CheckpointError: keys are missing, left over, or of another shape.
    """
    state = dict(checkpoint.state)
    if "head.weight" not in state:
        state.update({key: value for key, value in backbone.state_dict().items() if key.startswith("head.")})
    load_exactly(backbone, state, source=checkpoint.source)
    if checkpoint.norm_eps is not None:
        for name, module in backbone.named_modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = checkpoint.norm_eps[0 if name.startswith("blocks.") else 1]


def _with_config(checkpoint: Checkpoint, config: dict[str, Any], path: Path) -> Checkpoint:
    """Adds what config.json says of the model."""
    family = str(checkpoint.format.family)
    try:
        settings, names = architecture(config), class_names(config)
        eps = float(config.get("layer_norm_eps", 1e-12 if family == "videomae" else 1e-6))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path} does not describe a model: {type(error).__name__}: {error}") from None
    for key, expected in FIXED[family].items():
        if config.get(key, expected) != expected:
            raise CheckpointError(
                f"{path} says {key}={config[key]}; only {key}={expected} can be loaded as {checkpoint.format.title}"
            )
    # transformers' VideoMAE leaves the last norm at torch's default whatever the file says.
    last = 1e-5 if family == "videomae" else eps
    return replace(checkpoint, settings=settings, norm_eps=(eps, last), names=names)


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} is no JSON object")
    return config


def _warn(text: str) -> None:
    warnings.warn(text, CheckpointWarning, stacklevel=4)
