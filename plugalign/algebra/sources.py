"""Sources: what a formula may read of a prefix, as data.

Every source is a pure function of the prefix, so beams, rewinds and several samples are safe. The
engine reads `Logits` and `LastHidden` by itself and can batch them; any other source has a reader
of its own (`Source.reader`), which reads one step at a time.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from torch import Tensor

from plugalign.kernels.mixture import Mixture

if TYPE_CHECKING:
    from plugalign.algebra.shifts import Shift

BASE = "base"  # the key of the base's own logits
HIDDEN = "hidden"  # the key of the base's last hidden state


class Step(Protocol):
    """One step of decoding, as formulas and readers see it. Sources are read when asked for.

    Attributes:
        ids, mask: the prefixes ``(R, T)``, left-padded.
        base: the base's scores ``(R, V)``.
        number: how many tokens of each row follow its prompt already, int64 ``(R,)``.
    """

    base: Tensor

    @property
    def ids(self) -> Tensor: ...

    @property
    def mask(self) -> Tensor: ...

    @property
    def number(self) -> Tensor: ...

    def read(self, source: Source) -> Any:
        """The source's value after the prefixes."""

    def alone(self, shifts: Iterable[Shift]) -> Mixture:
        """The base's scores with some shifts, without supports, for a formula over other shifts;
        it declares what these read."""


class Reader(Protocol):
    """Reads a source at the steps of one call, with a cache or other state of its own."""

    def read(self, step: Step) -> Any:
        """The source's value after the prefixes of a step, and a function of these alone."""

    def forget(self) -> None:
        """Frees the state, keys and values above all."""


@dataclass(frozen=True, eq=False)
class Context:
    """What a model reads beside a text: trained keys and values, token ids before the text, and
    token ids behind it.

    Attributes:
        ids: before the row's own ids.
        start_token: the token with which ``ids`` begin, where the model needs every text to begin
            with it; the row's own is then masked.
        turn: the token ids that open a turn of a chat. In a row that holds them ``ids`` are
            inserted behind the first of them, without ``start_token``, and not before the row.
        keys_values: of all layers, ``(layers, 2, H_kv, P, D_head)``.
        after: behind the row's ids, as a question about the text.
    """

    ids: tuple[int, ...] = ()
    start_token: int | None = None
    keys_values: Tensor | None = None
    after: tuple[int, ...] = ()
    turn: tuple[int, ...] = ()

    @property
    def key(self) -> Hashable:
        trained = None if self.keys_values is None else id(self.keys_values)
        return (self.ids, self.start_token, trained, self.after, self.turn)

    @property
    def depth(self) -> int:
        """P, the number of columns of trained keys and values."""
        return 0 if self.keys_values is None else self.keys_values.shape[-2]

    @property
    def is_empty(self) -> bool:
        return not (self.ids or self.after or self.depth)


EMPTY = Context()


@dataclass(frozen=True, eq=False)
class Source:
    """Something that a formula reads of a prefix. Sources with equal keys are read once.

    A subclass of your own implements `reader`. It is then read at one position at a time, on every
    decoding path, unless it declares one of the following.

    Attributes:
        name: for messages.
        multi_position: whether its values at several positions can be read at once, for drafts and
            the scoring of given texts. ``step.base`` is then ``(R * n, V)`` for the last n columns
            of ``step.ids``, and the reader must give a value for each of these rows.
        capturable: whether a read does the same operations at every step and never waits for the
            device, so that it can be part of a CUDA graph. In a captured step only the last column
            of ``step.ids`` is up to date.
    """

    name: str
    multi_position: ClassVar[bool] = False
    capturable: ClassVar[bool] = False

    @property
    def key(self) -> Hashable:
        return id(self)

    @property
    def models(self) -> tuple[tuple[Any, int], ...]:
        """The models whose context must hold the whole text (None for the base), each with the
        number of further tokens that it reads."""
        return ()

    def reader(self, base: Any) -> Reader:
        """A new reader for one call of the model ``base``.

        Raises:
            TypeError: for a source that has none.
        """
        raise TypeError(f"the source '{self.name}' ({type(self).__name__}) has no reader")


