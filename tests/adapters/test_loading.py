"""LoRA adapters from files: every tensor has a place, and of another model none is read."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

import plugalign as pa
from plugalign.adapters.layers import LoraEmbedding, LoraLinear
from plugalign.adapters.loading import with_adapter

pytestmark = pytest.mark.filterwarnings("ignore")  # peft warns of embeddings that are saved


@pytest.fixture
def rewrite(tiny, save_adapter):
    """An adapter whose tensors were changed behind PEFT's back."""

    def write(change, **options):
        folder = save_adapter(tiny(), **options)
        tensors = load_file(folder / "adapter_model.safetensors")
        save_file(change(tensors), folder / "adapter_model.safetensors")
        return folder

    return write


def resized(model):
    torch.manual_seed(8)
    model.resize_token_embeddings(130, mean_resizing=False)
    return model


# ------------------------------------------------------------------ as PEFT loads it


@pytest.mark.parametrize("target", ["embed_tokens", "q_proj"])
@pytest.mark.parametrize("architecture", ["llama-gqa", "qwen2-tied"])
def test_a_base_that_was_resized_for_new_tokens(
    target, architecture, tiny, save_adapter, by_peft, assert_is
):
    """PEFT stores both embeddings, and those it loads are the adapter's."""
    other = resized(tiny(architecture, seed=5))
    with torch.no_grad():
        other.get_input_embeddings().weight.mul_(1.2)
    folder = save_adapter(other, target_modules=[target], kept={"save_embedding_layers": True})
    base = resized(tiny(architecture))
    assert_is(base, folder, by_peft(resized(tiny(architecture)), folder))


def test_an_adapter_of_a_resized_vocabulary_says_so(tiny, tokenizer, save_adapter):
    folder = save_adapter(
        resized(tiny()), target_modules=["q_proj"], kept={"save_embedding_layers": True}
    )
    with pytest.raises(
        ValueError,
        match=r"'.*weight' \(130, 32\), which 'Llama.*"
        r"' has as \(120, 32\); .* whose vocabulary was resized",
    ):
        pa.wrap(tiny(), tokenizer, pa.DExperts(folder))


def test_embeddings_that_are_the_bases_take_no_memory(tiny, save_adapter):
    folder = save_adapter(
        tiny(), target_modules=["embed_tokens"], kept={"save_embedding_layers": True}
    )
    assert "base_model.model.model.embed_tokens.base_layer.weight" in load_file(
        folder / "adapter_model.safetensors"
    )
    base = tiny()
    expert = with_adapter(base, folder)
    own = {p.data_ptr() for p in base.parameters()}
    assert {p.data_ptr() for p in expert.parameters()} == own
    assert isinstance(expert.model.embed_tokens, LoraEmbedding)


def test_an_adapter_in_half_precision(tiny, save_adapter, by_peft, architecture):
    folder = save_adapter(tiny(architecture))
    half, ids = [tiny(architecture).bfloat16() for _ in range(3)], torch.arange(3, 40)[None]
    with torch.no_grad():
        exact = by_peft(half[0].float(), folder)(ids).logits
        theirs, mine = by_peft(half[1], folder)(ids), with_adapter(half[2], folder)(ids)
    errors = [(each.logits.float() - exact).norm() for each in (theirs, mine)]
    assert errors[1] < 2 * errors[0] < 0.3 * exact.norm()


def test_it_is_beside_the_base_and_moves_with_it(tiny, save_adapter):
    base = tiny()
    expert = with_adapter(base, save_adapter(tiny(), target_modules=["q_proj"]))
    layers = [m for m in expert.modules() if isinstance(m, LoraLinear)]
    assert len(layers) == 2 and all(p.dtype == torch.float64 for p in expert.double().parameters())
    assert all(layer.down.dtype == layer.up.dtype == torch.float64 for layer in layers)
    assert all(p.dtype == torch.float32 for p in base.parameters())


def test_a_base_whose_weights_were_replaced_is_seen(tiny, tokenizer, prompts, save_adapter):
    base, folder = tiny(), save_adapter(tiny())
    steered = pa.wrap(base, tokenizer, pa.DExperts(folder, alpha=1, top_p=1))
    steered.generate(**prompts(), max_new_tokens=3)
    base.load_state_dict(tiny(seed=5).state_dict(), assign=True)
    got = steered.generate(**prompts(), max_new_tokens=6)
    again = pa.wrap(base, tokenizer, pa.DExperts(folder, alpha=1, top_p=1))
    assert got.tolist() == again.generate(**prompts(), max_new_tokens=6).tolist()


# ------------------------------------------------------------------ what has no place


def renamed(old, new):
    return lambda tensors: {name.replace(old, new): x for name, x in tensors.items()}


def without(*parts):
    return lambda tensors: {n: x for n, x in tensors.items() if not any(p in n for p in parts)}


