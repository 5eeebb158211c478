"""What any torch classifier is made of, from its input to its last layer."""

from torch import nn


def last_layer(model: nn.Module) -> str:
    """The name of the layer that gives the logits: the last one with parameters of its own.

    Raises ValueError for a model without any.
    """
    last: str | None = None
    for name, module in model.named_modules():
        if next(module.parameters(recurse=False), None) is not None:
            last = name
    if last is None:
        raise ValueError("the model has no parameters")
    return last


def depths(model: nn.Module) -> dict[str, int]:
    """How deep each parameter stands, by name: 0 is nearest to the input.

    A layer is a child of the model; a chain (Sequential, ModuleList), and a child that holds most of the
    parameters, is taken apart into its own. Parameters outside of them, such as a class token, stand at 0.
    """
    half = sum(parameter.numel() for parameter in model.parameters()) / 2
    found: list[str] = []

    def visit(module: nn.Module, name: str) -> None:
        for child_name, child in module.named_children():
            full, own = f"{name}{child_name}", sum(parameter.numel() for parameter in child.parameters())
            chain = type(child) in (nn.Sequential, nn.ModuleList)
            if next(child.children(), None) is not None and (chain or own > half):
                visit(child, f"{full}.")
            elif own:
                found.append(full)

    visit(model, "")
    names = [name for name, _ in model.named_parameters()]
    return {
        name: next((depth for depth, layer in enumerate(found) if name.startswith(f"{layer}.")), 0)
        for name in names
    }
