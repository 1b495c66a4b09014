"""The libraries that decode videos. A reader takes (path, `VideoStream`, ascending frame indices) and returns frames.

`decode_clips` in `data.decoding` asks them; nothing else does.
"""
