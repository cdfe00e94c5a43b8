"""What `pp` is made of: where the model is cut, who runs what in which order, what the order costs, and the run itself.

`cuts`, `actions` and `bubble` need no torch; `split`, `stages`, `schedule` and `runner` do, so nobody imports them to
check a recipe.
"""

from .actions import Action, Table, TableError, read_table, table_problems
from .bubble import formula, simulate
from .cuts import balanced_cuts, blocks_of_stages, stage_costs
from .layout import DEFAULT_STAGES_PER_RANK, SPLITS_BACKWARD, V_SHAPED, ScheduleName, rank_of_stages

__all__ = [
    "DEFAULT_STAGES_PER_RANK",
    "SPLITS_BACKWARD",
    "V_SHAPED",
    "Action",
    "ScheduleName",
    "Table",
    "TableError",
    "balanced_cuts",
    "blocks_of_stages",
    "formula",
    "rank_of_stages",
    "read_table",
    "simulate",
    "stage_costs",
    "table_problems",
]
