"""The LM head of a model whose weights take no gradient."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from plugalign.engine.readers.incremental import IncrementalModel
from plugalign.engine.readers.prefix_cache import CachedModel
from plugalign.evaluation.metrics.likelihood import nll
from plugalign.fitting.states import head_inputs
from plugalign.generation.prompt_memory import PromptMemory

VOCABULARY = 120
READS = {
    "cached": lambda model, ids, mask: CachedModel(model).logits(ids, mask),
    "cached states": lambda model, ids, mask: CachedModel(model).hidden(ids, mask),
    "incremental": lambda model, ids, mask: IncrementalModel(model).logits(ids, mask),
    "likelihood": lambda model, ids, mask: nll(model, ids.tolist(), ids[:, :2].tolist()),
    "states": head_inputs,
}


def products_per_row(read):
    """How many batched products with the head there are: torch makes one for rows that it cannot
    fold."""
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as seen:
        read()
    products = [e.input_shapes for e in seen.events() if e.name == "aten::bmm"]
    return sum(shapes[1][-1] == VOCABULARY for shapes in products)


@pytest.mark.parametrize("rows", [1, 3])
def test_torch_folds_no_last_positions_of_a_frozen_model(rows, tiny, prompts):
    """What the functions under test work around; once it fails, they can be done without."""
    model = tiny().requires_grad_(False)
    with torch.no_grad():
        batch = prompts(rows=rows) | {"use_cache": False, "logits_to_keep": 1}
        assert products_per_row(lambda: model(**batch)) == 1


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_a_frozen_head_is_one_product_for_all_rows(read, rows, tiny, prompts):
    model, batch = tiny().requires_grad_(False), prompts(rows=rows)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    assert products_per_row(lambda: read(model, ids, mask)) == 0


def test_a_shared_prompt_is_one_product_too(tiny, prompts):
    model, batch = tiny().requires_grad_(False), prompts(rows=3)
    ids = batch["input_ids"][:1].expand(3, -1)

    def held():
        return PromptMemory().held(None, model, None, ids, torch.ones_like(ids), limit=5)

    assert products_per_row(held) == 0


def test_a_model_without_a_known_head_is_read_as_it_is(tiny, prompts, monkeypatch):
    model, batch = tiny(), prompts(rows=3)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    wanted = IncrementalModel(model).logits(ids, mask)
    monkeypatch.setattr(model, "get_output_embeddings", lambda: None)
    torch.testing.assert_close(IncrementalModel(model).logits(ids, mask), wanted)
