"""Regression recorder: what 34 configurations select, answer and write, to compare before and after a change.

    python tests/tools/record.py write DIR [NAME ...]           # all configurations, or some; about 90 seconds
    python tests/tools/record.py compare DIR1 DIR2 [NAME ...]   # prints every difference; exit status 1 if there is one

Each configuration leaves DIR/NAME.json: kept indices, logits and features of three generated clips, predictions of a
video, and what `tools/eval.py` wrote into results.json and predictions.jsonl. Equal means bit for bit, so compare
recordings of one machine and one set of packages. Only the public API and the command are used.
"""

from __future__ import annotations

import hashlib
import io
import json
import runpy
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from unittest.mock import patch

import av
import numpy as np
import torch
import yaml
from PIL import Image
from torch import Tensor

import video_papr as vp

ROOT = Path(__file__).resolve().parents[2]
COMMON = "runtime=cpu runtime.threads=1 runtime.workers=0 visualize=0 progress=false resume=false"
DATASETS = {
    "synthetic": "dataset=synthetic dataset.num_videos=12 dataset.cache_dir={data}/cache",
    "folder": "dataset=folder dataset.root={data}/videos",
    "csv": "dataset=csv dataset.root={data}/videos dataset.annotations={data}/list.csv",
    "images": "task=image dataset=images dataset.root={data}/images backbone=timm_vit backbone.weights=null "
    "backbone.model=vit_tiny_patch16_224 backbone.input_size=[64,96]",
}
SHORT = {"X3D": "pruner.frames=4 pruner.size=64", "SMALL": "backbone.num_frames=4 backbone.input_size=64"}
# name, dataset, words of the command; what is written short stands above
CONFIGURATIONS = """
none                  synthetic pruner=none
center                synthetic pruner=center pruner.carry=pool baseline=false
x3d_xs                synthetic pruner=x3d_xs
x3d_s                 synthetic pruner=x3d_s
x3d_s_frame           synthetic pruner=x3d_s pruner.scope=frame pruner.keep_ratio=0.5 pruner.stage=res5
x3d_s_pool            synthetic pruner=x3d_s pruner.carry=pool
x3d_s_merge           synthetic pruner=x3d_s pruner.carry=merge
x3d_s_mass            synthetic pruner=x3d_s pruner.budget=mass pruner.mass=0.4
x3d_s_threshold_merge synthetic pruner=x3d_s pruner.budget=threshold pruner.threshold=0.3 pruner.carry=merge
x3d_s_views           synthetic pruner=x3d_s views=2x3
x3d_s_shared          synthetic pruner=x3d_s views=2x3 share_maps=true
x3d_m_merge_tome      synthetic pruner=x3d_m pruner.carry=merge merger=tome merger.r=8 dataset.limit=6
papr_plus             synthetic pruner=papr_plus
papr_plus_merge       synthetic pruner=papr_plus pruner.carry=merge pruner.stages=[res3,res4] pruner.motion=0.5
papr_plus_mass_pool   synthetic pruner=papr_plus pruner.budget=mass pruner.max_keep=0.6 pruner.carry=pool
similarity            synthetic pruner=similarity pruner.diversity=cluster pruner.after_block=[1,2] views=2x3
similarity_adaptive   synthetic pruner=similarity pruner.mode=adaptive pruner.after_block=[0,1,3] pruner.carry=pool
similarity_merge      synthetic pruner=similarity pruner.mode=threshold pruner.tau=0.1 pruner.carry=merge
similarity_grid_tome  synthetic pruner=similarity pruner.after_block=1 pruner.diversity=grid merger=tome
run_length            synthetic pruner=run_length dataset.camera=calm
run_length_merge      synthetic pruner=run_length pruner.tau=12 pruner.carry=merge runtime.packing=bucketed
random_views_tome     synthetic pruner=random pruner.scope=frame seed=3 views=2x3 merger=tome merger.schedule=decreasing
uniform_merge         synthetic pruner=uniform pruner.carry=merge pruner.carry_cell=[1,4,4]
motion_packed         synthetic pruner=motion pruner.budget=mass runtime.packing=packed
motion_shared         folder    pruner=motion views=2x3 share_maps=true dataset.decode_size=short_side
brightness_mass_tome  synthetic pruner=brightness pruner.budget=mass pruner.mass=0.3 merger=tome
folder_image_convnet  folder    pruner=image_convnet pruner.model=resnet18 pruner.weights=null
folder_clip_cache     folder    pruner=uniform dataset.clip_cache={data}/clips dataset.decoder=pyav views=1x3
folder_vivit          folder    backbone=vivit_b SMALL pruner=x3d_s X3D pruner.carry=merge
csv_missing           csv       pruner=x3d_s X3D dataset.limit=4 dataset.sampling=videomae_dense
csv_names             csv       pruner=similarity dataset.class_names={data}/names.txt dataset.sampling=uniform
csv_videomae_s        csv       backbone=videomae_s SMALL pruner=papr_plus X3D views=2x3
images                images    pruner=image_convnet pruner.model=resnet18 pruner.weights=null pruner.carry=merge
images_similarity     images    pruner=similarity pruner.after_block=[2,5]
"""
WORDS = {line.split()[0]: line.split()[1:] for line in CONFIGURATIONS.strip().splitlines()}
HOSTS = "hosts"  # `vp.prune` on models of other libraries
NAMES = [*WORDS, HOSTS]

