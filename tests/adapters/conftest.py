"""Adapters as PEFT saves them, with weights far from what they are initialised with."""

from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

import plugalign as pa

TEXTS = ["w4 w9 w30 w7 w77", "w5 w6", "w100 w3 w3 w21"]


@pytest.fixture
def trained():
    """Gives every parameter that training would change values far from zero."""

    def make(model, seed=3):
        draw = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.copy_(0.3 * torch.randn(parameter.shape, generator=draw))
        return model.eval()

    return make


@pytest.fixture
def save_adapter(tmp_path, trained):
    """Saves an adapter of a base with these options of `LoraConfig`; gives its folder."""

    def save(base, folder="adapter", seed=3, kept=None, **options):
        config = LoraConfig(**{"r": 4, "target_modules": "all-linear"} | options)
        adapted = trained(get_peft_model(base, config), seed)
        adapted.save_pretrained(tmp_path / folder, **(kept or {}))
        path = tmp_path / folder / "adapter_config.json"  # PEFT overwrites some when it saves
        path.write_text(json.dumps(json.loads(path.read_text()) | options))
        return tmp_path / folder

    return save


@pytest.fixture
def by_peft():
    """The expert as PEFT loads it onto a base."""
    return lambda base, folder: PeftModel.from_pretrained(base, folder).eval()


@pytest.fixture
def assert_is(tokenizer):
    """``DExperts(expert, alpha=1, top_p=1)`` on a base is the wanted model, on the row path, by a
    forward of its own and without a cache; the base stays as it was."""

    def check(base, expert, wanted):
        before = {name: value.clone() for name, value in base.state_dict().items()}
        steered = pa.wrap(base, tokenizer, pa.DExperts(expert, alpha=1, top_p=1))
        with torch.no_grad():
            wholes = [wanted(**tokenizer(text, return_tensors="pt")).logits[0] for text in TEXTS]
        for text, got, logits in zip(TEXTS, steered.log_probs(TEXTS), wholes, strict=True):
            ids = tokenizer(text, return_tensors="pt")["input_ids"][0, 1:]
            want = logits.log_softmax(-1)[:-1].gather(1, ids[:, None])[:, 0]
            torch.testing.assert_close(got, want, atol=2e-4, rtol=1e-4)
        batch = tokenizer(TEXTS, return_tensors="pt", padding=True)
        batch = {name: batch[name] for name in ("input_ids", "attention_mask")}
        want = wanted.generate(**batch, max_new_tokens=6, do_sample=False)
        got = steered.generate(**batch, max_new_tokens=6, do_sample=False)
        assert got.tolist() == want.tolist()
        static = {"cache_implementation": "static", "disable_compile": True}
        got = steered.generate(**batch, max_new_tokens=6, do_sample=False, **static)
        assert got.tolist() == want.tolist()
        assert all(torch.equal(before[name], value) for name, value in base.state_dict().items())

    return check
