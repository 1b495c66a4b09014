"""What the codec says moves: its motion vectors, which come with decoding, without the camera's motion.

Frames that were read from a file for this pruner have a fourth channel, made by `data.readers.vectors`. Where it is
unknown (intra frames, codecs that export no vectors, frames of no file) the frame difference takes its place.

Letters: B clips, T frames, H x W pixels, T' x H' x W' the token grid.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...core.pixels import motion_unknown
from ...core.types import TokenGrid
from ..map_pruner import built_from
from ..protocol import MAP_OPTIONS, PrunerSpec
from .rules import cell_means, motion


class CodecScorer(nn.Module):
    """The mean of the motion plane over each tubelet's pixels."""

    def forward(self, frames: Tensor, grid: TokenGrid) -> Tensor:
        """frames (B, T, H, W, 4) uint8 -> significance map (B, T', H', W') on `grid`.

        A tubelet of which no frame is known has the root of its frame difference, on the scale that the two have in the
        clip's other tubelets. Frames (B, T, H, W, 3), and clips of which nothing is known, have the map of `motion`.
        """
        if frames.shape[-1] == 3:
            warnings.warn(
                "pruner=codec: frames that come from no video file have no motion vectors; the frame difference "
                "(pruner=motion) takes their place",
                stacklevel=2,
            )
            return motion(frames, grid, 0)
        planes = frames[..., 3]
        known = ~motion_unknown(planes)
        vectors = cell_means(planes * known[..., None, None].float(), grid)
        if not frames.is_cuda and bool(known.all()):  # a GPU would have to be waited for
            return vectors
        share = F.adaptive_avg_pool1d(known.float(), grid.frames)[..., None, None]
        told, vectors = share > 0, vectors / share.clamp(min=1e-6)
        difference = motion(frames[..., :3], grid, 0)
        root = difference.sqrt()
        scale = _mean(vectors, told) / _mean(root, told).clamp(min=1e-6)
        mixed = torch.where(told, vectors, scale * root)
        return torch.where(told.any(1, keepdim=True), mixed, difference)


def _mean(values: Tensor, told: Tensor) -> Tensor:
    """The mean of each clip's values (B, T', H', W') over the tubelets (B, T', 1, 1) that are told: (B, 1, 1, 1)."""
    total = (values * told).sum((1, 2, 3), keepdim=True)
    return total / (told.sum((1, 2, 3), keepdim=True) * values[0, 0].numel()).clamp(min=1)


SPECS = (
    PrunerSpec(
        "codec",
        "Keeps what moves against the camera, by the motion vectors of H.264 and its kin; else like motion.",
        built_from(CodecScorer),
        MAP_OPTIONS,
        compares_frames=True,
        shares_crops=True,
        reads_motion=True,
        not_exportable="motion vectors come from the decoder, not from the frames; use pruner=motion",
    ),
)
