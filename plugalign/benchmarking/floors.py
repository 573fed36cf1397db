"""The least time of a decoding step: what it must read, at the speed of the device's memory.

A step of few rows reads every weight once and the keys and values of every row; all arithmetic
hides behind that. Rows of one forward share the weights: prompts cost their caches alone, a LoRA
expert its low-rank change and its caches. A scorer of candidates reads its weights once, and a row
of its embedding for each candidate; on a CPU its arithmetic can take longer than that. A share near
1 cannot be had where a model is so small that launches or Python take longer than its memory, and
one above 1 means that it stays in a cache.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from plugalign.adapters.layers import LoraLinear
from plugalign.algebra.sources import CandidateValues, LastHidden, Logits
from plugalign.engine.plan import Plan

COPIED = {"cpu": 2**26, "cuda": 2**30}  # bytes
COPIES = 9


def copy_bandwidth(device: torch.device) -> float:
    """Bytes per second that a large copy reads and writes."""
    source = torch.ones(COPIED.get(device.type, 2**26), dtype=torch.uint8, device=device)
    target, times = torch.empty_like(source), []
    for _ in range(COPIES):
        start = now(device)
        target.copy_(source)
        times.append(now(device) - start)
    return 2 * len(source) / statistics.median(times)


def now(device: torch.device) -> float:
    """Seconds, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def step_bytes(model: Any, plan: Plan, batch: int, columns: int) -> int | None:
    """What one step must read, or None where that depends on the text.

    Args:
        plan: what controllers ask for at each step.
        batch: rows of the call.
        columns: the length of the text at the step.
    """
    a_column = {id(each): column_bytes(each) for each in _models(plan, model)}
    known = (Logits, LastHidden, CandidateValues)
    of_itself = any(not isinstance(s, known) for s in plan.sources.values())
    if of_itself or plan.gates or None in a_column.values():
        return None
    read = [(model, columns)]
    for source in plan.sources.values():
        read += [(each or model, columns + around) for each, around in source.models]
    caches = sum(length * (a_column[id(each)] or 0) for each, length in read)
    candidates = sum(_candidate_bytes(source) for source in _scorers(plan))
    return weight_bytes(plan, model) + batch * (caches + candidates)


def weight_bytes(plan: Plan, model: Any) -> int:
    """The weights that a step reads: each once, however many models share it. Of an embedding that
    is not the head too, it reads a few rows only."""
    read: dict[int, int] = {}
    for each in _models(plan, model):
        for tensor in _weights(each):
            read.setdefault(tensor.data_ptr(), tensor.nbytes)
    return sum(read.values())


def _models(plan: Plan, model: Any) -> list[Any]:
    """The models that a step reads, and the bodies of candidates' scorers."""
    return [model, *plan.experts.values(), *(s.model.backbone for s in _scorers(plan))]


def _scorers(plan: Plan) -> list[CandidateValues]:
    return [source for source in plan.sources.values() if isinstance(source, CandidateValues)]


def _candidate_bytes(source: CandidateValues) -> int:
    """The rows of a scorer's embedding for the candidates of one text."""
    rows = source.model.backbone.get_input_embeddings().weight
    return min(source.k, len(rows)) * int(rows[0].nbytes)


def _weights(model: Any) -> Iterable[Tensor]:
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    tied = head is not None and head.weight is embedding.weight
    for module in model.modules():
        if module is embedding and not tied:
            continue
        yield from module.parameters(recurse=False)
        if isinstance(module, LoraLinear):
            yield from (module.down, module.up)


@torch.no_grad()
def column_bytes(model: Any) -> int | None:
    """Keys and values of one token in one row; None for a model that keeps something else."""
    ids = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    layers = getattr(model(input_ids=ids, use_cache=True).past_key_values, "layers", ())
    if not layers or any(type(layer) is not DynamicLayer for layer in layers):
        return None
    return sum(int(layer.keys.nbytes + layer.values.nbytes) for layer in layers)
