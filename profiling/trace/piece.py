"""What is read of an event, and the columns that it becomes."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl

Sort = Literal["text", "whole", "real"]
"""What a value is read as; what cannot be of it is none."""

NO_VALUE = -1
"""In columns of whole numbers: the event does not have the key."""

TEXTS = ("ph", "cat", "name")
WHOLE = ("pid", "tid")
ARGS_WHOLE = ("correlation", "stream", "device", "External id")
SPARSE: dict[str, Sort] = {
    "Collective name": "text",
    "dtype": "text",
    "In msg nelems": "whole",
    "Out msg nelems": "whole",
    "Group size": "whole",
    "Process Group Name": "text",
    "Process Group Ranks": "text",
    "Seq": "whole",
    "bytes": "whole",
    "memory bandwidth (GB/s)": "real",
    "name": "text",
}
"""Keys of `args` that few events have; kept with the number of their row."""
DETAIL: dict[str, Sort] = {
    "Input Dims": "text",
    "Input type": "text",
    "Concrete Inputs": "text",
    "Call stack": "text",
    "Process Group Description": "text",
    "Sequence number": "whole",
    "Fwd thread id": "whole",
    "Python id": "whole",
    "Python parent id": "whole",
    "wait_on_stream": "whole",
    "wait_on_cuda_event_record_corr_id": "whole",
    "blocks per SM": "real",
    "warps per SM": "real",
    "est. achieved occupancy %": "real",
    "Bytes": "whole",
    "Addr": "whole",
    "Total Allocated": "whole",
    "Total Reserved": "whole",
    "Device Type": "whole",
    "Device Id": "whole",
}
"""Further ones, which cost time and memory and which only some analyses ask for."""
DTYPES: dict[Sort, type[pl.DataType]] = {"text": pl.String, "whole": pl.Int64, "real": pl.Float64}


@dataclass(kw_only=True)
class Piece:
    """Columns of some events: X the ones that are kept, in the order of the file."""

    ts: np.ndarray
    """[X] int64, nanoseconds."""
    dur: np.ndarray
    """[X] int64, nanoseconds; -1 for events that have no length."""
    whole: dict[str, np.ndarray]
    """[X] int64 each."""
    texts: dict[str, tuple[np.ndarray, list[str]]]
    """[X] codes, and what they stand for; code -1 for none."""
    sparse: dict[str, tuple[np.ndarray, pl.Series]]
    """Rows, and values of the type that `DTYPES` names; without nulls."""
