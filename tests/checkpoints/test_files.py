"""Weights on disk: what is written is read, what is wrong is refused in one line, and nothing is ever executed."""

from __future__ import annotations

import argparse
import errno
import json
import os
import pathlib
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from video_papr.backbones.builders import build_backbone
from video_papr.checkpoints import files
from video_papr.checkpoints.files import load_exactly, read_weights, write_weights
from video_papr.core.errors import CheckpointError, StorageError

State = dict[str, Tensor]


def state() -> State:
    torch.manual_seed(0)
    return {"a.weight": torch.randn(3, 4), "b": torch.randn(5), "steps": torch.tensor(7)}


def refusal(path: object) -> str:
    """The one line with which a file is refused; it names the file."""
    with pytest.raises(CheckpointError) as caught:
        read_weights(path)  # type: ignore[arg-type]
    line = str(caught.value)
    assert "\n" not in line
    assert str(path) in line
    return line


# ---- what is written is read ----


@pytest.mark.parametrize("half", [True, False])
def test_own_format_round_trip(tmp_path: Path, half: bool) -> None:
    path = tmp_path / "new folder" / "model.safetensors"
    described = {"model": "videomae_tiny", "class_names": ("ä", "b c"), "top1": 97.5}
    write_weights(path, state(), described, half=half)
    read, said = read_weights(path)
    assert said == {**described, "class_names": ["ä", "b c"]}
    assert list(read) == sorted(state())
    for key, value in state().items():
        assert torch.equal(read[key], value.half() if half and value.is_floating_point() else value)
    assert not half or path.stat().st_size < 600


def test_values_that_half_precision_cannot_hold_stay_as_they_are(tmp_path: Path) -> None:
    large = torch.tensor([1.0, 7e4])
    write_weights(tmp_path / "w.safetensors", {"large": large, "small": large / 2}, {})
    read, _ = read_weights(tmp_path / "w.safetensors")
    assert torch.equal(read["large"], large) and read["small"].dtype == torch.float16


def test_a_full_disk_leaves_the_weights_that_were_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "w.safetensors"
    write_weights(path, {"a": torch.zeros(2)}, {})
    before = path.read_bytes()

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"^cannot write [^\n]+w\.safetensors: No space left on device"):
        write_weights(path, {"a": torch.ones(2)}, {})
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_tensors_need_not_be_contiguous_or_without_gradient(tmp_path: Path) -> None:
    weight = nn.Parameter(torch.randn(2, 3, 4, 5, 6).to(memory_format=torch.channels_last_3d))
    write_weights(
        tmp_path / "w.safetensors", {"weight": weight, "turned": weight[0, 0, 0].t()}, {}, half=False
    )
    read, said = read_weights(tmp_path / "w.safetensors")
    assert torch.equal(read["weight"], weight.detach())
    assert torch.equal(read["turned"], weight[0, 0, 0].t().detach())
    assert said == {}


WRAPS: dict[str, Callable[[State], object]] = {
    "bare": lambda s: s,
    "model_state": lambda s: {"model_state": s, "epoch": 3, "cfg": "text"},
    "model": lambda s: {"model": s, "optimizer": {"state": {}}},
    "module": lambda s: {"module": s},
    "state_dict": lambda s: {"state_dict": s},
    "module in model": lambda s: {"model": {"module": s}},
    "beside other values": lambda s: {**s, "epoch": 3},
}


@pytest.mark.parametrize("name", WRAPS)
@pytest.mark.parametrize("legacy", [False, True])
def test_torch_files(tmp_path: Path, name: str, legacy: bool) -> None:
    path = tmp_path / "model.pyth"
    stored = {key: value.bfloat16() if key == "b" else value for key, value in state().items()}
    torch.save(WRAPS[name](stored), path, _use_new_zipfile_serialization=not legacy)
    read, said = read_weights(path)
    assert said == {}
    assert read.keys() == stored.keys()
    assert all(torch.equal(read[key], stored[key]) for key in stored)


