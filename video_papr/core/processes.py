"""Multi-process runs (torchrun): ranks that share the videos or clips of one command.

Every rank has the same configuration, takes its share of the indices (`share`), and leaves a file of its own; after a
barrier, rank 0 puts these together. Rank 0 alone reads the command line and prepares what has to be made once
(synthetic videos, downloads); then it broadcasts the configuration. So a wrong option is one line, and sweepers whose
next job depends on the last one's result run once.

    rank 0   compose - prepare - broadcast ---- own share ---- barrier - put together - write
    rank 1                         receive - prepare - own share ---- barrier
    rank 2                         receive - prepare - own share ---- barrier

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
RENDEZVOUS_TIMEOUT = timedelta(minutes=10)
# One rank may be long at work while another waits. That one is lost is noticed at once, by the connection.
TIMEOUT = timedelta(days=7)


class Ranks:
    """The processes of this run, and which of them this one is.

    Attributes:
        rank: 0 leads.
        local_rank, local_size: the same on this machine.
        job: plain values (JSON) that all ranks know: rank 0 sets them and sends them with `broadcast`.
        busy: at work on a job: who leaves now leaves the others alone.
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
        self.job: dict[str, Any] = {}
        self.busy = False
        self._store = store
        self._advice = ""

    def __str__(self) -> str:
        return f"rank {self.rank} on {socket.gethostname()}"

    def broadcast(self, **facts: Any) -> None:
        """Rank 0: everything is prepared; the others start on `job`, and know these facts."""
        if self._store is not None:
            self.job = {**self.job, **facts, "advice": self._advice}
            self._exchange(self.job)
            self.busy = True

    def receive(self) -> bool:
        """Other ranks: wait for the next job; False: there is none any more. Raises RankError: rank 0 is gone."""
        job = self._exchange(None)
        self.busy, self.job = job is not None, job or {}
        self._advice = self.job.get("advice", "")  # the signal may come at once
        return self.busy

    def dismiss(self) -> None:
        """Rank 0: there is no further job."""
        if self._store is not None and not self.busy:
            with suppress(RuntimeError, RankError):  # they may be gone already
                self._exchange(None)

    def _exchange(self, job: dict[str, Any] | None) -> dict[str, Any] | None:
        """Rank 0's job on all ranks, as JSON: nothing is unpickled."""
        import torch
        import torch.distributed as dist

        data = torch.frombuffer(bytearray(json.dumps(job).encode()), dtype=torch.uint8)
        length = torch.tensor(len(data))
        with self._lost_ranks():
            dist.broadcast(length, src=0)
            data = data if self.rank == 0 else torch.empty(int(length), dtype=torch.uint8)
            dist.broadcast(data, src=0)
        received: dict[str, Any] | None = json.loads(bytes(data.tolist()))
        return received

    def barrier(self) -> None:
        """Waits until all ranks are here. Raises RankError: one of them is gone."""
        if self._store is not None:
            import torch.distributed as dist

            with self._lost_ranks():
                dist.barrier()
            self.busy = False

    def mean(self, value: float) -> float:
        """The mean of a number over all ranks."""
        if self._store is None:
            return value
        import torch
        import torch.distributed as dist

        shared = torch.tensor(value, dtype=torch.float64)
        with self._lost_ranks():
            dist.all_reduce(shared)
        return shared.item() / self.size

    def gpu_group(self) -> ProcessGroup | None:
        """The group that exchanges tensors on GPUs: NCCL, which wants a GPU for each rank; None: gloo does it."""
        import torch
        import torch.distributed as dist

        if self._store is None or self.mean(float(torch.cuda.device_count() >= self.local_size)) < 1:
            return None
        group = dist.new_group(backend="nccl", timeout=TIMEOUT)
        assert not isinstance(group, int)  # that is for those left out
        return group

    def first_to_report(self) -> bool:
        """Whether no other rank has said why the run ends. Every survivor could, and one line is enough."""
        try:
            return self._store is None or self._store.add("reported", 1) == 1
        except RuntimeError:  # the store is gone too: better twice than never
            return True

    @contextmanager
    def watched(self, advice: str) -> Iterator[None]:
        """While the body runs, the loss of another rank ends this process with one line.

        Args:
            advice: what the user can do, for the end of the line.
        """
        if self._store is None:
            yield
            return
        self._advice = advice
        try:
            with self._lost_ranks():
                yield
        finally:
            self._advice = ""

    @contextmanager
    def _stopped_by_signal(self) -> Iterator[None]:
        """Torchrun's signal that another rank was lost ends this process, with one line where a job had begun."""
        owner = os.getpid()

        def leave(number: int, frame: object) -> NoReturn:
            # Not an exception: whoever catches one at this moment would take it for a fault of a video.
            if os.getpid() == owner and self._advice and self.first_to_report():
                said = f"error: {self} was told to stop: another rank is lost, or the job was ended. {self._advice}"
                os.write(2, f"{said}\n".encode())
            os._exit(128 + number)

        before = signal.signal(signal.SIGTERM, leave)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    @contextmanager
    def _lost_ranks(self) -> Iterator[None]:
        """Turns torch's errors about a connection that broke into one line."""
        from torch.distributed import DistError

        try:
            yield
        except RuntimeError as error:
            if not isinstance(error, DistError) and "gloo" not in str(error):
                raise
            if not self.first_to_report():
                sys.exit(1)
            raise RankError(f"another rank is lost, so {self} stops. {self._advice}".rstrip()) from error


ALONE = Ranks()


def launched() -> int:
    """The number of ranks that the environment speaks of; 1 without torchrun."""
    return int(os.environ["WORLD_SIZE"]) if all(os.environ.get(name) for name in LAUNCHER) else 1


@contextmanager
def join() -> Iterator[Ranks]:
    """Meets the other ranks, if torchrun started several; otherwise `ALONE`. Raises RankError: they do not meet."""
    if launched() == 1:
        yield ALONE
        return
    import torch.distributed as dist

    try:
        store, rank, size = next(dist.rendezvous("env://", timeout=RENDEZVOUS_TIMEOUT))
        # torchrun may start the ranks again after a loss, with the same store.
        store = dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
        dist.init_process_group(
            "gloo", store=dist.PrefixStore("gloo", store), rank=rank, world_size=size, timeout=TIMEOUT
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
        with ranks._stopped_by_signal():
            yield ranks
    finally:
        if rank == 0:
            ranks.dismiss()
        if not ranks.busy:
            with suppress(RuntimeError):  # without torchrun, rank 0 takes the store along, so it leaves last
                dist.barrier()
                dist.destroy_process_group()


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

    Raises ConfigError: torchrun starts a command that works alone, or jobs would run elsewhere than in the ranks.
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
