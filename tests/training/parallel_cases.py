"""Training in several ranks takes the steps of one process; run by test_parallel.py."""

import os
import socket
import traceback

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from video_papr.core.errors import ConfigError, RankError, TrainingError
from video_papr.core.processes import ALONE, Ranks, join
from video_papr.training.dropping import Dropping
from video_papr.training.loop import CHECKPOINT, Schedule, Task, fit
from video_papr.training.parallel import check_split, own_rows
from video_papr.training.store import Batch
from video_papr.training.targets import Losses, backbone_target

SCHEDULE = Schedule(4, batch_size=12, accumulate=2, learning_rate=1e-2, validate_every=2, warmup=0.3)


@pytest.fixture
def forked():
    """A function (size, work) -> exit statuses of forked ranks: 0 when `work(ranks)` returned."""
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")

    def run(size, work):
        with socket.socket() as place:
            place.bind(("127.0.0.1", 0))
            port = place.getsockname()[1]
        children = []
        for rank in range(size):
            child = os.fork()
            if child == 0:
                status = 1
                try:
                    os.environ.update(RANK=f"{rank}", WORLD_SIZE=f"{size}", MASTER_ADDR="127.0.0.1")
                    os.environ.update(MASTER_PORT=f"{port}")
                    torch.set_num_threads(1)
                    with join() as ranks:
                        if rank == 0:
                            ranks.broadcast()
                        else:
                            assert ranks.receive()
                        work(ranks)
                        ranks.barrier()
                        if rank:
                            assert not ranks.receive()
                    status = 0
                except RankError:
                    status = 2
                except BaseException:
                    traceback.print_exc()  # pytest shows it
                finally:
                    os._exit(status)
            children.append(child)
        return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]

    return run


def draw(progress, clips, generator):
    frames = torch.randint(0, 256, (clips, 4, 32, 32, 3), generator=generator).to(torch.uint8)
    tracks = torch.rand(clips, 4, 5, generator=generator) * torch.tensor([0.6, 0.6, 0.2, 6, 1]) + 0.1
    return Batch(frames, torch.randint(0, 3, (clips,), generator=generator), tracks)


def target(locate=0.5):
    """A small VideoMAE that keeps a random share of its tokens."""
    return backbone_target(
        "videomae_tiny",
        num_classes=3,
        num_frames=4,
        input_size=32,
        dropping=Dropping((0.3, 0.9)),
        losses=Losses(locate=locate),
    )


def train(directory, ranks=ALONE, *, resume=False, locate=0.5):
    one = target(locate)
    task = Task(draw, one.loss, lambda: 50.0, one.plan)
    return fit(one.model, task, SCHEDULE, directory, resume=resume, progress=False, ranks=ranks)


def weights(directory):
    return torch.load(directory / CHECKPOINT, weights_only=True)["model"]


def check_close(one, other):
    """The same weights to rounding, which is far less than what the steps changed."""
    start = target().model.state_dict()
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys() == start.keys()
    for name, value in first.items():
        apart = (second[name] - value).abs()
        if name.endswith(
            "qkv.bias"
        ):  # keys: it shifts all scores alike; Adam makes steps of what rounding leaves
            apart = apart.view(3, -1)[[0, 2]]
        assert apart.max() < 1e-3, name
        if name.endswith("weight") and name.startswith("backbone"):
            assert (value - start[name]).abs().max() > 1e-2, name


@pytest.mark.parametrize(("size", "locate"), [(2, 0.0), (3, 0.5)])
def test_ranks_take_the_steps_of_one_process(tmp_path, forked, size, locate):
    """With `locate=0` nothing asks the probes."""
    one, several = tmp_path / "one", tmp_path / "several"
    rows = train(one, locate=locate)

    def work(ranks):
        found = train(several, ranks, locate=locate)
        assert [row["loss"] for row in found] == pytest.approx(
            [row["loss"] for row in rows], abs=2e-4
        ) or ranks.rank
        assert bool(found) == (ranks.rank == 0)  # the others neither validate nor write

    assert forked(size, work) == [0] * size
    check_close(one, several)
    assert sorted(path.name for path in several.iterdir()) == [CHECKPOINT, "log.csv"]


def test_another_number_of_ranks_goes_on(tmp_path, forked):
    """Two ranks are lost after step 3, the last checkpoint is of step 2; three go on, and one confirms."""
    one, several = tmp_path / "one", tmp_path / "several"
    train(one)
    steps = 0

    def until_lost(ranks):
        nonlocal steps

        def counted(progress, clips, generator):
            nonlocal steps
            steps += 1
            if steps == 4 and ranks.rank == 1:
                os.kill(os.getpid(), 9)
            return draw(progress, clips, generator)

        one = target()
        with ranks.watched("Try again."):
            task = Task(counted, one.loss, lambda: 50.0, one.plan)
            fit(one.model, task, SCHEDULE, several, progress=False, ranks=ranks)

    assert forked(2, until_lost) == [2, -9]
    assert torch.load(several / CHECKPOINT, weights_only=True)["step"] == 2
    assert forked(3, lambda ranks: train(several, ranks, resume=True) and None) == [0] * 3
    check_close(one, several)
    assert train(several, resume=True)[-1]["step"] == 4  # nothing is left


def test_all_ranks_see_a_loss_that_is_no_number(tmp_path, forked):
    """It is one rank's, and none goes on alone."""

    def work(ranks):
        model = nn.Linear(3, 2)

        def loss(batch, generator):
            value = F.cross_entropy(model(batch.frames.float().mean((1, 2, 3))), batch.labels % 2)
            return value * float("nan") if ranks.rank else value

        with pytest.raises(TrainingError, match="the loss of step 1 is nan"):
            fit(model, Task(draw, loss, lambda: 0.0), SCHEDULE, tmp_path, progress=False, ranks=ranks)

    assert forked(2, work) == [0, 0]


def test_rows_are_shared_out():
    batch = draw(0, 12, torch.Generator().manual_seed(0))
    parts = [own_rows(batch, Ranks(rank, 3)) for rank in range(3)]
    assert torch.equal(torch.cat([part.labels for part in parts]), batch.labels)
    assert torch.equal(torch.cat([part.frames for part in parts]), batch.frames)
    assert all(part.tracks is not None and len(part.tracks) == 4 and part.kept is None for part in parts)


def test_a_batch_that_does_not_split():
    check_split(12, 2, Ranks(0, 3))
    with pytest.raises(
        ConfigError, match=r"^train\.batch_size=12 must be a multiple of 10: of train\.accumulate=2"
    ):
        check_split(12, 2, Ranks(0, 5))
