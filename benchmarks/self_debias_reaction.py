"""How a model reacts to a description of bad text, and what self-debiasing makes of that.

Self-debiasing damps a token by how much *probability* it gains behind a description. That works
where two things hold: the description makes offensive tokens likelier, and these gains stand out
among all others. Both are measured here on next-token distributions at the first steps of answers:
p without a description and q behind it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from plugalign.algebra.sources import EMPTY
from plugalign.controllers.self_debias import prompted
from plugalign.engine.batching.contexts import context_layout
from plugalign.evaluation.statistics.paired import PairedBootstrap

HEAD = 0.1  # a token as probable as this is of the head of its distribution
DAMPED = 0.5  # a token counts as damped where it loses half of its probability
ROWS = 10  # texts in one forward
LEAST, TIMES = 10, 5  # see `offensive_tokens`


@dataclass(frozen=True)
class Texts:
    """Prompts with the beginnings of answers, padded on the left.

    Attributes:
        ids, mask: ``(R, T)``.
        steps: the last so many positions are looked at: where an answer begins, and behind each of
            the tokens that it has here.
    """

    ids: Tensor
    mask: Tensor
    steps: int


@torch.no_grad()
def begun(model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], steps: int) -> Texts:
    """Prompts with the first ``steps - 1`` tokens that the model draws behind each (top-p 0.9).

    Args:
        prompts: token ids.
    """
    width, pad = max(map(len, prompts)), tokenizer.pad_token_id or 0
    ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in prompts])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in prompts])
    if steps > 1:
        torch.manual_seed(0)
        new = {"min_new_tokens": steps - 1, "max_new_tokens": steps - 1, "pad_token_id": pad}
        ids = model.generate(ids, attention_mask=mask, do_sample=True, top_p=0.9, top_k=0, **new)
        mask = torch.cat([mask, mask.new_ones(len(ids), steps - 1)], 1)
    return Texts(ids, mask, steps)


@torch.no_grad()
def distributions(model: Any, tokenizer: Any, texts: Texts, description: str | None) -> Tensor:
    """Next-token distributions ``(R * steps, V)``, float32, from a head in float32 as
    self-debiasing itself reads them.

    Args:
        description: text in front, of what the user says where a text is a chat; or None.
    """
    context = EMPTY if description is None else prompted(description, tokenizer).context
    layout = context_layout([context], tokenizer.pad_token_id or 0)
    head = model.get_output_embeddings()
    weight, bias = head.weight.float(), None if head.bias is None else head.bias.float()
    found = []
    for start in range(0, len(texts.ids), ROWS):
        rows = slice(start, start + ROWS)
        hidden = _hidden(model, layout.rows(context, texts.ids[rows], texts.mask[rows]))
        last = hidden[:, -texts.steps :].float().flatten(0, 1)
        found.append(torch.nn.functional.linear(last, weight, bias).softmax(-1))
    return torch.cat(found)


def _hidden(model: Any, inputs: tuple[Tensor, Tensor]) -> Tensor:
    ids, mask = inputs
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    read = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
    hidden: Tensor = model.base_model(**read, use_cache=False).last_hidden_state
    return hidden


def reaction(p: Tensor, q: Tensor, offensive: Tensor) -> dict[str, float]:
    """How far a description moves distributions, and whether towards offensive tokens.

    Args:
        p, q: distributions ``(N, V)`` without and behind the description.
        offensive: bool ``(V,)``.

    Returns:
        Means over the N: "kl", KL(q || p) in nats; "total_variation"; "offensive_without" and
        "offensive_behind", the probability of all offensive tokens; and "gain_of_the_head", the
        part of all gained probability that tokens of the head gain.
    """
    kl = (q * (q.clamp_min(1e-30).log() - p.clamp_min(1e-30).log())).sum(-1)
    gain = (q - p).clamp_min(0)
    head = torch.maximum(p, q) >= HEAD
    return {
        "kl": float(kl.mean()),
        "total_variation": float(gain.sum(-1).mean()),
        "offensive_without": float(p[:, offensive].sum(-1).mean()),
        "offensive_behind": float(q[:, offensive].sum(-1).mean()),
        "gain_of_the_head": float((gain * head).sum() / gain.sum()),
    }


def damping(
    p: Tensor, q: Tensor, offensive: Tensor, decay: float, floor: float, steps: int = 1
) -> dict[str, Any]:
    """What self-debiasing does to distributions (Schick et al. 2021, equations 3 to 5).

    Args:
        p: distributions ``(N, V)`` of the base.
        q: the largest probabilities ``(N, V)`` behind any of the descriptions.
        steps: how many of the N, one after another, are of one text.

    Returns:
        "damped", the share of drawn tokens that lose half of their probability or more;
        "damped_offensive", that share among offensive ones; "removed" and "removed_offensive", the
        probability that all and that offensive tokens lose before the rest is normalised;
        "offensive_after", the probability of offensive tokens once it is, and "change", what that
        is more than before: a mean over texts with its interval (paired bootstrap over texts).
    """
    factor = (-decay * (q - p).clamp_min(0)).clamp_min(math.log(floor)).exp()
    kept, bad = p * factor, p[:, offensive]
    strong = p * (factor <= DAMPED)
    after = kept[:, offensive].sum(-1) / kept.sum(-1)
    texts = [x.view(-1, steps).mean(-1).double().numpy() for x in (after, bad.sum(-1))]
    return {
        "damped": float(strong.sum(-1).mean()),
        "damped_offensive": float(strong[:, offensive].sum() / bad.sum()),
        "removed": float(1 - kept.sum(-1).mean()),
        "removed_offensive": float(1 - kept[:, offensive].sum() / bad.sum()),
        "offensive_after": float(after.mean()),
        "change": asdict(PairedBootstrap(len(texts[0])).difference(*texts)),
    }


def measured(
    model: Any,
    tokenizer: Any,
    texts: Texts,
    offensive: Tensor,
    descriptions: Mapping[str, Sequence[str]],
    decays: Sequence[float],
    floor: float,
) -> dict[str, Any]:
    """`reaction` to each group of descriptions, as means over the group, and `damping` by all of
    it together for each decay.

    Args:
        descriptions: by the name of a group.
    """
    p, found = distributions(model, tokenizer, texts, None), {}
    seen: dict[str, Tensor] = {}
    for name, group in descriptions.items():
        for text in group:
            if text not in seen:
                seen[text] = distributions(model, tokenizer, texts, text)
        each = [reaction(p, seen[text], offensive) for text in group]
        worst = torch.stack([seen[text] for text in group]).amax(0)
        found[name] = {
            **{part: sum(one[part] for one in each) / len(each) for part in each[0]},
            "damping": {
                f"{decay:g}": damping(p, worst, offensive, decay, floor, texts.steps)
                for decay in decays
            },
        }
    return {"texts": len(texts.ids), "steps": texts.steps, "groups": found}


def offensive_tokens(tokenizer: Any, size: int, good: Sequence[str], bad: Sequence[str]) -> Tensor:
    """Which tokens stand in `LEAST` toxic texts or more, and `TIMES` times as often as in the
    polite ones, bool ``(V,)``.

    Args:
        size: V.
        good, bad: texts that differ in nothing else, as pairs of a text and its rewriting do.
    """
    often, seldom = (_counted(tokenizer, size, texts) for texts in (bad, good))
    seldom *= len(bad) / len(good)
    return (often >= LEAST) & (often >= TIMES * (1 + seldom))


def _counted(tokenizer: Any, size: int, texts: Sequence[str]) -> Tensor:
    """In how many texts each token stands, ``(V,)``."""
    count = torch.zeros(size)
    for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]:
        count[torch.tensor(sorted(set(ids)), dtype=torch.long)] += 1
    return count
