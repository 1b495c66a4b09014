"""What is refused before it is decoded: bombs, and files that are no videos but lead to others."""

from __future__ import annotations

from dataclasses import dataclass

from ..core.errors import VideoDecodeError


@dataclass(frozen=True)
class Limits:
    """A small file can promise frames that fill the memory. None: no limit.

    Attributes:
        max_pixels: width x height of a frame; FFmpeg checks it too, wherever the size changes (PyAV only).
        max_frames: frames of a video; reading its packets stops there.
    """

    max_pixels: int | None = 7680 * 4320
    max_frames: int | None = 1_000_000

    def check_size(self, width: int, height: int) -> None:
        """Raises VideoDecodeError, with the bare reason, for frames that are too large."""
        if self.max_pixels is not None and width * height > self.max_pixels:
            raise VideoDecodeError(
                f"frames of {width}x{height} have more pixels than dataset.max_pixels={self.max_pixels}"
            )

    def check_count(self, frames: int) -> None:
        """Raises VideoDecodeError, with the bare reason, for too many frames."""
        if self.max_frames is not None and frames > self.max_frames:
            raise VideoDecodeError(f"more frames than dataset.max_frames={self.max_frames}")


DEFAULT_LIMITS = Limits()

# FFmpeg goes by a file's content: a text called clip.mp4 may be a script or a playlist that makes it open other files,
# or addresses. Only formats that hold their pictures themselves are read, and only from files.
_CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,flv,live_flv,asf,asf_o,mpegts,mpegtsraw,mpeg,mpegvideo,ogg,mxf,nut,rm,dv,"
    "swf,wtv,ivf,gif,h261,h263,h264,hevc,vvc,av1,obu,m4v,mjpeg,vc1,yuv4mpegpipe"
)
CONTAINER_OPTIONS = {"protocol_whitelist": "file", "format_whitelist": _CONTAINERS}