def test_a_backbones_weights_travel_with_their_class_names(tmp_path: Path) -> None:
    path, names = tmp_path / "tiny.safetensors", ("left", "right", "still")
    written = build_backbone("videomae_tiny", num_classes=3, seed=1)
    write_weights(path, written.state_dict(), {"model": "videomae_tiny", "class_names": names})
    read = build_backbone(
        "videomae_tiny", weights=path, num_frames=8, input_size=32
    )  # another clip size is fine
    assert read.class_names == names
    assert read.num_classes == 3
    for key, value in written.state_dict().items():
        assert torch.equal(read.state_dict()[key], value.half().float())
    with pytest.raises(CheckpointError) as caught:
        build_backbone("videomae_s", weights=path)
    assert str(caught.value) == (
        f"backbone.weights={path} holds videomae_tiny, but backbone=videomae_s was asked for"
    )
    with pytest.raises(CheckpointError, match="was trained for 3 classes, but 400 were asked for"):
        build_backbone("videomae_tiny", weights=path, num_classes=400)


def test_bundled_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "BUNDLED", tmp_path)
    write_weights(tmp_path / "one.safetensors", state(), {"model": "one"})
    write_weights(tmp_path / "another.safetensors", state(), {})
    assert read_weights("one")[1] == {"model": "one"}
    line = refusal("two")
    assert line == "weights=two is neither a file nor a bundled model (bundled: another, one)"
    assert "neither a file nor a bundled model" in refusal(tmp_path)


def test_every_bundled_file_says_what_it_is() -> None:
    for name in files.bundled_names():
        read, said = read_weights(name)
        assert said["model"] in name
        assert all(value.isfinite().all() for value in read.values())


# ---- what is wrong is refused ----