# Fields that say when, where and how fast: that they are there is recorded, their values are not.
VARYING = {"videos_per_second", "latency_ms", "timing", "peak_memory_mb", "versions", "git_commit", "command"}
RENAMED = {"carry": "compensation", "carry_cell": "compensation_cell", "mass": "top_p"}  # under "settings"
RENAMED |= {"floor": "min_per_frame", "ground": "uniform_share"}


def clips(frames: int, height: int, width: int) -> Tensor:
    """(3, frames, height, width, 3) uint8: a square moves over a still picture; it stops; the picture is panned."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 200, (height // 8 + 1, width // 8 + 1, 3))
    scene = coarse.repeat(8, 0).repeat(8, 1)[:height, :width] + rng.integers(0, 20, (height, width, 3))
    found = np.broadcast_to(scene.astype(np.uint8), (3, frames, *scene.shape)).copy()
    side = height // 5
    for t in range(frames):
        for clip, place in enumerate((3 * t, min(5 * t, 20))):
            top, left = place % (height - side), 2 * place % (width - side)
            found[clip, t, top : top + side, left : left + side] = 250
        found[2, t] = np.roll(scene, (t, 3 * t), (0, 1))
    return torch.from_numpy(found)


def write_video(path: Path, frames: Tensor) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.pix_fmt, stream.height, stream.width = "yuv420p", *frames.shape[1:3]
        stream.codec_context.thread_count = 1
        for image in frames.numpy():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def write_data(data: Path) -> None:
    """Two classes of videos and of images, a damaged file among each, and a list that names a missing video."""
    for clip, (way, animal) in enumerate([("left", "cat"), ("right", "dog")]):
        (data / "videos" / way).mkdir(parents=True)
        (data / "images" / animal).mkdir(parents=True)
        for number, (length, height, width) in enumerate([(70, 72, 96), (40, 96, 72), (9, 64, 64)]):
            frames = clips(length, height, width)[clip]
            write_video(data / f"videos/{way}/{number}.mp4", frames)
            Image.fromarray(frames[number].numpy()).save(data / f"images/{animal}/{number}.png")
    whole = (data / "videos/left/0.mp4").read_bytes()
    (data / "videos/right/cut.mp4").write_bytes(whole[: len(whole) // 2])
    (data / "images/dog/2.png").write_bytes(b"damaged")
    lines = ["left/0.mp4,0", "left/2.mp4,2", "right/gone.mp4,1", "right/1.mp4,1", "right/cut.mp4,1"]
    (data / "list.csv").write_text("\n".join(lines))
    (data / "names.txt").write_text("stand\nwalk\nrun\n")


def numbers(values: Tensor) -> Any:
    """All values of a small tensor (JSON keeps every bit of a float), shape and digest of a large one."""
    if values.numel() <= 2000:
        return values.tolist()
    digest = hashlib.sha256(values.contiguous().numpy().tobytes()).hexdigest()
    return {"shape": list(values.shape), "sha256": digest, "first": values.flatten()[:4].tolist()}


def kept(selection: vp.TokenSelection | None) -> list[list[int]] | None:
    """The indices of each clip, without padding."""
    if selection is None or selection.valid is None:
        return None if selection is None else selection.keep_idx.tolist()
    return [row[own].tolist() for row, own in zip(selection.keep_idx, selection.valid, strict=True)]


def groups(words: list[str]) -> dict[str, Any]:
    """The command's words as the arguments of `Pipeline.from_config`."""
    found: dict[str, Any] = {"backbone": {}}
    for word in words:
        key, value = word.split("=", 1)
        group, *rest = key.split(".")
        if group == "seed":
            found[group] = int(value)
        elif group in ("dataset", "backbone", "pruner", "merger", "views", "runtime"):
            found.setdefault(group, {})[rest[0] if rest else "name"] = yaml.safe_load(value)
    return found


