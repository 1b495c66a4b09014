"""The Hydra configs, installed as the package video_papr.conf; Hydra asks for this file.

Their parts that hold declared defaults (`_eval`, `dataset/_video`, ...) are made by the import below.
"""

import video_papr.config.hydra  # noqa: F401
