"""A forked process never frees what it inherited."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

# Garbage in a cycle, as a decoder in the frames of an error is, and a collector that runs at every allocation.
CHILD = """
import gc, os, sys, threading
from video_papr.core.forks import collect_nothing_inherited
if {with_hook}:
    collect_nothing_inherited()
parent = os.getpid()
class Decoder:
    def __init__(self): self.myself = self
    def __del__(self):
        if os.getpid() != parent: os.write(2, b"freed in the child")
gc.disable()
gc.set_threshold(1, 1, 1)
Decoder()
gc.enable()
child = os.fork()  # Python's own preparations in the child allocate
if child == 0:
    gc.collect()
    alive = [[] for _ in range(1000)]
    os._exit(0 if gc.isenabled() else 3)
assert os.waitpid(child, 0)[1] == 0 and gc.isenabled()
gc.disable()
if os.fork() == 0:
    os._exit(gc.isenabled())
assert os.wait()[1] == 0 and not gc.isenabled()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing is forked here")
@pytest.mark.parametrize("with_hook", [True, False])
def test_what_was_inherited_is_not_freed(with_hook: bool) -> None:
    code = CHILD.format(with_hook=with_hook)
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stderr == ("" if with_hook else "freed in the child")
