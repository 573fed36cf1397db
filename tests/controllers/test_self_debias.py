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


def test_the_default_prefixes_are_the_released_ones():
    """timoschick/self-debiasing, self_debiasing.py: DEBIASING_PREFIXES."""
    described = [
        "rude, disrespectful, or unreasonable language",
        "very hateful, aggressive, disrespectful language",
        "sexually explicit language",
        "a threat",
        "negative or hateful language targeting someone because of their identity",
        "swear words, curse words, or other obscene or profane language",
    ]
    assert pa.SelfDebias().prefixes == tuple(
        f"The following text contains {d}:\n" for d in described
    )


def log_probs_in_float64(states, weight, decay, floor):
    """Schick et al. 2021, equations 3 to 5, from what the head reads.

    Args:
        states: behind the text and behind each prefix ``(1 + K, D)``.
    """
    z = states.double() @ weight.double().T
    p = z.softmax(-1)
    gap = (p[1:].amax(0) - p[0]).clamp_min(0)
    return (z[0].log_softmax(-1) + (-decay * gap).exp().clamp_min(floor).log()).log_softmax(-1)


@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize("name", ["llama-gqa", "gpt2-tied"])
def test_half_precision_logits_are_not_rounded_before_they_are_compared(
    beams, name, tiny, tokenizer, prompts
):
    """In the loop (one beam) and on the processor path: the log-probabilities are those of the
    float64 product of the very states that the bfloat16 head read."""
    model, batch, seen = tiny(name).bfloat16(), prompts(rows=1), []
    model.generation_config.eos_token_id = None
    steered = pa.wrap(model, tokenizer, pa.SelfDebias(["w5 w6 w7", "w8"]))
    steered.generate(**batch, max_new_tokens=2, num_beams=beams, do_sample=False)  # finds out
    model.base_model.register_forward_hook(lambda *a: seen.append(a[-1].last_hidden_state[:, -1]))
    scores = steered.generate(
        **batch,
        max_new_tokens=6,
        num_beams=beams,
        do_sample=False,
        output_scores=True,
        return_dict_in_generate=True,
    ).scores
    weight = model.get_output_embeddings().weight.detach()
    rounded = 0.0
    for step, got in enumerate(scores):
        rows = seen[step] if beams == 1 else torch.cat(seen[2 * step : 2 * step + 2])
        states = rows.view(3, -1, rows.shape[-1])[:, 0]
        want = log_probs_in_float64(states, weight, 50.0, 0.01)
        row = got[0].double() if beams == 1 else got[0].double().log_softmax(-1)
        assert (row - want).abs().max() < 1e-3
        halved = (states @ weight.T).double().softmax(-1)
        exact = (states.double() @ weight.double().T).softmax(-1)
        shift = [(50 * (p[1:].amax(0) - p[0]).clamp_min(0)).clamp_max(4.6) for p in (halved, exact)]
        rounded = max(rounded, float((shift[0] - shift[1]).abs().max()))
    assert rounded > 5e-3  # rounded logits would not have done
