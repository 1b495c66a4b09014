"""The formats in which X3D is published. pytorchvideo's names are ours.

PySlowFast's X3D, and mmaction2's, which was ported from it, have one more batch norm, in the shortcut of res2.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ..core.errors import CheckpointError
from .wrappers import Names, State, renamed, unwrap

# pytorchvideo calls the stem's convolution over space conv_t, and the one over time conv_xy.
SLOWFAST_NAMES = (
    (r"^s1\.pathway0_stem\.conv_xy\.", "blocks.0.conv.conv_t."),
    (r"^s1\.pathway0_stem\.conv\.", "blocks.0.conv.conv_xy."),
    (r"^s1\.pathway0_stem\.bn\.", "blocks.0.norm."),
    *((rf"^s{stage + 1}\.pathway0_res(\d+)\.", rf"blocks.{stage}.res_blocks.\1.") for stage in range(1, 5)),
    (r"\.branch1_bn\.", ".branch1_norm."),
    (r"\.branch1\.", ".branch1_conv."),
    (r"\.branch2\.([ac])_bn\.", r".branch2.norm_\1."),
    (r"\.branch2\.([abc])\.", r".branch2.conv_\1."),
    (r"\.branch2\.b_bn\.", ".branch2.norm_b.0."),
    (r"\.branch2\.se\.fc1\.", ".branch2.norm_b.1.block.0."),
    (r"\.branch2\.se\.fc2\.", ".branch2.norm_b.1.block.2."),
    (r"^head\.conv_5\.", "blocks.5.pool.pre_conv."),
    (r"^head\.conv_5_bn\.", "blocks.5.pool.pre_norm."),
    (r"^head\.lin_5\.", "blocks.5.pool.post_conv."),
    (r"^head\.projection\.", "blocks.5.proj."),
)
MMACTION_X3D_NAMES = (
    (r"^conv1_s\.conv\.", "blocks.0.conv.conv_t."),
    (r"^conv1_t\.conv\.", "blocks.0.conv.conv_xy."),
    (r"^conv1_t\.bn\.", "blocks.0.norm."),
    (r"^layer(\d+)\.(\d+)\.", r"blocks.\1.res_blocks.\2."),
    (r"\.downsample\.conv\.", ".branch1_conv."),
    (r"\.downsample\.bn\.", ".branch1_norm."),
    (r"\.se_module\.fc1\.", ".branch2.norm_b.1.block.0."),
    (r"\.se_module\.fc2\.", ".branch2.norm_b.1.block.2."),
    *((rf"\.conv{n}\.conv\.", f".branch2.conv_{part}.") for n, part in enumerate("abc", start=1)),
    *((rf"\.conv{n}\.bn\.", f".branch2.norm_{part}.") for n, part in ((1, "a"), (2, "b.0"), (3, "c"))),
    (r"^conv5\.conv\.", "blocks.5.pool.pre_conv."),
    (r"^conv5\.bn\.", "blocks.5.pool.pre_norm."),
    (r"^cls_head\.fc1\.", "blocks.5.pool.post_conv."),
    (r"^cls_head\.fc2\.", "blocks.5.proj."),
)
# First layer -> the name of the format, and its names in order.
X3D_FORMATS: dict[str, tuple[str, Names]] = {
    "blocks.0.conv.conv_t.weight": ("pytorchvideo", ()),
    "s1.pathway0_stem.conv_xy.weight": ("PySlowFast", SLOWFAST_NAMES),
    "conv1_s.conv.weight": ("mmaction2", MMACTION_X3D_NAMES),
}


def from_any_x3d(state: Mapping[str, Tensor], *, source: str) -> tuple[State, str]:
    """An X3D of pytorchvideo, PySlowFast or mmaction2, in any wrapper -> pytorchvideo's names, and whose it had.

    Raises CheckpointError: it is no X3D.
    """
    bare = unwrap(state, X3D_FORMATS, source=source)
    for anchor, (title, names) in X3D_FORMATS.items():
        if anchor in bare:
            return renamed(bare, names), title
    first = ", ".join(sorted(state)[:3])
    raise CheckpointError(
        f"{source} holds no X3D of {', '.join(title for title, _ in X3D_FORMATS.values())} ({first}, ...)"
    )
