"""`tools/eval.py task=image` from its command line to its files, with small random networks."""

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

import video_papr as vp
from video_papr.data.transforms import resize_and_crop

NETWORKS = (
    *("dataset=images", "backbone=timm_vit", "backbone.model=vit_tiny_patch16_224", "backbone.weights=null"),
    *("backbone.input_size=[32,64]", "backbone.num_frames=null", "pruner.weights=null", "task=image"),
)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Two classes with three images each, one of them damaged."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (root / label).mkdir()
        for number in range(3):
            pixels = rng.integers(0, 256, (50 + 9 * number, 70, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / label / f"{number}.png")
    (root / "dog" / "2.png").write_bytes(b"damaged")
    return root


def test_files_of_a_run(evaluate, images):
    words = ("pruner=image_convnet", "pruner.model=resnet18", "pruner.keep_ratio=0.5", "visualize=4")
    results = evaluate(images, *NETWORKS, *words)
    assert (results["num_videos"], results["num_evaluated"], results["num_failed"]) == (6, 5, 1)
    assert (results["backbone"], results["pruner"]) == ("vit_tiny_patch16_224", "image_convnet")
    assert (results["num_tokens"], results["mean_kept_tokens"]) == (8, 4)
    assert results["baseline"]["mean_kept_tokens"] == 8
    assert results["gmacs_per_view"]["scorer"] > 0
    bad = results["predictions"][5]
    assert bad["path"] == "dog/2.png" and "(pillow)" in bad["error"]
    assert (results["out"] / "kept_tubelets.png").is_file()


@pytest.mark.parametrize("pruner", ["brightness", "similarity"])
def test_controls_and_similarity(evaluate, images, pruner):
    words = [word for word in NETWORKS if word != "pruner.weights=null"]
    results = evaluate(images, *words, f"pruner={pruner}", "pruner.keep_ratio=0.5")
    assert (results["num_evaluated"], results["mean_kept_tokens"]) == (5, 4)


def test_an_image_transformer_over_the_frames_of_videos(evaluate, many_videos, command, tmp_path):
    words = ("backbone=image_vit", "backbone.model=vit_tiny_patch16_224", "backbone.weights=null")
    words = (*words, "backbone.input_size=32", "pruner=motion", "pruner.keep_ratio=0.5")
    root = many_videos(4)
    each = evaluate(root, *words, "backbone.num_frames=3")
    assert (each["num_evaluated"], each["num_tokens"], each["mean_kept_tokens"]) == (4, 12, 6)
    assert each["gmacs_per_view"]["dense"] > each["gmacs_per_view"]["backbone"] > 0
    ranked = evaluate(root, *words, "backbone.num_frames=3", "pruner.scope=global")
    assert ranked["mean_kept_tokens"] == 6
    words = [word for word in words if "weights" not in word]
    headless = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=0)
    save_file(headless.state_dict(), tmp_path / "headless.safetensors")
    words += [f"backbone.weights={tmp_path / 'headless.safetensors'}", f"output_dir={tmp_path / 'out'}"]
    status, _, errors = command("dataset=folder", f"dataset.root={root}", *words, "progress=false")
    assert status != 0 and "the backbone has no classifier: its weights bring none" in errors


def test_pipeline_equals_hooks_on_timms_model():
    """Two ways to prune the same model: the backbone of the pipeline, and hooks on the instance."""
    backbone = vp.build_backbone(
        "timm_vit", model="vit_tiny_patch16_224", input_size=32, num_classes=5, seed=4
    )
    with torch.random.fork_rng():
        torch.manual_seed(4)
        model = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=5).eval()
    pruner = vp.build_pruner("image_convnet", model="resnet18", keep_ratio=0.5)
    frames = torch.randint(0, 256, (2, 1, 32, 32, 3), dtype=torch.uint8)
    pipeline = vp.Pipeline(backbone, pruner).eval()
    vp.prune(model, "image_convnet", 0.5, weights=None, model="resnet18")
    pixels = (frames[:, 0] / 255 - torch.tensor(backbone.mean)) / torch.tensor(backbone.std)
    with torch.inference_mode():
        expected = pipeline(frames)
        assert torch.allclose(model(pixels.permute(0, 3, 1, 2)), expected, atol=1e-4)


@pytest.mark.parametrize("shape", [(50, 70), (70, 50), (64, 128), (33, 200)])
def test_views_that_are_not_square(shape):
    """The picture is scaled alike in both directions, covers the view, and the crop is its middle."""
    rows = torch.linspace(0, 255, shape[0]).byte()[:, None].expand(shape)
    columns = torch.linspace(0, 255, shape[1]).byte()[None].expand(shape)
    frame = torch.stack([rows, columns, torch.zeros_like(rows)], -1)[None, None]
    view = resize_and_crop(frame, size=(32, 64), short_side=36, mode="bicubic")
    assert view.shape == (1, 1, 32, 64, 3)
    steps = [
        view[0, 0, -1, 0, 0].int() - view[0, 0, 0, 0, 0].int(),
        view[0, 0, 0, -1, 1].int() - view[0, 0, 0, 0, 1].int(),
    ]
    # A ramp over n pixels has n - 1 steps; how many pixels of the view the whole picture would take:
    height, width = (
        255 * n / (n - 1) * (pixels - 1) / int(step)
        for n, pixels, step in zip(shape, (32, 64), steps, strict=True)
    )
    assert height >= 35 and width >= 70  # covers 36 x 72, as far as grey levels can tell
    assert min(height / 36, width / 72) == pytest.approx(1, rel=0.05)
    assert height / width == pytest.approx(shape[0] / shape[1], rel=0.08)
    middle = view[0, 0].float().mean((0, 1))
    assert middle[0] == pytest.approx(127.5, abs=6) and middle[1] == pytest.approx(127.5, abs=6)
