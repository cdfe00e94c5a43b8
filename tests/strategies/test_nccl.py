"""Which variables a recipe sets, who wins where the user has set one, and where they would do nothing."""

from collections.abc import Callable
from dataclasses import fields
from typing import Any, get_args

import pytest

from stepladder.launch.errors import UsageError
from stepladder.launch.plan import Plan, make_plan
from stepladder.launch.recipe import parse
from stepladder.strategies.base import Run
from stepladder.strategies.mesh import Axis
from stepladder.strategies.nccl import NCCL

TWO = dict.fromkeys(Axis, 1) | {Axis.DP_REPLICATE: 2}

SETTINGS: list[tuple[dict[str, Any], dict[str, str]]] = [
    ({}, {}),
    ({"all_reduce": "tree"}, {"NCCL_ALGO": "allreduce:tree"}),
    (
        {"all_reduce": "nvls", "all_gather": "ring", "reduce_scatter": "pat"},
        {"NCCL_ALGO": "allreduce:nvls;allgather:ring;reducescatter:pat"},
    ),
    ({"protocol": "LL128"}, {"NCCL_PROTO": "LL128"}),
    ({"min_ctas": 4, "max_ctas": 16}, {"NCCL_MIN_CTAS": "4", "NCCL_MAX_CTAS": "16"}),
    ({"cluster_size": 0}, {"NCCL_CGA_CLUSTER_SIZE": "0"}),
    ({"buffer_mib": 8}, {"NCCL_BUFFSIZE": "8388608"}),
    ({"nvls": False}, {"NCCL_NVLS_ENABLE": "0"}),
    ({"nvls": True}, {"NCCL_NVLS_ENABLE": "1"}),
    ({"p2p_level": "PIX"}, {"NCCL_P2P_LEVEL": "PIX"}),
    ({"net": "Socket"}, {"NCCL_NET": "Socket"}),
    ({"ib_devices": "^mlx5_2"}, {"NCCL_IB_HCA": "^mlx5_2"}),
    ({"ib_queue_pairs": 4}, {"NCCL_IB_QPS_PER_CONNECTION": "4"}),
    ({"gdr_level": "SYS"}, {"NCCL_NET_GDR_LEVEL": "SYS"}),
    ({"cross_nic": "never"}, {"NCCL_CROSS_NIC": "0"}),
    ({"cross_nic": "as needed"}, {"NCCL_CROSS_NIC": "2"}),
    ({"socket_interfaces": "=eth0"}, {"NCCL_SOCKET_IFNAME": "=eth0"}),
    ({"high_priority": True}, {"TORCH_NCCL_HIGH_PRIORITY": "1"}),
    ({"log": "INFO"}, {"NCCL_DEBUG": "INFO"}),
]


def test_every_key_means_a_variable(make_run: Callable[..., Run]) -> None:
    run = make_run(device_type="cuda", degrees=TWO)
    for keys, variables in SETTINGS:
        assert NCCL(**keys).environment(run) == variables
        assert len(list(NCCL(**keys).check(run))) == (0 if keys else 1)
    assert {key for keys, _ in SETTINGS for key in keys} == {each.name for each in fields(NCCL)}
    assert all(type(None) in get_args(each.type) for each in fields(NCCL))  # nothing is set unless asked for


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({}, "has no effect without a setting"),
    ({"min_ctas": 8, "max_ctas": 4}, "min_ctas = 8: more than max_ctas = 4"),
    ({"nvls": False, "all_reduce": "nvlstree"}, "all_reduce = 'nvlstree': cannot work with nvls = false"),
    ({"net": "Socket", "ib_queue_pairs": 2}, "ib_queue_pairs: has no effect with net = 'Socket'"),
]


@pytest.mark.parametrize(("keys", "sentence"), REFUSED, ids=[sentence for _, sentence in REFUSED])
def test_settings_that_do_nothing_or_contradict_each_other_are_refused(
    keys: dict[str, Any], sentence: str, make_run: Callable[..., Run]
) -> None:
    (said,) = NCCL(**keys).check(make_run(device_type="cuda", degrees=TWO))
    assert sentence in said


def test_a_single_rank_has_nobody_to_talk_to(make_run: Callable[..., Run]) -> None:
    (said,) = NCCL(nvls=True).check(make_run(device_type="cuda"))
    assert "a single rank" in said


def plan_of(nccl: dict[str, Any], num_gpus: int = 2) -> Plan:
    tree: dict[str, Any] = {
        "model": {"decoder": {"dim": 32, "num_layers": 2, "num_heads": 4, "ffn_dim": 64, "vocab_size": 64}},
        "data": {"synthetic": {}},
        "batch": {"microbatch_size": 4, "sequence_length": 32},
        "run": {"cpu_ranks": 2},
        "strategies": {"adamw": {}, "ddp": {}, "nccl": nccl},
    }
    return make_plan(parse(tree, {}), num_gpus=num_gpus)


def test_the_plan_says_what_is_set_and_that_a_value_of_the_users_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NCCL_MAX_CTAS", raising=False)
    monkeypatch.setenv("NCCL_NVLS_ENABLE", "1")
    plan = plan_of({"max_ctas": 8, "nvls": False})

    lines = [line for line in plan.summary() if line.startswith("environment")]
    assert lines == [
        "environment NCCL_MAX_CTAS = 8 (nccl)",
        "environment NCCL_NVLS_ENABLE = 1 (set already)",
    ]


def test_a_worker_sets_the_environment_before_anything_else_and_keeps_what_is_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import os
    from pathlib import Path

    from stepladder.launch import worker
    from stepladder.launch.ranks import Ranks, StopRequest

    monkeypatch.setenv("NCCL_MAX_CTAS", "to be removed again")  # so that monkeypatch restores it
    monkeypatch.delenv("NCCL_MAX_CTAS")
    monkeypatch.setenv("NCCL_NVLS_ENABLE", "1")
    seen: dict[str, str] = {}

    def first_thing(*arguments: Any) -> Any:
        seen.update(os.environ)
        raise UsageError("far enough")

    monkeypatch.setattr(worker, "pick_device", first_thing)
    ranks = Ranks(rank=0, local_rank=0, num_ranks=2)
    with pytest.raises(UsageError, match="far enough"):
        worker.work(
            plan_of({"max_ctas": 8, "nvls": False}),
            ranks,
            out=Path("x"),
            resume=False,
            command=[],
            stop=StopRequest(),
            placement="none",
        )
    assert (seen["NCCL_MAX_CTAS"], seen["NCCL_NVLS_ENABLE"]) == ("8", "1")


def test_without_gpus_it_is_refused() -> None:
    with pytest.raises(UsageError) as caught:
        plan_of({"max_ctas": 8}, num_gpus=0)
    assert any("strategies.nccl: cannot work beside device cpu" in each for each in caught.value.problems)


def test_numbers_out_of_range_are_refused() -> None:
    with pytest.raises(UsageError) as caught:
        plan_of({"max_ctas": 65, "cluster_size": -1})
    said = "\n".join(caught.value.problems)
    assert "strategies.nccl.max_ctas = 65: must be at most 64" in said
    assert "strategies.nccl.cluster_size = -1: must be at least 0" in said
