"""`prune` on transformers' models: against the same model with dropped tokens masked out; what must stay as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import video_papr as vp
from video_papr.adapters.selector import Selector
from video_papr.core.errors import ConfigError
from video_papr.core.pixels import normalize_pixels

transformers = pytest.importorskip("transformers")

Build = Callable[..., Any]
CLASSIFIERS = ("VideoMAEForVideoClassification", "VivitForVideoClassification")
X3D: dict[str, Any] = {"weights": None, "frames": 4, "size": 32}


def kept_mask(model: Any, keep_idx: Tensor) -> Tensor:
    kept = torch.zeros(len(keep_idx), 32, dtype=torch.bool).scatter_(1, keep_idx, True)
    prefix = int(type(model).__name__.startswith("Vivit"))
    return torch.cat([torch.ones(len(keep_idx), prefix, dtype=torch.bool), kept], 1)


def masked_tokens(model: Any, pixels: Tensor, keep_idx: Tensor) -> Tensor:
    """Every token goes through every block; dropped ones are barred from attention as keys."""
    kept = kept_mask(model, keep_idx)

    def barred(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Any:
        weights = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
        weights = weights.masked_fill(~kept[:, None, None], float("-inf")).softmax(-1)
        return (weights @ value).transpose(1, 2).contiguous(), weights

    transformers.AttentionInterface.register("barred", barred)
    dense = copy.deepcopy(model)
    dense.set_attn_implementation("barred")
    with torch.no_grad():
        return dense.base_model(pixels).last_hidden_state


def masked_logits(model: Any, pixels: Tensor, keep_idx: Tensor) -> Tensor:
    tokens, kept = masked_tokens(model, pixels, keep_idx), kept_mask(model, keep_idx)
    with torch.no_grad():
        if type(model).__name__.startswith("Vivit"):
            return model.classifier(tokens[:, 0])
        mean = (tokens * kept[..., None]).sum(1) / kept.sum(1, keepdim=True)
        return model.classifier(model.fc_norm(mean))


@pytest.mark.parametrize("name", CLASSIFIERS)
@pytest.mark.parametrize(("pruner", "options"), [("motion", {}), ("x3d_s", X3D)])
def test_logits_are_those_of_the_masked_model(
    host: Build, clip: Build, name: str, pruner: str, options: dict[str, Any]
) -> None:
    model, pixels = host(name), clip()
    reference = copy.deepcopy(model)  # before the hooks come
    dense = model(pixels).logits
    assert vp.prune(model, pruner, 0.3, **options) is model
    keep_idx = vp.kept_tokens(model, pixels).keep_idx
    assert keep_idx.shape == (2, 9)
    logits = model(pixels).logits
    assert torch.allclose(logits, masked_logits(reference, pixels, keep_idx), atol=1e-5)
    assert (logits - dense).abs().max() > 1e-3  # the dropped tokens mattered
    alone = torch.cat([model(pixels[i : i + 1]).logits for i in range(2)])
    assert torch.allclose(alone, logits, atol=1e-5)  # no clip depends on its batch


@pytest.mark.parametrize("options", [{}, {"scope": "frame"}])
def test_first_tubelet_stays_where_the_answer_is_read_from_it(
    host: Build, clip: Build, options: dict[str, Any]
) -> None:
    """`center` would drop it. Its output cannot be the masked model's if it is not the first of the kept tokens."""
    model, pixels = host("VideoMAEForVideoClassification", use_mean_pooling=False), clip()
    reference = copy.deepcopy(model)
    keep_idx = vp.kept_tokens(vp.prune(model, "center", 0.3, **options), pixels).keep_idx
    assert keep_idx.shape == (2, 9)
    assert (keep_idx[:, 0] == 0).all()
    tokens = masked_tokens(reference, pixels, keep_idx)
    assert torch.allclose(model(pixels).logits, reference.classifier(tokens[:, 0]), atol=1e-5)


