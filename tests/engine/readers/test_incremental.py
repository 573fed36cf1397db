"""Equal prompts of one call are read once, whatever is batched with them."""

import pytest
import torch

import plugalign as pa
from plugalign.engine.call import repeats_of

A, B, C = [1, 5, 9, 7], [1, 6, 9, 7], [0, 1, 8, 4]
ROWS = [A, A, A, B, B, C, A]
WHICH = ("base", "contexts", "batched expert", "another architecture", "hidden states")


@pytest.fixture
def batch():
    ids = torch.tensor(ROWS)
    return {"input_ids": ids, "attention_mask": (ids > 0).long()}


def controllers(tiny):
    return {
        "base": 0 * pa.SelfDebias(["w5"]),
        "contexts": pa.SelfDebias(["w5 w6", "w7"]),
        "batched expert": pa.DExperts(tiny(seed=1), alpha=1.0, top_p=1.0),
        "another architecture": pa.DExperts(tiny("gpt2-tied", seed=1), alpha=1.0, top_p=1.0),
        "hidden states": pa.Nullspace(torch.eye(32)[:, :3]),
    }


def decoded(steered, batch, sampled):
    torch.manual_seed(3)
    options = {"do_sample": True, "top_k": 0} if sampled else {"do_sample": False}
    return steered.generate(**batch, **options, max_new_tokens=5, min_new_tokens=5)


@pytest.mark.parametrize("which", WHICH)
@pytest.mark.parametrize("sampled", [False, True])
def test_equal_rows_are_read_once(which, sampled, tiny, tokenizer, batch):
    model = tiny()
    steered, rows = pa.wrap(model, tokenizer, controllers(tiny)[which]), []
    found = decoded(steered, batch, sampled)
    embeddings = model.get_input_embeddings()
    hook = embeddings.register_forward_hook(lambda _, __, states: rows.append(len(states)))
    again = decoded(steered, batch, sampled)
    hook.remove()
    assert torch.equal(found, again)
    assert rows[0] == 4 * rows[-1] // len(ROWS)  # four runs of equal rows
    if not sampled:
        for row in range(len(ROWS)):
            alone = {name: value[row, None] for name, value in batch.items()}
            assert found[row].tolist() == decoded(steered, alone, sampled)[0].tolist()


def test_neighbours_are_equal_where_their_masks_are_too():
    ids = torch.tensor([[5, 6], [5, 6], [5, 6], [7, 8]])
    assert repeats_of(ids, None).tolist() == [3, 1]
    assert repeats_of(ids, torch.tensor([[1, 1], [0, 1], [0, 1], [1, 1]])).tolist() == [1, 2, 1]
    assert repeats_of(ids[2:], None) is None