class Malicious:
    """Pickles to a call of `os.mkdir`."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".pyth", ".bin"])
@pytest.mark.parametrize("writer", ["torch", "legacy torch", "pickle"])
def test_malicious_pickle_is_refused_and_nothing_runs(tmp_path: Path, suffix: str, writer: str) -> None:
    path, target = tmp_path / f"model{suffix}", tmp_path / "executed"
    content = {"model_state": {**state(), "extra": Malicious(target)}}
    if writer == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=writer == "torch")
    assert "could run code" in refusal(path)
    assert not target.exists()
    pickle.loads(pickle.dumps(Malicious(target)))  # the trap does work
    assert target.exists()


FOREIGN = {
    "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 345000000\n",
    "a Git LFS pointer ": "version https://git-lfs.github.com/spec/v1\n".encode("utf-16"),
    "a NumPy array": b"\x93NUMPY\x01\x00",
    "a GGUF file": b"GGUF\x03\x00\x00\x00",
    "an HTML page (Virus scan warning)": b"\n<!DOCTYPE html><html><title> Virus scan\n warning</title></html>",
    "a JSON text": b'{"error": "Private"}',
    "an XML text": b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>',
    "an empty file": b"",
    "an HDF5 file": b"\x89HDF\r\n\x1a\n" + bytes(50),
    "a gzip archive": b"\x1f\x8b" + bytes(50),
    "damaged": b"\xff" * 500,
    "nothing but zero bytes": b"\x00",
}


@pytest.mark.parametrize("suffix", [".safetensors", ".pyth"])
@pytest.mark.parametrize("what", FOREIGN)
def test_files_that_are_no_weights_are_named_as_what_they_are(tmp_path: Path, suffix: str, what: str) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(FOREIGN[what])
    assert what.strip() in refusal(path) or (what == "damaged" and "no torch file" in refusal(path))


@pytest.mark.filterwarnings("ignore")  # torch finds TorchScript outdated
def test_zip_archives_that_are_no_weights(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "model.pt")
    assert "is a TorchScript program, not weights; save the model's state_dict()" in refusal(
        tmp_path / "model.pt"
    )
    np.savez(tmp_path / "model.npz", a=np.zeros(3))
    assert "contains no weights: it is a ZIP archive (a.npy)" in refusal(tmp_path / "model.npz")


def test_the_content_decides_how_a_file_is_read(tmp_path: Path) -> None:
    """Also, values that training scripts store beside the weights are no reason to refuse them."""
    save_file(state(), tmp_path / "tensors.pth")
    args = argparse.Namespace(
        output_dir=pathlib.PurePosixPath("/x"), top1=np.float64(81.5), lr=np.float32(0.1)
    )
    torch.save({"model": state(), "args": args}, tmp_path / "torch.safetensors")
    for name in ("tensors.pth", "torch.safetensors"):
        assert torch.equal(read_weights(tmp_path / name)[0]["b"], state()["b"])
    assert read_weights(tmp_path / "torch.safetensors")[1]["args"]["top1"] == 81.5


def hostile(folder: Path) -> dict[str, str]:
    """Files that claim more than they hold, or are nested without end -> what is said of them."""
    looped: dict[str, object] = {}
    looped["model"] = looped
    tensor = torch.zeros(1, dtype=torch.float16)
    contents = {
        "loop": looped,
        "stride 0": {"x": tensor.expand(500_000_000)},
        "one storage, many names": dict.fromkeys(map(str, range(10_000)), torch.zeros(10_000)),
        "sparse": {"x": torch.eye(3).to_sparse()},
        "meta": {"x": torch.zeros(3, device="meta")},
        "complex": {"x": torch.zeros(3, dtype=torch.complex64)},
        "nested": {"x": torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)])},
        "long name": {("x" * 10**6,): tensor},
        "numbers for names": {1: tensor},
        "tuples for names": {("a", 1): tensor},
    }
    for name, content in contents.items():
        torch.save(content, folder / name)
    torch.save({"x": torch.zeros(30_000_000)}, folder / "whole")
    with zipfile.ZipFile(folder / "whole") as whole, zipfile.ZipFile(folder / "deflated", "w", 8) as small:
        for entry in whole.namelist():
            small.writestr(entry, whole.read(entry))
    return {
        "loop": "nested too deeply",
        "stride 0": "x (500000000,) claims 1000000000 bytes, and 2 are stored",
        "one storage, many names": "its tensors claim 381 MiB",
        "sparse": "x is a sparse_coo tensor",
        "meta": "x is a meta tensor",
        "complex": "x is a complex tensor",
        "nested": "x is a nested tensor",
        "long name": "tensors are named ('xxx",
        "numbers for names": "tensors are named 1, not by texts",
        "tuples for names": "tensors are named ('a', 1), not by texts",
        "deflated": "its compressed parts claim 114 MiB",
    }


def test_files_that_claim_more_than_they_hold(tmp_path: Path) -> None:
    for name, said in hostile(tmp_path).items():
        line = refusal(tmp_path / name)
        assert said in line and len(line) < 500


def contents(tmp_path: Path) -> dict[str, bytes]:
    torch.save({"model_state": state()}, tmp_path / "zip.pt")
    torch.save({"model_state": state()}, tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    write_weights(tmp_path / "own.safetensors", state(), {"model": "x"})
    return {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(["zip.pt", "legacy.pt", "own.safetensors"]), share=st.floats(0, 1, exclude_max=True)
)
def test_truncated_file(tmp_path: Path, name: str, share: float) -> None:
    whole = contents(tmp_path)[name]
    path = tmp_path / f"cut-{name}"
    path.write_bytes(whole[: int(share * len(whole))])
    refusal(path)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(["zip.pt", "legacy.pt", "own.safetensors"]),
    at=st.floats(0, 1, exclude_max=True),
    noise=st.binary(min_size=1, max_size=30),
)
def test_damaged_bytes_give_weights_or_one_line(tmp_path: Path, name: str, at: float, noise: bytes) -> None:
    """Flipped bytes inside a tensor cannot be noticed; everything else is a CheckpointError, never another one."""
    whole = contents(tmp_path)[name]
    place = int(at * len(whole))
    path = tmp_path / f"damaged-{name}"
    path.write_bytes(whole[:place] + noise + whole[place + len(noise) :])
    try:
        read_weights(path)
    except CheckpointError as error:
        assert str(path) in str(error)
        assert "\n" not in str(error)


@pytest.mark.parametrize("content", [[1, 2], {"model_state": {}}, {"epoch": 3}, torch.zeros(3), "text"])
def test_torch_file_without_a_state_dict(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "model.pt")
    assert "holds no state dict" in refusal(tmp_path / "model.pt")


@pytest.mark.parametrize("description", ["{", "[1]", "3", "null", "[" * 30_000, '{"top1": NaN}'])
def test_description_that_is_no_json_object(tmp_path: Path, description: str) -> None:
    path = tmp_path / "model.safetensors"
    save_file(state(), path, metadata={"video_papr": description})
    assert "damaged" in refusal(path)


def test_foreign_safetensors_file_has_an_empty_description(tmp_path: Path) -> None:
    save_file(state(), tmp_path / "model.safetensors", metadata={"format": "pt", "x": json.dumps([1])})
    assert read_weights(tmp_path / "model.safetensors")[1] == {}


# ---- fitting a state dict to a module ----


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), 1e300])
def test_values_that_are_not_finite_are_refused(wrong: float) -> None:
    """Also those that only overflow in the network's own type."""
    module = nn.Linear(2, 2)
    spoilt = {"weight": module.weight.detach().clone().double(), "bias": torch.zeros(2)}
    spoilt["weight"][1, 1] = wrong
    with pytest.raises(CheckpointError) as caught:
        load_exactly(module, spoilt, source="x=file.pt")
    assert str(caught.value) == "x=file.pt: weight contains values that are not finite (NaN or infinity)"


