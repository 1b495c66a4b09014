"""Token pruning: which tubelets of a clip a backbone reads. `protocol` says what a pruner is."""

from ..core.renamed import RENAMED_OPTIONS as RENAMED_OPTIONS
from ..core.renamed import RENAMED_VALUES as RENAMED_VALUES
