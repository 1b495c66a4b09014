"""Every file in conf/ composes, passes the checks and says which command runs it."""

import re
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from video_papr.assembly.build import build_folded_pruner
from video_papr.backbones.builders import BACKBONES
from video_papr.checkpoints.files import PROBE
from video_papr.config import COMMANDS, EvalConfig, check, plain
from video_papr.config.checking import sections
from video_papr.config.options import defaults_of
from video_papr.config.sources import about, names
from video_papr.core.errors import ConfigError
from video_papr.pruning.builders import build_pruner
from video_papr.pruning.tome import MERGERS

ROOT = Path(__file__).resolve().parents[2]
CONF = ROOT / "conf"
FILES = sorted(CONF.rglob("*.yaml"))
RENAMED_KEYS = ("carry", "compensation", "floor", "min_per_frame", "ground", "uniform_share")
GIVEN = ["dataset.root=videos", "dataset.annotations=list.csv"]  # what some datasets insist on


def composed(command, *words):
    with initialize_config_module("video_papr.conf", version_base="1.3"):
        return compose(command, overrides=[*words])


def evaluation(*words):
    return check(EvalConfig, composed("eval", *words))


def test_every_file_opens_with_its_command_and_says_what_it_is():
    for path in FILES:
        command, text = about(path)
        assert command.startswith(("python tools/", "python -m video_papr.cli.")), path
        assert len(text) > 15, path


def test_defaults_are_written_once():
    """A file of an option sets what it changes; the rest is declared."""
    declared = {group: part for schema in COMMANDS.values() for group, part in sections(schema).items()}
    for group in ("dataset", "backbone", "runtime"):
        for name in names(group):
            own = OmegaConf.to_container(OmegaConf.load(CONF / group / f"{name}.yaml"))
            same = {key for key, value in own.items() if defaults_of(declared[group]).get(key, ...) == value}
            assert not same, (group, name)
    for command, schema in COMMANDS.items():
        own = set(OmegaConf.load(CONF / f"{command}.yaml")) - {"defaults", "hydra", *declared}
        assert own == {"output_dir"} and not own & set(defaults_of(schema))


@pytest.mark.parametrize("group", ["dataset", "backbone", "pruner", "merger", "views", "runtime", "task"])
def test_every_option_composes(group):
    device = [] if group == "runtime" else ["runtime.device=cpu"]
    for name in names(group):
        config = evaluation(f"{group}={name}", *GIVEN, *device)
        if group in ("dataset", "backbone", "pruner", "merger"):
            assert getattr(config, group).name == name
        if group == "views":
            assert str(config.views) == name


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_and_experiment_composes(command):
    check(COMMANDS[command], composed(command))
    for name in names("experiment"):
        if f"{command}.py" in about(CONF / "experiment" / f"{name}.yaml")[0]:
            given = [] if command == "bench" else GIVEN
            device = ["runtime.device=cpu"] if name == "bench_gpu" else []
            check(COMMANDS[command], composed(command, f"experiment={name}", *given, *device))


def test_ablation_changes_what_each_variant_names():
    folder = ROOT / "benchmarks" / "papr_plus_ablation"
    swept = OmegaConf.load(folder / "experiment" / "papr_plus_ablation.yaml").hydra.sweeper.params.pruner
    search = f"hydra.searchpath=[file://{folder}]"
    base = evaluation("pruner=papr_plus").pruner.options
    for path in sorted((folder / "pruner" / "papr_plus").glob("*.yaml")):
        own = evaluation(search, f"pruner=papr_plus/{path.stem}").pruner.options
        assert {key for key in own if own[key] != base[key]} == set(OmegaConf.load(path)) - {"defaults"}
        assert f"papr_plus/{path.stem}" in swept.split(",")


@pytest.mark.parametrize(
    ("name", "plugin", "target"),
    [("two_at_once", "joblib", "JoblibLauncher"), ("slurm_gpu", "submitit", "SlurmLauncher")],
)
def test_launchers_compose(name, plugin, target):
    pytest.importorskip(f"hydra_plugins.hydra_{plugin}_launcher")
    with initialize_config_module("video_papr.conf", version_base="1.3"):
        cfg = compose("eval", overrides=[f"hydra/launcher={name}"], return_hydra_config=True)
    assert cfg.hydra.launcher._target_.endswith(f".{target}")
    own = OmegaConf.load(CONF / f"hydra/launcher/{name}.yaml")
    assert all(cfg.hydra.launcher[key] == value for key, value in own.items() if key != "defaults")


def test_library_and_configs_know_the_same_names():
    assert set(names("backbone")) == {*BACKBONES, PROBE}
    assert set(names("merger")) == set(MERGERS)


