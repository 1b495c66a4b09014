"""Declared options: wrong values are one line, paths are taken as they are typed, former names are still read."""

from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from video_papr import pruning
from video_papr.config import (
    BackboneConfig,
    DepthConfig,
    EvalConfig,
    PrunerConfig,
    RuntimeConfig,
    TrainConfig,
    ViewsConfig,
    check,
    plain,
)
from video_papr.config.hydra import compose_words, plain_words
from video_papr.config.options import allowed, schemas
from video_papr.config.renamed import KEYS
from video_papr.core.errors import ConfigError


@pytest.fixture(scope="module")
def defaults():
    return plain(compose_words([], config="eval"))


WRONG = {
    "pruner.keep_ratio=0": "must be a number above 0 and at most 1.",
    "pruner.keep_ratio=1.5": "must be a number above 0 and at most 1.",
    "pruner.keep_ratio=abc": "must be",
    "pruner.keep_ratio=nan": "must be",
    "pruner.keep_ratio=true": "must be",
    "pruner.keep_ratio=null": "must be a number above 0 and at most 1.",
    "pruner.scope=gobal": "must be one of global, frame, place, null. Did you mean 'global'?",
    "pruner.size=0": "must be a whole number of at least 1, or null.",
    "pruner.budget=some": "must be one of fixed, top_p, threshold.",
    "pruner.threshold=1.5": "must be a number from 0 to 1.",
    "pruner.compensation_cell=[2,2]": "must be [frames, height, width], three whole numbers of at least 1.",
    "pruner.after_block=[3,1]": "must be a whole number of at least 0, or a list of ascending ones, as in [3,6,9].",
    "pruner.after_block=[]": "must be a whole number of at least 0, or",
    "pruner.after_block=[true,2]": "must be a whole number of at least 0, or",
    "pruner.stages=[res3,res3]": "must not name anything twice.",
    "pruner.stages=[res3,rse4]": "must be one of res2, res3, res4, res5, head. Did you mean 'res4'?",
    "pruner.name=x3d": "must be one of",
    "runtime.batch_size=2.5": "must be a whole number of at least 1, or auto.",
    "runtime.compile=maybe": "must be one of true, false, reduce-overhead, max-autotune.",
    "runtime.engine=tensorrt": "must be one of auto, torch, openvino, onnxruntime.",
    "views.crops=true": "must be one of 1, 3.",
    "dataset.clip_cache=true": "must be a name or a path, or null.",
    "dataset.root=[a]": "must be a name or a path, or null.",
    "dataset.root=' '": "must be a name or a path, or null.",
    "dataset.limit=0": "must be a whole number of at least 1, or null.",
    "dataset.camera=still": "must be one of mixed, calm, shaky.",
    "backbone.input_size=[32]": "must be a whole number of at least 1, or [height, width], or null.",
    "baseline=1": "must be true or false.",
    "seed=4294967296": "must be at most 4294967295.",
    "dataset.frame_stride=99999999999999999999999": "must be at most 4294967295.",
    "output_dir=null": "must be a name or a path.",
}


@pytest.mark.parametrize("word", WRONG)
def test_wrong_value_is_one_line(word, defaults):
    changed = plain(OmegaConf.merge(defaults, OmegaConf.from_dotlist([word])))
    with pytest.raises(ConfigError) as caught:
        check(EvalConfig, changed)
    line = str(caught.value)
    key, _, what = line.partition(": ")
    assert key.startswith(word.partition("=")[0] + "=") and what.startswith(WRONG[word]) and "\n" not in line


RULES = {
    "pruner.keepratio=0.2": "pruner.keepratio: no such key. Did you mean 'keep_ratio'? Known: name, keep_ratio, ",
    "visualise=3": "visualise: no such key. Did you mean 'visualize'?",
    "dataset.name=folder": "dataset.root is not set: dataset=folder needs dataset.root=PATH.",
    "dataset.name=ssv2 dataset.root=x": "dataset.annotations is not set: dataset=ssv2 needs dataset.annotations=FILE",
    "dataset.decode_size=short_side dataset.decoder=decord": "dataset.decode_size=short_side: dataset.decoder=decord ",
    "dataset.root=${nothing}": "dataset.root: Interpolation key 'nothing' not found",
    "backbone.input_size=[32,64]": "backbone.input_size=[32, 64]: videomae_tiny reads square frames, give one",
    "backbone.weights=null backbone.replace_head=true": "backbone.replace_head=true needs backbone.weights= and",
    "runtime.device=cpu runtime.dtype=fp16": "runtime.dtype='fp16': not supported on the CPU;",
    "runtime.compile=true runtime.packing=packed": "runtime.packing='packed': cannot be combined with",
    "task.name=image": "task=image: dataset=synthetic holds videos; use dataset=images.",
    "dataset.name=images dataset.root=x": "backbone=videomae_tiny: reads clips; images (dataset=images) need",
    "dataset=k400": "dataset='k400': must be an option of the group",
    "views=null": "views is not set: choose an option of the group, views=OPTION.",
}


@pytest.mark.parametrize("words", RULES)
def test_keys_that_do_not_go_together(words, defaults):
    with pytest.raises(ConfigError) as caught:
        check(EvalConfig, OmegaConf.merge(defaults, OmegaConf.from_dotlist(words.split())))
    assert str(caught.value).startswith(RULES[words])


