"""Published formats against the reference implementation: the same weights and pixels give the same logits."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from video_papr.backbones.builders import BACKBONES, Backbone, build_backbone
from video_papr.checkpoints.files import write_weights
from video_papr.core.errors import CheckpointError, CheckpointWarning, ConfigError
from video_papr.core.reading import ReadConfig

State = dict[str, Tensor]
SMALL = {
    "num_frames": 4,
    "input_size": 32,
    "tubelet": (2, 16, 16),
    "dim": 24,
    "depth": 2,
    "num_heads": 3,
    "num_classes": 5,
}
ODD = {
    **SMALL,
    "num_frames": 9,
    "input_size": 40,
    "tubelet": (3, 8, 8),
    "dim": 35,
    "depth": 3,
    "num_heads": 5,
}
CUT = {"num_frames": 4, "input_size": 32, "depth": 2, "num_classes": 7}  # the widths stay as published
NAMES = {"videomae": "videomae_s", "vivit": "vivit_b"}


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """VideoMAE-S and ViViT-B are tiny."""
    for name in NAMES.values():
        monkeypatch.setitem(BACKBONES, name, SMALL)


def quietly(*args: Any, **options: Any) -> Backbone:
    """Builds, and finds it an error if anything is said about the weights."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", CheckpointWarning)
        return build_backbone(*args, **options)


def refusal(*args: Any, **options: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        build_backbone(*args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def assert_same_logits(
    own: nn.Module, reference: Any, pixels: Tensor, hf: SimpleNamespace, exact: float = 1e-9
) -> None:
    """Within 1e-4 of the largest logit in float32, and `exact` in float64."""
    for dtype, within in ((torch.float32, 1e-4), (torch.float64, exact)):
        expected = hf.logits_of(reference.to(dtype), pixels.to(dtype))
        assert expected.std() > 0.1
        difference = (own.to(dtype)(pixels.to(dtype)) - expected).abs().max()
        assert difference <= within * expected.abs().max(), (dtype, difference)


# ---- parity with transformers ----


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("videomae_s", {**BACKBONES["videomae_s"], **CUT}),
        ("videomae_b", {**BACKBONES["videomae_b"], **CUT}),
        ("videomae_s", ODD),
        ("vivit_b", {**BACKBONES["vivit_b"], **CUT}),
        ("vivit_b", ODD),
    ],
    ids=["S", "B", "VideoMAE odd", "ViViT-B", "ViViT odd"],
)
def test_logits_equal_those_of_transformers(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    hf: SimpleNamespace,
    name: str,
    settings: dict[str, Any],
    attention: str,
) -> None:
    monkeypatch.setitem(BACKBONES, name, settings)
    family = name.split("_")[0]
    reference = hf.reference(family, settings, attn_implementation=attention)
    reference.save_pretrained(tmp_path)
    own = quietly(name, weights=tmp_path)
    # transformers' eager ViViT takes its softmax in float32, whatever the model's type
    exact = 1e-6 if (family, attention) == ("vivit", "eager") else 1e-9
    assert_same_logits(own, reference, hf.clip(settings), hf, exact)


@pytest.mark.parametrize("family", NAMES)
@pytest.mark.parametrize("layout", ["safetensors", "bin", "names inside transformers", "parts", "file"])
def test_every_layout_of_hugging_face(
    tmp_path: Path, hf: SimpleNamespace, small: None, family: str, layout: str
) -> None:
    """What `save_pretrained` writes has the names of older releases; inside, newer ones have others."""
    reference = hf.reference(family, SMALL)
    reference.save_pretrained(tmp_path, **({"max_shard_size": "20KB"} if layout == "parts" else {}))
    whole, weights = tmp_path / "model.safetensors", tmp_path
    if layout == "bin":
        torch.save(load_file(whole), tmp_path / "pytorch_model.bin")
        whole.unlink()
    elif layout == "names inside transformers":
        save_file({key: value.clone() for key, value in reference.state_dict().items()}, whole)
    elif layout == "parts":
        assert len(list(tmp_path.glob("*.safetensors"))) > 1
    elif layout == "file":
        weights = whole
    assert_same_logits(quietly(NAMES[family], weights=weights), reference, hf.clip(SMALL), hf)


