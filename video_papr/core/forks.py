"""Forked processes: what they inherit is never freed by the garbage collector.

A decoder or a frame of the parent may wait for the collector. Its threads do not exist in a forked process, so freeing
it there waits for them for ever, or crashes. The collector may run at any allocation, so it rests from before the fork
until everything inherited is frozen (Python's own advice for `gc.freeze`).
"""

from __future__ import annotations

import gc
import multiprocessing
import os

_was_on: list[bool] = []


def start_method() -> str:
    """Forking starts a worker in no time; readers are opened in the worker, after the fork, so it is safe here."""
    return "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"


def collect_nothing_inherited() -> None:
    """Sees to it for every fork of this process from now on; does nothing where there is no fork."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=_pause, after_in_parent=_resume, after_in_child=_freeze)


def _pause() -> None:
    _was_on.append(gc.isenabled())  # a stack: two threads may fork at once
    gc.disable()


def _resume() -> None:
    if _was_on.pop():
        gc.enable()


def _freeze() -> None:
    was_on = any(_was_on)
    _was_on.clear()
    gc.freeze()
    if was_on:
        gc.enable()
