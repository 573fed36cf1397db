"""GeDi: a class-conditional language model says which next tokens make a text of the desired class.

Read behind a control code, a class-conditional model gives the likelihood of the text so far and of
every next token, for the desired class and for the other one; Bayes' rule makes of both
``P(desired | x, t)`` for all tokens at once. The base is weighed by it, and tokens of the undesired
class are filtered out (Krause et al. 2021, "GeDi: Generative Discriminator Guided Sequence
Generation", section 3)::

    P(desired | x, t) = sigmoid(scale (l_desired(x, t) - l_undesired(x, t)) + bias)
    l_c(x, t)         = (log P(x | c) + log P(t | x, c)) / tokens of (x, t)
    p'(t | x)         ~ p(t | x) P(desired | x, t)^omega

Without a model of its own the base reads the text behind two prompts, which stand for the codes.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from plugalign.algebra.identity import Identity
from plugalign.algebra.shifts import Shift
from plugalign.algebra.sources import Context, Likelihood, Logits, Source, Step, TextLikelihood
from plugalign.algebra.steering import Steering
from plugalign.algebra.supports import Support
from plugalign.controllers.gedi_filter import reaching
from plugalign.controllers.self_debias import prompted
from plugalign.controllers.with_models import (
    Model,
    ModelSettings,
    WithModels,
    check_model,
    loaded_logits,
)
from plugalign.kernels.terms.linear import Linear
from plugalign.kernels.terms.term import Term, Weight


@dataclass(frozen=True, eq=False)
class ClassPosterior(Source):
    """``log P(desired | x, t)`` of every next token t, float32 ``(R, V)``.

    Attributes:
        texts: likelihoods in two contexts, the desired class first.
        scale: of the difference of the classes' log-likelihoods.
        bias: the logit of the desired class's prior.
    """

    texts: TextLikelihood
    scale: float
    bias: float

    @property
    def key(self) -> Hashable:
        return ("posterior", self.texts.key, self.scale, self.bias)

    def reader(self, base: Any) -> PosteriorReader:
        return PosteriorReader(self)


@dataclass(frozen=True)
class PosteriorReader:
    """Reads a `ClassPosterior`, without a state of its own."""

    source: ClassPosterior

    def read(self, step: Step) -> Tensor:
        """See `plugalign.algebra.sources.Reader`."""
        found: Likelihood = step.read(self.source.texts)
        weights = self.source.scale / (found.count + 1).to(found.total)  # (2, R)
        so_far = (weights * found.total)[..., None]
        logit = found.following[0] * weights[0, :, None]
        logit.addcmul_(found.following[1], weights[1, :, None], value=-1)
        return logsigmoid(logit.add_(so_far[0] - so_far[1] + self.source.bias))

    def forget(self) -> None:
        """Nothing."""


@dataclass(frozen=True, eq=False)
class DesiredClass(Shift):
    """``delta(t) = log P(desired | x, t)``, weighted by omega."""

    classes: ClassPosterior

    @property
    def sources(self) -> tuple[Source, ...]:
        return (self.classes.texts, self.classes)

    def terms(self, step: Step, weight: Weight) -> Iterable[Term]:
        weights = weight[:, None] if isinstance(weight, Tensor) else (weight,)
        yield Linear((step.read(self.classes),), weights)


@dataclass(frozen=True)
class DesiredTokens(Support):
    """All tokens but those of the undesired class: in ascending order of ``P(desired | x, t)``, a
    token is left out if the mass of the reweighted distribution up to it is below ``1 - rho`` and
    its posterior is below ``tau``. Of equal posteriors the smaller token id comes first.

    Attributes:
        omega: of the reweighted distribution; the weight of the controller in a sum changes the
            shift and not this.
    """

    classes: ClassPosterior
    omega: float
    rho: float
    tau: float

    @property
    def sources(self) -> tuple[Source, ...]:
        return (self.classes.texts, self.classes)

    def mask(self, step: Step) -> Tensor:
        log_desired: Tensor = step.read(self.classes)
        mass = torch.add(step.base.float(), log_desired, alpha=self.omega).softmax(-1)
        first = reaching(log_desired, mass, 1 - self.rho)
        least = log_desired.gather(-1, first)
        earlier = torch.arange(mass.shape[-1], device=mass.device) < first
        below = (log_desired < least) | ((log_desired == least) & earlier)
        return ~(below & (log_desired < (math.log(self.tau) if self.tau else -math.inf)))


NUMBERS = ("omega", "rho", "tau", "scale", "bias")


class GeDiSettings(ModelSettings):
    """The codes, the numbers, and the base that an adapter was made from."""

    desired: str
    undesired: str
    omega: float
    rho: float
    tau: float
    scale: float
    bias: float
    fitted_for: Identity | None


class GeDi(WithModels):
    """Steers by the class of the text that a class-conditional language model sees.

    The defaults are those of the released code, which also takes ``repetition_penalty=1.2``: that
    is an argument of ``generate``.

    Args:
        desired: the control code of the desired class, or a prompt for the base; it stands in front
            of the text.
        undesired: the same for the other class.
        model: the class-conditional model: a model with the base's tokenizer, a folder (or hub id)
            of one, a folder of a LoRA adapter of the base, or None for the base itself.
        omega: strength.
        rho: the least share of the reweighted mass that stays possible.
        tau: a token whose posterior is at least this is never filtered out.
        scale: of the log-likelihoods, where the model was trained with one.
        bias: added to the desired class's logit. The released detoxification run takes 2.0, and for
            that raises tau to ``sigmoid(logit(0.8) + 2) = 0.967``.
        fitted_for: the base that the model was made from, where it is an adapter.
        trust_remote_code: whether code that comes with the model's folder or hub id may run.

    Raises:
        TypeError: for a model that is none.
        ValueError: for empty or equal codes, or a number outside its range.
    """

    name = "gedi"
    settings = GeDiSettings

    def __init__(
        self,
        desired: str,
        undesired: str,
        *,
        model: Model | None = None,
        omega: float = 30.0,
        rho: float = 0.2,
        tau: float = 0.8,
        scale: float = 1.0,
        bias: float = 0.0,
        fitted_for: Identity | None = None,
        trust_remote_code: bool = False,
    ):
        if model is not None:
            check_model(model, "GeDi's model")
        if not desired or not undesired or desired == undesired:
            raise ValueError(
                f"GeDi needs two different codes that are not empty, got {desired!r} and "
                f"{undesired!r}"
            )
        for what, number in (("omega", omega), ("scale", scale)):
            if not 0 <= number < math.inf:
                raise ValueError(f"{what} must be finite and not negative, got {number}")
        for what, number in (("rho", rho), ("tau", tau)):
            if not 0 <= number <= 1:
                raise ValueError(f"{what} must lie in [0, 1], got {number}")
        if not math.isfinite(bias):
            raise ValueError(f"the bias must be finite, got {bias}")
        self.desired, self.undesired, self.model = desired, undesired, model
        self.omega, self.rho, self.tau = float(omega), float(rho), float(tau)
        self.scale, self.bias, self.fitted_for = float(scale), float(bias), fitted_for
        self.trust_remote_code = trust_remote_code

    def steer(self, model: Any, tokenizer: Any) -> Steering:
        """``omega log P(desired | x, t)`` on the tokens that the filter leaves.

        Raises:
            ValueError: if the class-conditional model has another tokenizer than the base, or a
                code has no tokens.
        """
        guide = self._guide(model, tokenizer)
        contexts = (_code(self.desired, tokenizer), _code(self.undesired, tokenizer))
        name = f"classes by {'the base' if guide.model is None else guide.name}"
        texts = TextLikelihood(name, guide.model, contexts)
        classes = ClassPosterior(f"the posterior of {name}", texts, self.scale, self.bias)
        shift = DesiredClass(classes, weight=self.omega)
        return Steering((shift,), (DesiredTokens(classes, self.omega, self.rho, self.tau),))

    def _guide(self, base: Any, tokenizer: Any) -> Logits:
        if self.model is None:
            return Logits()
        return loaded_logits(
            self.model,
            base,
            tokenizer,
            "class-conditional model",
            trust_remote_code=self.trust_remote_code,
            fitted_for=self.fitted_for,
        )

    def models(self) -> dict[str, Model]:
        return {} if self.model is None else {"model": self.model}

    def config(self) -> dict[str, Any]:
        fitted = None if self.fitted_for is None else self.fitted_for.to_dict()
        own = {key: getattr(self, key) for key in ("desired", "undesired", *NUMBERS)}
        return {**super().config(), **own, "fitted_for": fitted}

    @classmethod
    def build(
        cls, config: dict[str, Any], tensors: dict[str, Tensor], parts: dict[str, Any]
    ) -> Self:
        fitted = config["fitted_for"]
        return cls(
            config["desired"],
            config["undesired"],
            model=parts.get("model"),
            **{key: config[key] for key in NUMBERS},
            fitted_for=None if fitted is None else Identity.from_dict(fitted),
            trust_remote_code=config["trust_remote_code"],
        )


def _code(text: str, tokenizer: Any) -> Context:
    context = prompted(text, tokenizer).context
    if context.is_empty:
        raise ValueError(f"the tokenizer makes no token of GeDi's code {text!r}; give another")
    return context
