"""Models that carry PEFT adapters, as the base and as experts: right, or refused by name."""

from __future__ import annotations

import peft
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

import plugalign as pa

pytestmark = pytest.mark.filterwarnings("ignore")

SOME = ["q_proj", "v_proj", "down_proj"]
IN_LAYERS = {
    "lora": LoraConfig(target_modules="all-linear", use_dora=True),
    "lora-saves": LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head", "norm"]),
    "adalora": peft.AdaLoraConfig(target_modules=SOME, total_step=10),
    "boft": peft.BOFTConfig(target_modules=SOME, boft_block_size=4),
    "hra": peft.HRAConfig(target_modules=SOME),
    "ia3": peft.IA3Config(target_modules=SOME, feedforward_modules=["down_proj"]),
    "ln_tuning": peft.LNTuningConfig(target_modules=["norm", "input_layernorm"]),
    "loha": peft.LoHaConfig(target_modules=SOME),
    "lokr": peft.LoKrConfig(target_modules=SOME),
    "oft": peft.OFTConfig(target_modules=SOME, oft_block_size=4),
    "vera": peft.VeraConfig(target_modules=["q_proj", "o_proj"]),
}
WITH_PROMPTS = {
    "PREFIX_TUNING": peft.PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
    "PROMPT_TUNING": peft.PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
    "P_TUNING": peft.PromptEncoderConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
    "LORA with alora_invocation_tokens": LoraConfig(
        target_modules=["q_proj"], alora_invocation_tokens=[5, 6], task_type="CAUSAL_LM"
    ),
}


@pytest.fixture
def adapted(tiny, trained):
    """A model that PEFT has changed, with weights far from what they begin with."""

    def make(config, seed=0):
        with torch.random.fork_rng():
            return trained(get_peft_model(tiny(seed=seed), config))

    return make


@pytest.mark.parametrize("kind", sorted(IN_LAYERS))
def test_as_an_expert_it_is_what_peft_runs(kind, tiny, adapted, assert_is):
    base = tiny()
    assert_is(base, adapted(IN_LAYERS[kind]), adapted(IN_LAYERS[kind]))


@pytest.mark.parametrize("kind", sorted(IN_LAYERS))
def test_as_the_base_it_is_what_peft_runs(kind, tiny, tokenizer, adapted, prompts):
    """Under prompts, which run it at positions of their own, with left padding."""
    model, batch = adapted(IN_LAYERS[kind]), prompts()
    whole = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    want = model.generate(**whole, max_new_tokens=6, do_sample=False)
    steered = pa.wrap(model, tokenizer, 0 * pa.SelfDebias(["w5"]))
    assert steered.generate(**batch, max_new_tokens=6).tolist() == want.tolist()
    debias = pa.SelfDebias(["w5 w6"])
    got = pa.wrap(model, tokenizer, debias).generate(**batch, max_new_tokens=6)
    for row, (ids, mask) in enumerate(zip(*whole.values(), strict=True)):
        alone = ids[mask.bool()][None]
        one = pa.wrap(model, tokenizer, debias).generate(alone, max_new_tokens=6)
        said = one[0, alone.shape[1] :]
        assert said.tolist() == got[row, len(ids) : len(ids) + len(said)].tolist()


@pytest.mark.parametrize("kind", sorted(WITH_PROMPTS))
def test_trained_prompts_are_refused_by_name(kind, tiny, tokenizer, adapted):
    model = adapted(WITH_PROMPTS[kind])
    for base, controller in (
        (model, pa.SelfDebias(["w5"])),
        (tiny(), pa.DExperts(model)),
        (tiny(), pa.DExperts(antiexpert=model)),
    ):
        with pytest.raises(ValueError, match=f"carries a {kind} adapter, which does more than"):
            pa.wrap(base, tokenizer, controller)


def test_a_base_into_which_peft_put_the_expert_is_refused(tiny, tokenizer, save_adapter):
    """PEFT changes the model that it is given, so this expert is the base."""
    base, folder = tiny(), save_adapter(tiny())
    expert = PeftModel.from_pretrained(base, folder)
    for controller in (pa.DExperts(expert), pa.DExperts(antiexpert=expert.get_base_model())):
        with pytest.raises(ValueError, match=r"expert (share|is the base)"):
            pa.wrap(base, tokenizer, controller)
    apart = PeftModel.from_pretrained(tiny(seed=1), folder)
    pa.wrap(tiny(seed=1), tokenizer, pa.DExperts(apart))


def test_experts_that_are_one_model_with_two_adapters_are_refused(tiny, tokenizer, save_adapter):
    one, two = save_adapter(tiny()), save_adapter(tiny(), folder="other", seed=4)
    inside = tiny()
    good, bad = (PeftModel.from_pretrained(inside, folder) for folder in (one, two))
    with pytest.raises(ValueError, match="the expert and the antiexpert share modules into which"):
        pa.wrap(tiny(), tokenizer, pa.DExperts(good, bad))
    with pytest.raises(ValueError, match="the expert and the antiexpert share modules into which"):
        pa.wrap(tiny(), tokenizer, pa.DExperts(good, good))


def test_the_base_itself_is_no_expert(tiny, tokenizer):
    base = tiny()
    with pytest.raises(ValueError, match="the expert is the base model itself, so it would shift"):
        pa.wrap(base, tokenizer, pa.DExperts(base))
