"""The Hydra configs, installed as the package video_papr.conf; Hydra asks for this file."""