def original_names(reference: Any) -> State:
    """The VideoMAE release's names and shapes for transformers' weights."""
    state = {}
    for key, value in reference.state_dict().items():
        key = key.replace("videomae.embeddings.patch_embeddings.projection", "patch_embed.proj")
        key = key.replace("videomae.encoder.layer", "blocks").replace("classifier", "head")
        for theirs, ours in {
            "attention.output.dense": "attn.proj",
            "intermediate.dense": "mlp.fc1",
            "output.dense": "mlp.fc2",
            "layernorm_before": "norm1",
            "layernorm_after": "norm2",
            "attention.attention.query.bias": "attn.q_bias",
            "attention.attention.value.bias": "attn.v_bias",
        }.items():
            key = key.replace(theirs, ours)
        state[key] = value
    for block in range(SMALL["depth"]):  # type: ignore[call-overload]
        parts = [
            state.pop(f"blocks.{block}.attention.attention.{part}.weight")
            for part in ("query", "key", "value")
        ]
        state[f"blocks.{block}.attn.qkv.weight"] = torch.cat(parts)
    return state


def mmaction_names(reference: Any) -> State:
    """mmaction2's names, with the position table that it stores."""
    state = {}
    for key, value in original_names(reference).items():
        for theirs, ours in {
            "mlp.fc1": "mlp.layers.0.0",
            "mlp.fc2": "mlp.layers.1",
            "embed.proj": "embed.projection",
        }.items():
            key = key.replace(theirs, ours)
        state[key.replace("head.", "cls_head.fc_cls.") if key.startswith("head.") else f"backbone.{key}"] = (
            value
        )
    width, tokens = state["backbone.fc_norm.weight"].shape[0], 8
    channel = torch.arange(width)
    angle = torch.arange(tokens)[:, None] / 10000 ** (2 * (channel // 2) / width)
    state["backbone.pos_embed"] = torch.where(channel % 2 == 0, angle.sin(), angle.cos())[None]
    return state


def prefixed(*prefixes: str) -> Callable[[State], object]:
    return lambda state: {"module": {"".join(prefixes) + key: value for key, value in state.items()}}


def inside(state: State, wrapper: str) -> State:
    return {key.replace("blocks.0.", f"blocks.0.{wrapper}."): value for key, value in state.items()}


WRAPPERS: dict[str, Callable[[State], object]] = {
    "bare": lambda state: state,
    "module": lambda state: {"module": state, "epoch": 3},
    "model": lambda state: {"model": state, "args": argparse.Namespace(lr=0.1, betas=[0.9, 0.999])},
    "DDP": prefixed("module."),
    "Lightning": lambda state: {"state_dict": {f"model.{key}": value for key, value in state.items()}},
    "compiled": prefixed("_orig_mod."),
    "compiled inside": lambda state: inside(state, "_orig_mod"),
    "FSDP": lambda state: inside(prefixed("_fsdp_wrapped_module.")(state)["module"], "_fsdp_wrapped_module"),  # type: ignore[index]
    "DeepSpeed in Lightning": prefixed("_forward_module.", "model."),
    "average of torch": lambda state: {
        "n_averaged": torch.tensor(3),
        **{f"module.{key}": value for key, value in state.items()},
    },
    "only an average": lambda state: {"state_dict_ema": state},
    "a key that nobody knows": lambda state: {
        "net": state,
        "loss": torch.tensor(0.1),
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]},
    },
    "of a name that nobody knows": prefixed("our_net.", "video."),
    "V2 encoder": prefixed("module.", "encoder."),
    "head without prefix": lambda state: {
        key if "head" in key or "classifier" in key else f"encoder.{key}": value
        for key, value in state.items()
    },
}


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_wrapped_files_load_as_the_bare_ones_do(
    tmp_path: Path, hf: SimpleNamespace, small: None, wrap: str
) -> None:
    reference = hf.reference("videomae", SMALL, layer_norm_eps=1e-6)
    reference.fc_norm.eps = 1e-6
    forms = {
        "original": original_names(reference),
        "hf": reference.state_dict(),
        "mmaction2": mmaction_names(reference),
    }
    for name, state in forms.items():
        if wrap == "compiled inside" and name == "hf":
            continue  # its blocks have another name
        torch.save(WRAPPERS[wrap](state), tmp_path / f"{name}.pth")
        own = quietly("videomae_s", weights=tmp_path / f"{name}.pth")
        if name == "hf":  # without config.json, ours are the norms' epsilons
            torch.testing.assert_close(
                own(hf.clip(SMALL)), hf.logits_of(reference, hf.clip(SMALL)), rtol=0, atol=1e-3
            )
        else:
            assert_same_logits(own, reference, hf.clip(SMALL), hf)
            reference.float()


