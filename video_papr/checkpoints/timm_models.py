"""Networks of timm by name, with the weights that timm names, from a file, or random.

timm's own downloader is not used: weights come the way of all others here, without running code of a file, and a
machine without a network gets one line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import CheckpointError, ConfigError, did_you_mean
from .files import load_exactly, read_weights, weight_files
from .hub import hub_folder, is_hub_id, url_file
from .wrappers import unwrap

PRETRAINED = "pretrained"

Convert = Callable[[dict[str, Tensor], Any], Mapping[str, Tensor]]


def build_timm(
    model: str,
    *,
    group: str,
    weights: str | Path | None = None,
    num_classes: int | None = None,
    fresh_head: bool = False,
    convert: Convert | None = None,
    seed: int = 0,
    **options: Any,
) -> nn.Module:
    """Builds a network in eval mode, without gradients.

    Args:
        model: a name of timm, with or without the tag of its weights: "deit_small_patch16_224.fb_in1k".
        group: of the configuration that asks ("backbone" or "pruner"), for errors.
        weights: "pretrained": those that timm names, downloaded once; a file, a folder with model.safetensors, or
            org/name of the Hugging Face Hub; None: random.
        num_classes: of the classifier; 0: none; None: what the weights have, otherwise the architecture's own.
        fresh_head: a new, untrained classifier of `num_classes` although there are weights.
        convert: (state dict, network) -> the state dict to load.

    Raises:
        ConfigError: timm has no such model or tag, or the model no such option.
        CheckpointError: the weights are missing, damaged or of another network.
    """
    key = f"{group}.weights"
    # Weights say how many classes there are; without any, the network need not be built twice.
    asked = {} if weights is not None or num_classes is None else {"num_classes": num_classes}
    network = _create(model, group, seed, {**options, **asked})
    state = None
    if weights is not None:
        source = f"{key}={weights} ({model})" if weights == PRETRAINED else f"{key}={weights}"
        state, _ = read_weights(_find(network, weights, key), key=key)
        names = list(network.state_dict())
        state = unwrap(state, names[:1], source=source, names=names)
        heads = [f"{name}." for name in classifier_names(network)]
        stored = next((len(state[f"{head}weight"]) for head in heads if f"{head}weight" in state), 0)
        if num_classes is None:
            num_classes = stored
        if num_classes != stored and not fresh_head and num_classes:
            raise CheckpointError(
                f"{source} has {stored} classes and {group}.num_classes={num_classes}; "
                f"{group}.replace_head=true puts a new, untrained classifier there"
            )
        if num_classes != stored or fresh_head:
            state = {name: value for name, value in state.items() if not name.startswith(tuple(heads))}
    if state is not None and network.num_classes != num_classes:
        network = _create(model, group, seed, {**options, "num_classes": num_classes})
    if state is not None:
        state = dict(state if convert is None else convert(state, network))
        if fresh_head:
            own = network.state_dict()
            state |= {name: value for name, value in own.items() if name.startswith(tuple(heads))}
        load_exactly(network, state, source=source)
    return network.eval().requires_grad_(False)


def _find(network: nn.Module, weights: str | Path, key: str) -> Path:
    if weights == PRETRAINED:
        return published_file(network, key=key)
    path = Path(weights).expanduser()
    if not path.exists() and is_hub_id(str(weights)):
        path = hub_folder(str(weights), key=key)
    files = weight_files(path) if path.is_dir() else [path]
    if len(files) != 1:
        raise CheckpointError(
            f"{key}={weights}: this folder holds no single model.safetensors or pytorch_model.bin"
        )
    return files[0]


def published_file(network: nn.Module, *, key: str) -> Path:
    """The file of the weights that timm names for this network, downloaded if it is not in the cache.

    Raises CheckpointError: timm names none, or they cannot be downloaded.
    """
    cfg = pretrained_cfg(network)
    hub_id, url = cfg.get("hf_hub_id"), cfg.get("url")
    if hub_id and not cfg.get("hf_hub_filename"):
        files = weight_files(hub_folder(hub_id, key=key))
        if len(files) == 1:
            return files[0]
    elif url and not cfg.get("custom_load"):
        return url_file(url, key=key, value=PRETRAINED)
    raise CheckpointError(
        f"{key}={PRETRAINED}: timm names no file of weights for {cfg.get('architecture')} that can be read here; give "
        f"a name with another tag, {key}=FILE, or {key}=null for random weights"
    )


def pretrained_cfg(network: nn.Module) -> dict[str, Any]:
    """What timm knows about the weights of a network: mean, std, crop, interpolation, where they are."""
    return dict(getattr(network, "pretrained_cfg", None) or {})


def classifier_names(network: nn.Module) -> tuple[str, ...]:
    """The modules that turn features into logits."""
    named = pretrained_cfg(network).get("classifier") or ()
    return (named,) if isinstance(named, str) else tuple(named)


def imagenet_names(network: nn.Module, num_classes: int) -> tuple[str, ...] | None:
    """The names of ImageNet's folders (n01440764, ...) where the weights that timm names know so many; else None."""
    from timm.data import ImageNetInfo, infer_imagenet_subset

    cfg = pretrained_cfg(network)
    subset = infer_imagenet_subset(cfg)
    if subset is None or cfg.get("num_classes") != num_classes:
        return None
    return tuple(ImageNetInfo(subset).label_names())


def _create(model: str, group: str, seed: int, options: Mapping[str, Any]) -> nn.Module:
    import timm  # takes seconds, so only where it is needed

    if not timm.is_model(model):
        hint = did_you_mean(model.split(".")[0], timm.list_models())
        raise ConfigError(f"{group}.model={model}: timm {timm.__version__} has no such model.{hint}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            network: nn.Module = timm.create_model(model, pretrained=False, **options)
        except (RuntimeError, TypeError, ValueError, AssertionError) as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            asked = "".join(f", {name}={value}" for name, value in options.items())
            raise ConfigError(f"{group}.model={model}{asked}: timm cannot build it ({reason})") from None
    return network
