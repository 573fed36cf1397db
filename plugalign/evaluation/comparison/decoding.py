"""How answers are decoded: one value with every setting, checked once, the same for all methods."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from plugalign.kernels.philox import check_seed
from plugalign.sampling import check_sampling

COUNTS = ("samples", "max_new_tokens", "batch_size", "num_beams")
TOP_P = 0.9
OF_A_DRAW = {"temperature": 1.0, "top_p": 1.0, "top_k": 0}  # what leaves a draw as the model has it


@dataclass(frozen=True)
class Decoding:
    """How answers are made.

    Attributes:
        samples: answers to each prompt.
        max_new_tokens, min_new_tokens: the most and the fewest tokens of an answer.
        temperature, top_p, top_k: of the draw; 0 as top_k keeps all tokens.
        batch_size: answers that are generated together.
        seed: of the noise.
        greedy: takes the most probable token at each step instead of drawing one.
        num_beams: beams of a beam search, which draws nothing either; 1 is no beam search.
        repetition_penalty: divides the logits of tokens that the text has already, where they are
            positive, and multiplies them where they are negative (Keskar et al. 2019); 1 is none.

    Raises:
        TypeError, ValueError: for settings of another type, out of their range, or that do not go
            together: of a draw where nothing is drawn, and several answers that would be one.
    """

    samples: int
    max_new_tokens: int
    temperature: float
    top_p: float
    batch_size: int
    seed: int
    min_new_tokens: int = 0
    top_k: int = 0
    greedy: bool = False
    num_beams: int = 1
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        for name in (*COUNTS, "min_new_tokens", "top_k"):
            count = getattr(self, name)
            if isinstance(count, bool) or not isinstance(count, int):
                raise TypeError(f"{name} must be an int, got {count!r}")
            if count < 1 and name in COUNTS:
                raise ValueError(f"{name} must be at least 1, got {count}")
        if not isinstance(self.greedy, bool):
            raise TypeError(f"greedy must be True or False, got {self.greedy!r}")
        penalty = self.repetition_penalty
        if isinstance(penalty, bool) or not isinstance(penalty, (int, float)):
            raise TypeError(f"repetition_penalty must be a number, got {penalty!r}")
        if not 0 <= self.min_new_tokens <= self.max_new_tokens:
            raise ValueError(
                f"min_new_tokens must lie between 0 and max_new_tokens ({self.max_new_tokens}), "
                f"got {self.min_new_tokens}"
            )
        if not (math.isfinite(penalty) and penalty > 0):
            raise ValueError(f"repetition_penalty must be a positive number, got {penalty}")
        check_sampling(temperature=self.temperature, top_p=self.top_p, top_k=self.top_k)
        check_seed(self.seed)
        if not self.draws:
            self._check_undrawn()

    @property
    def draws(self) -> bool:
        """Whether tokens are drawn."""
        return not self.greedy and self.num_beams == 1

    def _check_undrawn(self) -> None:
        kind = "greedy decoding" if self.greedy else "beam search"
        if self.greedy and self.num_beams > 1:
            raise ValueError(f"greedy decoding has one beam, got num_beams {self.num_beams}")
        for name, neutral in OF_A_DRAW.items():
            if (value := getattr(self, name)) != neutral:
                raise ValueError(f"{kind} draws no tokens, so leave {name} out, got {value}")
        if self.samples != 1:
            raise ValueError(
                f"{kind} gives one answer to each prompt, so samples must be 1, got {self.samples}"
            )

    def options(self, max_new_tokens: int) -> dict[str, Any]:
        """The arguments of ``generate``, whatever draws the tokens, for answers of at most so many
        tokens."""
        found: dict[str, Any] = {
            "max_new_tokens": max_new_tokens,
            "do_sample": False,
            "num_beams": self.num_beams,
        }
        if least := min(self.min_new_tokens, max_new_tokens):
            found["min_new_tokens"] = least
        if self.repetition_penalty != 1:
            found["repetition_penalty"] = float(self.repetition_penalty)
        return found


def make_decoding(
    *,
    samples: int | None,
    usual_samples: int,
    temperature: float | None,
    top_p: float | None,
    top_k: int,
    greedy: bool,
    num_beams: int,
    **others: Any,
) -> Decoding:
    """The settings with what was left out filled in: sampling with top-p 0.9, or where nothing is
    drawn one answer a prompt.

    Args:
        usual_samples: answers to a prompt where they are drawn.
        others: of `Decoding`.

    Raises:
        TypeError, ValueError: see `Decoding`.
    """
    drawn = not greedy and num_beams == 1
    usual = TOP_P if drawn else 1.0
    return Decoding(
        samples=(usual_samples if drawn else 1) if samples is None else samples,
        temperature=1.0 if temperature is None else temperature,
        top_p=usual if top_p is None else top_p,
        top_k=top_k,
        greedy=greedy,
        num_beams=num_beams,
        **others,
    )
