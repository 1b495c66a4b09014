"""Every file in conf/: it composes, passes the checks, says which command runs it, and explains its keys."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from video_papr.backbones.builders import BACKBONES
from video_papr.backbones.videomae import VideoMAE
from video_papr.backbones.vivit import ViViT
from video_papr.config import EvalConfig, check
from video_papr.core.errors import ConfigError
from video_papr.pruning.builders import OPTIONS, PRUNERS, build_pruner
from video_papr.pruning.tome import MERGERS

CONF = Path(__file__).resolve().parents[2] / "conf"
GROUPS = ("dataset", "backbone", "pruner", "merger", "views", "runtime", "experiment", "task")
FILES = sorted(path for group in (*GROUPS, "hydra/launcher") for path in (CONF / group).glob("*.yaml"))
GIVEN = ("dataset.root=videos", "dataset.annotations=list.csv")  # what some datasets insist on


def evaluation(*overrides: str) -> EvalConfig:
    with initialize_config_module("video_papr.conf", version_base="1.3"):
        return check(compose("eval", overrides=list(overrides)))


def options(group: str) -> list[str]:
    """Names that may be chosen with eval; files with a leading underscore are parts of others."""
    paths = [path for path in FILES if path.parent.name == group and not path.stem.startswith("_")]
    return [path.stem for path in paths if "tools/eval.py" in path.read_text()]


@pytest.mark.parametrize("path", [*FILES, *CONF.glob("*.yaml")], ids=lambda path: str(path.relative_to(CONF)))
def test_file_explains_itself(path: Path) -> None:
    lines = path.read_text().splitlines()
    header = lines[1] if lines[0].startswith("# @package") else lines[0]
    assert header.startswith(("# python tools/", "# python -m video_papr.cli.")), (
        "the first line is the command that runs this file"
    )
    if path.parent.name == "experiment":
        return  # its keys are explained in the groups that it overrides
    body = "\n".join(lines).split("\nhydra:")[0].splitlines()  # Hydra's own keys are documented by Hydra
    for line in body:
        if re.match(r" *[a-z_0-9]+:( |$)", line) and line not in (
            "defaults:",
            "dataset:",
            "train:",
            "depth:",
        ):
            assert "# " in line, f"this key has no comment: {line}"


@pytest.mark.parametrize(
    ("group", "option"), [(group, option) for group in GROUPS for option in options(group)]
)
def test_option_composes_and_passes_the_checks(group: str, option: str) -> None:
    device = [] if group == "runtime" else ["runtime.device=cpu"]
    config = evaluation(f"{group}={option}", *GIVEN, *device)
    if group in ("dataset", "backbone", "pruner"):
        assert getattr(config, group).name == option
    if group == "views":
        assert str(config.views) == option


VARIANTS = sorted((CONF / "pruner" / "papr_plus").glob("*.yaml"))


@pytest.mark.parametrize("path", VARIANTS, ids=lambda path: path.stem)
def test_variants_of_papr_plus_change_what_they_name(path: Path) -> None:
    base, own = evaluation("pruner=papr_plus").pruner, evaluation(f"pruner=papr_plus/{path.stem}").pruner
    named = set(OmegaConf.load(path)) - {"defaults"}
    changed = {key for key in own.options if own.options[key] != base.options[key]}
    assert changed == named
    assert path.read_text().startswith(f"# python tools/eval.py pruner=papr_plus/{path.stem}\n")
    if changed != {"align_corners", "cell_center"}:  # one goes with the other
        assert len(changed) == 1


def test_ablation_runs_every_variant() -> None:
    swept = OmegaConf.load(CONF / "experiment" / "papr_plus_ablation.yaml").hydra.sweeper.params.pruner
    assert {f"papr_plus/{path.stem}" for path in VARIANTS} <= set(swept.split(","))


@pytest.mark.parametrize(
    ("option", "plugin", "target"),
    [("two_at_once", "joblib", "JoblibLauncher"), ("slurm_gpu", "submitit", "SlurmLauncher")],
)
def test_launchers_compose(option: str, plugin: str, target: str) -> None:
    pytest.importorskip(f"hydra_plugins.hydra_{plugin}_launcher")
    with initialize_config_module("video_papr.conf", version_base="1.3"):
        cfg = compose("eval", overrides=[f"hydra/launcher={option}"], return_hydra_config=True)
    assert cfg.hydra.launcher._target_.endswith(f".{target}")
    own = OmegaConf.load(CONF / f"hydra/launcher/{option}.yaml")
    assert all(cfg.hydra.launcher[key] == value for key, value in own.items() if key != "defaults")


def test_library_and_configs_know_the_same_names() -> None:
    assert set(options("pruner")) == set(PRUNERS)
    assert set(options("backbone")) == set(BACKBONES)
    assert set(options("merger")) == set(MERGERS)


@pytest.mark.parametrize(
    ("overrides", "backbone"),
    [
        ([], "videomae_tiny"),
        (["dataset=synthetic"], "videomae_tiny"),
        (["dataset=k400"], "videomae_b"),
        (["dataset=k400", "backbone=videomae_s"], "videomae_s"),
        (["backbone=videomae_s", "dataset=k400"], "videomae_s"),
        (["dataset=ucf101"], "videomae_b"),
        (["experiment=papr_k400_b"], "videomae_b"),
        (["experiment=papr_k400_b", "backbone=videomae_h"], "videomae_h"),
    ],
)
def test_dataset_chooses_the_backbone_unless_one_is_given(overrides: list[str], backbone: str) -> None:
    assert evaluation(*overrides, "dataset.root=videos").backbone.name == backbone


def test_task_image_chooses_dataset_backbone_and_pruner() -> None:
    config = evaluation("task=image", "dataset.root=images")
    chosen = (config.dataset.name, config.backbone.name, config.pruner.name)
    assert chosen == ("images", "timm_vit", "image_convnet")
    assert config.backbone.weights == config.pruner.weights == "pretrained"
    assert evaluation("task=image", "dataset.root=images", "pruner=random").pruner.name == "random"


def test_bundled_weights_go_with_their_dataset_only() -> None:
    synthetic, folder = evaluation(), evaluation("dataset=folder", "dataset.root=videos")
    assert (synthetic.backbone.weights, synthetic.pruner.weights) == (
        "videomae_tiny_synthetic",
        "x3d_s_synthetic",
    )
    assert (folder.backbone.weights, folder.pruner.weights) == (None, None)


def test_published_recipe_is_the_default_away_from_synthetic_videos() -> None:
    pruner = evaluation("dataset=k400", "dataset.root=videos").pruner
    assert (pruner.frames, pruner.size, pruner.stage) == (8, 160, "head")
    assert (pruner.align_corners, pruner.scope) == (True, "global")


def test_one_stage_needs_no_list() -> None:
    assert evaluation("pruner=papr_plus", "pruner.stages=res5").pruner.stages == ("res5",)


def test_top_level_seed_reaches_random_weights_and_the_random_pruner() -> None:
    assert evaluation("seed=7", "pruner=random").pruner.seed == 7
    assert evaluation("seed=7", "pruner=x3d_s").pruner.seed == 7


def test_output_directory_serves_run_and_sweep() -> None:
    with initialize_config_module("video_papr.conf", version_base="1.3"):
        cfg = compose("eval", overrides=["output_dir=here"], return_hydra_config=True)
    assert (cfg.hydra.run.dir, cfg.hydra.sweep.dir) == ("here", "here")


def test_help_names_every_option() -> None:
    text = OmegaConf.load(CONF / "eval.yaml").hydra.help.template
    words = set(re.findall(r"[\w]+", text))
    for group in GROUPS:
        assert {group, *options(group)} <= words


@pytest.mark.parametrize("command", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)
def test_help_of_every_command_has_a_line_for_each_group(command: Path) -> None:
    config = OmegaConf.load(command)
    own = [str(key) for entry in config.defaults if not isinstance(entry, str) for key in entry]
    lines = config.hydra.help.template.splitlines()
    for group in (key for key in own if key in GROUPS):
        assert [line for line in lines if re.match(rf" +{group} +\w", line)], (
            f"--help has no line for {group}"
        )
    assert any("--cfg job" in line for line in lines)


WRONG = {
    "pruner.keep_ratio=0": "pruner.keep_ratio=0: must be a number above 0 and at most 1",
    "pruner.keep_ratio=1.5": "pruner.keep_ratio=1.5: must be",
    "pruner.keep_ratio=abc": "pruner.keep_ratio='abc': must be",
    "pruner.keep_ratio=nan": "pruner.keep_ratio=nan: must be",
    "pruner.keep_ratio=true": "pruner.keep_ratio=true: must be",
    "pruner.keep_ratio=null": "pruner.keep_ratio=null: must be",
    "+pruner.keepratio=0.2": "pruner.keepratio: no such key. Did you mean 'keep_ratio'?",
    "pruner.scope=gobal": "pruner.scope='gobal': must be one of global, frame, place, null. Did you mean 'global'?",
    "pruner.name=x3d": "pruner.name='x3d': must be one of none, x3d_xs,",
    "pruner.size=0": "pruner.size=0: must be a whole number of at least 1, or null.",
    "pruner.budget=some": "pruner.budget='some': must be one of fixed, mass, threshold, null.",
    "pruner.mass=0": "pruner.mass=0: must be a number above 0 and at most 1, or null.",
    "pruner.threshold=1.5": "pruner.threshold=1.5: must be a number from 0 to 1, or null.",
    "pruner.min_keep=0": "pruner.min_keep=0: must be a number above 0 and at most 1, or null.",
    "pruner.max_keep=2": "pruner.max_keep=2: must be a number above 0 and at most 1, or null.",
    "pruner=similarity pruner.mode=top": "pruner.mode='top': must be one of ratio, threshold, adaptive, null.",
    "pruner=similarity pruner.deviations=x": "pruner.deviations='x': must be a number, or null.",
    "pruner=similarity pruner.diversity=grd": "pruner.diversity='grd': must be one of none, cluster, grid, null. Did",
    "pruner=similarity pruner.cluster_tau=nan": "pruner.cluster_tau=nan: must be a number, or null.",
    "pruner=similarity pruner.after_block=-1": "pruner.after_block=-1: must be a whole number of at least 0, or null.",
    "pruner=similarity pruner.after_block=[3,1]": "pruner.after_block=[3, 1]: must be a whole number of at least 0, or",
    "pruner=similarity pruner.after_block=[]": "pruner.after_block=[]: must be a whole number of at least 0,",
    "pruner=similarity pruner.after_block=[true,2]": "pruner.after_block=[True, 2]: must be a whole number",
    "pruner.carry_cell=[2,2]": "pruner.carry_cell=[2, 2]: must be [frames, height, width], three whole numbers",
    "pruner.carry=mean": "pruner.carry='mean': must be one of none, pool, merge, null.",
    "pruner=run_length pruner.tau=x": "pruner.tau='x': must be a number, or null.",
    "merger=tome merger.r=-1": "merger.r=-1: must be a whole number of at least 0, or null.",
    "merger=tome merger.schedule=const": "merger.schedule='const': must be one of constant, decreasing, null.",
    "merger=none merger.name=tme": "merger.name='tme': must be one of none, tome. Did you mean 'tome'?",
    "runtime.batch_size=0": "runtime.batch_size=0: must be a whole number of at least 1, or auto.",
    "runtime.batch_size=2.5": "runtime.batch_size=2.5: must be",
    "runtime.workers=-1": "runtime.workers=-1: must be a whole number of at least 0, or auto.",
    "runtime.device=tpu": "runtime.device='tpu': must be one of auto, cpu, cuda.",
    "runtime.dtype=fp8": "runtime.dtype='fp8': must be one of",
    "runtime.compile=maybe": "runtime.compile='maybe': must be true, false, reduce-overhead or max-autotune.",
    "runtime.kernels=auto": "runtime.kernels='auto': must be true or false.",
    "views.crops=2": "views.crops=2: must be one of 1, 3.",
    "views.clips=0": "views.clips=0: must be a whole number of at least 1.",
    "dataset.decoder=ffmpeg": "dataset.decoder='ffmpeg': must be one of auto, decord, pyav, pillow.",
    "dataset.decode_size=small": "dataset.decode_size='small': must be one of full, short_side.",
    "dataset.decode_size=short_side dataset.decoder=decord": "dataset.decode_size=short_side: dataset.decoder=",
    "dataset.clip_cache=true": "dataset.clip_cache=true: must be a name or a path.",
    "dataset.clip_cache_gb=0": "dataset.clip_cache_gb=0: must be a number above 0.",
    "dataset.limit=0": "dataset.limit=0: must be a whole number of at least 1, or null.",
    "dataset.frame_stride=0": "dataset.frame_stride=0: must be",
    "dataset.camera=still": "dataset.camera='still': must be one of mixed, calm, shaky, null.",
    "dataset.split=dev": "dataset.split='dev': must be one of test, val, train.",
    "dataset.sampling=tsn": "dataset.sampling='tsn': must be one of dense, uniform, videomae_dense,",
    "dataset=hmdb51 dataset.root=videos dataset.fold=4": "dataset.fold=4: must be one of 1, 2, 3.",
    "dataset=ssv2 dataset.root=videos": "dataset.annotations is not set: dataset=ssv2 needs",
    "dataset=folder": "dataset.root is not set: dataset=folder needs dataset.root=PATH.",
    "dataset=csv dataset.root=videos": "dataset.annotations is not set: dataset=csv needs",
    "dataset.root=${nothing}": "dataset.root: Interpolation key 'nothing' not found",
    "backbone=timm_vit backbone.input_size=[32]": "backbone.input_size=[32]: must be a whole number of at least 1, or",
    "backbone.input_size=[32,64]": "backbone.input_size=[32, 64]: videomae_tiny reads square frames, give one number.",
    "task=image dataset=folder dataset.root=x": "task=image: dataset=folder holds videos; use dataset=images.",
    "task=image dataset.root=x backbone=vivit_b": "backbone=vivit_b: reads clips; images (dataset=images) need",
    "task=image dataset.root=x pruner=motion": "pruner=motion: compares the frames of a video, and an image has one;",
    "task=image dataset.root=x views=5x1": "views.clips=5: an image is one clip; use views=1x1 or 1x3.",
    "seed=-1": "seed=-1: must be a whole number of at least 0.",
    "baseline=1": "baseline=1: must be true or false.",
    "+visualise=3": "visualise: no such key. Did you mean 'visualize'?",
    "output_dir=null": "output_dir=null: must be a name or a path.",
}


@pytest.mark.parametrize("overrides", WRONG)
def test_wrong_value_gives_one_line_that_names_it(overrides: str) -> None:
    with pytest.raises(ConfigError) as caught:
        evaluation(*overrides.split())
    assert str(caught.value).startswith(WRONG[overrides])
    assert "\n" not in str(caught.value)


def test_group_left_out() -> None:
    with pytest.raises(
        ConfigError, match=r"^dataset is not set: choose an option of the group, dataset=OPTION"
    ):
        check({"seed": 0})


def test_group_that_is_no_mapping() -> None:
    with pytest.raises(ConfigError, match=r"^dataset='k400': must be an option of the group"):
        check({"dataset": "k400"})


def test_missing_key_of_a_group() -> None:
    with pytest.raises(ConfigError, match=r"^dataset\.name is not set"):
        check({"dataset": {}})


def test_pruner_gets_only_the_options_that_its_file_has() -> None:
    budget: dict[str, object] = {
        "budget": "fixed",
        "mass": 0.5,
        "threshold": 0.5,
        "min_keep": 0.05,
        "max_keep": 1.0,
    }
    budget.update(carry="none", carry_cell=(2, 2, 2))
    assert evaluation("pruner=center").pruner.options == {"keep_ratio": 0.3, **budget}
    assert set(evaluation("pruner=random").pruner.options) == {"keep_ratio", "scope", "seed", *budget}
    assert set(evaluation("pruner=run_length").pruner.options) == {
        "tau",
        "min_keep",
        "max_keep",
        "carry",
        "carry_cell",
    }
    assert evaluation("merger=none").merger.options == {}
    assert evaluation("merger=tome").merger.options == {"r": 16, "schedule": "constant"}


@pytest.mark.parametrize("name", PRUNERS)
def test_defaults_of_a_file_are_those_of_the_library(name: str) -> None:
    given = evaluation(f"pruner={name}", "dataset=folder", "dataset.root=videos").pruner.options
    if name == "none":
        assert given == {"keep_ratio": 1.0}  # not used
        return
    assert set(given) <= set(OPTIONS[name])
    one, two = build_pruner(name), build_pruner(name, **given)
    assert one is not None and two is not None
    assert one.budget == two.budget
    for key in ("floor", "carry", "carry_cell", "diversity", "cluster_tau", "after_blocks"):
        assert getattr(one, key, None) == getattr(two, key, None)


# experiment -> (sampling, stride, short side, views, frames of a clip, mean of the pixels) of the paper's evaluation
PROTOCOLS = {
    "papr_k400_b": ("videomae_dense", 4, 224, "5x3", 16, 0.485),
    "papr_k400_l": ("videomae_dense", 4, 224, "5x3", 16, 0.485),
    "papr_k400_vivit": ("vivit_dense", 2, 256, "4x3", 32, 0.5),
    "papr_ssv2_b": ("videomae_uniform", 4, 224, "2x3", 16, 0.485),
}


@pytest.mark.parametrize("name", PROTOCOLS)
def test_experiments_pin_the_protocol_of_their_paper(name: str) -> None:
    sampling, stride, short_side, views, num_frames, mean = PROTOCOLS[name]
    config = evaluation(f"experiment={name}", *GIVEN)
    dataset, backbone = config.dataset, config.backbone
    assert (dataset.sampling, dataset.frame_stride, dataset.short_side) == (sampling, stride, short_side)
    assert str(config.views) == views
    network = ViViT if backbone.name.startswith("vivit") else VideoMAE
    assert (BACKBONES[backbone.name]["num_frames"], network.mean[0]) == (num_frames, mean)
    assert BACKBONES[backbone.name]["input_size"] == 224


@pytest.mark.parametrize("name", PROTOCOLS)
@pytest.mark.parametrize("pruner", ["x3d_s", "x3d_m", "none", "random"])
def test_experiments_take_published_weights(name: str, pruner: str) -> None:
    config = evaluation(f"experiment={name}", f"pruner={pruner}", *GIVEN)
    assert config.backbone.weights is not None and "/" in config.backbone.weights
    assert config.pruner.weights == (f"{pruner}_k400" if pruner.startswith("x3d") else None)


def test_smaller_and_larger_backbones_take_the_weights_of_their_size() -> None:
    for size, word in (("s", "small"), ("l", "large"), ("h", "huge")):
        config = evaluation("experiment=papr_k400_b", f"backbone=videomae_{size}", *GIVEN)
        assert config.backbone.weights == f"MCG-NJU/videomae-{word}-finetuned-kinetics"
