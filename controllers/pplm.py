"""PPLM: the keys and values of the text so far are moved, by gradients, to where an attribute is
likelier.

At each step the cached keys and values H of the text without its last token get an offset D that
lowers a loss, and what the model then expects is mixed with what it expected before (Dathathri et
al. 2019, "Plug and Play Language Models", sections 3.2 and 3.3)::

    loss     = attribute loss + kl * KL(p_D || p)             p_D from the last token and H + D
    D       <- D - stepsize * grad / ||grad||^gamma           for each layer, some iterations
    p'(t|x)  ~ p_D(t|x)^gm p(t|x)^(1 - gm)                    on its k best tokens

The attribute loss is ``-log`` of the probability of a bag of words, or the cross-entropy of a
linear classifier of the mean hidden state, to which tokens to come add the state behind their
expected embedding.

A step is a function of its prefix, as beams and rewinds want it: D starts at zero from the model's
own keys and values, where the paper goes on with those of the last step. A gradient is divided by
its own norm, where the released code takes the largest norm so far for a bag of words.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self, get_args

import torch
from torch import Tensor, nn

from plugalign.algebra.controller import Controller
from plugalign.algebra.identity import Identity, model_name
from plugalign.algebra.saving import Settings
from plugalign.algebra.shifts import Shift
from plugalign.algebra.sources import Source, Step
from plugalign.algebra.steering import Steering
from plugalign.algebra.supports import Support, TopK
from plugalign.controllers.pplm_gradient import Perturbed, Variant
from plugalign.engine.readers.cache_spec import check_columns
from plugalign.kernels.terms.linear import Linear
from plugalign.kernels.terms.term import Term, Weight
from plugalign.kernels.topk_select import topk_select


@dataclass(frozen=True, eq=False)
class PerturbedRatio(Shift):
    """``delta(t) = log p_D(t | x) - log p(t | x)``, weighted by gm."""

    perturbed: Perturbed

    @property
    def sources(self) -> tuple[Source, ...]:
        return (self.perturbed,)

    def terms(self, step: Step, weight: Weight) -> Iterable[Term]:
        weights = weight[:, None] if isinstance(weight, Tensor) else (weight,)
        yield Linear((step.read(self.perturbed),), weights)


@dataclass(frozen=True)
class MixedTop(Support):
    """The ``k`` best tokens of the mixed distribution ``p_D^gm p^(1 - gm)``."""

    perturbed: Perturbed
    gm: float
    k: int

    @property
    def sources(self) -> tuple[Source, ...]:
        return (self.perturbed,)

    @property
    def unsteered(self) -> TopK:
        return TopK(self.k)

    def mask(self, step: Step) -> Tensor:
        mixed = step.base.float() + self.gm * step.read(self.perturbed)
        best = topk_select(mixed, min(self.k, mixed.shape[-1]))[1]
        return torch.zeros_like(mixed, dtype=torch.bool).scatter_(-1, best, True)


class PPLMSettings(Settings):
    """Words, the discriminator's class, and how the cache is moved."""

    words: list[str]
    discriminator: list[str]  # the names of its tensors
    label: int
    stepsize: float
    iterations: int
    gamma: float
    gm: float
    kl: float
    window: int
    horizon: int
    top_k: int
    variant: Variant
    fitted_for: Identity | None