@torch.no_grad()
def record_pipeline(words: list[str], data: Path) -> dict[str, Any]:
    given = groups(words)
    image = given["dataset"]["name"] == "images"
    size, length = given["backbone"].get("input_size", 64), given["backbone"].get("num_frames", 16)
    frames = clips(1 if image else length, *(size if isinstance(size, list) else (size, size)))
    pipeline = vp.Pipeline.from_config(**given)
    found = {"kept": kept(pipeline.select(frames)), "logits": numbers(pipeline(frames))}
    found["features"] = numbers(pipeline.features(frames))
    if "merger" not in given:
        views = pipeline.features(frames, pooled=False)
        found["tokens"] = [[numbers(getattr(v, n)) for n in ("tokens", "keep_idx", "prefix")] for v in views]
    if not image:
        guesses = pipeline.predict(data / "videos/left/0.mp4", top_k=3)
        found["predict"] = [[guess.label, guess.name, guess.probability] for guess in guesses]
        answers = pipeline.stream(clips(40, 72, 96)[0].numpy(), fps=10, window_seconds=2.5)
        found["stream"] = [[answer.end_seconds, numbers(answer.probabilities)] for answer in answers]
    return found


def record_evaluation(words: list[str], out: Path) -> dict[str, Any]:
    """Runs the command in this process: importing everything anew would take longer than the evaluation."""
    said, status = io.StringIO(), None
    words = ["tools/eval.py", *words, f"output_dir={out}"]
    with patch.object(sys, "argv", words), redirect_stdout(said), redirect_stderr(said):
        try:
            runpy.run_path(str(ROOT / "tools/eval.py"), run_name="__main__")
        except SystemExit as stop:
            status = stop.code
    if status:
        raise RuntimeError(f"tools/eval.py ended with status {status}: {said.getvalue().strip()[-600:]}")
    results, lines = ((out / f).read_text() for f in ("results.json", "predictions.jsonl"))
    return {"results": settled(json.loads(results)), "predictions": [*map(json.loads, lines.splitlines())]}


def record_configuration(name: str, data: Path) -> dict[str, Any]:
    dataset, *words = WORDS[name]
    command = " ".join([COMMON, DATASETS[dataset], *(SHORT.get(word, word) for word in words)])
    words = [word.format(data=data) for word in command.split()]
    return record_pipeline(words, data) | record_evaluation(words, data / "out" / name)


def settled(value: Any, varying: bool = False) -> Any:
    """Results with a star for each value that differs from run to run. Packages may come and go in `versions`."""
    if isinstance(value, dict):
        inner = {key: settled(part, varying or key in VARYING) for key, part in value.items()}
        return inner if "versions" not in inner else inner | {"versions": "*"}
    if isinstance(value, list):
        return [settled(part, varying) for part in value]
    return "*" if varying and value is not None else value


