"""Self-debiasing: settings, saving, refusals. The formula is tested in test_wrapping."""

import math

import pytest
import torch
from tokenizers import processors

import plugalign as pa


def test_saves_and_decides_alike(tiny, tokenizer, prompts, tmp_path):
    model, batch = tiny(), prompts()
    saved = pa.SelfDebias(["w5 w6", "w9"], decay=10, floor=0.1)
    saved.save_pretrained(tmp_path)
    loaded = pa.Controller.from_pretrained(str(tmp_path))
    assert isinstance(loaded, pa.SelfDebias) and loaded.config() == saved.config()
    outputs = [
        pa.wrap(model, tokenizer, c).generate(**batch, max_new_tokens=5) for c in (saved, loaded)
    ]
    assert outputs[0].tolist() == outputs[1].tolist()


def test_no_decay_is_the_identity(tiny, tokenizer, prompts):
    model, batch = tiny(), prompts()
    idle = pa.wrap(model, tokenizer, pa.SelfDebias(["w5 w6"], decay=0))
    assert idle.generate(**batch, max_new_tokens=6).tolist() == (
        model.generate(**batch, max_new_tokens=6).tolist()
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prefixes": []}, r"non-empty prefixes, got \[\]"),
        ({"prefixes": "one string"}, "got 'one string'"),
        ({"decay": -1}, "must not be negative, got -1"),
        ({"floor": 0}, r"\(0, 1\], got 0"),
    ],
)
def test_refuses_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        pa.SelfDebias(**settings)


def test_a_start_token_stands_once_and_first(tiny, tokenizer):
    """With a tokenizer that starts texts by a token, ``<s> x`` becomes ``<s> prefix x``."""
    model = tiny()
    tokenizer.add_special_tokens({"bos_token": "w0"})
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="w0 $A", special_tokens=[("w0", 3)]
    )
    batch = tokenizer(["w5 w6 w7", "w8"], return_tensors="pt", padding=True)
    assert batch["input_ids"][:, 0].tolist() == [3, 0]
    steered = pa.wrap(model, tokenizer, pa.SelfDebias(["w9 w10"], decay=5))
    got = steered.generate(
        **batch, max_new_tokens=1, return_dict_in_generate=True, output_scores=True
    ).scores[0]
    for row, text in enumerate(["w5 w6 w7", "w8"]):
        with torch.no_grad():
            plain = model(**tokenizer(text, return_tensors="pt")).logits[0, -1].double()
            behind = model(**tokenizer(f"w9 w10 {text}", return_tensors="pt")).logits[0, -1]
        gap = (behind.double().softmax(-1) - plain.softmax(-1)).clamp_min(0)
        want = (plain.log_softmax(-1) + (-5 * gap).clamp_min(math.log(0.01))).log_softmax(-1)
        torch.testing.assert_close(got[row].double(), want, atol=1e-4, rtol=1e-4)
