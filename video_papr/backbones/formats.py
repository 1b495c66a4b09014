"""The former place of `checkpoints.formats`, for one release."""

from ..checkpoints.formats import *  # noqa: F403
