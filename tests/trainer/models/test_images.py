"""The vision transformer and the residual network: facts against the modules, and training against a plain loop."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from plain_loop import by_hand, by_trainer, largest_difference, recipe_tree, with_weights_of
from torch import Tensor, nn

from stepladder.launch.recipe import parse
from stepladder.strategies.materialise import build_on_meta
from stepladder.trainer.models import ResNetConfig, VisionTransformerConfig
from stepladder.trainer.models.batch_norm import BatchNorm

VIT: dict[str, Any] = {
    "vit": {
        "image_size": 16,
        "patch_size": 4,
        "num_classes": 8,
        "dim": 32,
        "num_layers": 2,
        "num_heads": 4,
        "ffn_dim": 64,
    }
}
RESNET: dict[str, Any] = {
    "resnet": {"image_size": 16, "stem": "small", "stages": [1, 1], "width": 8, "num_classes": 8, "norm": "sync_batch"}
}
IMAGES: dict[str, Any] = {"synthetic_images": {"image_size": 16, "num_classes": 8}}
TOLERANCE = 1e-5  # float32: only the order of sums differs

CONFIGS = [
    VisionTransformerConfig(**VIT["vit"]),
    ResNetConfig(stages=(2, 1), image_size=64),
    ResNetConfig(stages=(1, 2), bottleneck=False, stem="small", image_size=32, channels=1, width=8),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: f"{type(config).__name__}-{config.num_parameters()}")
def test_its_facts_are_those_of_the_module(config: Any) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    model, facts = build_on_meta(config.build), config.facts(0)

    assert sum(p.numel() for p in model.parameters()) == facts.num_parameters
    assert facts.unit == "image"
    linears = {name: (m.in_features, m.out_features) for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    assert facts.linears == linears
    assert {name for block in facts.blocks for name, _ in model.get_submodule(block).named_parameters()}
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(2, config.channels, config.image_size, config.image_size, device="meta"))
    assert counter.get_total_flops() / 2 * 3 == pytest.approx(facts.flops_per_token)  # backward: twice the forward


def test_the_sizes_are_the_published_ones() -> None:
    """Torchvision's tables of ResNet-50 and ResNet-18; ViT-B/16 without its class token, pooled."""
    base = VisionTransformerConfig(dim=768, num_heads=12, ffn_dim=3072)
    assert ResNetConfig().num_parameters() == 25_557_032
    assert ResNetConfig(stages=(2, 2, 2, 2), bottleneck=False).num_parameters() == 11_689_512
    assert base.num_parameters() == 86_567_656 - 2 * 768  # the token and its position
    assert ResNetConfig().flops_per_image() / 6 == pytest.approx(4.09e9, rel=1e-3)


def test_a_patch_embedding_is_a_convolution() -> None:
    torch.manual_seed(0)
    layer = VisionTransformerConfig(**VIT["vit"]).build().embedding
    images = torch.randn(2, 3, 16, 16)
    weight = layer.weight.view(32, 3, 4, 4)

    expected = F.conv2d(images, weight, layer.bias, stride=4).flatten(2).transpose(1, 2) + layer.position

    torch.testing.assert_close(layer(images), expected)


