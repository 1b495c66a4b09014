"""The documentation names what exists: its links lead somewhere, and the tables of options match conf/."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

ROOT = Path(__file__).resolve().parents[1]
CONF = ROOT / "conf"
PAGES = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
GROUPS = sorted(path.name for path in CONF.iterdir() if any(path.glob("*.yaml")))


def options(group: str) -> set[str]:
    """Options of a group that a user may choose; a leading underscore marks what others share."""
    return {path.stem for path in (CONF / group).glob("*.yaml") if not path.stem.startswith("_")}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    local = [target.split("#")[0] for target in targets if not target.startswith(("http:", "https:", "#"))]
    assert [target for target in local if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("group", GROUPS)
def test_readme_lists_the_options(group: str) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (row,) = re.findall(rf"^\| `{group}` \| (.*?) \|", readme, re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", row)) == options(group)


@pytest.mark.parametrize("group", GROUPS)
def test_configuration_page_lists_options_and_keys(group: str) -> None:
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert f"\n## `{group}`" in page
    section = page.split(f"\n## `{group}`")[1].split("\n## ")[0].replace("`x3d_*`", "")
    named = set(re.findall(r"`(\w+)`", section))
    assert options(group) <= named
    if group == "experiment":  # its files set keys of the other groups
        return
    keys = {key for path in (CONF / group).glob("*.yaml") for key in OmegaConf.load(path)} - {"defaults"}
    documented = set(re.findall(rf"`{group}\.(\w+)[.`]", section))
    assert documented == keys


def test_configuration_page_lists_the_keys_of_the_scripts() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    evaluation, training = page.split("\n## Keys of `tools/eval.py`")[1].split(
        "\n## Keys of `tools/train.py`"
    )
    keys = set(OmegaConf.load(CONF / "eval.yaml")) - {"defaults", "hydra"}
    assert set(re.findall(r"^\| `(\w+)`", evaluation, re.MULTILINE)) == keys
    recipe = OmegaConf.load(CONF / "train.yaml")
    shared = set(recipe) - {"defaults", "hydra", "train", *GROUPS}
    assert set(re.findall(r"`(\w+)`", training.split("\n|")[0])) - set(GROUPS) == shared
    assert set(re.findall(r"`train\.(\w+)`", training)) == set(recipe.train)
    pruning = page.split("\n## Keys of `tools/depth_prune.py`")[1].split("\n## ")[0]
    assert set(re.findall(r"`depth\.(\w+)`", pruning)) - {"json"} == set(
        OmegaConf.load(CONF / "depth_prune.yaml").depth
    )
    predicting = page.split("\n## Keys of `tools/predict.py`")[1].split("\n## ")[0]
    own = set(OmegaConf.load(CONF / "predict.yaml")) - {"defaults", "hydra"}
    assert set(re.findall(r"^\| `(\w+)`", predicting, re.MULTILINE)) == own
    for name, title in (
        ("export", "`tools/export.py`"),
        ("bench", "`tools/bench.py`"),
        ("demo", "the browser demo"),
    ):
        section = page.split(f"\n## Keys of {title}")[1].split("\n## ")[0]
        own = set(OmegaConf.load(CONF / f"{name}.yaml")) - {"defaults", "hydra"}
        assert set(re.findall(r"^\| `(\w+)`", section, re.MULTILINE)) == own


def test_python_example_of_the_readme_runs() -> None:
    (example,) = re.findall(
        r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL
    )
    names: dict[str, Any] = {}
    exec(example, names)
    assert names["logits"].shape[0] == 2
    assert names["selection"].keep_idx.shape == (2, 470)
