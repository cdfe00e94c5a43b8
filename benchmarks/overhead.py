"""Host time of a step above a hand-written loop, and the time to the first step, side by side with peers.

Each round starts every arm once, in a rotating order, each rank in a process of its own; what the machine does meanwhile
falls on all arms alike, so the difference to the bare loop is taken within a round and the median over rounds. A step
lasts from the beginning of its batch to the beginning of the next one's, in every arm. On the MLP ten steps are timed
together, so that the one among them that is logged counts.

    python benchmarks/overhead.py [--quick] [--rounds N]

Takes about 8 minutes on 2 cores, 2 with `--quick`. Writes `results/overhead.json` beside this file; the last line is the
verdict.
"""

import argparse
import datetime
import importlib.util
import json
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

from overhead_report import Case, Figures, Startup, machine_line, table, verdict

HERE = Path(__file__).resolve().parent
ARMS = ("bare", "bare-loader", "stepladder", "accelerate", "fabric", "lightning")
COMMANDS = ("bare script", "stepladder run")
PEERS = ("stepladder", "torch", "accelerate", "lightning")
TIMEOUT_S = 300
