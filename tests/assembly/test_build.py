from __future__ import annotations

from importlib.metadata import PackageNotFoundError
from pathlib import Path

import numpy as np
import pytest
import torch

from video_papr.assembly import build, runtime
from video_papr.assembly.views import frame_sampler
from video_papr.backbones.builders import build_backbone
from video_papr.config import DatasetConfig, RuntimeConfig
from video_papr.core import engines
from video_papr.core.errors import ConfigError, DataError
from video_papr.data.annotations import VideoList, VideoRecord
from video_papr.evaluation.cost import Engine


def videos(labels, names=None):
    return VideoList(tuple(VideoRecord(Path(f"{i}.mp4"), i, f"{i}.mp4") for i in labels), names, ())


def labels(found):
    return [record.label for record in found.records]


def test_labels_are_matched_by_name():
    """A folder with two of the model's classes numbers them 0 and 1; the model knows them as 3 and 1."""
    model = ("abseiling", "air drumming", "archery", "zumba")
    found = build.match_labels(videos([0, 1, 0], ("Zumba", "air_drumming")), model, 4)
    assert labels(found) == [3, 1, 3]
    assert found.class_names == model


def test_unknown_class_names_are_told(capsys):
    given = videos([0, 1], ("fight", "zumba"))
    assert build.match_labels(given, ("archery", "zumba"), 2) is given
    assert "the weights do not know 1 of the dataset's 2 classes ('fight', ...)" in capsys.readouterr().err


def test_numbers_stay_where_a_side_has_no_names():
    given = videos([0, 5])
    assert build.match_labels(given, ("archery", "zumba"), 6) is given
    named = videos([0, 1], ("a", "b"))
    assert build.match_labels(named, None, 2) is named


def test_label_without_a_logit():
    with pytest.raises(
        DataError, match=r"^5\.mp4: label 5 is out of range, the backbone has 5 classes \(0 to 4\)"
    ):
        build.match_labels(videos([0, 5]), None, 5)


def test_names_are_given_only_where_labels_and_logits_share_them():
    """Else a logit would be called by the name of another class."""
    two = build_backbone("videomae_tiny", num_classes=2)
    assert build.shared_names(videos([0, 1], ("a", "b")), two) == ("a", "b")
    assert build.shared_names(videos([0, 1]), two) is None
    two.class_names = ("a", "b")
    assert build.shared_names(videos([0, 1]), two) == ("a", "b")
    assert build.shared_names(videos([0, 1], ("fight", "noFight")), two) is None
    assert (
        build.shared_names(videos([0, 1], ("a", "b")), build_backbone("videomae_tiny", num_classes=9)) is None
    )


def test_number_of_classes():
    assert build.count_classes(videos([0, 6])) == 7
    assert build.count_classes(videos([0], ("a", "b", "c"))) == 3


def test_frames_of_a_clip():
    dense = frame_sampler(DatasetConfig("folder", root=".", frame_stride=3), 2, 4)(100)
    assert dense.shape == (2, 4)
    assert (dense[0, 1:] - dense[0, :-1] == 3).all()
    spread = frame_sampler(DatasetConfig("folder", root=".", sampling="uniform"), 1, 4)(100)
    assert (spread[0, 1:] - spread[0, :-1] == 25).all()


def test_defaults_follow_the_machine(monkeypatch):
    engine = runtime.build_engine(RuntimeConfig(device="cpu"))
    assert (engine.device.type, engine.dtype, runtime.dtype_name(engine)) == ("cpu", torch.float32, "fp32")
    assert runtime.batch_size(RuntimeConfig(), engine) == 8
    assert runtime.batch_size(RuntimeConfig(batch_size=3), engine) == 3
    for cores, workers in ((1, 1), (2, 1), (8, 7), (128, 16)):
        monkeypatch.setattr(runtime.os, "sched_getaffinity", lambda _, n=cores: set(range(n)), raising=False)
        assert runtime.num_workers(RuntimeConfig()) == workers
        assert runtime.num_workers(RuntimeConfig(), turns=True) == min(cores, 16)
        monkeypatch.setattr(runtime.torch, "get_num_threads", lambda n=cores: n)
        assert runtime.takes_turns(engine)
        assert runtime.videos_in_turn(engine, 2, 4) == 4 and runtime.videos_in_turn(engine, 2, 3) == 0
        assert runtime.videos_ahead(engine, 1, 8) == 0
        assert runtime.shared_cores(engine) == cores
        monkeypatch.setattr(runtime.torch, "get_num_threads", lambda n=cores: n - 1)
        assert not runtime.takes_turns(engine) and runtime.videos_in_turn(engine, 2, 4) == 0
        assert runtime.videos_ahead(engine, 1, 8) == 8
    assert runtime.num_workers(RuntimeConfig(workers=0)) == 0
    assert runtime.num_workers(RuntimeConfig(workers=0), turns=True) == 0


