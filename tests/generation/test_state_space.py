"""State-space, hybrid and other models that keep no keys and values of each token: as the base and
as experts they give what their forwards over the whole text give, or are refused by name."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, CompileConfig, LogitsProcessor
from transformers.models.auto.configuration_auto import AutoConfig

import plugalign as pa
from plugalign.algebra.controller import Controller
from plugalign.algebra.shifts import CandidateShift, LogLinear
from plugalign.algebra.sources import CandidateValues, Context, Logits
from plugalign.algebra.steering import Steering

SMALL = {"vocab_size": 120, "hidden_size": 32, "num_hidden_layers": 2}
ATTENTION = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}
MAMBA2 = {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 1, "chunk_size": 4}
CONFIGS = {
    "mamba": {"state_size": 8},
    "mamba2": MAMBA2,
    "falcon_mamba": {"state_size": 8},
    "jamba": {
        **ATTENTION,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "num_experts": 2,
        "num_experts_per_tok": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "mamba_d_state": 8,
        "use_mamba_kernels": False,
    },
    "bamba": {
        **ATTENTION,
        "attn_layer_indices": [1],
        "mamba_n_heads": 8,
        "mamba_d_head": 8,
        "mamba_d_state": 8,
        "mamba_chunk_size": 4,
    },
    "recurrent_gemma": {
        **ATTENTION,
        "num_hidden_layers": 3,
        "lru_width": 32,
        "head_dim": 8,
    },
    "rwkv": {"context_length": 64, "attention_hidden_size": 32},
}
KINDS = tuple(kind for kind in CONFIGS if kind != "recurrent_gemma")
MODES = {
    "greedy": {},
    "without a cache": {"use_cache": False},
    "beams": {"num_beams": 3},
    "several": {"num_beams": 2, "num_return_sequences": 2},
}


class Declared(Controller):
    """A controller that is nothing but its declaration."""

    def __init__(self, steering):
        self.steering = steering

    def steer(self, model, tokenizer):
        return self.steering


def make(kind, seed=0):
    """A random model whose distributions are far from uniform."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(kind, **(SMALL | CONFIGS[kind]))
    config.pad_token_id, config.eos_token_id, config.bos_token_id = 0, 1, None
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "A_log" not in name:
                parameter.mul_(4.0)
    return model


def test_a_hybrid_with_a_static_cache_is_compiled_as_transformers_compiles_it(tokenizer):
    """Its recurrent layers know their length in another way than those with keys."""
    torch.compiler.reset()
    config = CompileConfig(backend="eager", mode=None)
    config._compile_all_devices = True  # transformers compiles on GPUs alone, else
    base, expert, ids = make("jamba"), make("jamba", seed=1), torch.tensor([[5, 6, 7], [8, 9, 4]])
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 4, "do_sample": False}
    static = {"cache_implementation": "static", "compile_config": config}
    for weight in (0, 1):
        steered = pa.wrap(base, tokenizer, weight * pa.DExperts(expert, alpha=1.0, top_p=1.0))
        want = steered.generate(ids, **options)
        assert torch.equal(steered.generate(ids, **options, **static), want)
    torch.compiler.reset()


class Whole(LogitsProcessor):
    """``log p + sum of w z`` by forwards over each row's text, without padding or cache."""

    def __init__(self, terms):
        self.terms = terms

    def __call__(self, input_ids, scores):
        rows = []
        for ids, row in zip(input_ids.tolist(), scores, strict=True):
            ids = ids[next(i for i, token in enumerate(ids) if token) :]
            shift = sum(w * logits_of(model, [*front, *ids]) for w, model, front in self.terms)
            rows.append((row.log_softmax(-1) + shift).log_softmax(-1))
        return torch.stack(rows)


@torch.no_grad()
def logits_of(model, ids):
    logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].float()
    return logits.log_softmax(-1)


