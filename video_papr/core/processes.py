"""One command in several processes (ranks), as `torchrun` starts them: who leads, who follows, and what they share.

Rank 0 leads: it reads the command line, prepares everything, and only then tells the others what to do. So a wrong
option is one line and not one for each rank, and what has to be made once (synthetic videos, decoded clips,
downloads) is made once. The others build the same objects from the same configuration, do their share, and wait.

    rank 0   compose - prepare - journal - begin ---- own share ---- meet - merge - write
    rank 1                                 hear - prepare - own share ---- meet
    rank 2                                 hear - prepare - own share ---- meet

What they tell each other is JSON in torch's key-value store; results go through files in the run directory; gloo
waits for those who are not ready. Nothing is unpickled.

Torch is imported in functions only, so that `--help` answers at once.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn

from .errors import ConfigError, RankError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup, Store

LAUNCHER = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # what torchrun sets for each process
MEETING = timedelta(minutes=10)  # that all ranks start
# One rank may be long at work while another waits. That one is lost is noticed at once, by the connection.
PATIENCE = timedelta(days=7)

Job = dict[str, Any]


class Ranks:
    """The processes of this run, and which of them this one is.

    Attributes:
        rank: 0 leads.
        size: number of ranks.
        local_rank, local_size: the same on this machine.
    """

    def __init__(
        self,
        rank: int = 0,
        size: int = 1,
        *,
        local_rank: int = 0,
        local_size: int = 1,
        store: Store | None = None,
    ) -> None:
        self.rank, self.size = rank, size
        self.local_rank, self.local_size = local_rank, local_size
        self._store = store
        self._jobs = 0
        self._job: Job | None = None
        self._advice = ""
        self.busy = False  # at work on a job: who leaves now leaves the others alone

    def __str__(self) -> str:
        return f"rank {self.rank} on {socket.gethostname()}"

    # ---- what rank 0 says, and what the others hear ----

    def offer(self, job: Job) -> None:
        """Rank 0: what the others will be told by `begin`. Plain values only."""
        if self._store is not None:
            self._job = job

    def begin(self, facts: Job) -> None:
        """Rank 0: everything is prepared; the others start on the job that was offered, with these facts."""
        if self._store is not None:
            assert self._job is not None
            self.busy = True
            self._say({**self._job, "facts": facts})

    def hear(self) -> Job | None:
        """Other ranks: waits for the next job; None: there is none any more.

        Raises:
            RankError: rank 0 is gone.
        """
        assert self._store is not None
        key = f"job/{self._jobs}"
        self._jobs += 1
        with self._lost_ones():
            self._store.wait([key], PATIENCE)
            self._job = json.loads(self._store.get(key))
        self.busy = self._job is not None
        if not self.busy:
            self._part()
        return self._job

    @property
    def facts(self) -> Job:
        """Other ranks: what rank 0 gave along with the job."""
        assert self._job is not None
        return self._job["facts"]

    def end(self) -> None:
        """Rank 0: there is no further job."""
        if self._store is not None and not self.busy:
            with suppress(RuntimeError):  # they may be gone already
                self._say(None)
            self._part()

    def _say(self, job: Job | None) -> None:
        assert self._store is not None
        self._store.set(f"job/{self._jobs}", json.dumps(job))
        self._jobs += 1

    def _part(self) -> None:
        """Waits for the others once more: without torchrun, rank 0 takes the store along."""
        import torch.distributed as dist

        with suppress(RuntimeError):
            dist.barrier()
            dist.destroy_process_group()

    # ---- together ----

    def meet(self) -> None:
        """Waits until all ranks are here.

        Raises:
            RankError: one of them is gone.
        """
        if self._store is not None:
            import torch.distributed as dist

            with self._lost_ones():
                dist.barrier()
            self.busy = False

    def mean(self, value: float) -> float:
        """The mean of a number over all ranks."""
        if self._store is None:
            return value
        import torch
        import torch.distributed as dist

        shared = torch.tensor(value, dtype=torch.float64)
        with self._lost_ones():
            dist.all_reduce(shared)
        return shared.item() / self.size

    def gpu_group(self) -> ProcessGroup | None:
        """The group that exchanges tensors on GPUs: NCCL, which wants a GPU for each rank; None: gloo does it."""
        import torch
        import torch.distributed as dist

        if self._store is None or self.mean(float(torch.cuda.device_count() >= self.local_size)) < 1:
            return None
        group = dist.new_group(backend="nccl", timeout=PATIENCE)
        assert not isinstance(group, int)  # that is for those left out
        return group

    # ---- the end of one is the end of all ----

    def first_to_tell(self) -> bool:
        """Whether no other rank has said why the run ends. Every survivor could, and one line is enough."""
        try:
            return self._store is None or self._store.add("told", 1) == 1
        except RuntimeError:  # the store is gone too: better twice than never
            return True

    @contextmanager
    def watched(self, advice: str) -> Iterator[None]:
        """While the body runs, torchrun's signal that another rank was lost ends this process with one line.

        Args:
            advice: what the user can do, for the end of the line.
        """
        if self._store is None:
            yield
            return
        owner = os.getpid()

        def leave(number: int, frame: object) -> NoReturn:
            # Not an exception: whoever catches one at this moment would take it for a fault of a video.
            if os.getpid() == owner and self.first_to_tell():
                said = f"error: {self} was told to stop: another rank is lost, or the job was ended. {advice}"
                os.write(2, f"{said}\n".encode())
            os._exit(128 + number)

        before = signal.signal(signal.SIGTERM, leave)
        self._advice = advice
        try:
            with self._lost_ones():
                yield
        finally:
            self._advice = ""
            signal.signal(signal.SIGTERM, before)

    @contextmanager
    def _lost_ones(self) -> Iterator[None]:
        """Turns torch's errors about a connection that broke into one line."""
        try:
            yield
        except RuntimeError as error:
            if not _is_about_connections(error):
                raise
            if not self.first_to_tell():
                sys.exit(1)
            raise RankError(f"another rank is lost, so {self} stops. {self._advice}".rstrip()) from error