def test_precision_by_name():
    engine = runtime.build_engine(RuntimeConfig(device="cpu", dtype="bf16"))
    assert (engine.dtype, runtime.dtype_name(engine)) == (torch.bfloat16, "bf16")


@pytest.mark.parametrize("native", [False, True])
def test_trainings_take_bf16_only_where_the_processor_computes_in_it(monkeypatch, native):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    here = RuntimeConfig(device="cpu")
    assert runtime.training_dtype("auto", here) == ("bf16" if native else "fp32")
    assert [runtime.training_dtype(name, here) for name in ("fp32", "bf16")] == ["fp32", "bf16"]


def test_compiling_for_a_processor_packs_the_weights():
    import torch._inductor.config as inductor

    runtime.build_engine(RuntimeConfig(device="cpu"))
    assert not inductor.freezing
    runtime.build_engine(RuntimeConfig(device="cpu", compile=True))
    assert inductor.freezing


def test_cuda_graphs_need_a_gpu():
    assert RuntimeConfig(compile=True).compile_options == {}
    assert RuntimeConfig(compile="max-autotune").compile_options == {"mode": "max-autotune"}
    runtime.build_engine(RuntimeConfig(device="cpu", compile="max-autotune"))
    with pytest.raises(
        ConfigError, match=r"^runtime\.compile='reduce-overhead': .* use runtime\.compile=true"
    ):
        runtime.build_engine(RuntimeConfig(device="cpu", compile="reduce-overhead"))


def test_auto_takes_openvino_on_a_processor_alone(monkeypatch):
    monkeypatch.setattr(engines, "has_openvino", lambda: True)
    monkeypatch.setattr(engines, "engine_version", lambda name: f"{name} 1")
    cpu, cuda = Engine(torch.device("cpu")), Engine(torch.device("cuda"))
    assert runtime.chosen_engine(RuntimeConfig(), cpu) == "openvino 1"
    assert runtime.chosen_engine(RuntimeConfig(), cuda) == "torch"
    assert runtime.chosen_engine(RuntimeConfig(compile=True), cpu) == "torch"
    assert runtime.chosen_engine(RuntimeConfig(engine="torch"), cpu) == "torch"
    with pytest.raises(ConfigError, match=r"^runtime\.engine=openvino: runs on the processor"):
        runtime.chosen_engine(RuntimeConfig(engine="openvino"), cuda)
    monkeypatch.setattr(runtime, "computes_in_bf16", lambda: False)
    bf16 = Engine(torch.device("cpu"), torch.bfloat16)
    assert runtime.chosen_engine(RuntimeConfig(dtype="bf16"), bf16) == "torch"
    with pytest.raises(ConfigError, match=r"^runtime\.dtype=bf16: OpenVINO computes in fp32"):
        runtime.chosen_engine(RuntimeConfig(engine="openvino", dtype="bf16"), bf16)
    monkeypatch.setattr(engines, "has_openvino", lambda: False)
    assert runtime.chosen_engine(RuntimeConfig(), cpu) == "torch"


def test_bf16_without_arithmetic_for_it_is_told(monkeypatch, capsys):
    for native, warnings in ((True, 0), (False, 1)):
        monkeypatch.setattr(runtime, "computes_in_bf16", lambda native=native: native)
        assert runtime.build_engine(RuntimeConfig(device="cpu", dtype="bf16")).dtype == torch.bfloat16
        assert capsys.readouterr().err.count("warning: runtime.dtype=bf16") == warnings
        assert runtime.training_dtype("auto", RuntimeConfig(device="cpu")) == ("bf16" if native else "fp32")


def test_a_missing_engine_names_its_extra(monkeypatch):
    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(engines, "version", missing)
    with pytest.raises(ConfigError, match=r'not installed \(pip install "video_papr\[fast\]"\)'):
        runtime.chosen_engine(RuntimeConfig(engine="openvino"), Engine(torch.device("cpu")))


def test_threads(monkeypatch):
    seen: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", seen.append)
    runtime.build_engine(RuntimeConfig(device="cpu", threads=3))
    assert seen == [3]


def test_out_of_memory_names_the_key():
    with (
        pytest.raises(
            ConfigError, match=r"^runtime\.batch_size=64: out of GPU memory.*\(tried to get 5 GiB\)$"
        ),
        runtime.mendable_errors(64),
    ):
        raise torch.OutOfMemoryError("tried to get 5 GiB\nmore text")


def test_bugs_stay_bugs():
    with pytest.raises(KeyError), runtime.mendable_errors(64):
        raise KeyError("x")


def test_spread_covers_the_dataset():
    assert build.spread(4, 8) == {1, 3, 5, 7}
    assert build.spread(4, 600) == {75, 225, 375, 525}
    assert build.spread(9, 3) == {0, 1, 2}
    assert build.spread(0, 3) == set()
    for count, total in np.ndindex(6, 6):
        assert len(build.spread(count, total)) == min(count, total)
        assert all(0 <= place < total for place in build.spread(count, total))