def test_several_networks_in_one_file(tmp_path: Path, hf: SimpleNamespace, small: None) -> None:
    state = original_names(hf.reference("videomae", SMALL))
    other = {key: value + 1 for key, value in state.items()}
    path = tmp_path / "model.pth"
    torch.save(
        {f"{n}.{k}": v for n, s in (("net", state), ("net_ema.module", other)) for k, v in s.items()}, path
    )
    with pytest.warns(CheckpointWarning, match="also holds the weights under net_ema.module"):
        own = build_backbone("videomae_s", weights=path)
    assert torch.equal(own.head.bias, state["head.bias"])
    torch.save({"model": state, "model_ema": other}, path)
    with pytest.warns(
        CheckpointWarning, match=r"also contains an average of the weights \(model_ema\); model is used"
    ):
        own = build_backbone("videomae_s", weights=path)
    assert torch.equal(own.head.bias, state["head.bias"])
    torch.save({"generator": state, "discriminator": other}, path)
    assert "holds several state dicts, under generator, discriminator; store" in refusal(
        "videomae_s", weights=path
    )
    torch.save({f"{n}.{k}": v for n, s in (("left", state), ("right", other)) for k, v in s.items()}, path)
    assert "holds several networks, under 'left.', 'right.'" in refusal("videomae_s", weights=path)


@pytest.mark.parametrize("family", NAMES)
def test_own_format_round_trip(tmp_path: Path, hf: SimpleNamespace, small: None, family: str) -> None:
    """Also from transformers through ours: the norms' epsilons travel in the description."""
    name, reference = NAMES[family], hf.reference(family, SMALL)
    reference.save_pretrained(tmp_path)
    first = quietly(name, weights=tmp_path)
    eps = [first.blocks[0].norm1.eps, (first.norm if family == "vivit" else first.fc_norm).eps]  # type: ignore[union-attr]
    described = {"model": name, "class_names": list("abcde"), "norm_eps": eps}
    write_weights(tmp_path / "own.safetensors", first.state_dict(), described, half=False)
    own = quietly(name, weights=tmp_path / "own.safetensors")
    assert own.class_names == tuple("abcde")
    assert_same_logits(own, reference, hf.clip(SMALL), hf)


def test_class_names_come_from_the_config(tmp_path: Path, hf: SimpleNamespace, small: None) -> None:
    names = {0: "zap", 1: "a b", 2: "é", 3: "c", 4: "d"}
    hf.reference("vivit", SMALL, id2label=names, label2id={}).save_pretrained(tmp_path / "named")
    hf.reference("vivit", SMALL).save_pretrained(tmp_path / "numbered")
    assert quietly("vivit_b", weights=tmp_path / "named").class_names == tuple(names.values())
    assert quietly("vivit_b", weights=tmp_path / "numbered").class_names is None


# ---- what does not fit ----


@pytest.fixture
def saved(tmp_path: Path, hf: SimpleNamespace, small: None) -> dict[str, Path]:
    """Folders of both families, and an original file."""
    for family in NAMES:
        hf.reference(family, SMALL).save_pretrained(tmp_path / family)
    torch.save({"module": original_names(hf.reference("videomae", SMALL))}, tmp_path / "original.pth")
    return {**{family: tmp_path / family for family in NAMES}, "original": tmp_path / "original.pth"}