class PPLM(Controller):
    """Steers towards a bag of words, a class of a linear discriminator, or both.

    The defaults are those of the released code.

    Args:
        words: the bag. A word counts if it is one token behind a space, or by itself.
        discriminator: a linear classifier ``(D, classes)`` of the mean of a text's last hidden
            states.
        label: the class that is wanted of it.
        stepsize: of an iteration. gamma: the power of the gradient's norm that divides it.
        iterations: per token.
        gm: the share of the perturbed model in the geometric mean.
        kl: weight of the divergence from the unperturbed model in the loss.
        window: so many columns of the past may move; 0 for all.
        horizon: tokens to come that a discriminator sees as their expected embedding.
        top_k: the tokens of the mixed distribution that stay possible; 0 for all.
        variant: "released" moves the oldest columns of a window and keeps the last token's state
            out of the discriminator's gradient, as the released code does; "paper" moves the most
            recent ones and keeps it in.
        fitted_for: the model whose states the discriminator reads.

    Raises:
        ValueError: without words and discriminator, or for a number outside its range.
    """

    name = "pplm"
    settings = PPLMSettings
    optional: ClassVar[Mapping[str, int]] = {"weight": 2, "bias": 1}

    def __init__(
        self,
        words: Sequence[str] = (),
        *,
        discriminator: nn.Linear | None = None,
        label: int = 1,
        stepsize: float = 0.02,
        iterations: int = 3,
        gamma: float = 1.5,
        gm: float = 0.9,
        kl: float = 0.01,
        window: int = 0,
        horizon: int = 1,
        top_k: int = 10,
        variant: Variant = "paper",
        fitted_for: Identity | None = None,
    ):
        if isinstance(words, str) or not all(isinstance(word, str) and word for word in words):
            raise ValueError(f"PPLM's words must be a list of words, got {words!r}")
        if not words and discriminator is None:
            raise ValueError("PPLM needs words, a discriminator, or both")
        if isinstance(label, bool) or not isinstance(label, int) or label < 0:
            raise ValueError(f"label must be an int and not negative, got {label!r}")
        if discriminator is not None and not 0 <= label < discriminator.out_features:
            raise ValueError(
                f"the label must be one of the discriminator's {discriminator.out_features} "
                f"classes, counted from 0, got {label}"
            )
        numbers = {"stepsize": stepsize, "gamma": gamma, "gm": gm, "kl": kl}
        counts = {"iterations": iterations, "window": window, "horizon": horizon, "top_k": top_k}
        for what, number in numbers.items():
            if not 0 <= number < math.inf:
                raise ValueError(f"{what} must be finite and not negative, got {number}")
        for what, count in counts.items():
            if isinstance(count, bool) or not isinstance(count, int) or count < 0:
                raise ValueError(f"{what} must be an int and not negative, got {count!r}")
        if variant not in get_args(Variant):
            raise ValueError(f'variant must be "paper" or "released", got {variant!r}')
        self.words, self.discriminator, self.label = tuple(words), discriminator, label
        self._settings: dict[str, Any] = {**numbers, **counts, "variant": variant}
        self.fitted_for = fitted_for

    def steer(self, model: Any, tokenizer: Any) -> Steering:
        """``gm (log p_D - log p)`` on the mixed distribution's best tokens.

        Raises:
            ValueError: if no word is a token, the discriminator reads states of another model, or
                the model does not keep keys and values.
        """
        check_columns(model, "PPLM moves")
        head, how = self.discriminator, dict(self._settings)
        if head is not None:
            if self.fitted_for is not None:
                self.fitted_for.check(
                    model, tokenizer, needs="weights", what="PPLM's discriminator"
                )
            width = model.get_output_embeddings().weight.shape[1]
            if head.in_features != width:
                raise ValueError(
                    f"PPLM's discriminator reads states of {head.in_features} numbers, but those "
                    f"of '{model_name(model)}' have {width}; fit one for this model"
                )
        gm, top_k = how.pop("gm"), how.pop("top_k")
        bag = bag_of(self.words, tokenizer)
        perturbed = Perturbed("the perturbed base", bag, head, self.label, **how)
        supports = (MixedTop(perturbed, gm, top_k),) if top_k else ()
        return Steering((PerturbedRatio(perturbed, weight=gm),), supports)

    def config(self) -> dict[str, Any]:
        fitted = None if self.fitted_for is None else self.fitted_for.to_dict()
        own = {"words": list(self.words), "label": self.label, "fitted_for": fitted}
        return {**own, "discriminator": sorted(self.tensors()), **self._settings}

    def tensors(self) -> dict[str, Tensor]:
        return {} if self.discriminator is None else dict(self.discriminator.state_dict())

    @classmethod
    def check_tensors(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        super().check_tensors(config, tensors)
        named = set(config["discriminator"])
        for name in sorted(named ^ tensors.keys()):
            raise ValueError(f"the tensor '{name}' is {'missing' if name in named else 'unknown'}")

    @classmethod
    def build(
        cls, config: dict[str, Any], tensors: dict[str, Tensor], parts: dict[str, Any]
    ) -> Self:
        fitted, head = config["fitted_for"], None
        own = {k: v for k, v in config.items() if k not in ("discriminator", "fitted_for")}
        if tensors:
            classes, width = tensors["weight"].shape
            head = nn.Linear(width, classes, bias="bias" in tensors)
            head.load_state_dict(tensors)
        identity = None if fitted is None else Identity.from_dict(fitted)
        return cls(**own, discriminator=head, fitted_for=identity)


def bag_of(words: Sequence[str], tokenizer: Any) -> tuple[int, ...]:
    """The token ids of words, in the order of the words and each once. Words of several tokens are
    left out, as in the released code, with a warning.

    Raises:
        ValueError: if none of them is one token.
    """
    found: dict[int, None] = {}
    missing: list[str] = []
    for word in words:
        spelled = (tokenizer(text, add_special_tokens=False) for text in (f" {word}", word))
        single = [s["input_ids"][0] for s in spelled if len(s["input_ids"]) == 1]
        known = [token for token in single if token != tokenizer.unk_token_id]
        if known:
            found[known[0]] = None
        else:
            missing.append(word)
    if words and not found:
        raise ValueError(f"none of PPLM's words is one token: {', '.join(missing)}; give others")
    if missing:
        names = ", ".join(missing)
        warnings.warn(f"PPLM leaves out words that are not one token: {names}", stacklevel=2)
    return tuple(found)
