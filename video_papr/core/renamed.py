"""Options of pruners that had other names; `build_pruner` and the configuration read the old ones for one release."""

RENAMED_OPTIONS = {
    "carry": "compensation",
    "carry_cell": "compensation_cell",
    "floor": "min_per_frame",
    "ground": "uniform_share",
    "mass": "top_p",
}
RENAMED_VALUES = {"budget": {"mass": "top_p"}}
