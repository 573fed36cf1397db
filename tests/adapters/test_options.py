"""Every option of PEFT's LoraConfig: the expert is as PEFT loads it, or the option is refused."""

from __future__ import annotations

import dataclasses
import json

import pytest
from peft import LoraConfig

import plugalign as pa
from plugalign.adapters.options import REFUSED, WITHOUT_EFFECT, LoraOptions, read_options

pytestmark = pytest.mark.filterwarnings("ignore")  # peft warns of most of these options

LLAMA, GPT2 = "llama-gqa", "gpt2-tied"
# By option, adapters that have it off its default: an architecture and options.
ACCEPTED = {
    "r": [(LLAMA, {"r": 3})],
    "lora_alpha": [(LLAMA, {"lora_alpha": 5})],
    "use_rslora": [(LLAMA, {"use_rslora": True})],
    "bias": [
        ("qwen2-tied", {"bias": "all"}),
        (GPT2, {"bias": "lora_only"}),
        ("neox", {"bias": "all"}),
        ("qwen2-tied", {"bias": "lora_only"}),
    ],
    "lora_bias": [(LLAMA, {"lora_bias": True}), (GPT2, {"lora_bias": True})],
    "modules_to_save": [
        (LLAMA, {"modules_to_save": ["lm_head"]}),
        (LLAMA, {"modules_to_save": ["embed_tokens", "norm"]}),
        (LLAMA, {"modules_to_save": ["mlp"], "target_modules": ["q_proj"]}),
        (GPT2, {"modules_to_save": ["ln_1", "wpe"]}),
        ("qwen2-tied", {"modules_to_save": ["lm_head"]}),
        ("qwen2-tied", {"modules_to_save": ["embed_tokens"]}),
    ],
    "rank_pattern": [(LLAMA, {"rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.up_proj": 6}})],
    "alpha_pattern": [
        (LLAMA, {"alpha_pattern": {"q_proj": 3, r".*\.1\..*down_proj": 1.5}}),
        (
            LLAMA,
            {"alpha_pattern": {"mlp.up_proj": 2}, "rank_pattern": {"mlp.*": 5}, "use_rslora": True},
        ),
    ],
    "init_lora_weights": [
        (LLAMA, {"init_lora_weights": how}) for how in (False, "gaussian", "orthogonal")
    ],
    "task_type": [(LLAMA, {"task_type": "CAUSAL_LM"})],
    "auto_mapping": [(LLAMA, {"auto_mapping": {"base_model_class": "X"}})],
    "base_model_name_or_path": [(LLAMA, {"base_model_name_or_path": "some/base"})],
    "revision": [(LLAMA, {"revision": "main"})],
    "peft_version": [(LLAMA, {"peft_version": "0.1"})],
    "peft_type": [(LLAMA, {})],
    "inference_mode": [(LLAMA, {"init_lora_weights": False, "inference_mode": True})],
    "lora_dropout": [(LLAMA, {"lora_dropout": 0.5})],
    "fan_in_fan_out": [(GPT2, {"fan_in_fan_out": True}), (LLAMA, {"fan_in_fan_out": True})],
    "target_modules": [
        (LLAMA, {"target_modules": ["q_proj", "down_proj"]}),
        (LLAMA, {"target_modules": r".*\.0\..*(k|v)_proj"}),
        (LLAMA, {"target_modules": ["lm_head", "q_proj"]}),
        (LLAMA, {"target_modules": ["embed_tokens"]}),
        ("qwen2-tied", {"target_modules": ["embed_tokens", "v_proj"]}),
        ("qwen2-tied", {"target_modules": ["lm_head", "v_proj"]}),
        (GPT2, {"target_modules": ["wte", "wpe", "c_attn"]}),
    ],
    "exclude_modules": [(LLAMA, {"exclude_modules": ["q_proj"]})],
    "layers_to_transform": [(LLAMA, {"target_modules": ["q_proj"], "layers_to_transform": [1]})],
    "layers_pattern": [
        (
            LLAMA,
            {"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": "layers"},
        )
    ],
}
CASES = [(*case, name) for name, cases in ACCEPTED.items() for case in cases]