def assert_equal(steered, model, reference, batch, **options):
    options = {
        "max_new_tokens": 5,
        "return_dict_in_generate": True,
        "output_scores": True,
    } | options
    got = steered.generate(**batch, **options)
    want = model.generate(**batch, **options, logits_processor=[reference])
    assert got.sequences.tolist() == want.sequences.tolist()
    for mine, theirs in zip(got.scores, want.scores, strict=True):
        torch.testing.assert_close(mine, theirs, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", KINDS)
def test_as_an_expert(kind, mode, tiny, tokenizer, prompts):
    base, expert, anti = tiny(), make(kind, 1), make(kind, 2)
    steered = pa.wrap(base, tokenizer, pa.DExperts(expert, anti, alpha=1.0, top_p=1.0))
    reference = Whole([(1.0, expert, []), (-1.0, anti, [])])
    assert_equal(steered, base, reference, prompts(rows=2), **MODES[mode])


@pytest.mark.parametrize("kind", KINDS)
def test_as_an_expert_of_an_assisted_base(kind, tiny, tokenizer, prompts):
    """Drafts that are rejected leave nothing in a state."""
    base, expert = tiny(), make(kind, 1)
    steered = pa.wrap(base, tokenizer, pa.DExperts(expert, make(kind, 2), alpha=1.0, top_p=1.0))
    batch = {"input_ids": prompts()["input_ids"][:1]}
    plain = steered.generate(**batch, max_new_tokens=8)
    assisted = steered.generate(**batch, max_new_tokens=8, assistant_model=tiny(seed=9))
    assert assisted.tolist() == plain.tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_as_the_base(kind, tiny, tokenizer, prompts):
    base, expert, anti = make(kind), make(kind, 1), tiny(seed=2)
    steered = pa.wrap(base, tokenizer, pa.DExperts(expert, anti, alpha=1.0, top_p=1.0))
    reference = Whole([(1.0, expert, []), (-1.0, anti, [])])
    for mode in ("greedy",) if kind == "rwkv" else ("greedy", "beams"):
        assert_equal(steered, base, reference, unpadded(kind, prompts), **MODES[mode])


@pytest.mark.parametrize("kind", KINDS)
def test_as_the_base_under_prompts(kind, tokenizer, prompts):
    base, fronts = make(kind), ([8, 9, 10], [11])
    shift = LogLinear(
        tuple(
            (weight, Logits(f"the base behind {front}", context=Context(tuple(front))))
            for weight, front in zip((0.8, -0.5), fronts, strict=True)
        )
    )
    steered = pa.wrap(base, tokenizer, Declared(Steering((shift,))))
    reference = Whole([(0.8, base, fronts[0]), (-0.5, base, fronts[1])])
    assert_equal(steered, base, reference, unpadded(kind, prompts))


def test_a_state_in_the_models_own_modules(tiny, tokenizer, prompts):
    """It can be in the middle of one text only: as a base it is right, the rest is refused."""
    kind = "recurrent_gemma"
    base, expert, anti = make(kind), tiny(seed=1), tiny(seed=2)
    steered = pa.wrap(base, tokenizer, pa.DExperts(expert, anti, alpha=1.0, top_p=1.0))
    assert_equal(steered, base, Whole([(1.0, expert, []), (-1.0, anti, [])]), prompts(rows=2))
    for model, controller in (
        (tiny(), pa.DExperts(base)),
        (tiny(), pa.DExperts(antiexpert=base)),
        (base, pa.SelfDebias(["w5"])),
    ):
        with pytest.raises(ValueError, match="'RecurrentGemmaForCausalLM' keeps what it"):
            pa.wrap(model, tokenizer, controller)


def unpadded(kind, prompts):
    """Two prompts: with padding, where the model itself can be padded."""
    batch = prompts(rows=2)
    return {k: v[:1] for k, v in batch.items()} if kind == "rwkv" else batch


@pytest.mark.parametrize("kind", ["mamba", "jamba"])
def test_what_needs_keys_and_values_is_refused_by_name(kind, tiny, tokenizer):
    model, name = make(kind), type(make(kind)).__name__
    predictor = torch.nn.Module()
    predictor.backbone, predictor.head = model.base_model, torch.nn.Linear(32, 1)
    scores = CandidateShift(CandidateValues("a predictor", predictor, 5), "logsigmoid", weight=1.0)
    with pytest.raises(ValueError, match=f"'{name[:5]}.*does not keep keys and values of each"):
        pa.wrap(tiny(), tokenizer, Declared(Steering((scores,))))
    with pytest.raises(ValueError, match=f"'{name}' does not keep keys and values.* PPLM moves"):
        pa.wrap(model, tokenizer, pa.PPLM(["w5"]))
    prefix = pa.PrefixTuning(torch.zeros(2, 2, 2, 3, 8))
    with pytest.raises(ValueError, match=f"'{name}' keep different things.* no prefix fits all"):
        pa.wrap(model, tokenizer, prefix)
    with pytest.raises(ValueError, match=f"'{name}' keeps a cache that forgets no columns: states"):
        pa.wrap(tiny(), tokenizer, pa.DExperts(model)).generate(
            torch.tensor([[5, 6]]), max_new_tokens=3, speculation=pa.Speculation("prompt")
        )


@pytest.mark.parametrize("kind", ["mamba", "jamba", "bamba"])
@pytest.mark.parametrize("stepwise", [False, True])
def test_scores_of_given_texts(stepwise, kind, tiny, tokenizer):
    """Teacher forcing over blocks of columns, and column by column, for a base and an expert."""
    base, expert = make(kind), make(kind, 1)
    controller = pa.DExperts(expert, alpha=1.0, top_p=1.0)
    if stepwise:
        controller = controller.when(pa.Uncertain(1.0))
    texts = ["w5 w6 w7 w9", "w8 w9"]
    found = pa.wrap(base, tokenizer, controller).log_probs(texts, ["w30 w31", "w40 w41 w42"])
    for text, prompt, got in zip(texts, ["w30 w31", "w40 w41 w42"], found, strict=True):
        ids, start = tokenizer(f"{prompt} {text}")["input_ids"], len(tokenizer(prompt)["input_ids"])
        want = [logits_of(expert, ids[:n])[ids[n]] for n in range(start, len(ids))]
        torch.testing.assert_close(got, torch.stack(want), atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("kind", ["mamba", "jamba"])
def test_class_conditional_models(kind, tiny, tokenizer, prompts):
    """Likelihoods of a text so far, in two contexts of one model."""
    guide, base, batch = make(kind, 1), tiny(), prompts(rows=2)
    gedi = pa.GeDi("w5 w6", "w7", model=guide, omega=2.0)
    together = pa.wrap(base, tokenizer, gedi).generate(**batch, max_new_tokens=4)
    for row, keep in enumerate(batch["attention_mask"].bool()):
        alone = batch["input_ids"][row, keep][None]
        one = pa.wrap(base, tokenizer, gedi).generate(alone, max_new_tokens=4)
        assert one[0, alone.shape[1] :].tolist() == together[row, 7:].tolist()


def test_half_precision(tiny, tokenizer, prompts):
    """Mamba's body gives float32 where its head wants bfloat16."""
    base, expert, anti = (model.bfloat16() for model in (tiny(), make("mamba", 1), tiny(seed=2)))
    batch = {"input_ids": prompts()["input_ids"][:1]}
    for model, other in ((base, expert), (expert, base)):
        steered = pa.wrap(model, tokenizer, pa.DExperts(other, anti, alpha=1.0, top_p=1.0))
        options = {"max_new_tokens": 3, "return_dict_in_generate": True, "output_scores": True}
        got = steered.generate(**batch, **options).scores[0]
        plain = model.generate(**batch, **options).scores[0]
        want = Whole([(1.0, other, []), (-1.0, anti, [])])(batch["input_ids"], plain)
        torch.testing.assert_close(got, want, atol=0.2, rtol=0.05)
