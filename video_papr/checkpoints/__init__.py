"""Weight files: reading, writing, downloading, and the formats of other projects."""

from .files import read_weights as read_weights
from .files import write_weights as write_weights
