"""What is read of an event, and the columns that it becomes."""

# pyright: reportUnknownParameterType=false
# pyarrow has no annotations.

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa

NO_VALUE = -1
"""In columns of whole numbers: the event does not have the key."""

TEXTS = ("ph", "cat", "name")
WHOLE = ("pid", "tid")
ARGS_WHOLE = ("correlation", "stream", "device", "External id")
SPARSE: dict[str, pa.DataType] = {
    "Collective name": pa.string(),
    "dtype": pa.string(),
    "In msg nelems": pa.int64(),
    "Out msg nelems": pa.int64(),
    "Group size": pa.int64(),
    "Process Group Name": pa.string(),
    "Process Group Ranks": pa.string(),
    "Seq": pa.int64(),
    "bytes": pa.int64(),
    "memory bandwidth (GB/s)": pa.float64(),
    "name": pa.string(),
}
"""Keys of `args` that few events have; kept with the number of their row."""
DETAIL: dict[str, pa.DataType] = {
    "Input Dims": pa.string(),
    "Input type": pa.string(),
    "Concrete Inputs": pa.string(),
    "Call stack": pa.string(),
    "Process Group Description": pa.string(),
    "Sequence number": pa.int64(),
    "Fwd thread id": pa.int64(),
    "Python id": pa.int64(),
    "Python parent id": pa.int64(),
    "wait_on_stream": pa.int64(),
    "wait_on_cuda_event_record_corr_id": pa.int64(),
    "blocks per SM": pa.float64(),
    "warps per SM": pa.float64(),
    "est. achieved occupancy %": pa.float64(),
    "Bytes": pa.int64(),
    "Addr": pa.int64(),
    "Total Allocated": pa.int64(),
    "Total Reserved": pa.int64(),
    "Device Type": pa.int64(),
    "Device Id": pa.int64(),
}
"""Further ones, which cost time and memory and which only some analyses ask for."""
KINDS: dict[pa.DataType, Literal["text", "whole", "real"]] = {
    pa.string(): "text",
    pa.int64(): "whole",
    pa.float64(): "real",
}
"""What the types of columns are called where values are converted one by one."""


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
    sparse: dict[str, tuple[np.ndarray, pa.Array]]
    """Rows, and values."""
