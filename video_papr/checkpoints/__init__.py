"""Weight files: reading, writing, downloading, and the formats of other projects."""

from .files import read_weights, write_weights
