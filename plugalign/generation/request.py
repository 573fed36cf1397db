"""What a ``generate`` call asks for: its arguments, and its settings merged once for every part."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, GenerationMixin
from transformers.generation import GenerationMode

from plugalign.generation.arguments import (
    check_config,
    check_numbers,
    check_objects,
    check_streamer,
    check_type,
)

ONE_TOKEN_A_STEP = (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE)
OF_A_DRAFT = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")
FILLED = ("streamer", "past_key_values")  # by a draft, where they are given
# What generate takes behind the prompts, in its order: all but **kwargs, which are settings.
BY_POSITION = tuple(inspect.signature(GenerationMixin.generate).parameters)[2:-1]
ARGUMENTS = {  # of generate, beside the settings in a GenerationConfig
    *BY_POSITION,
    "tokenizer",
    "assistant_tokenizer",
    "trust_remote_code",
    "input_ids",
    "attention_mask",
}


def by_name(arguments: Sequence[Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments of ``generate`` behind the prompts as keywords.

    Args:
        arguments: those by position. options: those by name.

    Raises:
        TypeError: as Python does, for too many, and for one that is given twice.
    """
    if len(arguments) > len(BY_POSITION):
        raise TypeError(
            f"generate takes at most {len(BY_POSITION) + 1} arguments by position, got "
            f"{len(arguments) + 1}"
        )
    named = dict(zip(BY_POSITION, arguments, strict=False))
    if twice := sorted(named.keys() & options.keys()):
        raise TypeError(f"generate got multiple values for argument '{twice[0]}'")
    return {**named, **options}


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
        TypeError: for a ``generation_config``, a streamer or another argument that is none.
        ValueError: for settings that transformers, `check_numbers` or `check_config` refuse.
    """
    check_type("generation_config", options.get("generation_config"), GenerationConfig)
    check_streamer(options.get("streamer"))
    check_objects(options)
    settings = {name: value for name, value in options.items() if name not in ARGUMENTS}
    check_numbers(settings)
    config, forward = model._prepare_generation_config(options.get("generation_config"), **settings)
    check_config(config)
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
        ValueError: for a trace of beams or drafts, an assistant with a tokenizer of its own, or
            where what is returned, streamed or cached belongs to an answer that may be rewritten
            afterwards, and what the forward is given to the prompts alone.
    """
    drafting = ("assistant_model", "assistant_tokenizer")
    if all(request.options.get(name) is not None for name in drafting):
        raise ValueError(
            "transformers gives an assistant the call's logits processors, and with an "
            "assistant_tokenizer they get its tokens, where controllers read the base's; take an "
            "assistant with the base's tokenizer"
        )
    if traced and (drafted or request.mode not in ONE_TOKEN_A_STEP):
        raise ValueError(
            "a trace follows rows that grow by one token a step, so it needs greedy decoding "
            "or sampling; beams and drafts move rows about"
        )
    given = [name for name in FILLED if request.options.get(name) is not None]
    wanted = [*given, *(name for name in OF_A_DRAFT if getattr(request.config, name))]
    if revised and wanted:
        raise ValueError(
            f"{wanted[0]} belongs to a draft, which a controller may rewrite afterwards; leave it "
            "out, or leave the revising controller out"
        )
    bound = [name for name, value in request.forward.items() if isinstance(value, torch.Tensor)]
    if revised and bound:
        raise ValueError(
            f"{bound[0]} belongs to the prompts, and a controller that revises answers lets the "
            "model read other texts; leave it out, or leave the revising controller out"
        )


def special_tokens(config: GenerationConfig, tokenizer: Any) -> tuple[int | None, list[int]]:
    """The pad token and the end tokens of merged settings. Without a pad token the first end token
    pads, as in transformers, and without either the tokenizer's pad token. A negative one is no
    token that a model can read."""
    pads, ends = token_list(config.pad_token_id), token_list(config.eos_token_id)
    pad = next(iter([*pads, *ends]), tokenizer.pad_token_id)
    return (None if pad is not None and pad < 0 else pad), ends


def token_list(tokens: Any) -> list[int]:
    """Token ids that a setting gives as a number, a list or a tensor, or not at all."""
    return [] if tokens is None else torch.as_tensor(tokens).flatten().tolist()
