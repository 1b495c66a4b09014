"""Token pruning: which tubelets of a clip a backbone reads. `protocol` says what a pruner is."""

# Options of `build_pruner`, and keys of the configuration, that had other names; the old ones are read for a release.
RENAMED_OPTIONS = {
    "carry": "compensation",
    "carry_cell": "compensation_cell",
    "floor": "min_per_frame",
    "ground": "uniform_share",
    "mass": "top_p",
}
RENAMED_VALUES = {"budget": {"mass": "top_p"}}
