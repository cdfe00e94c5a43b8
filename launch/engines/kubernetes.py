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
from ..topology.errors import shown
from .job import Job

_API = "trainer.kubeflow.org/v1alpha1"
_RUNTIME = "torch-distributed"
_MOST_LETTERS = 63
_PLAIN = re.compile(r"[A-Za-z/][\w./-]*")
_NOT_IN_YAML = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]")
_IMAGE = re.compile(r"[\w./:@-]{1,500}", re.ASCII)
_RUNTIMES = re.compile(r"[a-z0-9](?:[-a-z0-9.]{0,251}[a-z0-9])?")
_MOST_WORDS, _LONGEST_WORD = 128, 65_536
_WORDS = ("true", "false", "yes", "no", "on", "off", "null", "y", "n")  # which YAML takes for something else


def manifest(job: Job, *, image: str | None, runtime: str | None) -> dict[str, Any]:
    """The object. Raises: UsageError if the API would not take it."""
    name = re.sub(r"[^a-z0-9]+", "-", job.name.lower()).strip("-")[:_MOST_LETTERS].strip("-")
    if not name or not name[0].isalpha():
        raise UsageError(f"name = {job.name!r}: a TrainJob's begins with a letter; use --set name=...")
    for option, given, wanted, example in (
        ("--image", image, _IMAGE, "me/train:1"),
        ("--runtime", runtime, _RUNTIMES, _RUNTIME),
    ):
        if given is not None and not wanted.fullmatch(given):
            raise UsageError(f"{option} {shown(given)!r}: is no name of one; write {option} {example}")
    environment = [
        # A pod has another name each time; the node is what links and devices belong to.
        {"name": HOST_VARIABLE, "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
        {"name": "PYTHONSAFEPATH", "value": "1"},
    ]
    trainer: dict[str, Any] = {
        **({} if image is None else {"image": image}),
        "command": ["torchrun"],
        "args": _arguments(job),
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


def _arguments(job: Job) -> list[str]:
    """Of torchrun. Kubernetes puts variables of a container in place of $(NAME), and reads $$ as $."""
    words = [word.replace("$", "$$") for word in ("-m", "stepladder", *job.arguments)]
    if len(words) > _MOST_WORDS or max(map(len, words)) > _LONGEST_WORD:
        raise UsageError(
            f"--set: {len(words)} words are more than the {_MOST_WORDS} of a TrainJob, or one is longer than "
            f"{_LONGEST_WORD} letters; write them into a recipe"
        )
    return words


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
    # Letters as they are: JSON would tear one beyond 16 bits in two halves, which YAML does not put together.
    return _NOT_IN_YAML.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(value, ensure_ascii=False))
