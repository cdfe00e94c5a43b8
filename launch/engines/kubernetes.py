"""A TrainJob of Kubeflow Trainer: the runtime's controller makes the pods and tells torchrun of them.

Source: trainer.kubeflow.org/v1alpha1 (kubeflow/trainer, pkg/apis/trainer/v1alpha1/trainjob_types.go). torchrun reads
the number of nodes, of processes and the address of the first from PET_ variables, which the torch runtime sets.
"""

import json
import re
from collections.abc import Iterator
from typing import Any, cast

from ..errors import UsageError
from ..placement.hosts import HOST_VARIABLE
from .job import Job

_API = "trainer.kubeflow.org/v1alpha1"
_RUNTIME = "torch-distributed"
_MOST_LETTERS = 63
_PLAIN = re.compile(r"[A-Za-z/][\w./-]*")
_WORDS = ("true", "false", "yes", "no", "on", "off", "null", "y", "n")  # which YAML takes for something else


def manifest(job: Job, *, image: str | None, runtime: str | None) -> dict[str, Any]:
    """The object. Raises: UsageError if it cannot have the recipe's name."""
    name = re.sub(r"[^a-z0-9]+", "-", job.name.lower()).strip("-")[:_MOST_LETTERS].strip("-")
    if not name or not name[0].isalpha():
        raise UsageError(f"name = {job.name!r}: a TrainJob's begins with a letter; use --set name=...")
    environment = [
        # A pod has another name each time; the node is what links and devices belong to.
        {"name": HOST_VARIABLE, "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
        {"name": "PYTHONSAFEPATH", "value": "1"},
    ]
    trainer: dict[str, Any] = {
        **({"image": image} if image else {}),
        "command": ["torchrun"],
        "args": ["-m", "stepladder", *job.arguments],
        "env": environment,
        "numNodes": job.num_nodes,
        "numProcPerNode": job.ranks_per_node,
    }
    if job.on_gpus:
        trainer["resourcesPerNode"] = {"limits": {"nvidia.com/gpu": job.ranks_per_node}}
    return {
        "apiVersion": _API,
        "kind": "TrainJob",
        "metadata": {"name": name},
        "spec": {"runtimeRef": {"name": runtime or _RUNTIME}, "trainer": trainer},
    }


def to_yaml(value: dict[str, Any]) -> str:
    """The object as YAML."""
    return "\n".join(_lines(value, "")) + "\n"


def _lines(value: Any, indent: str) -> Iterator[str]:
    if isinstance(value, dict):
        for key, each in cast(dict[str, Any], value).items():
            if isinstance(each, dict | list) and each:
                yield f"{indent}{_scalar(key)}:"
                yield from _lines(each, indent + ("" if isinstance(each, list) else "  "))
            else:
                yield f"{indent}{_scalar(key)}: {_scalar(each)}"
    else:
        for each in cast(list[Any], value):
            first, *rest = _lines(each, "") if isinstance(each, dict) else [_scalar(each)]
            yield f"{indent}- {first}"
            yield from (f"{indent}  {line}" for line in rest)


def _scalar(value: Any) -> str:
    """Bare where it can be nothing else, else in JSON's quotes, which are YAML's too."""
    if isinstance(value, str) and _PLAIN.fullmatch(value) and value.lower() not in _WORDS:
        return value
    return json.dumps(value)
