"""What ranks share, and how one process knows that it is alone."""

from hypothesis import given
from hypothesis import strategies as st

from video_papr.core.processes import ALONE, Ranks, join, launched, share


@given(
    items=st.lists(st.integers(0, 10_000), unique=True, max_size=60).map(sorted),
    size=st.integers(1, 9),
    together=st.integers(1, 7),
)
def test_shares_hold_every_item_once_and_keep_batches_together(items, size, together):
    shares = [share(items, Ranks(rank, size), together=together) for rank in range(size)]
    assert sorted(item for part in shares for item in part) == items
    assert all(part == sorted(part) for part in shares)
    # Cut into batches of its own, a rank makes those that one process makes of all items.
    whole = {tuple(items[i : i + together]) for i in range(0, len(items), together)}
    cut = [tuple(part[i : i + together]) for part in shares for i in range(0, len(part), together)]
    assert len(cut) == len(whole) and set(cut) == whole
    lengths = [len(range(0, len(part), together)) for part in shares]
    assert max(lengths) - min(lengths) <= 1


@given(
    batches=st.lists(st.integers(0, 19), unique=True, max_size=20),
    size=st.integers(1, 5),
    together=st.integers(1, 4),
)
def test_what_a_lost_run_leaves_makes_the_same_batches(batches, size, together):
    """Batches are stored whole, so another number of ranks meets the others as they were."""
    total = 20 * together - together // 2
    whole = [tuple(range(start, min(start + together, total))) for start in range(0, total, together)]
    done = {item for batch in batches for item in whole[batch]}
    left = [item for item in range(total) if item not in done]
    found = []
    for rank in range(size):
        part = share(left, Ranks(rank, size), together=together)
        found += [tuple(part[i : i + together]) for i in range(0, len(part), together)]
    assert set(found) == {batch for batch in whole if not set(batch) <= done}


def test_alone_without_a_launcher(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    assert launched() == 1
    monkeypatch.setenv("WORLD_SIZE", "4")  # some clusters set one of them or another for all jobs
    assert launched() == 1
    with join() as ranks:
        assert ranks is ALONE
    ALONE.broadcast(done=[1])
    ALONE.barrier()
    ALONE.dismiss()
    assert ALONE.mean(0.5) == 0.5
    assert (ALONE.rank, ALONE.size, ALONE.busy) == (0, 1, False)
    assert ALONE.job == {}
