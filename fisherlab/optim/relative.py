"""How the layers of a network are seen by the relative Fisher: each structure asks for a form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from inspect import signature

from torch import nn

from fisherlab.errors import UsageError, did_you_mean
from fisherlab.fisher.capture import Layer
from fisherlab.fisher.relative import ZONES, Form, relu_zone
from fisherlab.models.dense import Dense
from fisherlab.models.normalise import BatchNorm

FITTING = ("unit", "shared", "pairs", "layer")
NAMES = {"relu": "relu", "tanh": "tanh", "logistic": "logistic", "sigmoid": "logistic", "elu": "elu"}  # of modules


def forms(
    model: nn.Module, layers: Sequence[Layer], parts: Sequence[tuple[str, slice]], activation: str | None
) -> list[Form]:
    """Tell the form of every layer.

    Args:
        model: The model.
        layers: Its covered layers, in order.
        parts: Structures, and the layers of each.
        activation: Of every hidden layer; None finds it in the model.

    Returns:
        The forms: `shared` sees a linear layer, `unit` its neurons, `pairs` two layers, `layer` the outputs.

    Raises:
        UsageError: If a structure has no such form, or an activation is not found.
    """
    if activation is not None and activation not in ZONES:
        raise UsageError(f"activation={activation!r} is unknown: {did_you_mean(activation, ZONES)}")
    found = list[Form]()
    for structure, where in parts:
        some = layers[where]
        for i, layer in enumerate(some):
            output = layer is layers[-1]
            if structure not in FITTING or (structure == "layer" and not output):
                expected = "unit, shared or pairs, or layer for the last layer"
                raise UsageError(
                    f"structure={structure} does not fit kind=relative (layer '{layer.name}'): expected {expected}"
                )
            own = None if output else activation or activation_after(model, layer)
            joined = structure == "pairs"
            before_its_second = joined and i % 2 == 0 and i + 1 < len(some)
            found.append(Form("linear" if structure == "shared" else own, joined, before_its_second))
    return found


def check_used(zone: Mapping[str, float], found: Sequence[Form]) -> None:
    """Refuse options of the relu's zone where there is no such zone.

    Args:
        zone: As `relu_zone` takes them.
        found: The forms of all layers.

    Raises:
        UsageError: If one that is not its default would have no effect.
    """
    if any(form.activation == "relu" for form in found):
        return
    for name, option in signature(relu_zone).parameters.items():  # z, which has no default, is in no zone
        if zone.get(name, option.default) != option.default:
            raise UsageError(
                f"{name}={zone[name]} has no effect, for no layer is seen as relu neurons: "
                f"expected {name}={option.default}"
            )


def activation_after(model: nn.Module, layer: Layer) -> str:
    """Find the activation that follows a layer.

    Args:
        model: The model.
        layer: One of its layers.

    Returns:
        A key of `ZONES`; `linear` where in an `nn.Sequential` another layer follows at once, or behind batch
        normalisation only.

    Raises:
        UsageError: If what follows is no activation that has a zone; one that is no module cannot be seen.
    """
    after, certain = _after(model, layer.module)
    if certain and len(after) > 1 and isinstance(after[0], BatchNorm):
        after = after[1:] if isinstance(after[1], (Dense, nn.Linear)) else after
    name = type(after[0]).__name__.lower() if after else "none"
    if certain and after and isinstance(after[0], (Dense, nn.Linear)):
        return "linear"
    if (alpha := getattr(after[0], "alpha", 1.0) if after else 1.0) != 1.0:
        name += f", alpha={alpha}"
    if name not in NAMES:
        raise UsageError(
            f"the activation behind layer '{layer.name}' is not known ({name}): expected activation={', '.join(ZONES)}"
        )
    return NAMES[name]


def _after(model: nn.Module, module: nn.Module) -> tuple[list[nn.Module], bool]:
    """The modules behind one, and whether that is certain: in an `nn.Sequential`; else as they were registered."""
    for chain in map(_links, model.modules()):
        at = next((i for i, m in enumerate(chain) if m is module), len(chain))
        if at + 1 < len(chain):
            return chain[at + 1 :], True
    leaves = [m for m in model.modules() if not list(m.children())]
    return leaves[next(i for i, m in enumerate(leaves) if m is module) + 1 :], False


def _links(module: nn.Module) -> list[nn.Module]:
    """What an `nn.Sequential`, and those in it, call one after another; one module may come several times."""
    if not isinstance(module, nn.Sequential):
        return [module]
    return [link for child in module for link in _links(child)]
