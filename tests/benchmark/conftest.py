"""A setting so small that a run takes milliseconds."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from video_papr.backbones.builders import Backbone, build_backbone

CLIP = {"num_frames": 8, "input_size": 32}  # 2 x 4 x 4 tokens
SCORER = {"frames": 4, "size": 32}


@pytest.fixture(scope="session")
def tiny() -> Backbone:
    return build_backbone("videomae_tiny", **CLIP)


@pytest.fixture
def frames() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2, 8, 32, 32, 3), generator=generator, dtype=torch.uint8)
