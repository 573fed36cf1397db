"""Where a wrapped model's ``generate`` is not transformers', and why."""

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
