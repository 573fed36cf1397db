"""Padding, positions and embeddings: all models read a text as transformers reads it."""

from __future__ import annotations

import pytest
import torch
from transformers import OPTConfig, OPTForCausalLM

import plugalign as pa


@pytest.mark.parametrize("name", ["llama-gqa", "gpt2-tied"])
@pytest.mark.parametrize("expert", [False, True])
def test_right_padding_is_read_as_transformers_reads_it(expert, name, tiny, tokenizer, prompts):
    """In the loop, behind a processor and without controllers."""
    model, batch = tiny(name), prompts()
    batch = {k: v.flip(1) for k, v in batch.items()}
    batch["input_ids"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, 0)
    controller = pa.DExperts(tiny(name, seed=1), top_p=1.0) if expert else 0 * pa.SelfDebias(["w5"])
    steered = pa.wrap(model, tokenizer, controller)
    options = {"max_new_tokens": 5, "return_dict_in_generate": True, "output_scores": True}
    assert steered.explain(batch["input_ids"], max_new_tokens=5).startswith("the owned loop")
    loop = steered.generate(**batch, **options)
    ours = [steered.processor(batch["attention_mask"])] if expert else []
    apart = model.generate(**batch, **options, logits_processor=ours)
    assert loop.sequences.tolist() == apart.sequences.tolist()
    for mine, theirs in zip(loop.scores, apart.scores, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-3, rtol=1e-3)


def test_a_processor_asks_for_a_mask_where_padding_may_be_text(tiny, tokenizer):
    model = tiny()
    model.generation_config.pad_token_id = model.generation_config.eos_token_id = 1
    steered = pa.wrap(model, tokenizer, pa.DExperts(tiny(seed=1), top_p=1.0))
    ids = torch.tensor([[1, 1, 9], [5, 6, 7]])
    mask, options = torch.tensor([[0, 0, 1], [1, 1, 1]]), {"max_new_tokens": 4}
    with pytest.raises(ValueError, match=r"row 0 begins with token 1, which both.*attention_mask="):
        bare = steered.processor()
        model.generate(ids, attention_mask=mask, logits_processor=[bare], **options)
    given = steered.processor(mask)
    got = model.generate(ids, attention_mask=mask, logits_processor=[given], **options)
    assert got.tolist() == steered.generate(ids, attention_mask=mask, **options).tolist()
    with pytest.raises(ValueError, match=r"of shape \(2, 3\) is of other prompts than texts"):
        model.generate(torch.tensor([[5, 6, 7]]), logits_processor=[given], **options)


def test_an_expert_whose_embedding_takes_positions(tokenizer, prompts):
    """OPT calls it with more than one argument, so experts are no rows of the base's forward."""

    def opt(seed):
        torch.manual_seed(seed)
        config = OPTConfig(
            vocab_size=120,
            hidden_size=32,
            word_embed_proj_dim=32,
            ffn_dim=48,
            dropout=0.0,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=64,
            pad_token_id=0,
            eos_token_id=1,
            bos_token_id=None,
        )
        return OPTForCausalLM(config).eval()

    model, batch = opt(0), prompts()
    steered = pa.wrap(model, tokenizer, pa.DExperts(opt(1), opt(2), top_p=1.0))
    got = steered.generate(**batch, max_new_tokens=5)
    ours = steered.processor(batch["attention_mask"])
    want = model.generate(**batch, max_new_tokens=5, logits_processor=[ours])
    assert got.tolist() == want.tolist()
    assert "expert OPTForCausalLM: a forward of its own" in steered.explain(max_new_tokens=5)


def test_embeddings_stand_for_the_tokens_that_controllers_read(tiny, tokenizer, prompts):
    model, batch = tiny(), prompts()
    steered = pa.wrap(model, tokenizer, pa.DExperts(tiny(seed=1), top_p=1.0))
    embedded = model.get_input_embeddings()(batch["input_ids"]).detach()
    want = steered.generate(**batch, max_new_tokens=4)
    got = steered.generate(**batch, inputs_embeds=embedded, max_new_tokens=4)
    assert got.tolist() == want.tolist()
    with pytest.raises(ValueError, match=r"must stand for input_ids of shape \(3, 7\)"):
        steered.generate(**batch, inputs_embeds=embedded[:, 1:], max_new_tokens=4)
