"""Training in several ranks, in an interpreter of its own: its ranks are forked, and once some other test has made
autograd start threads, forked processes cannot train any more."""

import subprocess
import sys
from pathlib import Path

CASES = Path(__file__).with_name("parallel_cases.py")


def test_ranks_in_a_fresh_interpreter():
    words = ("-q", "-p", "no:cacheprovider", "-p", "no:xdist")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words, str(CASES)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
