"""Weights: reading and writing them, the formats of other projects, and where they are fetched from."""

from .files import read_weights, write_weights

__all__ = ["read_weights", "write_weights"]
