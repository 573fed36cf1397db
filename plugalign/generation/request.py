"""What a ``generate`` call asks for: its arguments, and its settings merged once for every part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import GenerationConfig
from transformers.generation import GenerationMode

from plugalign.generation.arguments import check_counts, check_streamer, check_type

ONE_TOKEN_A_STEP = (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE)
OF_A_DRAFT = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")
ARGUMENTS = {  # of generate, beside the settings in a GenerationConfig
    "custom_generate",
    "generation_config",
    "logits_processor",
    "stopping_criteria",
    "prefix_allowed_tokens_fn",
    "streamer",
    "assistant_model",
    "tokenizer",
    "assistant_tokenizer",
    "negative_prompt_ids",
    "negative_prompt_attention_mask",
    "synced_gpus",
    "trust_remote_code",
    "input_ids",
    "attention_mask",
}


@dataclass(frozen=True, eq=False)
class Request:
    """The arguments of one call, but for the prompts and their mask.

    Attributes:
        options: the keyword arguments for ``model.generate``, as the caller gave them.
        config: every generation setting of the call, only read. As in transformers a keyword
            argument stands before ``generation_config``, that before ``model.generation_config``,
            and that before transformers' defaults.
        forward: the arguments that are no settings and go to the model's forward.
        pad_token_id: the token that fills shorter rows, None if there is none.
        end_token_ids: any of them ends an answer.
    """

    options: dict[str, Any]
    config: GenerationConfig
    forward: dict[str, Any]
    pad_token_id: int | None
    end_token_ids: list[int]

    @property
    def mode(self) -> GenerationMode:
        """How transformers would decode: greedy search, sampling, beam search, ..."""
        return self.config.get_generation_mode(self.options.get("assistant_model"))

    @property
    def processors(self) -> list[Any]:
        """The caller's logits processors."""
        return list(self.options["logits_processor"])


def make_request(model: Any, tokenizer: Any, options: Mapping[str, Any]) -> Request:
    """Merges the settings of a call as ``model.generate`` does.

    Args:
        options: the keyword arguments of the call; prompts and their mask are left out.

    Raises:
        TypeError: for a ``generation_config`` or a streamer that is none.
        ValueError: for settings that transformers refuses, or a number of answers below 1.
    """
    check_type("generation_config", options.get("generation_config"), GenerationConfig)
    check_streamer(options.get("streamer"))
    settings = {name: value for name, value in options.items() if name not in ARGUMENTS}
    config, forward = model._prepare_generation_config(options.get("generation_config"), **settings)
    check_counts(config)
    pad, ends = special_tokens(config, tokenizer)
    given = {k: v for k, v in options.items() if k not in ("input_ids", "attention_mask")}
    given["logits_processor"] = list(options.get("logits_processor") or [])
    forward = {name: value for name, value in forward.items() if value is not None}
    return Request(given, config, forward, pad, ends)


def check_possible(request: Request, traced: bool, drafted: bool, revised: bool) -> None:
    """Refuses a call whose parts do not go together.

    Args:
        traced: whether a `Trace` is to be filled.
        drafted: whether a `Speculation` drafts tokens.
        revised: whether controllers revise finished answers.

    Raises:
        ValueError: for a trace of beams or drafts, or where what is returned, or streamed, belongs
            to an answer that may be rewritten afterwards.
    """
    if traced and (drafted or request.mode not in ONE_TOKEN_A_STEP):
        raise ValueError(
            "a trace follows rows that grow by one token a step, so it needs greedy decoding "
            "or sampling; beams and drafts move rows about"
        )
    wanted = [name for name in OF_A_DRAFT if revised and getattr(request.config, name)]
    if revised and request.options.get("streamer") is not None:
        wanted.insert(0, "streamer")
    if wanted:
        raise ValueError(
            f"{wanted[0]} belongs to a draft, which a controller may rewrite afterwards; leave it "
            "out, or leave the revising controller out"
        )


def special_tokens(config: GenerationConfig, tokenizer: Any) -> tuple[int | None, list[int]]:
    """The pad token and the end tokens of merged settings; the tokenizer's pad token stands in
    where they name none."""
    pad, end = config.pad_token_id, config.eos_token_id
    end = end.flatten().tolist() if isinstance(end, Tensor) else end
    ends = end if isinstance(end, list) else [end]
    return (
        tokenizer.pad_token_id if pad is None else pad,
        [token for token in ends if token is not None],
    )
