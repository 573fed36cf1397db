"""Models that carry PEFT adapters as they run: as the base, and as experts.

PEFT puts adapters into the modules of the model that it is given. Such a model is run as the
transformers model that it contains, which computes the same; where it would not, it is refused. So
is a model that is steered, whose forward knows nothing of its controller.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import Any

from plugalign.algebra.controller import Controller
from plugalign.algebra.identity import model_name

# The adapters that only change what layers compute, token by token.
IN_LAYERS = {"ADALORA", "BOFT", "HRA", "IA3", "LN_TUNING", "LOHA", "LOKR", "LORA", "OFT", "VERA"}
BEYOND_LAYERS = ("alora_invocation_tokens", "arrow_config")  # options of LoRA that do more
LOAD_AGAIN = "load the base a second time for it, or give the adapter's folder"


def transformers_model(model: Any) -> Any:
    """The model itself, or the transformers model in which PEFT has put its adapters.

    Raises:
        ValueError: if it is more than a change of layers, as with trained prompts; names the kind.
            For a model that is steered.
    """
    if isinstance(controller := getattr(model, "controller", None), Controller):
        raise ValueError(
            f"'{model_name(model)}' is steered by {type(controller).__name__} already, and its "
            "forward knows nothing of that; give its .model, and what is to steer one base as a "
            "sum of controllers"
        )
    for config in getattr(model, "peft_config", {}).values():
        kind = str(getattr(config.peft_type, "value", config.peft_type))
        options = [name for name in BEYOND_LAYERS if getattr(config, name, None)]
        if kind not in IN_LAYERS or options:
            raise ValueError(
                f"'{model_name(model)}' carries a {' with '.join([kind, *options])} adapter, "
                "which does more than change layers: what it gives for a token does not follow "
                "from ids and cache alone, so it can be neither base nor expert; LoRA adapters and "
                "plugalign's PrefixTuning can"
            )
    return model.get_base_model() if _is_peft(model) else model


def check_no_adapter(model: Any, who: str) -> None:
    """Refuses a base that carries an adapter, for an adapter that was made for a plain one.

    Args:
        who: what needs a plain base, for the message.

    Raises:
        ValueError: naming the layer.
    """
    name = next((name for name, module in model.named_modules() if _is_peft(module)), None)
    if name is not None:
        raise ValueError(
            f"'{model_name(model)}' carries an adapter already (in {name}), so {who} cannot be an "
            "expert beside it; wrap the plain base, or merge_and_unload() the adapter first"
        )


def check_apart(models: Mapping[str, Any]) -> None:
    """Refuses models that are one and the same because an adapter was put into what they share.

    Args:
        models: by role, the base under "base".

    Raises:
        ValueError: naming the roles.
    """
    for (mine, model), (theirs, other) in combinations(models.items(), 2):
        if other is model and "base" in (mine, theirs):
            raise ValueError(
                f"the {theirs} is the {mine} model itself, so it would shift nothing; leave it "
                "out (a missing expert is the base), or give another model"
            )
        both = {id(module): module for module in _carrying(model)}
        if any(id(module) in both for module in _carrying(other)):
            raise ValueError(
                f"the {mine} and the {theirs} share modules into which peft has put an adapter, so "
                f"both run with it; {LOAD_AGAIN}"
            )


def _carrying(model: Any) -> Iterator[Any]:
    return (module for module in model.modules() if _is_peft(module))


def _is_peft(module: Any) -> bool:
    return type(module).__module__.partition(".")[0] == "peft"