def test_library_objects_are_checked_alike():
    """A class of options built in Python obeys the same ranges, with the same line."""
    for build, line in (
        (
            lambda: RuntimeConfig(batch_size=0),
            "runtime.batch_size=0: must be a whole number of at least 1, or auto.",
        ),
        (
            lambda: PrunerConfig("x3d_s", top_p=2.0),
            "pruner.top_p=2.0: must be a number above 0 and at most 1.",
        ),
        (lambda: ViewsConfig(1), "views.crops is not set."),
        (
            lambda: TrainConfig(keep_ratio=[0.5, 0.2]),
            "train.keep_ratio=[0.5, 0.2]: must be [low, high] with low",
        ),
        (lambda: DepthConfig(population=1), "depth.population=1: must be a whole number of at least 2."),
        (
            lambda: DepthConfig(mode="dense").kinds_of("videomae_tiny"),
            "depth.mode='dense': backbone=videomae_tiny has auto, ffn, block.",
        ),
    ):
        with pytest.raises(ConfigError) as caught:
            build()
        assert str(caught.value).startswith(line)
    assert PrunerConfig("papr_plus", stages="res5").stages == ("res5",)
    assert PrunerConfig("x3d_s", frames=4).options == {"frames": 4}
    assert BackboneConfig("videomae_b", weights="~/w.pt").weights == str(Path("~/w.pt").expanduser())


def test_words_for_a_range_are_made_from_its_type():
    assert allowed(schemas(RuntimeConfig)["workers"]) == "a whole number of at least 0, or auto"
    assert allowed(schemas(PrunerConfig)["compensation"]) == "one of none, pool, merge"
    assert allowed({"type": "integer", "minimum": 0, "maximum": 65535}) == "a whole number from 0 to 65535"


PATHS = [
    "~/videos",
    "jürgen/日本",
    "Videos (1)",
    "epoch=9-step=100.ckpt",
    "[a]",
    "it's",
    "a#b",
    "a&b; c",
    "a,b",
    "{x}\\",
    "'tis",
    '"half',
    "'",
]


@pytest.mark.parametrize("path", PATHS)
def test_paths_are_taken_as_they_are_typed(path):
    parse = OverridesParser.create().parse_override
    for command, key in (
        ("eval", "dataset.root"),
        ("eval", "backbone.weights"),
        ("train", "train.weights"),
        ("predict", "video"),
        ("bench", "video"),
    ):
        (word,) = plain_words(command, [f"{key}={path}"])
        assert parse(word).value() == str(Path(path).expanduser()) or "~" not in path
    assert plain_words("eval", ["output_dir=a", "pruner=x3d_s", "seed=1"])[1:] == ["pruner=x3d_s", "seed=1"]


def test_values_that_hydra_is_to_read_stay():
    for word in ("dataset.root='a b'", "dataset.root=null", "backbone.weights=${dataset.bundled.backbone}"):
        assert plain_words("eval", [word]) == [word]
    sweep = ["-m", "backbone.weights=a.pt,b.pt", "dataset.root=glob(*)"]
    assert plain_words("eval", sweep) == sweep


def test_a_file_alone_may_hold_an_equals_sign(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a=b (1).mp4", "~a.mp4", "top_k=3"):
        (tmp_path / name).touch()
        assert plain_words("predict", [name]) == [f"video='{name}'"]
        (tmp_path / name).unlink()
    assert plain_words("predict", ["top_k=3", "~views"]) == ["top_k=3", "~views"]


def test_flags_and_a_path_alone():
    assert plain_words("predict", ["clip (1).mp4"]) == ["video='clip (1).mp4'"]
    assert plain_words("predict", ["--video", "a,b.mp4", "top_k=3"]) == ["video='a,b.mp4'", "top_k=3"]
    assert plain_words("eval", ["--cfg", "job", "-m", "--dataset.root=x"]) == [
        "--cfg",
        "job",
        "-m",
        "dataset.root='x'",
    ]
    assert plain_words("eval", ["-sc", "install=bash"]) == ["-sc", "install=bash"]
    for words, line in (
        (["a.mp4", "b.mp4"], "'b.mp4': a second video; give a folder"),
        (["--vidoe=a.mp4"], "--vidoe=a.mp4: no such flag; keys are written without dashes"),
        (["--video"], "--video: write video=VALUE."),
    ):
        with pytest.raises(ConfigError) as caught:
            plain_words("predict", words)
        assert str(caught.value).startswith(line)


FORMER = {
    "pruner.carry=merge": "pruner.compensation=merge",
    "pruner.floor=0.1,0.2": "pruner.min_per_frame=0.1,0.2",
    "+pruner.mass=0.4": "+pruner.top_p=0.4",
    "pruner.budget=fixed,mass": "pruner.budget=fixed,top_p",
    "depth.augment=mirror": "depth.augment=hflip",
    "runtime.kernels=true": "runtime.engine=auto",
}


def test_former_names_are_read_with_a_warning(defaults, capsys):
    for old, new in FORMER.items():
        assert plain_words("eval", [old]) == [new]
        assert f"{old} is the former spelling of {new}" in capsys.readouterr().err.replace("\n", " ")
    stored = {**defaults, "pruner": {**defaults["pruner"], "carry": "pool", "budget": "mass"}}
    pruner = check(EvalConfig, stored).pruner
    assert (pruner.compensation, pruner.budget) == ("pool", "top_p")
    assert "pruner.carry is the former spelling of pruner.compensation" in capsys.readouterr().err.replace(
        "\n", " "
    )


def test_the_library_and_the_configuration_renamed_the_same():
    library = getattr(pruning, "RENAMED_OPTIONS", {})
    former = {old.removeprefix("pruner."): new for old, new in KEYS.items() if old.startswith("pruner.")}
    assert {old: f"pruner.{new}" for old, new in library.items()}.items() <= former.items()