def added(name, shape=(4,)):
    return lambda tensors: {**tensors, name: torch.ones(shape)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            renamed("lora_A.weight", "lora_A.default.weight"),
            r"has a tensor '.*lora_A\.default\.weight', which peft would not load; save the",
        ),
        (renamed("base_model.model.", ""), "has a tensor 'model.layers.*', which peft would not"),
        (renamed("layers.1.", "layers.7."), r"adapts 'model\.layers\.7\..*', which 'LlamaForCau"),
        (renamed("q_proj", "query"), r"query', which 'LlamaForCausalLM' \(LlamaForCausalLM\) does"),
        (added("base_model.model.model.layers.0.mlp.up_proj.lora_magnitude_vector"), "lora_magn"),
        (
            added("base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"),
            r"holds a parameter 'model\.embed_tokens\.token_adapter.*does not have",
        ),
        (added("base_model.model.model.layers.0.mlp.act_fn.lora_A.weight", (4, 32)), "no LoRA B"),
        (added("base_model.model.model.norm.weight"), r"norm\.weight' \(4,\), which .* as \(32,\)"),
        (without("layers.1."), r"no tensors for 'model\.layers\.1\.mlp\.down_proj' and 6 more"),
        (without("v_proj"), r"no tensors for 'model\.layers\.0\.self_attn\.v_proj' and 1 more"),
        (without("lora_B"), "has no LoRA B for model.layers.0"),
        (without("lora_A"), "has no LoRA A for model.layers.0"),
        (without("lora"), "holds no LoRA layer"),
        (lambda tensors: {n: x[:0] for n, x in tensors.items()}, r"has a LoRA A \(0, "),
        (lambda tensors: {n: x[..., :7].contiguous() for n, x in tensors.items()}, r"\(4, 7\) for"),
    ],
)
def test_a_tensor_without_a_place_is_refused(change, message, rewrite, tiny, tokenizer):
    with pytest.raises(ValueError, match=message):
        pa.wrap(tiny(), tokenizer, pa.DExperts(rewrite(change)))


def test_modules_to_save_must_be_there(tiny, tokenizer, rewrite):
    folder = rewrite(without("lm_head"), modules_to_save=["lm_head", "norm"])
    with pytest.raises(ValueError, match=r"no tensors for 'lm_head\.weight' and 0 more that"):
        pa.wrap(tiny(), tokenizer, pa.DExperts(folder))


def test_layers_of_another_kind_are_refused(tiny, tokenizer, rewrite):
    change = renamed("mlp.down_proj", "input_layernorm")
    with pytest.raises(ValueError, match="input_layernorm', a LlamaRMSNorm, which is not supp"):
        pa.wrap(tiny(), tokenizer, pa.DExperts(rewrite(change)))


def test_two_values_of_a_tied_weight_are_refused(tiny, tokenizer, save_adapter):
    base = tiny("qwen2-tied")
    folder = save_adapter(tiny("qwen2-tied"), target_modules=["q_proj"])
    path = folder / "adapter_model.safetensors"
    whole = {
        f"base_model.model.{name}.weight": torch.randn(120, 32)
        for name in ("lm_head", "model.embed_tokens")
    }
    save_file(load_file(path) | whole, path)
    with pytest.raises(ValueError, match=r"two values of '.*', which is tied in 'Qwen2ForCausalLM"):
        pa.wrap(base, tokenizer, pa.DExperts(folder))


def test_an_adapter_of_another_architecture_or_width_is_refused(tiny, tokenizer, save_adapter):
    with pytest.raises(ValueError, match=r"adapts 'transformer\.h\.0.*', which .* it was made for"):
        pa.wrap(tiny(), tokenizer, pa.DExperts(save_adapter(tiny("gpt2-tied"))))
    base = tiny()
    base.config.hidden_size = 16
    narrow = type(base)(base.config).eval()
    with pytest.raises(ValueError, match=r"LoRA A \(4, 32\) for .* need \(4, 16\); it was made"):
        pa.wrap(narrow, tokenizer, pa.DExperts(save_adapter(tiny(), target_modules=["q_proj"])))


def test_a_pickled_adapter_is_not_read(tiny, tokenizer, save_adapter):
    folder = save_adapter(tiny())
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(ValueError, match=r"holds its adapter as adapter_model\.bin, a pickle, wh"):
        pa.wrap(tiny(), tokenizer, pa.DExperts(folder))


@pytest.mark.parametrize("content", [None, b"", b"{}", b"\xff" * 200])
def test_a_damaged_file_is_named(content, tiny, tokenizer, save_adapter):
    path = save_adapter(tiny()) / "adapter_model.safetensors"
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors .*; save the adapter again"):
        pa.wrap(tiny(), tokenizer, pa.DExperts(path.parent))


# ------------------------------------------------------------------ a base that is not plain


def test_a_base_that_carries_an_adapter_is_refused(tiny, tokenizer, save_adapter):
    folder = save_adapter(tiny())
    inside = tiny()
    PeftModel.from_pretrained(inside, folder)
    for base in (inside, PeftModel.from_pretrained(tiny(), folder)):
        with pytest.raises(ValueError, match=r"carries an adapter already \(in model.*merge_and_"):
            pa.wrap(base, tokenizer, pa.DExperts(folder))