def test_another_model_is_named(saved: dict[str, Path], tmp_path: Path) -> None:
    def held(weights: Path, name: str) -> str:
        line = refusal(name, weights=weights)
        assert line.startswith(f"backbone.weights={weights} holds ")
        assert line.endswith(f", but backbone={name} was asked for")
        return line

    assert "Hugging Face ViViT weights" in held(saved["vivit"], "videomae_s")
    assert "Hugging Face VideoMAE weights" in held(saved["videomae"], "vivit_b")
    assert "original VideoMAE weights" in held(saved["original"], "vivit_b")
    others = {
        "X3D weights": {"blocks.0.conv.conv_t.weight": torch.zeros(1)},
        "pre-training weights": {
            "encoder.blocks.0.attn.q_bias": torch.zeros(1),
            "decoder.norm.bias": torch.zeros(1),
        },
        "not recognised (layer1.weight, ...)": {"layer1.weight": torch.zeros(1)},
    }
    for number, (what, state) in enumerate(others.items()):
        torch.save(state, tmp_path / f"{number}.pth")
        assert what in held(tmp_path / f"{number}.pth", "videomae_s")
    config = json.loads((saved["videomae"] / "config.json").read_text())
    (saved["videomae"] / "config.json").write_text(json.dumps({**config, "model_type": "timesformer"}))
    assert "Hugging Face timesformer weights" in held(saved["videomae"], "videomae_s")


SIZES = {
    "videomae": {"intermediate_size": 50, "hidden_act": "relu"},
    "vivit": {"intermediate_size": 50, "hidden_act": "gelu", "layer_norm_eps": 1e-5},
}


@pytest.mark.parametrize("family", NAMES)
def test_a_model_of_any_size_is_built_as_its_config_says(
    tmp_path: Path, hf: SimpleNamespace, family: str
) -> None:
    """Width, depth, heads, tubelet, clip and feed-forward part differ from every named one."""
    reference = hf.reference(family, ODD, **SIZES[family])
    reference.save_pretrained(tmp_path)
    with pytest.warns(
        CheckpointWarning, match=r"built as the weights say, with num_frames 9 \(\d+\), .*dim 35 "
    ):
        own = build_backbone(NAMES[family], weights=tmp_path)
    assert_same_logits(own, reference, hf.clip(ODD), hf, 1e-6)
    kept = torch.arange(10).repeat(2, 1)
    assert own(hf.clip(ODD).double(), kept).isfinite().all()


def test_a_config_of_another_named_size_is_refused_by_its_name(saved: dict[str, Path]) -> None:
    line = refusal("videomae_tiny", weights=saved["videomae"])
    assert "dim is 24, videomae_tiny has 192" in line and line.endswith("; use backbone=videomae_s")


