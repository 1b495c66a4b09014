"""`dataset=k400 pruner=x3d_s` from list to predictions: the official layout, checkpoints as they are published."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from pytorchvideo.models.x3d import create_x3d
from torch import Tensor

from video_papr.data.annotations import kinetics400_class_names
from video_papr.data.sampling import dense_clips

FRAMES, SIZE, STRIDE = 4, 32, 4
CLASSES = ("abseiling", "playing guitar", "zumba")
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory, write_video: Callable[..., Path]) -> Path:
    """val/CLASS/ID_START_END.mp4, and the official table; of one row the video is not on the disk."""
    root = tmp_path_factory.mktemp("k400")
    rows = ["label,youtube_id,time_start,time_end,split"]
    for number, name in enumerate(CLASSES):
        video = f"{number}aB-_cdEf{number}"
        write_video(
            root / "val" / name / f"{video}_{number:06d}_{number + 10:06d}.mp4",
            30 + 9 * number,
            size=(SIZE, SIZE),
        )
        rows.append(f"{name},{video},{number},{number + 10},val")
    rows.append("yoga,gone_gone_1,7,17,val")
    (root / "k400_val.csv").write_text("\n".join(rows))
    return root


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path, Path]:
    """transformers' VideoMAE, small and random, its folder as on the Hub, and an X3D-S as pytorchvideo publishes it."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.VideoMAEConfig(
        image_size=SIZE,
        num_frames=FRAMES,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        id2label=dict(enumerate(kinetics400_class_names())),
    )
    model = transformers.VideoMAEForVideoClassification(config).eval()
    torch.nn.init.normal_(model.classifier.weight, std=3)  # so that videos get different answers
    folder = tmp_path_factory.mktemp("weights")
    model.save_pretrained(folder / "videomae")
    x3d = create_x3d(input_clip_length=8, input_crop_size=160)
    torch.save({"model_state": x3d.state_dict()}, folder / "X3D_S.pyth")
    return model, folder / "videomae", folder / "X3D_S.pyth"


def probabilities(model: Any, path: Path, num_clips: int) -> Tensor:
    """What transformers' model says of whole frames: the mean over the clips, whose three crops are the same here."""
    with av.open(str(path)) as container:
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    chosen = dense_clips(len(frames), num_frames=FRAMES, frame_stride=STRIDE, num_clips=num_clips)
    pixels = ((torch.from_numpy(frames[chosen]) / 255 - MEAN) / STD).movedim(-1, 2)
    with torch.no_grad():
        return model(pixel_values=pixels).logits.softmax(-1).mean(0)


@pytest.mark.parametrize(("views", "num_clips"), [("1x1", 1), ("5x3", 5)])
@pytest.mark.parametrize("listed", [False, True])
def test_from_the_list_to_the_predictions(
    evaluate: Callable[..., Any],
    tree: Path,
    networks: tuple[Any, Path, Path],
    views: str,
    num_clips: int,
    listed: bool,
) -> None:
    model, folder, x3d = networks
    words = [
        "dataset=k400",
        f"views={views}",
        "pruner=x3d_s",
        f"backbone.weights={folder}",
        f"pruner.weights={x3d}",
    ]
    words += ["backbone.num_frames=null", "backbone.input_size=null", "dataset.decoder=pyav", "baseline=true"]
    words += [f"dataset.annotations={tree / 'k400_val.csv'}"] if listed else []
    results = evaluate(tree, *words, *([] if listed and num_clips == 1 else ["pruner.size=64"]))
    names = kinetics400_class_names()
    assert (results["dataset"], results["backbone"], results["views"]) == ("k400", "videomae_b", views)
    assert (results["pruner"], results["mean_kept_tokens"], results["num_tokens"]) == ("x3d_s", 2, 8)
    assert (results["num_evaluated"], results["num_missing"]) == (3, int(listed))
    assert results["gmacs_per_view"]["scorer"] > 0
    lines = [line for line in results["predictions"] if line["error"] is None]
    assert [line["label"] for line in lines] == [names.index(name) for name in CLASSES]
    correct = 0
    for line in lines:
        (path,) = tree.rglob(Path(line["path"]).name)
        expected = probabilities(model, path, num_clips)
        assert line["baseline_pred"] == int(expected.argmax())
        assert line["pred_name"] == names[line["pred"]]
        assert line["kept_tokens"] == 2
        correct += line["pred"] == line["label"]
    assert results["top1"] == pytest.approx(100 * correct / results["num_videos"])
    assert len({line["baseline_pred"] for line in lines}) > 1
