"""The formats in which video transformers are published, and one pure function each from their key names to ours.

    Hugging Face VideoMAE    videomae.encoder.layer.0.attention.attention.query.weight, ...q_bias, no bias for keys
    Hugging Face ViViT       vivit.encoder.layer.0.attention.attention.query.weight, ...query.bias, a class token
    Hugging Face V-JEPA 2    vjepa2.encoder.layer.0.attention.query.weight, pooler.query_tokens
    Hugging Face TimeSformer timesformer.encoder.layer.0.temporal_attention.attention.qkv.weight
    Hugging Face VideoPrism  vision_model.spatial_embeddings.patch_embeddings.projection.weight
    VideoMAE, VideoMAE V2    blocks.0.attn.qkv.weight, blocks.0.attn.q_bias
    mmaction2 VideoMAE       blocks.0.mlp.layers.0.0.weight, cls_head.fc_cls.weight
    ours                     blocks.0.attn.qkv.weight, blocks.0.attn.qkv.bias

Wrappers' prefixes are gone by then, see `wrappers`. Names that a mapping does not know stay as they are, so that
loading reports them as unexpected.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .wrappers import State, renamed
from .x3d_formats import X3D_FORMATS

# Old and new names of transformers (up to 4, from 5 on) in the order in which they are tried.
HF_NAMES = (
    (r"^(videomae|vivit)\.", ""),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.position_embeddings$", "positions"),
    (r"^(encoder\.layer|layers)\.", "blocks."),
    (r"\.attention\.attention\.([qv])_bias$", r".attn.\1.bias"),
    (r"\.attention\.(?:attention\.)?([qkv])(?:uery|ey|alue|_proj)\.", r".attn.\1."),
    (r"\.attention\.(output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"^layernorm\.", "norm."),
    (r"^classifier\.", "head."),
)
VJEPA2_NAMES = (
    (r"^encoder\.embeddings\.patch_embeddings\.", "patch_embed."),
    (r"^encoder\.layernorm\.", "norm."),
    (r"^encoder\.layer\.", "blocks."),
    (r"^pooler\.query_tokens$", "pooler.query"),
    (r"^pooler\.self_attention_layers\.", "pooler.blocks."),
    (r"^pooler\.cross_attention_layer\.(cross_attn\.)?", "pooler."),
    (r"\.(?:attention|self_attn)\.([qkv])(?:uery|ey|alue|_proj)\.", r".attn.\1."),
    (r"^pooler\.([qkv])_proj\.", r"pooler.\1."),
    (r"\.(?:attention|self_attn)\.(?:out_)?proj\.", ".attn.proj."),
    (r"\.layer_norm([12])\.", r".norm\1."),
    (r"^classifier\.", "head."),
)
MMACTION_NAMES = (
    (r"^patch_embed\.projection\.", "patch_embed.proj."),
    (r"\.mlp\.layers\.0\.0\.", ".mlp.fc1."),
    (r"\.mlp\.layers\.1\.", ".mlp.fc2."),
    (r"^cls_head\.fc_cls\.", "head."),
)
TIMESFORMER_NAMES = ((r"^(?!classifier\.)", "body.timesformer."), (r"^classifier\.", "head."))
VIDEOPRISM_NAMES = ((r"^(?!classifier\.)", "body."), (r"^classifier\.", "head."))
MAX_TOKENS = 1 << 18  # of a clip; a longer sequence than any model was trained on
# The first layer of each video transformer's format, behind whatever a wrapper puts before it.
ANCHORS = (
    "encoder.embeddings.patch_embeddings.proj.weight",
    "embeddings.patch_embeddings.projection.weight",
    "vision_model.spatial_embeddings.patch_embeddings.projection.weight",
    "patch_embed.proj.weight",
    "patch_embed.projection.weight",
)


def from_huggingface(state: Mapping[str, Tensor]) -> State:
    """transformers' VideoMAE and ViViT for video classification -> ours. VideoMAE's keys have no bias; ours is 0."""
    return _flat_kernel(_merge_qkv(renamed(state, HF_NAMES)))


def from_huggingface_vjepa2(state: Mapping[str, Tensor]) -> State:
    """transformers' `VJEPA2ForVideoClassification` -> `VJEPA2`, without the predictor, which no answer needs."""
    rest = {key: value for key, value in state.items() if not key.startswith("predictor.")}
    return _flat_kernel(_merge_qkv(renamed(rest, VJEPA2_NAMES)))