def test_every_option_of_peft_is_accepted_and_tested_or_refused():
    known = {field.name for field in dataclasses.fields(LoraConfig)}
    assert known == ACCEPTED.keys() | REFUSED.keys() and not ACCEPTED.keys() & REFUSED.keys()
    assert ACCEPTED.keys() == LoraOptions.model_fields.keys() | WITHOUT_EFFECT


@pytest.mark.parametrize(("architecture", "options", "name"), CASES)
def test_an_accepted_option_gives_the_expert_that_peft_loads(
    architecture, options, name, tiny, save_adapter, by_peft, assert_is
):
    folder = save_adapter(tiny(architecture), **options)
    assert_is(tiny(architecture), folder, by_peft(tiny(architecture), folder))


@pytest.fixture
def with_option(tiny, save_adapter):
    """An adapter whose configuration says something else than it was made with."""
    folder = save_adapter(tiny())

    def write(**options):
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | options))
        return folder

    return write


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_a_refused_option_is_refused_by_name_and_its_default_is_pefts(
    name, tiny, tokenizer, with_option
):
    field = {field.name: field for field in dataclasses.fields(LoraConfig)}[name]
    value = getattr(LoraConfig(), name)
    assert REFUSED[name] == (dataclasses.asdict(value) if "runtime" in name else value), field
    read_options(with_option(**{name: REFUSED[name]}))
    folder = with_option(**{name: {"x": 1}})
    with pytest.raises(ValueError, match=rf"adapter is a LoRA adapter with {name}=\{{'x': 1\}}"):
        pa.wrap(tiny(), tokenizer, pa.DExperts(folder))


@pytest.mark.parametrize("how", ["pissa", "pissa_niter_4", "olora", "eva", "corda", "loftq", "new"])
def test_an_initialisation_that_changes_the_base_is_refused(how, tiny, tokenizer, with_option):
    with pytest.raises(ValueError, match=rf"with init_lora_weights='{how}', which is not read; me"):
        pa.wrap(tiny(), tokenizer, pa.DExperts(with_option(init_lora_weights=how)))


def test_an_option_that_nobody_knows_must_be_off(with_option):
    for value in (None, False, [], {}):
        read_options(with_option(use_what_comes_next=value))
    with pytest.raises(ValueError, match=r"with use_what_comes_next=0\.5, which is not read"):
        read_options(with_option(use_what_comes_next=0.5))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"r": "4"}, "adapter_config.json is damaged: 'r': Input should be a valid integer"),
        ({"r": 0}, "'r': Input should be greater than or equal to 1"),
        ({"bias": "some"}, "'bias': Input should be 'none', 'all' or 'lora_only'"),
        ({"modules_to_save": "lm_head"}, "'modules_to_save': Input should be a valid array"),
        ({"alpha_pattern": {"[": 1}}, "'alpha_pattern': Value error, '\\['"),
        ({"peft_type": "LOHA"}, "adapter is a LOHA adapter, and only LoRA adapters are read; if"),
        ({"peft_type": "PREFIX_TUNING"}, "is a PREFIX_TUNING adapter, and only LoRA"),
        ({"peft_type": None}, "'peft_type': Input should be a valid string"),
        ({"task_type": "SEQ_CLS"}, "with task_type='SEQ_CLS'; an expert is a causal language"),
        ({"r": 5}, r"LoRA A \(4, 48\) for '.*', where rank 5 and the layer of .* need \(5, 48\)"),
    ],
)
def test_options_of_another_type_or_adapter_are_refused(
    option, message, tiny, tokenizer, with_option
):
    with pytest.raises(ValueError, match=message):
        pa.wrap(tiny(), tokenizer, pa.DExperts(with_option(**option)))