@dataclass(frozen=True, eq=False)
class Logits(Source):
    """Next-token logits ``(R, V)`` of a model in a context; of the base where no model is given.

    Args:
        model: a Hugging Face causal language model with the base's tokenizer, or None.
        context: what the model reads beside the text.
        identity: models with equal identities count as one, also where it was loaded twice.
    """

    name: str = "base"
    model: Any = None
    context: Context = EMPTY
    identity: Hashable = None
    multi_position: ClassVar[bool] = True
    capturable: ClassVar[bool] = True

    @property
    def key(self) -> Hashable:
        return BASE if self.is_base else (self.model_key, self.context.key)

    @property
    def model_key(self) -> Hashable:
        """Identifies the model; None for the base."""
        if self.model is None:
            return None
        return id(self.model) if self.identity is None else self.identity

    @property
    def is_base(self) -> bool:
        """Whether these are the base's own logits, which need no further forward."""
        return self.model is None and self.context.is_empty

    @property
    def models(self) -> tuple[tuple[Any, int], ...]:
        context = self.context
        around = context.depth + len(context.ids) + len(context.after)
        return () if self.is_base else ((self.model, around),)


@dataclass(frozen=True, eq=False)
class LastHidden(Source):
    """The base's last hidden state, which its output head reads: float32 ``(R, D)``."""

    name: str = "the base's last hidden state"
    multi_position: ClassVar[bool] = True
    capturable: ClassVar[bool] = True

    @property
    def key(self) -> Hashable:
        return HIDDEN


@dataclass(frozen=True, eq=False)
class Candidates:
    """The base's best tokens of a step, in ascending order of their ids, and a score of each.

    Attributes:
        ids: int64 ``(R, K)``.
        values: float32 ``(R, K)``.
    """

    ids: Tensor
    values: Tensor


@dataclass(frozen=True, eq=False)
class CandidateValues(Source):
    """`Candidates`: the value of the text that each of the base's ``k`` best tokens would make.

    Args:
        model: a module with ``backbone`` (a Hugging Face causal model without a head, which reads
            the base's token ids) and ``head`` (hidden to one number).
        k: how many candidates.
    """

    model: Any = None
    k: int = 1

    @property
    def key(self) -> Hashable:
        return ("candidates", id(self.model), self.k)

    @property
    def models(self) -> tuple[tuple[Any, int], ...]:
        # A candidate takes the position of the next token, so it needs no further one.
        return ((self.model.backbone, 0),)


@dataclass(frozen=True, eq=False)
class TextCandidateValues(Source):
    """`Candidates` by a scorer that reads text, whatever its tokenizer is.

    Args:
        score: float32 ``(N,)`` for N texts.
        tokenizer: the base's.
        k: how many candidates.
    """

    score: Any = None
    tokenizer: Any = None
    k: int = 1

    @property
    def key(self) -> Hashable:
        return ("text candidates", id(self.score), self.k)


@dataclass(frozen=True, eq=False)
class Likelihood:
    """How probable a text is so far in each of K contexts, and how probable each next token.

    Attributes:
        total: the sum of the natural log-probabilities of the text's tokens, float32 ``(K, R)``;
            without the first token of a text with nothing before it.
        count: how many tokens were counted, int64 ``(K, R)``.
        following: log-probabilities of the next token, float32 ``(K, R, V)``.
    """

    total: Tensor
    count: Tensor
    following: Tensor


@dataclass(frozen=True, eq=False)
class TextLikelihood(Source):
    """`Likelihood` of the text so far under a model in several contexts, by one forward for all.

    Args:
        model: a causal language model with the base's tokenizer, or None for the base.
        contexts: K of them; without ``after``.
    """

    model: Any = None
    contexts: tuple[Context, ...] = (EMPTY,)

    @property
    def key(self) -> Hashable:
        model = None if self.model is None else id(self.model)
        return ("likelihood", model, tuple(context.key for context in self.contexts))

    @property
    def models(self) -> tuple[tuple[Any, int], ...]:
        return tuple((self.model, c.depth + len(c.ids)) for c in self.contexts)
