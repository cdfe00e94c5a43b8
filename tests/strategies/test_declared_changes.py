"""Every strategy says what it may change about the numbers, and differences of recipes are read from that."""

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest

from stepladder.strategies import Strategies
from stepladder.strategies.ac import ActivationCheckpointing
from stepladder.strategies.adamw import AdamW
from stepladder.strategies.amp import Amp
from stepladder.strategies.base import Run
from stepladder.strategies.catalogue import pages, strategy_class
from stepladder.strategies.changes import Changes, Depends, MayChange, claims, declared
from stepladder.strategies.ddp import DDP
from stepladder.strategies.fsdp2 import FSDP2
from stepladder.strategies.mesh import Axis

CLASSES = {each.name: strategy_class(each.type) for each in fields(Strategies)}


@pytest.mark.parametrize("name", CLASSES)
def test_every_strategy_declares_what_it_may_change_for_keys_that_it_has(name: str) -> None:
    kind = CLASSES[name]
    assert isinstance(vars(kind).get("changes"), MayChange), f"strategies/{name}.py declares no `changes`"
    assert set(declared(kind).keys) <= {each.name for each in fields(kind)}


@pytest.mark.parametrize("name", CLASSES)
def test_no_exception_says_what_holds_for_all_keys_anyway(name: str) -> None:
    may = declared(CLASSES[name])
    assert not [key for key, rule in may.keys.items() if rule == may.switch]


def test_who_declares_nothing_is_taken_to_change_the_algorithm(make_run: Callable[..., Run]) -> None:
    assert declared(object()).switch is Changes.ALGORITHM


def test_the_page_of_a_strategy_tells(capsys: pytest.CaptureFixture[str]) -> None:
    from stepladder.launch.cli import main

    assert main(["strategies", "fsdp2"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Changes the order of sums; param_dtype, reduce_dtype: precision; reshard_after_forward, prefetch" in said
    assert all(page.changes for page in pages())


def kinds(name: str, before: Any, after: Any, run: Run) -> dict[str, Changes]:
    return dict(claims(name, before, after, run, run))


def test_switching_on_counts_with_the_keys_that_are_not_at_their_defaults(make_run: Callable[..., Run]) -> None:
    run = make_run()
    assert kinds("fsdp2", None, FSDP2(), run) == {"strategies.fsdp2": Changes.REDUCTION_ORDER}
    assert kinds("fsdp2", None, FSDP2(param_dtype="bf16"), run) == {
        "strategies.fsdp2": Changes.REDUCTION_ORDER,
        "strategies.fsdp2.param_dtype": Changes.PRECISION,
    }
    assert kinds("amp", Amp(), None, run) == {"strategies.amp": Changes.PRECISION}


def test_between_two_settings_only_the_keys_that_differ_count(make_run: Callable[..., Run]) -> None:
    run, bf16 = make_run(), FSDP2(param_dtype="bf16")
    assert kinds("fsdp2", bf16, replace(bf16, prefetch=2), run) == {"strategies.fsdp2.prefetch": Changes.NOTHING}
    assert kinds("fsdp2", bf16, bf16, run) == {}
    assert kinds("fsdp2", None, None, run) == {}
    assert kinds("adamw", AdamW(), AdamW(learning_rate=1.02 * AdamW().learning_rate), run) == {
        "strategies.adamw.learning_rate": Changes.ALGORITHM
    }


def test_a_bucket_changes_nothing_on_two_ranks_and_the_order_of_sums_on_three(make_run: Callable[..., Run]) -> None:
    for ranks, expected in ((2, Changes.NOTHING), (3, Changes.REDUCTION_ORDER)):
        run = make_run(degrees={**dict.fromkeys(Axis, 1), Axis.DP_REPLICATE: ranks})
        assert kinds("ddp", DDP(), DDP(bucket_mib=1), run) == {"strategies.ddp.bucket_mib": expected}


def test_of_two_sides_the_one_that_changes_more_counts(make_run: Callable[..., Run]) -> None:
    compressed, run = DDP(compression="powersgd"), make_run()
    for sides in ((compressed, DDP()), (DDP(), compressed)):
        assert kinds("ddp", *sides, run) == {"strategies.ddp.compression": Changes.LOW_PRECISION}


def test_checkpointing_rounds_anew_only_where_it_is_compiled(make_run: Callable[..., Run]) -> None:
    full = ActivationCheckpointing()
    assert kinds("ac", None, full, make_run())["strategies.ac"] is Changes.NOTHING
    assert kinds("ac", None, full, make_run(active={"compile"}))["strategies.ac"] is Changes.REDUCTION_ORDER


def test_changes_are_ordered_from_the_same_bits_to_another_training() -> None:
    assert list(Changes) == sorted(Changes)
    assert min(Changes) is Changes.NOTHING
    assert max(Changes) is Changes.ALGORITHM
    rule = Depends(usually=Changes.NOTHING, sometimes=Changes.ALGORITHM, when="on Sundays", holds=lambda own, run: run)
    assert MayChange(switch=rule).sentence() == "nothing, or the algorithm on Sundays"
