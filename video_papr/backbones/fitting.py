"""What is built for a checkpoint: its size, clip, classifier and positions, compared with what was asked for."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoints.files import check_fit, load_exactly
from ..checkpoints.formats import OWN_VIDEOMAE
from ..checkpoints.hub import url_file
from ..checkpoints.wrappers import State
from ..core.errors import CheckpointError, CheckpointWarning, ConfigError
from ..core.types import TokenGrid
from .layers import interpolate_positions
from .weights import CLIP, Checkpoint

# VideoMAE V2's published lists: the rows of a Kinetics-710 head that are the classes of Kinetics-400, and the names of
# these, one on each line. Their order is V2's own, not the alphabetical one of other releases.
K710_MAP = "https://raw.githubusercontent.com/OpenGVLab/VideoMAEv2/master/misc/label_710to400.json"
K400_NAMES = "https://raw.githubusercontent.com/OpenGVLab/VideoMAEv2/master/misc/label_map_k400.txt"
MAX_TOKENS = 1 << 17  # of a clip that weights may ask for; V-JEPA 2's largest has 18,432
# The published folders of VideoMAE-S name 16 heads, a slip of the script that converted them: the model was trained
# with 6 (`vit_small_patch16_224` of the original release). Heads leave no trace in the weights' shapes.
WRONG_HEADS = {"videomae-small-finetuned-kinetics": 16, "videomae-small-finetuned-ssv2": 16}
# What a backbone's own names begin with.
TRUNK = ("blocks.", "patch_embed.", "body.", "fc_norm.", "norm.", "positions", "cls_token")


def settings_of(
    checkpoint: Checkpoint, name: str, named: Mapping[str, Mapping[str, Any]], asked: Mapping[str, Any]
) -> dict[str, Any]:
    """The settings of the backbone to build: those of the named one, and what the weights say of themselves.

    Args:
        named: the settings of every named backbone.

    Raises CheckpointError: the weights are those of another backbone, which is named as far as it is known.

    Warns:
        CheckpointWarning: they are of a size, or were trained on a clip, that is not the named one's.
    """
    source, family, own = checkpoint.source, name.split("_")[0], {**named[name], **asked}
    held = checkpoint.model if checkpoint.model not in (None, name) else None
    if held is None and checkpoint.format.family != family:
        held = checkpoint.format.title
    if held is not None:
        raise CheckpointError(f"{source} holds {held}, but backbone={name} was asked for")
    theirs = {key: value for key, value in checkpoint.settings.items() if key not in asked}
    heads = theirs.get("num_heads")
    if heads is not None and heads == WRONG_HEADS.get(Path(source).name) and heads != own["num_heads"]:
        _warn(f"{source}: its config.json names {heads} heads; trained with, and used: {own['num_heads']}")
        del theirs["num_heads"]
    differ = {key: value for key, value in theirs.items() if value != own.get(key)}
    sizes = {key: value for key, value in differ.items() if key not in CLIP}
    same = [other for other, values in named.items() if other.startswith(family) and _agree(values, theirs)]
    if sizes and (same or not checkpoint.complete):
        faults = "; ".join(f"{key} is {value}, {name} has {own.get(key)}" for key, value in sizes.items())
        hint = f"; use backbone={same[0]}" if same else ""
        raise CheckpointError(f"{source} is not a {name}: {faults}{hint}")
    if differ:
        said = ", ".join(
            f"{key} {value} ({own[key]})" if key in own else f"{key} {value}" for key, value in differ.items()
        )
        _warn(f"{source}: built as the weights say, with {said} in place of {name}'s own")
    settings = {**own, **differ}
    _check_size(source, settings)
    if settings["dim"] % settings["num_heads"]:
        raise CheckpointError(
            f"{source}: dim {settings['dim']} is no multiple of num_heads {settings['num_heads']}"
        )
    return settings


def _check_size(source: str, settings: Mapping[str, Any]) -> None:
    """Weights may say any clip: a network is not built for one that no memory holds."""
    frames, height, width = settings["tubelet"]
    tokens = (
        settings["num_frames"]
        // frames
        * (settings["input_size"] // height)
        * (settings["input_size"] // width)
    )
    if tokens > MAX_TOKENS:
        raise CheckpointError(
            f"{source} says clips of {settings['num_frames']} frames of {settings['input_size']} pixels, "
            f"{tokens} tokens; at most {MAX_TOKENS} are built"
        )


def _agree(named: Mapping[str, Any], stored: Mapping[str, Any]) -> bool:
    """Whether these are the settings of a named backbone, whatever the clip."""
    return all(named.get(key) == value for key, value in stored.items() if key not in CLIP)


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
    if stored is not None:
        shape = tuple(checkpoint.state["head.weight"].shape)
        if len(shape) != 2 or 0 in shape or shape[1] != checkpoint.settings.get("dim", shape[1]):
            raise CheckpointError(f"{checkpoint.source}: its classifier, head.weight, has the shape {shape}")
    if fresh:
        if num_classes is None:
            raise ConfigError("backbone.replace_head=true needs backbone.num_classes=")
        _warn(
            f"{checkpoint.source}: the classifier is new and untrained ({num_classes} classes instead of {stored})"
        )
        rest = {key: value for key, value in checkpoint.state.items() if not key.startswith("head.")}
        return num_classes, replace(checkpoint, state=rest, names=None)
    if stored is None:
        unknown = sorted({key.rsplit(".", 1)[0] for key in checkpoint.state if not key.startswith(TRUNK)})
        beside = f"; beside the backbone there are {', '.join(unknown[:4])}" if unknown else ""
        raise CheckpointError(
            f"{checkpoint.source} has no classifier (head.weight, head.bias are missing{beside}); "
            "backbone.num_classes= with backbone.replace_head=true gives it a new one, to be trained"
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

    Raises CheckpointError: it cannot be had, or is not such a list.
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

    Raises CheckpointError: they cannot be had, or are not 400 different names.
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
    if checkpoint.format is OWN_VIDEOMAE and not any(key in checkpoint.settings for key in CLIP):
        return checkpoint  # older files of ours do not say which clip they were trained on
    if grid == trained or (positions is not None and positions.shape[1] != 1 + trained.num_tokens):
        return checkpoint
    how = "computed for" if positions is None else "interpolated to"
    shapes = ["x".join(map(str, shape)) for shape in (grid.shape, trained.shape)]
    _warn(
        f"{checkpoint.source}: positions are {how} {shapes[0]} tokens; the weights were trained on {shapes[1]}"
    )
    if positions is None:
        return checkpoint
    fitted = interpolate_positions(positions.float(), trained, grid)
    return replace(checkpoint, state={**checkpoint.state, "positions": fitted})


def load(backbone: nn.Module, checkpoint: Checkpoint, *, only_check: bool = False) -> None:
    """Loads the weights; a backbone keeps its own classifier where they have none.

    Args:
        only_check: change nothing; the backbone may be on the meta device.

    Raises CheckpointError: keys are missing, left over, or of another shape.
    """
    state = dict(checkpoint.state)
    if "head.weight" not in state:
        state.update({key: value for key, value in backbone.state_dict().items() if key.startswith("head.")})
    if only_check:
        return check_fit(state, backbone.state_dict(), name=type(backbone).__name__, source=checkpoint.source)
    load_exactly(backbone, state, source=checkpoint.source)
    if checkpoint.norm_eps is not None:
        for name, module in backbone.named_modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = checkpoint.norm_eps[0 if name.startswith("blocks.") else 1]


def _warn(text: str) -> None:
    warnings.warn(text, CheckpointWarning, stacklevel=4)
