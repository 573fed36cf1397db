"""A Hugging Face text-classification model as P(toxic) of texts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from plugalign.evaluation.statistics.paired import FloatArray
from plugalign.files.pretrained import loading

TOXIC_NAMES = (
    {"toxic", "toxicity"},
    {"offensive", "abusive", "hateful", "hate", "hatespeech", "rude", "unsafe"},
)
NUMBERED = ({"label0", "label1"}, {"0", "1"}, {"false", "true"})
MAX_TOKENS = 512
FORWARD = 16  # texts in one forward: few enough that sorting by length saves padding


@dataclass(frozen=True, eq=False)
class TextClassifier:
    """P(label) under a sequence-classification model, longer texts cut to its context.

    Args:
        model: a ``*ForSequenceClassification`` in eval mode.
        tokenizer: its tokenizer.
        positive: the number of the label that counts as toxic.
        limit: the most tokens of a text that are read.
        pad: the token that fills shorter rows, None where neither tokenizer nor model has one:
            texts are then scored one by one.
    """

    model: Any
    tokenizer: Any
    positive: int
    limit: int
    pad: int | None

    @staticmethod
    def load(
        source: str | Path, *, positive_label: str | None = None, device: str | None = None
    ) -> TextClassifier:
        """Loads a hub id or a local folder.

        Raises:
            ValueError: nothing is there, it is no text classifier, or see `positive_index`.
        """
        name, options = str(source), {"trust_remote_code": False}
        with loading("the judge", name):
            config = AutoConfig.from_pretrained(name, **options)
            # Any backbone loads as a classifier, with a random head: its scores would be noise.
            if not any("SequenceClassification" in kind for kind in config.architectures or ()):
                found = ", ".join(config.architectures or ("nothing known",))
                raise ValueError(f"it is {found}, not a text classifier")
            labels = [config.id2label[i] for i in range(config.num_labels)]
            positive = positive_index(labels, positive_label)
            tokenizer = AutoTokenizer.from_pretrained(name, **options)
            model = AutoModelForSequenceClassification.from_pretrained(
                name, dtype=torch.float32, **options
            )
        return text_classifier(model.to(device or "cpu").eval(), tokenizer, positive)

    def __call__(self, texts: Sequence[str]) -> FloatArray:
        """P(toxic) of each text, ``(n,)``; texts of like length share a forward.

        Raises:
            ValueError: a text has no tokens, and the tokenizer no token to begin it with.
        """
        rows = self.tokenizer(list(texts), truncation=True, max_length=self.limit)["input_ids"]
        rows = [row or self._empty() for row in rows]
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        scores, together = np.empty(len(rows)), 1 if self.pad is None else FORWARD
        for start in range(0, len(order), together):
            chosen = order[start : start + together]
            scores[chosen] = self._forward([rows[i] for i in chosen])
        return scores

    def _empty(self) -> list[int]:
        """An empty text, where the tokenizer frames it by nothing."""
        for token in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id):
            if token is not None:
                return [token]
        raise ValueError("a text has no tokens")

    @torch.inference_mode()
    def _forward(self, rows: list[list[int]]) -> FloatArray:
        # On the right: absolute positions would shift with padding on the left.
        width, device = max(map(len, rows)), self.model.device
        ids = [row + [self.pad or 0] * (width - len(row)) for row in rows]
        mask = [[1] * len(row) + [0] * (width - len(row)) for row in rows]
        logits = self.model(
            input_ids=torch.tensor(ids, device=device),
            attention_mask=torch.tensor(mask, device=device),
        ).logits.double()  # (n, labels)
        several = self.model.config.problem_type == "multi_label_classification"
        # One logit, or labels that do not exclude each other, are judged each by itself.
        independent = several or logits.shape[1] == 1
        shares = logits.sigmoid() if independent else logits.softmax(dim=-1)
        scores: FloatArray = shares[:, self.positive].cpu().numpy()
        return scores


def text_classifier(model: Any, tokenizer: Any, positive: int) -> TextClassifier:
    """A classifier of a model that is loaded.

    Where the model's configuration names no pad token, it is given the tokenizer's: decoders
    find a row's last token by it.

    Args:
        positive: the number of the label that counts as toxic.
    """
    config = model.config.get_text_config()
    known = (getattr(config, "pad_token_id", None), tokenizer.pad_token_id)
    pad = next((token for token in known if token is not None and token >= 0), None)
    config.pad_token_id = pad
    limits = (MAX_TOKENS, tokenizer.model_max_length, positions(model))
    limit = min(n for n in limits if n is not None)
    return TextClassifier(model, tokenizer, positive, limit, pad)


def positions(model: Any) -> int | None:
    """How many tokens the model has positions for, None where nothing bounds them.

    RoBERTa and its kin number them from behind the pad token on.
    """
    count = getattr(model.config, "max_position_embeddings", None)
    if count is None or count < 1:
        return None
    reserved = [
        module.padding_idx + 1
        for name, module in model.named_modules()
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None
    ]
    return int(count) - max(reserved, default=0)


def positive_index(labels: Sequence[str], wanted: str | None = None) -> int:
    """Which label counts as toxic.

    In this order: the label ``wanted``; the only label; the one label called toxic or toxicity;
    the one label called offensive, abusive, hateful, hate, hate speech, rude or unsafe; the
    second of LABEL_0 and LABEL_1, of 0 and 1, or of false and true. Case, spaces and punctuation
    do not count.

    Raises:
        ValueError: listing the labels, if none of these rules applies.
    """
    plain = [re.sub(r"[\W_]", "", str(label)).lower() for label in labels]
    listed = ", ".join(map(repr, labels))
    if wanted is not None:
        target = re.sub(r"[\W_]", "", wanted).lower()
        if plain.count(target) != 1:
            raise ValueError(f"the judge has no label {wanted!r}; its labels are {listed}")
        return plain.index(target)
    if len(labels) == 1:
        return 0
    for names in TOXIC_NAMES:
        found = [i for i, label in enumerate(plain) if label in names]
        if len(found) == 1:
            return found[0]
    if set(plain) in NUMBERED:
        return plain.index(max(plain))
    raise ValueError(f"which label of the judge is the toxic one? Name it; there are {listed}")