@pytest.mark.parametrize(("name", "tokens"), [("VideoMAEModel", 9), ("VivitModel", 10)])
def test_bare_encoder_gives_the_kept_tokens(host: Build, clip: Build, name: str, tokens: int) -> None:
    model = vp.prune(host(name), "motion")
    assert model(clip()).last_hidden_state.shape == (2, tokens, 24)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_hidden_states_and_attentions_are_those_of_the_kept_tokens(
    host: Build, clip: Build, name: str
) -> None:
    model = vp.prune(host(name), "motion")
    model.set_attn_implementation("eager")
    out = model(clip(), output_hidden_states=True, output_attentions=True)
    tokens = 9 + name.startswith("Vivit")
    assert {tuple(state.shape) for state in out.hidden_states} == {(2, tokens, 24)}
    assert [tuple(weights.shape) for weights in out.attentions] == [(2, 3, tokens, tokens)] * 3


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_training_reaches_every_parameter_and_not_the_scorer(host: Build, clip: Build, name: str) -> None:
    model = vp.prune(host(name), "x3d_s", **X3D).train()
    out = model(clip(), labels=torch.tensor([1, 3]))
    assert torch.allclose(out.loss, nn.functional.cross_entropy(out.logits, torch.tensor([1, 3])))
    out.loss.backward()
    without = [key for key, value in model.named_parameters() if value.grad is None]
    assert without == []
    selector: Selector = model.base_model.embeddings.video_papr_pruning.selector
    assert not any(module.training for module in selector.pruners[""].modules())  # no statistics are updated


def test_saved_models_are_without_the_pruning(host: Build, clip: Build, tmp_path: Path) -> None:
    model, pixels = host("VideoMAEForVideoClassification"), clip()
    dense = model(pixels).logits
    pruned = vp.prune(model, "x3d_s", **X3D)(pixels).logits
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert torch.equal(again(pixels).logits, dense)  # what is saved is the model, not the pruning
    assert torch.equal(vp.prune(again, "x3d_s", **X3D)(pixels).logits, pruned)


def test_pipeline_of_transformers(host: Build, write_video: Callable[..., Path], tmp_path: Path) -> None:
    model = vp.prune(host("VideoMAEForVideoClassification"), "motion")
    size = {"shortest_edge": 32}
    processor = transformers.VideoMAEImageProcessor(size=size, crop_size={"height": 32, "width": 32})
    classify = transformers.pipeline("video-classification", model=model, image_processor=processor)
    answer = classify(str(write_video(tmp_path / "a.mp4", 12)), top_k=2)
    assert [set(guess) for guess in answer] == [{"score", "label"}] * 2


def test_failed_pass_leaves_nothing_behind(host: Build, clip: Build) -> None:
    model, pixels = vp.prune(host("VivitForVideoClassification"), "motion"), clip()
    logits = model(pixels).logits

    def fail(*_: Any) -> None:
        raise RuntimeError("on purpose")

    handle = model.vivit.layers[1].register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="on purpose"):
        model(clip(seed=5))
    handle.remove()
    assert torch.equal(model(pixels).logits, logits)


def test_frames_are_those_before_normalisation(host: Build) -> None:
    frames = torch.randint(0, 256, (2, 4, 32, 32, 3), dtype=torch.uint8)
    model = vp.prune(
        host("VideoMAEForVideoClassification"), "random", mean=[0.4, 0.5, 0.6], std=[0.2, 0.3, 0.4]
    )
    selector: Selector = model.videomae.embeddings.video_papr_pruning.selector
    for dtype in (torch.float32, torch.float16):
        pixels = normalize_pixels(frames, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4), dtype=dtype).transpose(
            1, 2
        )
        assert torch.equal(selector.frames(pixels), frames)


