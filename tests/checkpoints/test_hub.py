"""Downloads, with the network played by functions: what is cached is used, and one line says what to do without it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError

from video_papr.backbones.weights import find_backbone
from video_papr.checkpoints import hub
from video_papr.checkpoints.hub import hub_folder, is_hub_id, url_file
from video_papr.core.errors import CheckpointError
from video_papr.pruning.builders import build_pruner
from video_papr.pruning.scorers.x3d import PUBLISHED, find_x3d
from video_papr.pruning.scorers.x3d_network import X3D

HUB_ID = "MCG-NJU/videomae-base-finetuned-kinetics"
URL = "https://example.org/models/net.pyth"


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty caches, and no network unless a test plays it."""

    def refused(*args: Any, **options: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda hub_id, name: None)
    monkeypatch.setattr(hub, "snapshot_download", refused)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refused)


def refusal(function: Any, *args: Any, **options: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        function(*args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "is_id"),
    [
        (HUB_ID, True),
        ("a/b", True),
        ("a/b.c_d-1", True),
        ("videomae_tiny_synthetic", False),
        ("weights/model.pth", False),
        ("weights/model.safetensors", False),
        ("/tmp/a", False),
        ("./a", False),
        ("../a", False),
        ("~/a", False),
        ("a/b/c", False),
        ("", False),
    ],
)
def test_what_looks_like_a_hub_id(text: str, is_id: bool) -> None:
    assert is_hub_id(text) == is_id


def served(folder: Path, *files: str) -> Any:
    """A hub that has these files."""

    def download(hub_id: str, allow_patterns: list[str]) -> str:
        assert hub_id == HUB_ID
        folder.mkdir(exist_ok=True)
        for name in files:
            if any(Path(name).match(pattern) for pattern in allow_patterns):
                (folder / name).touch()
        return str(folder)

    return download


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
def test_hub_model_is_fetched_with_one_kind_of_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: str
) -> None:
    files = ["config.json", weights, "pytorch_model.bin", "optimizer.pt", "tf_model.h5"]
    monkeypatch.setattr(hub, "snapshot_download", served(tmp_path / "hub", *files))
    assert hub_folder(HUB_ID, key="backbone.weights") == tmp_path / "hub"
    assert {path.name for path in (tmp_path / "hub").iterdir()} == {"config.json", weights}


def test_cached_hub_model_needs_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).touch()
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda hub_id, name: str(tmp_path / name))
    assert find_backbone(HUB_ID, key="backbone.weights") == tmp_path
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "model.safetensors").unlink()  # a download that was broken off
    assert "HF_HUB_OFFLINE is set" in refusal(hub_folder, HUB_ID, key="backbone.weights")


@pytest.mark.parametrize("why", ["offline", "no network", "no weights"])
def test_hub_model_that_cannot_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: str) -> None:
    def unreachable(*args: Any, **options: Any) -> str:
        raise LocalEntryNotFoundError("cannot reach the hub\nand more lines")

    if why == "offline":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    else:
        found = unreachable if why == "no network" else served(tmp_path / "hub", "config.json")
        monkeypatch.setattr(hub, "snapshot_download", found)
    reason = {
        "offline": "HF_HUB_OFFLINE is set",
        "no network": "LocalEntryNotFoundError: cannot reach the hub",
        "no weights": "it has no weights for torch",
    }[why]
    line = refusal(find_backbone, HUB_ID, key="backbone.weights")
    assert line.startswith(f"backbone.weights={HUB_ID} is not in the cache ")
    assert f"was not downloaded ({reason}). " in line
    assert (
        f"fetch config.json and model.safetensors (or pytorch_model.bin) from https://huggingface.co/{HUB_ID}"
        in line
    )
    assert line.endswith("put them into one folder, and give backbone.weights=FOLDER")


def test_a_path_comes_before_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert find_backbone("org/name", key="k") == Path("org/name")
    line = refusal(find_backbone, "absent", key="backbone.weights")
    assert line.startswith("backbone.weights=absent is neither a file nor a bundled model (bundled: ")
    assert line.endswith("nor a model of the Hugging Face Hub (org/name)")


def test_file_of_an_address_is_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def download(url: str, path: str) -> None:
        asked.append(url)
        Path(path).write_text("content")

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    first, second = (url_file(URL, key="k", value="net") for _ in range(2))
    assert first == second == tmp_path / "torch hub" / "checkpoints" / "net.pyth"
    assert asked == [URL]


@pytest.mark.parametrize("offline", [True, False])
def test_file_of_an_address_that_cannot_be_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offline: bool
) -> None:
    def unreachable(url: str, path: str) -> None:
        raise OSError("no route")

    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    if offline:
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    line = refusal(build_pruner, "x3d_s", weights="x3d_s_k400")
    reason = "HF_HUB_OFFLINE is set" if offline else "OSError: no route"
    assert line == (
        f"pruner.weights=x3d_s_k400 is not in the cache and was not downloaded ({reason}). On a machine with a network "
        f"fetch {PUBLISHED['x3d_s_k400']} and put it at {tmp_path / 'torch hub' / 'checkpoints' / 'X3D_S.pyth'}"
    )


def test_published_x3d_is_read_from_the_cache(tmp_path: Path) -> None:
    net = X3D(3)
    path = tmp_path / "torch hub" / "checkpoints" / "X3D_M.pyth"
    path.parent.mkdir(parents=True)
    torch.save({"model_state": net.state_dict()}, path)
    pruner = build_pruner("x3d_m", weights="x3d_m_k400")
    assert pruner is not None
    own = pruner.scorer.trunk.pre_conv.weight  # type: ignore[union-attr]
    assert torch.equal(own, net.blocks[5].pool.pre_conv.weight)  # type: ignore[union-attr,index]
    path.write_bytes(path.read_bytes()[:1000])
    assert refusal(build_pruner, "x3d_m", weights="x3d_m_k400").startswith(f"{path} is damaged")
    line = refusal(find_x3d, "x3d_l_k400", key="pruner.weights")
    assert line.endswith("nor published (x3d_xs_k400, x3d_s_k400, x3d_m_k400)")
