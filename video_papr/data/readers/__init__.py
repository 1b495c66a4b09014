"""The libraries that decode videos.

A reader takes (path, `VideoStream`, n ascending frame indices, where these stand in clips) and returns the clips.

`decode_clips` in `data.decoding` asks them; nothing else does.
"""