def mean_loss(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(model(images), labels)


def truth(model: dict[str, Any], *, parts: int = 1) -> list[float]:
    tree = recipe_tree(model, IMAGES)
    return by_hand(tree, with_weights_of(parse(tree, {})), mean_loss, parts=parts)


def differences_of(
    cases: list[tuple[dict[str, Any], dict[str, Any], dict[str, Any], int]], num_ranks: int
) -> list[float]:
    """(model, strategies, mesh, parts into which the reference cuts its batches) each; on every rank alike."""
    return [
        largest_difference(
            by_trainer(recipe_tree(model, IMAGES, strategies, mesh, num_ranks=num_ranks), num_ranks),
            truth(model, parts=parts),
        )
        for model, strategies, mesh, parts in cases
    ]


TRACED = {"backend": "aot_eager"}
ALONE = [
    (VIT, {"accumulation": {"num_microbatches": 2}}, {}, 1),
    (RESNET, {"ac": {}}, {}, 1),
    (RESNET, {"accumulation": {"num_microbatches": 2}}, {}, 2),
]
COMPILED = [
    (VIT, {"ac": {"mode": "selective"}, "compile": {}}, {}, 1),
    (RESNET, {"compile": {}}, {}, 1),
    (RESNET, {"ac": {}, "compile": TRACED}, {}, 1),
]
SHARDED = {"fsdp2": {}, "ac": {}}
OWN_BATCHES = {"resnet": RESNET["resnet"] | {"norm": "batch"}}
TOGETHER = [
    (VIT, {"ddp": {}}, {}, 1),
    (VIT, SHARDED, {}, 1),
    (VIT, {"tp": {}}, {"tp": 2}, 1),
    (VIT, {"tp": {"sequence_parallel": False, "loss_parallel": False}}, {"tp": 2}, 1),
    (RESNET, {"ddp": {}}, {}, 1),
    (RESNET, SHARDED, {}, 1),
    (OWN_BATCHES, {"ddp": {}}, {}, 2),
    (OWN_BATCHES, SHARDED, {}, 2),
]


@pytest.mark.parametrize("model", [VIT, RESNET], ids=["vit", "resnet"])
def test_the_reference_learns(model: dict[str, Any]) -> None:
    losses = truth(model)
    assert max(losses) - min(losses) > 0.01


def test_it_takes_the_steps_of_a_plain_loop_on_one_rank() -> None:
    assert max(differences_of(ALONE, 1)) <= TOLERANCE


@pytest.mark.slow  # tracing and Inductor
def test_so_it_does_compiled(run_ranks: Any) -> None:
    assert max(differences_of(COMPILED, 1)) <= TOLERANCE
    sharded = [(model, SHARDED | {"compile": {"backend": "aot_eager"}}, {}, 1) for model in (VIT, RESNET)]
    assert max(run_ranks(differences_of, 2, sharded, 2)) <= TOLERANCE


def test_it_takes_the_steps_of_a_plain_loop_on_two_ranks(run_ranks: Any) -> None:
    found = run_ranks(differences_of, 2, TOGETHER, 2)

    for case, difference in zip(TOGETHER, found, strict=True):
        assert difference <= TOLERANCE, case


def test_norms_over_all_ranks_are_others_than_norms_of_their_own() -> None:
    """So the parity above can fail."""
    assert largest_difference(truth(OWN_BATCHES, parts=2), truth(OWN_BATCHES)) > 100 * TOLERANCE


@pytest.mark.parametrize("ac", [False, True])
def test_running_statistics_are_torchs(ac: bool) -> None:
    """Also where layers are computed twice."""
    tree = recipe_tree(OWN_BATCHES, IMAGES, {"ac": {}} if ac else {})
    ours = statistics_after_training(tree, 1)
    plain = with_weights_of(parse(tree, {}))
    for name, module in list(plain.named_modules()):
        if isinstance(module, BatchNorm):
            theirs = nn.BatchNorm2d(len(module.weight), eps=module.eps, momentum=0.1)
            theirs.weight, theirs.bias = module.weight, module.bias
            plain.set_submodule(name, theirs)
    by_hand(tree, plain, mean_loss)
    expected = {name: b for name, b in plain.named_buffers() if not name.endswith("tracked")}

    assert len(ours) == len(expected) > 10
    for name, buffer in expected.items():
        torch.testing.assert_close(ours[name.replace("running_var", "running_variance")], buffer, rtol=1e-4, atol=1e-6)


def statistics_after_training(tree: dict[str, Any], num_ranks: int) -> dict[str, Tensor]:
    """Running statistics that a trained model would save."""
    import plain_loop

    kept: dict[str, Tensor] = {}
    real = plain_loop.train

    def train(program: Any, *arguments: Any, **options: Any) -> Any:
        done = real(program, *arguments, **options)
        from stepladder.strategies.names import canonical

        kept.update(
            {canonical(n.removeprefix("module.")): b for n, b in program.model.named_buffers() if "running" in n}
        )
        return done

    plain_loop.train = train
    try:
        by_trainer(tree, num_ranks)
    finally:
        plain_loop.train = real
    return kept


def spread_of_statistics(strategies: dict[str, Any]) -> float:
    """By how much the ranks' running statistics differ after training with batches of their own."""
    import torch.distributed as dist

    own = statistics_after_training(recipe_tree(OWN_BATCHES, IMAGES, strategies, num_ranks=2), 2)
    flat = torch.cat(list(own.values()))
    every = [torch.empty_like(flat) for _ in range(2)]
    dist.all_gather(every, flat)
    assert float(flat.abs().sum()) > 0
    return float((every[0] - every[1]).abs().max())


@pytest.mark.slow
@pytest.mark.parametrize("strategies", [{"ddp": {}}, SHARDED], ids=["ddp", "fsdp2"])
def test_ranks_evaluate_and_save_the_same_statistics(strategies: dict[str, Any], run_ranks: Any) -> None:
    assert run_ranks(spread_of_statistics, 2, strategies) == 0.0


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_a_resumed_run_evaluates_as_one_that_was_never_stopped(strategy: str, tmp_path: Path, stepladder: Any) -> None:
    """The held-out loss is taken with the running statistics, so it shows whether a checkpoint kept them."""
    (tmp_path / "r.toml").write_text(
        "[run]\nnum_steps = 4\nlog_every = 1\ncpu_ranks = 2\n[model.resnet]\nimage_size = 16\nstem = 'small'\n"
        "stages = [1, 1]\nwidth = 8\nnum_classes = 8\n[data.synthetic_images]\nimage_size = 16\nnum_classes = 8\n"
        f"[strategies.adamw]\n[strategies.{strategy}]\n[evaluation]\nevery = 2\nnum_microbatches = 1\n"
        "[checkpoint]\nevery = 2\n"
    )
    whole = stepladder("run", "r.toml", "--out", "whole", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    stepladder("run", "r.toml", "--out", "half", "--set", "run.num_steps=2", cwd=tmp_path)
    half = stepladder("run", "r.toml", "--out", "half", "--resume", cwd=tmp_path)
    assert half.returncode == 0, half.stderr

    def told(folder: str) -> list[tuple[int, float]]:
        lines = map(json.loads, (tmp_path / folder / "metrics.jsonl").read_text().splitlines())
        return [(each["step"], each.get("held_out_loss", each.get("loss"))) for each in lines if each["step"] in (3, 4)]

    assert told("half") == told("whole")
    assert len(told("whole")) == 3
    assert "an image" in whole.stdout


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        ({"synthetic_images": {"image_size": 32}}, "data.synthetic_images.image_size = 32: but model.vit.image_size"),
        ({"synthetic_images": IMAGES["synthetic_images"] | {"num_classes": 9}}, "num_classes = 9: but model.vit"),
        ({"synthetic_images": IMAGES["synthetic_images"] | {"channels": 1}}, "channels = 1: but model.vit"),
        ({"synthetic": {}}, "data.synthetic: gives tokens, but model.vit takes images"),
    ],
)
def test_images_that_do_not_fit_are_refused(data: dict[str, Any], problem: str) -> None:
    from stepladder.launch.errors import UsageError
    from stepladder.launch.plan import make_plan

    with pytest.raises(UsageError, match=problem.replace(".", r"\.")):
        make_plan(parse(recipe_tree(VIT, data), {}), num_gpus=0, num_ranks=1)
