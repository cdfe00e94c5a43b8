"""What can be told of a module that says nothing about itself: its repeated blocks, or else pieces of equal size."""

from collections import Counter

from torch import nn

_LISTS = (nn.ModuleList, nn.Sequential, nn.ModuleDict)
_PIECES = 4
"""A model without repeated blocks is cut until no piece holds more than this part of its parameters."""
_CRUMB = 64
"""And a piece that holds less than this part of them is none."""


def find_blocks(model: nn.Module) -> tuple[str, ...]:
    """Names of the repeated blocks in the order in which the model registers them, or of pieces of a fair size.

    Blocks are what stands in a list of modules, at least two in the model of one class, made of more than one of
    torch's layers. The outermost such lists count.
    """
    shared = _shared(model)
    found: list[tuple[str, nn.Module]] = []

    def walk(module: nn.Module, name: str) -> None:
        children = list(module.named_children())
        if isinstance(module, _LISTS):
            blocks = {key for key, child in children if _is_block(child) and not _holds(child, shared)}
            repeated = Counter(type(child) for key, child in children if key in blocks)
            several = len(blocks) > 1 and (not isinstance(module, nn.Sequential) or max(repeated.values()) > 1)
            if several or (blocks and _among_equals(module, name)):
                found.extend((f"{name}.{key}" if name else key, child) for key, child in children if key in blocks)
                children = [(key, child) for key, child in children if key not in blocks]
        for key, child in children:
            walk(child, f"{name}.{key}" if name else key)

    def _among_equals(module: nn.Module, name: str) -> bool:
        """Whether a list with one block stands in a list of such lists, as the stages of a network do."""
        above = model.get_submodule(name.rpartition(".")[0])
        return (
            bool(name) and isinstance(above, _LISTS) and sum(isinstance(each, _LISTS) for each in above.children()) > 1
        )

    walk(model, "")
    kinds = Counter(type(block) for _, block in found)
    if any(number > 1 for number in kinds.values()):
        return tuple(name for name, _ in found)
    return _by_size(model, shared)


def _by_size(model: nn.Module, shared: set[int]) -> tuple[str, ...]:
    """Modules that hold neither most of the parameters nor next to none."""
    total = _size(model)
    found: list[str] = []

    def walk(module: nn.Module, name: str) -> None:
        size = _size(module)
        if size * _CRUMB < total:
            return
        children = list(module.named_children())
        whole = name and not isinstance(module, _LISTS[::2]) and not _holds(module, shared)
        if whole and (size * _PIECES <= total or not children):
            found.append(name)
            return
        for key, child in children:
            walk(child, f"{name}.{key}" if name else key)

    walk(model, "")
    return tuple(found)


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _is_block(module: nn.Module) -> bool:
    """More than a layer of torch's, and with parameters."""
    has_parameters = next(iter(module.parameters()), None) is not None
    is_layer = type(module).__module__.startswith("torch.nn.") and next(module.children(), None) is None
    return has_parameters and not is_layer and not isinstance(module, _LISTS)


def _shared(model: nn.Module) -> set[int]:
    """Parameters that stand under more than one name: whoever holds one of them cannot be gathered alone."""
    names = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    return {parameter for parameter, number in names.items() if number > 1}


def _holds(module: nn.Module, parameters: set[int]) -> bool:
    return any(id(each) in parameters for each in module.parameters())