@pytest.mark.parametrize(
    ("family", "change", "said"),
    [
        ("videomae", {"hidden_size": 48}, "says dim=48 (the tensors have 24): it belongs to other weights"),
        ("videomae", {"num_hidden_layers": 3}, "says depth=3 (the tensors have 2)"),
        ("videomae", {"num_attention_heads": 5}, "dim 24 is no multiple of num_heads 5"),
        ("videomae", {"patch_size": 8}, "patch_embed.proj.weight (24, 1536) instead of (24, 384)"),
        ("vivit", {"num_frames": 8}, "positions (1, 9, 24) instead of (1, 17, 24)"),
        ("vivit", {"num_frames": 1 << 30}, "does not describe a model: ValueError: 1073741824 where"),
        ("vivit", {"num_frames": 10000, "image_size": 4096}, "has more than 262144 tokens"),
        ("videomae", {"use_mean_pooling": False}, "says use_mean_pooling=false"),
        ("vivit", {"hidden_act": "tanh"}, "says hidden_act='tanh'; gelu, gelu_fast"),
        ("vivit", {"hidden_size": None}, "config.json does not describe a model: ValueError"),
        (
            "vivit",
            {"layer_norm_eps": -1.0},
            "config.json does not describe a model: ValueError: layer_norm_eps",
        ),
        ("videomae", {"id2label": {"0": "a", "2": "b"}}, "config.json does not describe a model: KeyError"),
        ("videomae", {"id2label": {"0": "a"}}, "names 1 classes and has 5 logits"),
        ("videomae", {"id2label": {"0": None}}, "config.json does not describe a model: TypeError: id2label"),
        ("videomae", {"image_size": [32, 64]}, "frames of 32 x 64 pixels, where square ones are read"),
        ("vivit", {"hidden_act": {"a": 1}}, "says hidden_act={'a': 1}; gelu, gelu_fast"),
    ],
)
@pytest.mark.filterwarnings("ignore::video_papr.core.errors.CheckpointWarning")
def test_config_that_cannot_be_followed(
    saved: dict[str, Path], family: str, change: dict[str, Any], said: str
) -> None:
    path = saved[family] / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    assert said in refusal(NAMES[family], weights=saved[family])


@pytest.mark.parametrize(
    ("described", "said"),
    [
        ({"class_names": "5"}, "its class_names are '5', not a list of texts"),
        ({"class_names": [1, 2, 3]}, "its class_names are [1, 2, 3]"),
        ({"norm_eps": "ab"}, "its norm_eps is 'ab', not a pair"),
        ({"norm_eps": [1]}, "its norm_eps is [1], not a pair"),
        ({"norm_eps": [1e-6, -1.0]}, "its norm_eps is [1e-06, -1.0], not a pair"),
        ({"blocks": "whole"}, "describes its blocks as whole"),
        ({"read": [1]}, "its reading recipe is [1], not a JSON object"),
        (
            {"read": {"input_size": 10_000}},
            "says clips of 16 frames of 10000 pixels, 6250000 tokens; at most",
        ),
        ({"read": {"num_frames": 1_000_000}}, "says clips of 1000000 frames of 64 pixels, 16000000 tokens"),
        ({"read": {"num_frames": 1e9}}, "its reading recipe says num_frames=1000000000.0"),
        ({"read": {"std": [1, 1, 0]}}, "its reading recipe says std=[1, 1, 0]"),
    ],
)
def test_descriptions_that_cannot_be(tmp_path: Path, described: dict[str, Any], said: str) -> None:
    path = tmp_path / "own.safetensors"
    write_weights(path, build_backbone("videomae_tiny", num_classes=3).state_dict(), described)
    assert said in refusal("videomae_tiny", weights=path)


@pytest.mark.parametrize("shape", [(), (0, 192), (3,), (3, 191), (3, 192, 1), (30_000_000, 0)])
def test_classifiers_that_cannot_be(tmp_path: Path, shape: tuple[int, ...]) -> None:
    state = build_backbone("videomae_tiny", num_classes=3).state_dict()
    write_weights(tmp_path / "own.safetensors", {**state, "head.weight": torch.zeros(shape)}, {})
    said = f"its classifier, head.weight, has the shape {shape}"
    assert said in refusal("videomae_tiny", weights=tmp_path / "own.safetensors")


