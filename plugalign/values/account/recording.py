"""One traced batch after the other: answers are generated, and lines made of their traces."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from plugalign.algebra.controller import Controller
from plugalign.evaluation.comparison.decoding import Decoding
from plugalign.evaluation.comparison.generation import end_tokens, generated
from plugalign.evaluation.comparison.prompts import Prompts, Row, chunks, encode, left_padded
from plugalign.evaluation.run_folder.describe import (
    conditions,
    describe_chat,
    describe_model,
    versions,
)
from plugalign.files.messages import as_lines
from plugalign.generation.chat_format import ChatChoice
from plugalign.generation.wrap import wrap
from plugalign.sampling import CoupledSampler
from plugalign.trace import Trace
from plugalign.values.account import controllers as parts
from plugalign.values.account.chain import Chain
from plugalign.values.account.records import (
    AnswerLine,
    Line,
    RunLine,
    TokenLine,
    content_of,
    finite,
    now,
    request_of,
    rounded,
)
from plugalign.values.account.strata import Strata


@dataclass(frozen=True)
class Recorder:
    """Generates batches of answers and makes lines of them."""

    model: Any
    tokenizer: Any
    controllers: Mapping[str, Controller]
    prompts: Prompts
    decoding: Decoding
    strata: Strata
    chat: ChatChoice
    store_prompts: bool = False

    def check(self) -> None:
        """Refuses what cannot be generated, before anything is written.

        Raises:
            ValueError: for a prompt that leaves no room for its answer, or a controller that does
                not fit the model; names it.
        """
        _ = self.encoded, self._steered

    def run_line(
        self, folders: Mapping[str, str | None], model_path: str | None, is_pocket: bool
    ) -> RunLine:
        """What the run depends on.

        Args:
            folders: where each controller was loaded from; model_path: the model.
        """
        record = describe_model(self.model, self.tokenizer)
        return RunLine(
            time=now(),
            model=record,
            model_path=model_path,
            controllers=parts.described(self.controllers, folders),
            request=request_of(record.name, self.decoding),
            count=len(self.prompts.texts),
            prompts=self.prompts.fingerprint(),
            prompts_path=self.prompts.path,
            strata=self.strata.how,
            chat=None if self.chat.format is None else describe_chat(self.chat),
            versions=versions(),
            conditions=conditions(self.model.device),
            pocket=is_pocket,
        )

    @cached_property
    def encoded(self) -> list[list[int]]:
        """Token ids of every prompt."""
        new_tokens = self.decoding.max_new_tokens
        return encode(self.prompts, self.model, self.tokenizer, new_tokens, self.chat.format)

    @cached_property
    def _hashes(self) -> tuple[str, ...]:
        return self.prompts.hashes()

    @property
    def batches(self) -> list[list[Row]]:
        """All (prompt, sample) rows, as they are generated together."""
        return chunks(self.encoded, self.decoding.samples, self.decoding.batch_size)

    @cached_property
    def _steered(self) -> Any:
        return wrap(self.model, self.tokenizer, parts.summed(self.controllers))

    @cached_property
    def _ends(self) -> list[int]:
        return self.chat.end_tokens(end_tokens(self.model, self.tokenizer))

    @cached_property
    def _pad(self) -> int:
        pad = self.tokenizer.pad_token_id
        return int((self._ends or [0])[0] if pad is None else pad)

    def work(self, chain: Chain, done: dict[Row, int]) -> Iterator[None]:
        """Generates the batches that lack an answer, and appends theirs; yields after each.

        Args:
            done: the tokens of each answer that is there; is filled.
        """
        for batch in self.batches:
            if all(row in done for row in batch):
                continue
            lines = list[Line]()
            for row, found in self.batch(batch):
                if row not in done:
                    lines += found
                    done[row] = len(found) - 1
            chain.append(map(content_of, lines))
            yield

    def batch(self, batch: Sequence[Row]) -> Iterator[tuple[Row, list[Line]]]:
        """The lines of each answer of a batch: its tokens, then itself."""
        recorded, output, width = self._generated(batch)
        names = parts.labels(recorded.names, self.controllers)
        columns = _columns(recorded, names)
        for number, row in enumerate(batch):
            tokens = _tokens(columns, number, row)
            final = generated(output[number, width:].tolist(), self._ends, self._pad)
            yield row, [*tokens, self._answer(row, [line.token for line in tokens], final)]

    def _generated(self, batch: Sequence[Row]) -> tuple[Trace, torch.Tensor, int]:
        """A filled trace, what was generated ``(R, T)``, and the columns of the prompts."""
        decoding, recorded = self.decoding, Trace()
        ids, mask = left_padded([self.encoded[prompt] for prompt, _ in batch], self._pad)
        sampler = CoupledSampler(
            decoding.seed,
            [prompt for prompt, _ in batch],
            [sample for _, sample in batch],
            temperature=decoding.temperature,
            top_p=decoding.top_p,
        )
        least = decoding.min_new_tokens
        output = self._steered.generate(
            input_ids=ids.to(self.model.device),
            attention_mask=mask.to(self.model.device),
            logits_processor=[sampler],
            max_new_tokens=decoding.max_new_tokens,
            **({"min_new_tokens": least} if least else {}),
            do_sample=False,
            num_beams=1,
            pad_token_id=self._pad,
            **({"eos_token_id": self._ends} if self._ends else {}),
            trace=recorded,
        )
        return recorded, output, ids.shape[1]

    def _answer(self, row: Row, tokens: list[int], final: list[int]) -> AnswerLine:
        prompt, sample = row
        return AnswerLine(
            prompt=prompt,
            sample=sample,
            prompt_sha256=self._hashes[prompt],
            prompt_text=as_lines(self.prompts.every[prompt]) if self.store_prompts else None,
            stratum=self.strata.names[prompt],
            risk=self.strata.risks[prompt],
            pieces=tuple(pieces(self.tokenizer, tokens)),
            text=str(self.tokenizer.decode(final, skip_special_tokens=True)),
            revised=final != tokens[: len(final)] or len(final) < len(tokens) - 1,
            input_tokens=len(self.encoded[prompt]),
            output_tokens=len(tokens),
            finish_reasons=("stop" if tokens and tokens[-1] in self._ends else "length",),
        )


def _columns(trace: Trace, names: Sequence[str]) -> list[dict[str, Any]]:
    """The steps of a trace, each with its numbers by row."""
    by_trace_name = dict(zip(trace.names, names, strict=True))
    steps = []
    for step in range(len(trace.tokens)):
        contributions = trace.contributions[step].tolist() if trace.contributions else []
        certificates = {
            by_trace_name[owner]: {name: value.tolist() for name, value in found.items()}
            for owner, found in trace.certificates[step].items()
        }
        lists = {
            name: getattr(trace, name)[step].tolist()
            for name in ("tokens", "base", "final", "joint", "changed", "support", "kl", "alive")
        }
        own = {"contributions": contributions, "certificates": certificates, "names": names}
        steps.append({**lists, **own, "time": round(trace.times[step], 3)})
    return steps


def _tokens(steps: Sequence[Mapping[str, Any]], number: int, row: Row) -> list[TokenLine]:
    """The lines of one row's tokens, while it was alive."""
    return [
        TokenLine(
            prompt=row[0],
            sample=row[1],
            step=step,
            token=found["tokens"][number],
            log_p=finite(found["base"][number]),
            log_q=finite(found["final"][number]),
            contributions=rounded(
                dict(zip(found["names"], found["contributions"][number], strict=True))
                if found["contributions"]
                else {}
            ),
            joint=finite(found["joint"][number]),
            changed=found["changed"][number],
            support=found["support"][number],
            kl=finite(found["kl"][number]),
            certificates={
                owner: rounded({name: values[number] for name, values in each.items()})
                for owner, each in found["certificates"].items()
            },
            time=found["time"],
        )
        for step, found in enumerate(steps)
        if found["alive"][number]
    ]


def pieces(tokenizer: Any, tokens: Sequence[int]) -> Iterator[str]:
    """The text that each token adds to those before it."""
    before = ""
    for count, token in enumerate(tokens, start=1):
        text = str(tokenizer.decode(tokens[:count]))
        yield text[len(before) :] if text.startswith(before) else str(tokenizer.decode([token]))
        before = text
