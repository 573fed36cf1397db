"""Self-debiasing: settings, saving, refusals. The formula is tested in test_wrapping."""

import pytest

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