def from_original(state: Mapping[str, Tensor]) -> State:
    """The VideoMAE and VideoMAE V2 releases -> `VideoMAE`: `q_bias` and `v_bias` make one bias with 0 for the keys."""
    mapped = dict(state)
    for key in [key for key in mapped if key.endswith(".attn.q_bias")]:
        block = key.removesuffix("q_bias")
        if f"{block}v_bias" in mapped:
            query, value = mapped.pop(key), mapped.pop(f"{block}v_bias")
            mapped[f"{block}qkv.bias"] = torch.cat([query, torch.zeros_like(query), value])
    return _flat_kernel(mapped)


def from_mmaction(state: Mapping[str, Tensor]) -> State:
    """mmaction2's VideoMAE -> `VideoMAE`. Its position table is left out, where it is the one that ours computes."""
    mapped = renamed(state, MMACTION_NAMES)
    table = mapped.get("pos_embed")
    if table is not None and table.ndim == 3 and _is_sine_table(table[0]):
        del mapped["pos_embed"]
    return from_original(mapped)


def _is_sine_table(table: Tensor) -> bool:
    """Whether (N, D) is the sine-cosine code of the token number, so that it need not be kept."""
    token = torch.arange(len(table), dtype=torch.float64)[:, None]
    frequency = 10000 ** (-torch.arange(0, table.shape[1], 2, dtype=torch.float64) / table.shape[1])
    codes = torch.stack([(token * frequency).sin(), (token * frequency).cos()], -1).flatten(1)
    return codes.shape == table.shape and bool(torch.allclose(table.double(), codes, atol=2e-3))


@dataclass(frozen=True)
class Format:
    """What a file holds."""

    title: str  # in words, for messages
    family: str | None = None  # of the backbone, see `builders.FAMILIES`; None: nothing that one can load
    to_own: Callable[[Mapping[str, Tensor]], State] = dict  # the mapping of its keys; ours stay


HF_VIDEOMAE = Format("Hugging Face VideoMAE weights", "videomae", from_huggingface)
HF_VIVIT = Format("Hugging Face ViViT weights", "vivit", from_huggingface)
HF_VJEPA2 = Format("Hugging Face V-JEPA 2 weights", "vjepa2", from_huggingface_vjepa2)
# As transformers has them: the classifier is the backbone's head, the rest its body. By the end of a name.
HOSTED = {
    "embeddings.time_embeddings": Format(
        "Hugging Face TimeSformer weights", "timesformer", partial(renamed, names=TIMESFORMER_NAMES)
    ),
    "temporal_embeddings.position_embeddings": Format(
        "Hugging Face VideoPrism weights", "videoprism", partial(renamed, names=VIDEOPRISM_NAMES)
    ),
}
ORIGINAL = Format("original VideoMAE weights", "videomae", from_original)
MMACTION = Format("mmaction2 VideoMAE weights", "videomae", from_mmaction)
OWN_VIDEOMAE = Format("VideoMAE weights of video_papr", "videomae")
OWN_VIVIT = Format("ViViT weights of video_papr", "vivit")
OWN_VJEPA2 = Format("V-JEPA 2 weights of video_papr", "vjepa2")


def recognise(keys: set[str], config: Mapping[str, Any]) -> Format:
    """The format of a state dict, by its key names and the config.json beside it ({} where there is none)."""
    kind = config.get("model_type")
    for mark, hosted in HOSTED.items():
        if any(key.endswith(mark) for key in keys):
            return hosted
    if kind not in (None, "videomae", "vivit") and any("layernorm_before" in key for key in keys):
        return Format(f"Hugging Face {kind} weights")
    if any(key.startswith("decoder.") for key in keys):
        return Format("VideoMAE pre-training weights, which have a decoder and no classifier")
    if any(".layernorm_before." in key for key in keys):
        return HF_VIVIT if any(key.endswith("cls_token") for key in keys) else HF_VIDEOMAE
    if "encoder.embeddings.patch_embeddings.proj.weight" in keys:
        return HF_VJEPA2
    if "patch_embed.projection.weight" in keys:
        return MMACTION
    if "blocks.0.attn.q_bias" in keys:
        return ORIGINAL
    if "pooler.query" in keys:
        return OWN_VJEPA2
    if "blocks.0.attn.qkv.bias" in keys:
        return OWN_VIVIT if "cls_token" in keys else OWN_VIDEOMAE
    if any(anchor in keys for anchor in X3D_FORMATS):
        return Format("X3D weights")
    first = sorted(keys)[:3]
    return Format(f"weights that are not recognised ({', '.join(first)}, ...)")