def _is_about_connections(error: RuntimeError) -> bool:
    from torch.distributed import DistError

    return isinstance(error, DistError) or "gloo" in str(error)


ALONE = Ranks()


def launched() -> int:
    """The number of ranks that the environment speaks of; 1 without torchrun."""
    return int(os.environ["WORLD_SIZE"]) if all(os.environ.get(name) for name in LAUNCHER) else 1


@contextmanager
def join() -> Iterator[Ranks]:
    """Meets the other ranks, if torchrun started several; otherwise `ALONE`.

    Raises:
        RankError: they do not meet.
    """
    if launched() == 1:
        yield ALONE
        return
    import torch.distributed as dist

    try:
        store, rank, size = next(dist.rendezvous("env://", timeout=MEETING))
        # torchrun may start the ranks again after a loss, with the same store.
        store = dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
        dist.init_process_group(
            "gloo", store=dist.PrefixStore("gloo", store), rank=rank, world_size=size, timeout=PATIENCE
        )
    except (RuntimeError, ValueError) as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise RankError(f"rank {os.environ['RANK']} cannot meet the others at {where}: {error}") from error
    ranks = Ranks(
        rank,
        size,
        local_rank=int(os.environ.get("LOCAL_RANK", rank)),
        local_size=int(os.environ.get("LOCAL_WORLD_SIZE", size)),
        store=dist.PrefixStore("ours", store),
    )
    try:
        yield ranks
    finally:
        if ranks.rank == 0:
            ranks.end()


def share(items: Sequence[int], ranks: Ranks, *, together: int) -> list[int]:
    """This rank's part of `items`, in their order: each is one rank's, and nobody gets two.

    Args:
        together: so many neighbours stay together: those that one process would answer in one batch. So a video meets
            the same batch whatever the number of ranks is, and its answer is the same to the last digit.
    """
    batches = [items[start : start + together] for start in range(0, len(items), together)]
    return [item for batch in batches[ranks.rank :: ranks.size] for item in batch]


def refuse_ranks(command: str, ranks: Ranks, words: Sequence[str]) -> None:
    """Refuses what several ranks cannot do, before anything is done.

    Raises:
        ConfigError: torchrun starts a command that works alone, or jobs would run elsewhere than in the ranks.
    """
    if ranks is ALONE and launched() > 1:
        raise ConfigError(
            f"{command} works in one process, and torchrun started {launched()}; only eval and train share their work."
        )
    elsewhere = [word for word in words if word.startswith("hydra/launcher=") and not word.endswith("=basic")]
    if ranks.size > 1 and elsewhere:
        raise ConfigError(
            f"{elsewhere[0]}: its jobs run outside of torchrun's processes; leave one of the two out."
        )