@torch.no_grad()
def record_hosts() -> dict[str, Any]:
    """`vp.prune` on small random models of transformers and timm."""
    from timm.models.vision_transformer import VisionTransformer
    from transformers import VideoMAEConfig, VideoMAEForVideoClassification

    found = {}
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 48}
    config = VideoMAEConfig(image_size=32, num_frames=8, patch_size=8, num_labels=5, **sizes)
    vit = VisionTransformer(img_size=32, patch_size=8, embed_dim=24, depth=3, num_heads=3, num_classes=5)
    for model, shape, options in (
        (VideoMAEForVideoClassification(config), (2, 8, 3, 32, 32), {"pruner": "x3d_s"}),
        (vit, (2, 3, 32, 32), {"pruner": "image_convnet", "model": "resnet18"}),
    ):
        for value in model.eval().parameters():
            value.add_(torch.randn(value.shape) * 0.1)  # so that attention is not uniform
        pixels = torch.rand(shape) * 2 - 1
        outputs = [model(pixels), vp.prune(model, keep_ratio=0.4, weights=None, **options)(pixels)]
        dense, pruned = (numbers(getattr(output, "logits", output)) for output in outputs)
        selection = kept(vp.kept_tokens(model, pixels))
        found[type(model).__name__] = {"kept": selection, "logits": pruned, "dense": dense}
    return found


def write(target: Path, names: list[str]) -> int:
    if ROOT not in Path(vp.__file__).resolve().parents:
        sys.exit(f"error: video_papr is imported from {vp.__file__}; use the environment of {ROOT}")
    torch.set_num_threads(1)  # sums depend on how they are split
    target.mkdir(parents=True, exist_ok=True)
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        write_data(data)
        for number, name in enumerate(names, 1):
            start = time.perf_counter()
            try:
                found = record_hosts() if name == HOSTS else record_configuration(name, data)
            except Exception as error:
                failed, found = failed + 1, {"failed": f"{type(error).__name__}: {error}"}
                print(f"{name}: {found['failed']}", file=sys.stderr)
            text = json.dumps({"torch": torch.__version__, **found}, indent=1).replace(str(data), "DATA")
            (target / f"{name}.json").write_text(text + "\n")
            print(f"[{number}/{len(names)}] {name}: {time.perf_counter() - start:.1f} s", flush=True)
    print(f"{len(names) - failed} recorded, {failed} failed")
    return int(failed > 0)


def differences(one: Any, two: Any, field: str = "") -> Iterator[str]:
    if isinstance(one, dict) and isinstance(two, dict):
        if field.endswith("settings.pruner"):
            one, two = ({RENAMED.get(k, k): RENAMED.get(str(v), v) for k, v in d.items()} for d in (one, two))
        for key in dict.fromkeys([*one, *two]):
            pair = one.get(key, "(absent)"), two.get(key, "(absent)")
            yield from differences(*pair, f"{field}.{key}".strip("."))
    elif isinstance(one, list) and isinstance(two, list) and len(one) == len(two):
        for index, pair in enumerate(zip(one, two, strict=True)):
            yield from differences(*pair, f"{field}[{index}]")
    elif repr(one) != repr(two):  # of one type, and every bit
        yield f"{field}: {str(one)[:200]} != {str(two)[:200]}"


def compare(one: Path, two: Path, names: list[str]) -> int:
    total = 0
    for name in names:
        files = [folder / f"{name}.json" for folder in (one, two)]
        lines = [f"{file} is missing" for file in files if not file.exists()]
        lines = lines or list(differences(*(json.loads(file.read_text()) for file in files)))
        total += len(lines)
        lines[8:] = [f"and {len(lines) - 8} more"] if len(lines) > 8 else []
        print(*(f"{name}: {line}" for line in lines), sep="\n", end="\n" * bool(lines))
    print(f"{len(names)} configurations compared, {total} differences")
    return int(total > 0)


def main(words: list[str]) -> int:
    match words:
        case ["write", target, *names] if {*names} <= {*NAMES}:
            return write(Path(target), names or NAMES)
        case ["compare", one, two, *names] if {*names} <= {*NAMES}:
            return compare(Path(one), Path(two), names or NAMES)
    print(f"{__doc__}\nNAME: {', '.join(NAMES)}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