def architecture(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a config.json of transformers gives, under the names of `builders.BACKBONES`.

    Raises KeyError, TypeError, ValueError, OverflowError: a key is missing, has no number, or one that cannot be.
    """
    rotary = config.get("model_type") == "vjepa2"
    size = config["crop_size" if rotary else "image_size"]
    tubelet = 1 if config.get("model_type") == "timesformer" else config["tubelet_size"]
    if isinstance(tubelet, int):
        tubelet = (tubelet, *_pair(config["patch_size"]))
    height, width = _pair(size)
    if height != width:
        raise ValueError(f"frames of {height} x {width} pixels, where square ones are read")
    frames, rows, columns = (_count(side) for side in tubelet)
    dim = _count(config["hidden_size"])
    inner = _count(int(dim * config["mlp_ratio"]) if rotary else config.get("intermediate_size", 4 * dim))
    num_frames = _count(config["frames_per_clip" if rotary else "num_frames"])
    if num_frames * height * width > MAX_TOKENS * frames * rows * columns:
        raise ValueError(f"a clip of {num_frames} x {height} x {width} has more than {MAX_TOKENS} tokens")
    return {
        "num_frames": num_frames,
        "input_size": height,
        "tubelet": (frames, rows, columns),
        "dim": dim,
        "depth": _count(
            config["num_spatial_layers" if "num_spatial_layers" in config else "num_hidden_layers"]
        ),
        "num_heads": _count(config["num_attention_heads"]),
        **({} if inner == 4 * dim else {"mlp_dim": inner}),
        **({"pooler_depth": _count(config["num_pooler_layers"])} if rotary else {}),
    }


def shape_of(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The settings that the tensors of a mapped state dict give away."""
    blocks = {key.split(".")[1] for key in state if re.match(r"blocks\.\d+\.", key)}
    found: dict[str, Any] = {"depth": len(blocks)} if blocks else {}
    bias = state.get("patch_embed.proj.bias")
    return {**found, "dim": len(bias)} if bias is not None and bias.ndim == 1 else found


def class_names(config: Mapping[str, Any]) -> tuple[str, ...] | None:
    """`id2label` in order; None where it is absent or only numbers the classes (LABEL_0, LABEL_1, ...).

    Raises KeyError, TypeError, ValueError, AttributeError: it is no mapping of 0 .. N-1.
    """
    labels = config.get("id2label")
    if not labels:
        return None
    by_number = {int(number): name for number, name in labels.items()}
    names = tuple(by_number[number] for number in range(len(by_number)))
    if not all(isinstance(name, str) for name in names):
        raise TypeError("id2label has names that are not texts")
    return None if all(name == f"LABEL_{number}" for number, name in enumerate(names)) else names


def _pair(value: Any) -> tuple[int, int]:
    first, second = (value, value) if isinstance(value, int) else value
    return _count(first), _count(second)


def _count(value: Any) -> int:
    if type(value) is not int or not 0 < value < 1 << 20:
        raise ValueError(f"{value!r:.40} where a positive number is expected")
    return value


def _merge_qkv(state: State) -> State:
    """One matrix and one bias where queries, keys and values have their own; a bias that is absent is 0."""
    for key in [key for key in state if key.endswith(".attn.q.weight")]:
        block = key.removesuffix("q.weight")
        weights = [state.get(f"{block}{part}.weight") for part in "qkv"]
        if any(weight is None for weight in weights):
            continue  # reported as missing by whoever loads
        biases = [state.pop(f"{block}{part}.bias", None) for part in "qkv"]
        parts = [state.pop(f"{block}{part}.weight") for part in "qkv"]
        pairs = zip(biases, parts, strict=True)
        state[f"{block}qkv.weight"] = torch.cat(parts)
        state[f"{block}qkv.bias"] = torch.cat([w.new_zeros(len(w)) if b is None else b for b, w in pairs])
    return state


def _flat_kernel(state: State) -> State:
    """The kernel of the strided Conv3d (D, C, p, q, r) as the matrix of `TubeletEmbed` (D, C p q r)."""
    kernel = state.get("patch_embed.proj.weight")
    if kernel is not None and kernel.ndim == 5:
        state["patch_embed.proj.weight"] = kernel.flatten(1)
    return state
