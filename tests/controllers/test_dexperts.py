"""DExperts: sources of every kind, and what it refuses. The formula is tested in test_wrapping."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model

import plugalign as pa
from plugalign.adapters.layers import shared_copy
from plugalign.adapters.loading import with_adapter
from plugalign.algebra.identity import identify


def greedy(model, tokenizer, controller, batch):
    return pa.wrap(model, tokenizer, controller).generate(**batch, max_new_tokens=6).tolist()


@pytest.fixture
def adapter(tiny, tmp_path, architecture):
    """A LoRA adapter with weights far from zero, and the same thing as a merged model."""
    torch.manual_seed(4)
    config = LoraConfig(
        r=4,
        target_modules="all-linear",
        init_lora_weights=False,
        fan_in_fan_out=architecture.startswith("gpt2"),
    )
    adapted = get_peft_model(tiny(architecture), config)
    adapted.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter", adapted.merge_and_unload().eval()


def test_an_adapter_is_the_merged_model_and_the_base_stays(
    adapter, tiny, tokenizer, prompts, architecture
):
    folder, merged = adapter
    model, batch = tiny(architecture), prompts()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    loaded = with_adapter(model, folder)
    with torch.no_grad():
        torch.testing.assert_close(loaded(**batch).logits, merged(**batch).logits)
        assert not torch.allclose(loaded(**batch).logits, model(**batch).logits)
    want = greedy(model, tokenizer, pa.DExperts(merged, tiny(architecture, seed=2)), batch)
    assert greedy(model, tokenizer, pa.DExperts(folder, tiny(architecture, seed=2)), batch) == want
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())


def test_an_adapter_shares_the_rest_of_the_weights(tiny):
    model = tiny()
    copied = shared_copy(model)
    own = {p.data_ptr() for p in model.parameters()}
    assert {p.data_ptr() for p in copied.parameters()} == own


def test_saves_and_decides_alike(adapter, tiny, tokenizer, prompts, tmp_path, architecture):
    model, batch = tiny(architecture), prompts()
    anti = tiny(architecture, seed=2)
    fitted = identify(model, tokenizer)
    saved = pa.DExperts(adapter[0], anti, alpha=1.5, top_p=0.8, fitted_for=fitted)
    saved.save_pretrained(tmp_path / "detox")
    loaded = pa.Controller.from_pretrained(str(tmp_path / "detox"))
    assert isinstance(loaded, pa.DExperts) and loaded.config() == saved.config()
    assert greedy(model, tokenizer, loaded, batch) == greedy(model, tokenizer, saved, batch)


def test_an_adapter_of_another_model_is_refused_by_name(adapter, tiny, tokenizer, architecture):
    model, other = tiny(architecture), tiny(architecture, seed=7)
    model.config.name_or_path, other.config.name_or_path = "hub/first", "hub/second"
    controller = pa.DExperts(adapter[0], fitted_for=identify(model, tokenizer))
    with pytest.raises(ValueError, match=r"weights of 'first' and cannot steer 'second'"):
        pa.wrap(other, tokenizer, controller)


def test_a_folder_with_another_tokenizer_is_refused_by_name(tiny, tokenizer, tmp_path):
    other = copy.deepcopy(tokenizer)
    other.add_tokens(["something-else"])
    tiny(seed=1).save_pretrained(tmp_path / "expert")
    other.save_pretrained(tmp_path / "expert")
    with pytest.raises(ValueError, match=r"expert' and 'LlamaForCausalLM' have different token"):
        pa.wrap(tiny(), tokenizer, pa.DExperts(tmp_path / "expert"))


def test_needs_an_expert_and_a_sane_nucleus(tiny):
    with pytest.raises(ValueError, match="an expert, an anti-expert, or both"):
        pa.DExperts()
    with pytest.raises(ValueError, match=r"top-p must lie in \[0, 1\], got 1.5"):
        pa.DExperts(tiny(), top_p=1.5)


def test_an_adapter_of_another_kind_is_refused(tiny, tokenizer, tmp_path):
    config = LoraConfig(r=2, target_modules="all-linear", use_dora=True)
    get_peft_model(tiny(), config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="with use_dora=True, which is not read; merge it"):
        pa.wrap(tiny(), tokenizer, pa.DExperts(tmp_path))
