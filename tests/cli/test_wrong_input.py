"""Every command says what is wrong in one line that names the key, and ends with status 2."""

import io
import sys

import pytest

LITTLE = "backbone.num_frames=8 backbone.input_size=32 dataset.num_videos=13"
TINY = "backbone.num_frames=4 backbone.input_size=16 backbone.weights=null pruner=motion"
SMALL = {
    "bench": "backbones=[videomae_tiny] num_frames=[8] input_sizes=[32] pruners=[random] ceilings=false progress=false",
    "demo": f"{TINY} pruners=[center] runtime=cpu examples=2",
    "depth_prune": f"{LITTLE} depth.batch_size=4 depth.val_videos=12 progress=false",
    "export": TINY,
    "predict": f"{TINY} runtime=cpu progress=false",
    "train": f"{LITTLE} train.steps=2 train.batch_size=4 train.val_videos=12 progress=false runtime.workers=0",
}

# What a single value may be is asked in tests/config; here is what only a command knows.
WRONG = {
    "eval": {
        "pruner=x3dd": "pruner=x3dd: no such option. Did you mean 'x3d_s'? Options: brightness, center,",
        "pruner.keepratio=0.2": "pruner.keepratio: no such key. Did you mean 'keep_ratio'? Known: ",
        "prunner=none": "prunner: no such key. Did you mean 'pruner'?",
        "pruner.keep_ratio=0": "pruner.keep_ratio=0: must be a number above 0",
        "optimize=top2": "optimize='top2' is unknown; use one of top1, ",
        "dataset=folder": "dataset.root is not set: dataset=folder needs dataset.root=PATH.",
        "dataset=folder dataset.root=/does/not/exist": "dataset.root=/does/not/exist",
        "dataset=folder,csv": "dataset=folder,csv: several values; add -m to run each of them.",
        "dataset=null": "Config group override must be",
        "word": "cannot read 'word': write key=value, or group=option.",
        "dataset.root=${nothing}": "dataset.root: Interpolation key 'nothing' not found",
        "backbone.input_size=15 dataset=folder dataset.root=videos": "backbone.input_size=15 ",
        "-m pruner=none,x3dd": "pruner=x3dd: no such option.",
    },
    "bench": {
        "backbones=[videomae_x]": "backbones='videomae_x': must be one of timesformer_b, ",
        "backbones=[]": "backbones=[]: must be a list of one or more, each a name or a path.",
        "pruners=[x3d_q]": "pruners: pruner.name='x3d_q': must be one of ",
        "pruners=[none]": "pruners='none': the dense model is always among the variants",
        "keep_ratios=[0.3,0.3]": "keep_ratios=[0.3, 0.3]: must not name anything twice.",
        "dtypes=[fp16]": "dtypes=fp16: not supported on the CPU",
        "num_frames=[7]": "backbone.num_frames=7 must be a positive multiple of the tubelet's 4",
        "video=no.mp4": "cannot decode no.mp4",
    },
    "demo": {
        "pruner=none": "pruner=none: cannot be offered, it has no keep ratio to choose",
        "pruner.budget=mass": "pruner.budget and pruner.mode must leave the keep ratio to the slider.",
        "merger=tome": "merger=tome: the demo shows pruning alone; use merger=none.",
        "pruners=[best]": "pruners=best: cannot be offered, it has no keep ratio to choose; take papr_plus,",
        "port=70000": "port=70000: must be a whole number from 0 to 65535.",
        "host=not.an.address examples=0": "host=not.an.address port=7860: cannot listen:",
    },
    "depth_prune": {
        "depth.prune=4 depth.mode=block": "depth.prune=4: must be 1 to 3 blocks (of 4, one must stay)",
        "depth.prune=20 depth.target=scorer": "depth.prune=20: must be 1 to 19 blocks",
        "depth.mode=dense": "depth.mode='dense': backbone=videomae_tiny has auto, ffn, block.",
        "depth.mode=ffn depth.target=scorer": "depth.mode='ffn': depth.target=scorer has auto, dense, pointwise.",
        "depth.fitness=map": "depth.fitness='map': only depth.target=scorer has a map; use accuracy.",
        "depth.max_latency=0.9 depth.method=greedy": "depth.max_latency=0.9: depth.method=greedy knows no budget; ",
        "depth.batch_size=6 depth.accumulate=4": "depth.accumulate=4 must divide depth.batch_size=6",
        "depth.keep_by=actor": "depth.keep_by=actor needs dataset=synthetic, which knows its actors, and depth.keep_",
        "dataset.split=test": "dataset.split=test: pruning trains on the split train and searches on val; test is for",
        "backbone.weights=null": "backbone.weights=null: there is nothing to learn from a random model",
        "backbone.weights=absent": "backbone.weights=absent is neither a file nor a bundled model",
        "depth.target=scorer depth.weights=null": "depth.weights=null: there is nothing to learn from a random scorer",
        "depth.target=scorer depth.weights=absent": "depth.weights=absent is neither a file nor a bundled model",
        "depth.target=scorer depth.weights=videomae_tiny_synthetic": "depth.weights=videomae_tiny_synthetic is no",
        "backbone=timm_vit": "dataset=synthetic, backbone=timm_vit, depth.target=backbone: depth pruning is for Vid",
    },
    "export": {
        "pruner=random": "pruner=random cannot be exported",
        "pruner.budget=top_p": "pruner=motion with budget 'top_p' cannot be exported",
        "onnx=false program=false aot=false": "onnx, program and aot are all false: nothing is left to write.",
        "runtime.dtype=bf16": "runtime.dtype='bf16': graphs are written in float32",
        "runtime.compile=true": "runtime.compile: not for export",
        "runtime.engine=openvino": "runtime.engine='openvino': not for export",
    },
    "predict": {
        "": "video is not set: video=PATH, a file, folder or pattern; video=- reads paths from stdin.",
        "video=absent.mp4": "video=absent.mp4: no such file or folder",
        "video=*.absent": "video=*.absent: no file fits this pattern",
        "video=empty": "video=empty: no video in this folder (endings: ",
        "video=-": "video=-: stdin holds no path; give one in each line.",
        "video=text.mp4": "no video could be read; the first: cannot decode text.mp4",
        "video=text.mp4 stride_seconds=1": "stride_seconds=1.0: needs window_seconds=SECONDS.",
        "video=text.mp4 dataset.class_names=absent.txt": "dataset.class_names=absent.txt",
    },
    "prepare_data": {
        "dataset.index=x.csv": "dataset.index='x.csv': this command writes the index; leave it out.",
        "dataset=folder dataset.root=nowhere": "dataset.root=nowhere does not exist",
    },
    "train": {
        "train.batch_size=6 train.accumulate=4": "train.accumulate=4 must divide train.batch_size=6",
        "train.curriculum=[0.5]": "train.curriculum=[0.5]: must be a list of [clutter, number of videos]",
        "train.keep_by=map": "train.keep_by=map needs dataset=synthetic, which knows its actors, and train.keep_ratio",
        "train.augment=natural": "train.augment=natural: is for real videos",
        "dataset=folder dataset.root=videos train.curriculum=[[0,9]]": "train.curriculum: only dataset=synthetic",
        "train.weights=absent": "train.weights=absent",
        "backbone.weights=x.safetensors": "backbone.weights=x.safetensors: a training starts from train.weights=",
        "dataset.split=test": "dataset.split=test: training reads the split train; val and test are for measuring",
    },
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A working directory with videos that are none."""
    folder = tmp_path_factory.mktemp("wrong")
    (folder / "empty").mkdir()
    (folder / "text.mp4").write_text("not a video")
    for name in ("a/1.mp4", "a/2.mp4", "b/3.mp4", "b/4.mp4"):
        (folder / "videos" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "videos" / name).write_text("not a video")
    return folder


@pytest.mark.parametrize(
    ("name", "words"), [(name, words) for name, table in WRONG.items() for words in table]
)
def test_wrong_input_gives_one_line(run, name, words, place, tmp_path, monkeypatch):
    if name == "demo":
        pytest.importorskip("starlette", reason="the extra [app] is not installed")
    monkeypatch.chdir(place)
    monkeypatch.setenv("VIDEO_PAPR_CACHE", str(place / "cache"))
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n"))
    given = {word.split("=")[0] for word in words.split()}
    small = [word for word in SMALL.get(name, "").split() if word.split("=")[0] not in given]
    if "dataset=folder" in words:
        small = [word for word in small if word != "dataset.num_videos=13"]
    status, shown, errors = run(name, *small, f"output_dir={tmp_path / 'out'}", *words.split())
    assert status == 2, errors
    assert errors.splitlines()[-1].startswith(f"error: {WRONG[name][words]}"), errors
    assert len([line for line in errors.splitlines() if not line.startswith("warning:")]) == 1
    assert "Traceback" not in errors + shown
