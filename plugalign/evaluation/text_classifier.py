"""A Hugging Face text-classification model as P(toxic) of texts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from plugalign.evaluation.statistics import FloatArray

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
    """

    model: Any
    tokenizer: Any
    positive: int

    @classmethod
    def load(
        cls, source: str | Path, *, positive_label: str | None = None, device: str | None = None
    ) -> Self:
        """Loads a hub id or a local folder.

        Raises:
            ValueError: nothing is there, it is no text classifier, or see `positive_index`.
        """
        try:
            config = AutoConfig.from_pretrained(str(source), trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"judge {str(source)!r} is neither 'pocket', a .joblib file, 'module:function', a "
                f"model folder nor a hub id that can be reached: {error}"
            ) from error
        # Any backbone loads as a classifier, with a random head: its scores would be noise.
        if not any("SequenceClassification" in name for name in config.architectures or ()):
            found = ", ".join(config.architectures or ("nothing known",))
            raise ValueError(f"judge {str(source)!r} is {found}, not a text classifier")
        labels = [config.id2label[i] for i in range(config.num_labels)]
        positive = positive_index(labels, positive_label)
        model = AutoModelForSequenceClassification.from_pretrained(
            str(source), dtype=torch.float32, trust_remote_code=False
        )
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        return cls(model.to(device or "cpu").eval(), tokenizer, positive)

    def __call__(self, texts: Sequence[str]) -> FloatArray:
        """P(toxic) of each text, ``(n,)``; texts of like length share a forward."""
        limit = min(MAX_TOKENS, self.tokenizer.model_max_length)
        rows = self.tokenizer(list(texts), truncation=True, max_length=limit)["input_ids"]
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        scores = np.empty(len(rows))
        for start in range(0, len(order), FORWARD):
            chosen = order[start : start + FORWARD]
            scores[chosen] = self._forward([rows[i] for i in chosen])
        return scores

    @torch.inference_mode()
    def _forward(self, rows: list[list[int]]) -> FloatArray:
        # On the right: absolute positions would shift with padding on the left.
        inputs = self.tokenizer.pad(
            {"input_ids": rows}, padding_side="right", return_tensors="pt"
        ).to(self.model.device)
        logits = self.model(**inputs).logits.double()  # (n, labels)
        several = self.model.config.problem_type == "multi_label_classification"
        # One logit, or labels that do not exclude each other, are judged each by itself.
        independent = several or logits.shape[1] == 1
        shares = logits.sigmoid() if independent else logits.softmax(dim=-1)
        scores: FloatArray = shares[:, self.positive].cpu().numpy()
        return scores


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