def test_nothing_is_built_before_the_tensors_are_compared(
    saved: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A small file that claims a large network costs nothing."""
    path = saved["videomae"] / "model.safetensors"
    state = load_file(path)
    for block in range(2, 400):
        state[f"videomae.encoder.layer.{block}.layernorm_before.bias"] = torch.zeros(1)
    state["videomae.embeddings.patch_embeddings.projection.bias"] = torch.zeros(4096)
    state["classifier.weight"] = torch.zeros(5, 4096)
    save_file(state, path)
    config = saved["videomae"] / "config.json"
    large = {"num_hidden_layers": 400, "hidden_size": 4096, "num_attention_heads": 16}
    config.write_text(json.dumps({**json.loads(config.read_text()), **large}))
    monkeypatch.setattr(
        nn.init, "trunc_normal_", lambda tensor, **_: None if tensor.is_meta else pytest.fail("built")
    )
    with pytest.warns(CheckpointWarning):
        assert "does not fit VideoMAE; missing: blocks.2.norm1.weight" in refusal(
            "videomae_s", weights=saved["videomae"]
        )


def test_original_file_of_another_size(saved: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its heads leave no trace, so only a named size can be built."""
    monkeypatch.setitem(BACKBONES, "videomae_b", {**SMALL, "dim": 48, "depth": 4})
    assert refusal("videomae_b", weights=saved["original"]).endswith(
        " is not a videomae_b: depth is 2, videomae_b has 4; dim is 24, videomae_b has 48; use backbone=videomae_s"
    )


def test_original_files_are_believed_about_their_clip(
    tmp_path: Path, hf: SimpleNamespace, small: None
) -> None:
    """VideoMAE's training script stores its command line beside the weights."""
    settings = {**SMALL, "num_frames": 8, "input_size": 48}
    reference = hf.reference("videomae", settings, layer_norm_eps=1e-6)
    reference.fc_norm.eps = 1e-6
    args = argparse.Namespace(
        num_frames=8, input_size=48, sampling_rate=2, short_side_size=56, data_set="Kinetics-400", lr=0.1
    )
    torch.save({"model": original_names(reference), "args": args}, tmp_path / "model.pth")
    with pytest.warns(CheckpointWarning, match=r"with num_frames 8 \(4\), input_size 48 \(32\) in place"):
        own = build_backbone("videomae_s", weights=tmp_path / "model.pth")
    assert_same_logits(own, reference, hf.clip(settings), hf)
    assert own.read == ReadConfig("videomae_dense", 2, 8, 48, 56)
    with pytest.warns(
        CheckpointWarning, match="positions are computed for 2x2x2 tokens; the weights were trained on 4x3x3"
    ):
        build_backbone("videomae_s", weights=tmp_path / "model.pth", num_frames=4, input_size=32)
    args.num_frames = "many"
    torch.save({"model": original_names(reference), "args": args}, tmp_path / "model.pth")
    assert "args: its reading recipe says num_frames='many'" in refusal(
        "videomae_s", weights=tmp_path / "model.pth"
    )


def test_missing_unexpected_and_misshapen_keys_are_listed(saved: dict[str, Path]) -> None:
    path = saved["vivit"] / "model.safetensors"
    state = load_file(path)
    del state["vivit.layernorm.bias"]
    state["vivit.pooler.dense.bias"] = torch.zeros(24)
    state["vivit.encoder.layer.0.output.dense.bias"] = torch.zeros(25)
    save_file(state, path)
    line = refusal("vivit_b", weights=saved["vivit"])
    assert line == (
        f"backbone.weights={saved['vivit']} does not fit ViViT; missing: norm.bias; unexpected: pooler.dense.bias; "
        "of another shape: blocks.0.mlp.fc2.bias (25,) instead of (24,)"
    )
    del state["vivit.encoder.layer.1.attention.attention.key.weight"]
    save_file(state, path)
    assert "missing: blocks.1.attn.qkv.weight, blocks.1.attn.qkv.bias" in refusal(
        "vivit_b", weights=saved["vivit"]
    )


def test_folders_that_hold_no_whole_weights(
    saved: dict[str, Path], tmp_path: Path, hf: SimpleNamespace
) -> None:
    (tmp_path / "empty").mkdir()
    said = " holds neither model.safetensors nor pytorch_model.bin in whole"
    assert refusal("vivit_b", weights=tmp_path / "empty") == f"backbone.weights={tmp_path / 'empty'}{said}"
    hf.reference("vivit", SMALL).save_pretrained(tmp_path / "parts", max_shard_size="20KB")
    next((tmp_path / "parts").glob("*.safetensors")).unlink()
    assert said in refusal("vivit_b", weights=tmp_path / "parts")
    (tmp_path / "parts" / "model.safetensors.index.json").write_text("{")
    assert "model.safetensors.index.json is damaged" in refusal("vivit_b", weights=tmp_path / "parts")
    (saved["vivit"] / "config.json").write_text("[1]")
    assert refusal("vivit_b", weights=saved["vivit"]) == (
        f"{saved['vivit'] / 'config.json'} is damaged: it is no JSON object"
    )


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_truncated_weights_name_the_file(saved: dict[str, Path], name: str) -> None:
    whole = saved["vivit"] / "model.safetensors"
    path = saved["vivit"] / name
    if name.endswith("bin"):
        torch.save(load_file(whole), path)
        whole.unlink()
    path.write_bytes(path.read_bytes()[:-2000])
    assert refusal("vivit_b", weights=saved["vivit"]).startswith(f"{path} is ")


class Malicious:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("hidden", ["beside", "in the Namespace"])
def test_malicious_pickle_in_a_folder_or_an_original_file(
    saved: dict[str, Path], tmp_path: Path, hidden: str
) -> None:
    trap = Malicious(tmp_path / "executed")
    state = torch.load(saved["original"], weights_only=True)
    args = argparse.Namespace(path=trap) if hidden == "in the Namespace" else trap
    (saved["videomae"] / "model.safetensors").unlink()
    for path in (saved["original"], saved["videomae"] / "pytorch_model.bin"):
        torch.save({**state, "args": args}, path)
        weights = path if path.suffix == ".pth" else path.parent
        assert "could run code" in refusal("videomae_s", weights=weights)
    assert not trap.target.exists()


# ---- changes that are wanted, and said aloud ----


def test_a_new_head_only_when_it_is_asked_for(saved: dict[str, Path], hf: SimpleNamespace) -> None:
    for weights in (saved["videomae"], saved["original"]):
        line = refusal("videomae_s", weights=weights, num_classes=9)
        assert (
            "was trained for 5 classes, but 9 were asked for" in line and "backbone.replace_head=true" in line
        )
        with pytest.raises(ConfigError, match=r"^backbone\.replace_head=true needs backbone\.num_classes=$"):
            build_backbone("videomae_s", weights=weights, replace_head=True)
        with pytest.warns(CheckpointWarning, match="classifier is new and untrained .9 classes instead of 5"):
            fresh = build_backbone("videomae_s", weights=weights, num_classes=9, replace_head=True, seed=4)
        random = build_backbone("videomae_s", num_classes=9, seed=4)
        assert torch.equal(fresh.head.weight, random.head.weight)
        assert not torch.equal(fresh.blocks[0].attn.qkv.weight, random.blocks[0].attn.qkv.weight)  # type: ignore[union-attr]
        assert (fresh.num_classes, fresh.class_names) == (9, None)
    with pytest.raises(ConfigError, match=r"^backbone\.replace_head=true needs backbone\.weights="):
        build_backbone("videomae_s", num_classes=9, replace_head=True)


def test_weights_without_a_classifier(saved: dict[str, Path]) -> None:
    path = saved["videomae"] / "model.safetensors"
    save_file({key: value for key, value in load_file(path).items() if "classifier" not in key}, path)
    assert "has no classifier" in refusal("videomae_s", weights=saved["videomae"])
    with pytest.warns(CheckpointWarning, match="new and untrained"):
        build_backbone("videomae_s", weights=saved["videomae"], num_classes=3, replace_head=True)


def test_learned_positions_are_interpolated_and_computed_ones_computed(
    saved: dict[str, Path], hf: SimpleNamespace
) -> None:
    clip = {"num_frames": 8, "input_size": 48}
    with pytest.warns(
        CheckpointWarning,
        match="positions are interpolated to 4x3x3 tokens; the weights were trained on 2x2x2",
    ):
        wide = build_backbone("vivit_b", weights=saved["vivit"], **clip)
    table = load_file(saved["vivit"] / "model.safetensors")["vivit.embeddings.position_embeddings"]
    volume = table[:, 1:].view(1, 2, 2, 2, 24).permute(0, 4, 1, 2, 3)
    expected = F.interpolate(volume, (4, 3, 3), mode="trilinear", align_corners=False)
    positions = wide.positions.detach()
    torch.testing.assert_close(positions[:, 1:], expected.permute(0, 2, 3, 4, 1).reshape(1, 36, 24))
    assert torch.equal(positions[:, :1], table[:, :1])
    with pytest.warns(
        CheckpointWarning, match="positions are computed for 4x3x3 tokens; the weights were trained on"
    ):
        wide = build_backbone("videomae_s", weights=saved["videomae"], **clip)
    assert torch.equal(wide.positions, build_backbone("videomae_s", **clip).positions)  # type: ignore[arg-type]
    quietly("vivit_b", weights=saved["vivit"], num_frames=4, input_size=32)


def test_a_clip_that_the_config_names_can_be_asked_for(
    tmp_path: Path, hf: SimpleNamespace, small: None
) -> None:
    settings = {**SMALL, "num_frames": 8}
    reference = hf.reference("vivit", settings)
    reference.save_pretrained(tmp_path)
    own = quietly("vivit_b", weights=tmp_path, num_frames=8)
    assert_same_logits(own, reference, hf.clip(settings), hf)


def test_published_small_models_have_the_heads_that_they_were_trained_with(
    saved: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved["videomae"] / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_attention_heads": 16}))
    assert "dim 24 is no multiple of num_heads 16" in refusal("videomae_s", weights=saved["videomae"])
    published = tmp_path / "videomae-small-finetuned-kinetics"
    shutil.copytree(saved["videomae"], published)
    with pytest.warns(CheckpointWarning, match="names 16 heads; trained with, and used: 3"):
        build_backbone("videomae_s", weights=published)


# ---- Kinetics-710 ----


def test_kinetics_710(
    tmp_path: Path, hf: SimpleNamespace, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = hf.reference("videomae", {**SMALL, "num_classes": 710}, layer_norm_eps=1e-6)
    reference.fc_norm.eps = 1e-6
    path = tmp_path / "vit_s_k710_dl_from_giant.pth"
    torch.save({"module": original_names(reference)}, path)
    pixels = hf.clip(SMALL)
    expected = hf.logits_of(reference, pixels)
    with pytest.warns(CheckpointWarning, match="710 classes of Kinetics-710; backbone.num_classes=400 takes"):
        whole = build_backbone("videomae_s", weights=path)
    torch.testing.assert_close(whole(pixels), expected, rtol=0, atol=1e-4)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    line = refusal("videomae_s", weights=path, num_classes=400)
    assert "HF_HUB_OFFLINE is set" in line and "label_710to400.json and put it at " in line
    rows = torch.randperm(710, generator=torch.Generator().manual_seed(0))[:400].tolist()
    (tmp_path / "label_710to400.json").write_text(json.dumps(rows))
    assert "label_map_k400.txt and put it at " in refusal("videomae_s", weights=path, num_classes=400)
    names = tmp_path / "label_map_k400.txt"
    names.write_text("\n".join(["twice"] * 400))
    assert "must name 400 different classes" in refusal("videomae_s", weights=path, num_classes=400)
    names.write_text("".join(f"class {row}\n" for row in rows))
    with pytest.warns(CheckpointWarning, match="of its 710 classes the 400 of Kinetics-400 are used"):
        part = build_backbone("videomae_s", weights=path, num_classes=400)
    torch.testing.assert_close(part(pixels), expected[:, rows], rtol=0, atol=1e-4)
    assert part.class_names == tuple(f"class {row}" for row in rows)
    for wrong in ([0] * 400, list(range(399)), list(range(400, 800)), ["a"] * 400):
        (tmp_path / "label_710to400.json").write_text(json.dumps(wrong))
        assert "must list 400 different rows of 0 to 709" in refusal(
            "videomae_s", weights=path, num_classes=400
        )
    (tmp_path / "label_710to400.json").write_text("[")
    assert "label_710to400.json is damaged" in refusal("videomae_s", weights=path, num_classes=400)