@pytest.mark.parametrize("name", ["VideoMAEImageProcessor", "VideoMAEVideoProcessor", "VivitImageProcessor"])
def test_processor_says_how_pixels_were_normalised(host: Build, name: str) -> None:
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    processor = getattr(transformers, name)(**size, image_mean=[0.3, 0.4, 0.5], image_std=[0.2, 0.3, 0.4])
    model = vp.prune(host("VivitForVideoClassification"), "center", processor=processor)
    frames = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    pixels = processor(list(frames), return_tensors="pt")["pixel_values"]
    selector: Selector = model.vivit.embeddings.video_papr_pruning.selector
    assert np.array_equal(selector.frames(pixels)[0].numpy(), frames)


def test_wrong_normalisation_is_said_once(host: Build, clip: Build) -> None:
    model = vp.prune(host("VivitForVideoClassification"), "center")
    with pytest.warns(UserWarning, match=r"instead of 0 to 1: the pixels were normalised in another way"):
        model(clip() * 2 - 1)  # what VivitImageProcessor gives unless do_normalize=False
    model(clip() * 2 - 1)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "pruner": ({"pruner": "x3dd"}, "pruner='x3dd' is unknown; use one of"),
    "reads tokens": ({"pruner": "similarity"}, "pruner=similarity cannot be used here"),
    "reads motion": ({"pruner": "codec"}, "pruner=codec cannot be used here"),
    "none": ({"pruner": "none"}, "pruner=none cannot be used here"),
    "keep ratio": ({"pruner": "center", "keep_ratio": 0}, "pruner.keep_ratio=0 must be a number"),
    "compensation": (
        {"pruner": "center", "compensation": "merge"},
        "pruner.compensation=merge weighs tokens",
    ),
    "budget": ({"pruner": "center", "budget": "top_p"}, "pruner.budget=top_p keeps another number of tokens"),
    "option": ({"pruner": "center", "tau": 1}, "unknown key pruner.tau for pruner=center"),
    "mean": ({"pruner": "center", "mean": [0.5]}, r"mean=\[0.5\] must be three numbers, for R, G and B"),
    "std": ({"pruner": "center", "std": [1, 0, 1]}, "std=.* must be three numbers above 0"),
    "both": ({"pruner": "center", "std": [1, 1, 1], "processor": print}, "give processor= or mean= and std="),
    "processor": ({"pruner": "center", "processor": len}, "processor=builtin.* does not take frames"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_option(host: Build, case: str) -> None:
    given, message = WRONG[case]
    model = host("VideoMAEForVideoClassification")
    with pytest.raises(ConfigError, match=f"^{message}"):
        vp.prune(model, **given)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_models_that_cannot_be_pruned(host: Build) -> None:
    with pytest.raises(ConfigError, match=r"^cannot prune a Linear; supported: VideoMAEForVideo.* of timm"):
        vp.prune(nn.Linear(2, 2), "center")
    with pytest.raises(ConfigError, match=r"reads 1 channels instead of RGB"):
        vp.prune(host("VivitModel", num_channels=1), "center")


def test_pruning_twice_and_unpruning_twice(host: Build) -> None:
    model = vp.prune(host("VideoMAEForVideoClassification"), "center")
    with pytest.raises(ConfigError, match=r"is pruned already; call video_papr.unprune\(model\) first"):
        vp.prune(model.videomae, "center")  # the encoder of a pruned classifier
    vp.unprune(model)
    with pytest.raises(ConfigError, match=r"is not pruned"):
        vp.unprune(model)


def test_wrong_pixels_and_masks(host: Build, clip: Build) -> None:
    model = vp.prune(host("VideoMAEModel"), "center")
    for pixels in (clip()[:, :2], clip().transpose(1, 2), clip()[0], clip()[..., :16]):
        with pytest.raises(ValueError, match=r"^pixels must be \(B, 4, 3, 32, 32\), got \("):
            model(pixels)
    with pytest.raises(ValueError, match=r"takes no bool_masked_pos"):
        model(clip(), bool_masked_pos=torch.zeros(2, 32, dtype=torch.bool))
    vivit = vp.prune(host("VivitForVideoClassification"), "center")
    with pytest.raises(ValueError, match=r"takes no attention_mask"):
        vivit(clip(), attention_mask=torch.ones(2, 33))