def test_datasets_and_tasks_choose_what_is_not_given():
    for words, backbone in {
        "": "videomae_tiny",
        "dataset=k400": "videomae_b",
        "backbone=videomae_s dataset=k400": "videomae_s",
        "experiment=papr_k400_b backbone=videomae_h": "videomae_h",
    }.items():
        assert evaluation(*words.split(), "dataset.root=videos").backbone.name == backbone
    config = evaluation("task=image", "dataset.root=images")
    chosen = (config.dataset.name, config.backbone.name, config.pruner.name)
    assert chosen == ("images", "timm_vit", "image_convnet")
    assert config.backbone.weights == config.pruner.weights == "pretrained"
    assert evaluation("task=image", "dataset.root=images", "pruner=random").pruner.name == "random"


def test_weights_go_with_their_dataset():
    synthetic, folder = evaluation("seed=7"), evaluation("dataset=folder", "dataset.root=videos")
    assert (synthetic.backbone.weights, synthetic.pruner.weights) == (
        "videomae_tiny_synthetic",
        "x3d_s_synthetic",
    )
    assert (folder.backbone.weights, folder.pruner.weights) == (None, None)
    assert synthetic.pruner.seed == 7
    pruner = folder.pruner  # the published recipe
    assert (pruner.frames, pruner.size, pruner.stage, pruner.align_corners) == (8, 160, "head", True)
    for size, word in (("s", "small"), ("l", "large"), ("h", "huge")):
        config = evaluation("experiment=papr_k400_b", f"backbone=videomae_{size}", *GIVEN)
        assert config.backbone.weights == f"MCG-NJU/videomae-{word}-finetuned-kinetics"


# experiment -> (sampling, stride, short side, views) of the paper's evaluation
PROTOCOLS = {
    "papr_k400_b": ("mmaction", 4, 224, "5x3"),
    "papr_k400_l": ("mmaction", 4, 224, "5x3"),
    "papr_k400_vivit": ("vivit_dense", 2, 256, "4x3"),
    "papr_ssv2_b": ("videomae_uniform", 4, 224, "2x3"),
}


@pytest.mark.parametrize("name", PROTOCOLS)
def test_experiments_pin_the_protocol_and_the_weights_of_their_paper(name):
    for pruner in ("x3d_m", "none"):
        config = evaluation(f"experiment={name}", f"pruner={pruner}", *GIVEN)
        dataset = config.dataset
        found = (dataset.sampling, dataset.frame_stride or 4, dataset.short_side, str(config.views))
        assert found == PROTOCOLS[name]
        assert config.backbone.weights is not None and "/" in config.backbone.weights
        assert config.pruner.weights == (None if pruner == "none" else "x3d_m_k400")


def test_output_directory_serves_run_and_sweep():
    with initialize_config_module("video_papr.conf", version_base="1.3"):
        cfg = compose("eval", overrides=["output_dir=here"], return_hydra_config=True)
    assert (cfg.hydra.run.dir, cfg.hydra.sweep.dir, cfg.hydra.job.name) == ("here", "here", "eval")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_lists_every_option_and_key(command):
    with initialize_config_module("video_papr.conf", version_base="1.3"):
        cfg = compose(command, overrides=["hydra.runtime.output_dir=x"], return_hydra_config=True)
    text = cfg.hydra.help.template
    values = plain({key: value for key, value in cfg.items() if key != "hydra"})
    for group in sections(COMMANDS[command]):
        for name in names(group):
            assert f"  {group}={name}" in text
        if group in values:
            keys = {key for key, value in values[group].items() if not OmegaConf.is_config(value)} - {"name"}
            assert all(f"  {group}.{key}=" in text for key in keys)
    assert "--cfg job" in text and "Examples:" in text
    assert not re.search(r"\$(?!\$)\w", text)  # Hydra's template would look it up


@pytest.mark.parametrize(
    "name", [name for name in names("pruner") if name not in ("none", "fitted", "pixel_rule")]
)
def test_defaults_of_a_file_are_those_of_the_library(name):
    given = evaluation(f"pruner={name}", "dataset=folder", "dataset.root=videos").pruner
    one, two = build_pruner(name), build_folded_pruner(given)
    assert one is not None and two is not None and one.budget == two.budget
    for key in (*RENAMED_KEYS, "diversity", "cluster_tau", "after_blocks"):
        assert getattr(one, key, None) == getattr(two, key, None)


def test_the_published_recipe_leaves_the_settings_of_a_bundled_scorer() -> None:
    own, papr = (evaluation("pruner=x3d_s", f"pruner.recipe={name}").pruner for name in ("own", "papr"))
    assert (own.stage, own.size, own.align_corners) == ("res4", 96, False)
    assert (papr.stage, papr.frames, papr.size, papr.align_corners) == ("head", 8, 160, True)
    assert papr.options["recipe"] == "papr" and "bundled" not in papr.options
    for name in ("papr_k400_b", "papr_k400_l"):
        assert evaluation(f"experiment={name}", *GIVEN).pruner.recipe == "papr"
        assert evaluation(f"experiment={name}", "pruner=random", *GIVEN).pruner.recipe is None
    with pytest.raises(ConfigError, match=r"^pruner\.recipe='paper': must be one of own, papr"):
        evaluation("pruner=x3d_s", "pruner.recipe=paper")
