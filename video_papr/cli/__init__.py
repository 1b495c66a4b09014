"""The commands: each file reads a Hydra configuration, checks it and calls the library."""