def test_every_way_not_to_fit_is_named_in_one_line() -> None:
    module = nn.Sequential(*(nn.Linear(2, 2) for _ in range(4)))
    good = module.state_dict()
    raised = {key: value + 1 for key, value in good.items()}
    load_exactly(module, raised, source="file")
    assert all(torch.equal(value, raised[key]) for key, value in module.state_dict().items())
    wrong = {**good, "extra": torch.zeros(1), 5: torch.zeros(1), "1.bias": torch.zeros(3)}
    wrong["3.weight"] = torch.ones(2, 2, dtype=torch.int8)  # quantised: the scale is elsewhere
    del wrong["0.weight"], wrong["2.weight"]
    kept = module[1].weight.clone()
    with pytest.raises(CheckpointError) as caught:
        load_exactly(module, wrong, source="x=file.pt")
    assert str(caught.value) == (
        "x=file.pt does not fit Sequential; missing: 0.weight, 2.weight; unexpected: extra, 5; "
        "of another shape: 1.bias (3,) instead of (2,); of another kind: 3.weight int8 instead of float32"
    )
    assert torch.equal(module[1].weight, kept)
    with pytest.raises(CheckpointError, match=r"missing: 0\.weight, 0\.bias, 1\.weight, 1\.bias and 4 more$"):
        load_exactly(module, {}, source="x=file.pt")


@pytest.mark.parametrize(
    "name", ["../secret.safetensors", "{root}/secret.safetensors", "a/../../secret.safetensors"]
)
def test_an_index_leads_to_no_file_outside_of_its_folder(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"a": torch.zeros(1)}, tmp_path / "secret.safetensors")
    index = {"weight_map": {"a": name.format(root=tmp_path)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert files.weight_files(folder) == []
    save_file({"a": torch.ones(1)}, folder / "secret.safetensors")
    assert files.weight_files(folder) == [folder / "secret.safetensors"]
