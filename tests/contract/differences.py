"""Where a wrapped model's ``generate`` is not transformers', and why.

Two differences are in every call, and the tests make room for them:

- Scores are log-probabilities: a controller that steers, also one whose gate is closed, returns
  what it was given under a log-softmax. Beams after a repetition penalty are ranked by those.
- A prompt whose mask is all zeros is refused: it has no token to read. (Mamba's tester draws its
  masks from one number, which is 0; ones take their place.)

The others make a test of transformers fail, as `DIFFERENCES` says.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Difference:
    """How a test of transformers fails under control.

    Attributes:
        controllers: the kinds of controllers under which it does.
        error: what it raises.
        match: what the error says.
        reason: why that is meant.
    """

    controllers: tuple[str, ...]
    error: type[BaseException]
    match: str
    reason: str


ALL = ("zero", "inactive", "acting")
NO_TOKENS = Difference(
    ALL,
    ValueError,
    "got inputs_embeds and no token ids",
    "experts, prompts and supports read token ids; embeddings of unknown tokens have none",
)
DIFFERENCES: dict[str, Difference] = {
    "test_generate_from_inputs_embeds_with_static_cache": NO_TOKENS,
    "test_generate_continue_from_inputs_embeds": NO_TOKENS,
}
