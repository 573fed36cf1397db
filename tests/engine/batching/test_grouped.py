"""Experts as rows of one forward, against the models run apart."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import GPTNeoConfig, GPTNeoForCausalLM

import plugalign as pa
from plugalign.adapters.layers import LoraLinear
from plugalign.adapters.loading import with_adapter
from plugalign.engine.batching import grouped
from plugalign.engine.batching.grouped import ExpertGroups, obstacle
from plugalign.engine.batching.grouped_layers import (
    GroupedLora,
    GroupedNorm,
    GroupedRows,
    StackedLinear,
    reads_apart,
)
from plugalign.engine.readers.heads import SplitModels


@pytest.fixture
def trained(tiny):
    """A tiny model whose norms and biases are not those of a fresh one."""

    def make(architecture="llama-gqa", seed=0):
        model = tiny(architecture, seed=seed)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter.add_(0.2 * torch.randn_like(parameter))
        return model

    return make


@pytest.fixture
def adapter(tmp_path, trained):
    """Saves a LoRA adapter of a base, with weights far from zero; gives its folder."""

    def make(architecture, seed, rank=4, targets="all-linear", **options):
        torch.manual_seed(seed)
        swapped = architecture.startswith("gpt2")
        config = LoraConfig(
            r=rank,
            target_modules=targets,
            init_lora_weights=False,
            fan_in_fan_out=swapped,
            **options,
        )
        folder, adapted = tmp_path / f"{seed}", get_peft_model(trained(architecture), config)
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if name.endswith("bias") and parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter))
        adapted.save_pretrained(folder)
        return folder

    return make


def kinds(group):
    return {type(module) for module in group.tree.modules()} & {
        GroupedRows,
        StackedLinear,
        GroupedNorm,
        GroupedLora,
    }


@torch.no_grad()
def assert_alike(group, models, prompts, blocks=1):
    """Every block of rows is its own model's, with left padding."""
    batch = prompts(rows=2 * blocks)
    texts = [batch["input_ids"], *[batch["input_ids"][-2:]] * (len(models) - 1)]
    masks = [batch["attention_mask"], *[batch["attention_mask"][-2:]] * (len(models) - 1)]
    ids, mask = torch.cat(texts), torch.cat(masks)
    inputs = {"attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp_min(0)}
    hidden = group.tree(input_ids=ids, use_cache=False, **inputs).last_hidden_state
    sizes = [len(text) for text in texts]
    for k, (model, own, text) in enumerate(zip(models, hidden.split(sizes), texts, strict=True)):
        rows = slice(sum(sizes[:k]), sum(sizes[: k + 1]))
        want = model(input_ids=text, **{name: value[rows] for name, value in inputs.items()}).logits
        got = model.get_output_embeddings()(own)
        torch.testing.assert_close(got, want, atol=1e-5 * float(want.abs().max()), rtol=1e-5)


# ------------------------------------------------------------------ one forward is several models


@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("small", [True, False])
def test_rows_are_those_of_separate_models(
    blocks, small, trained, prompts, architecture, monkeypatch
):
    if not small:
        monkeypatch.setattr(grouped, "MOST_STACKED", 0)
    models = [trained(architecture, seed) for seed in range(3)]
    experts = dict(zip("ab", models[1:], strict=True))
    group = ExpertGroups().group(models[0], experts, SplitModels(), blocks)
    assert_alike(group, models, prompts, blocks)
    assert kinds(group) == (
        {GroupedRows, GroupedNorm, StackedLinear}
        if small and blocks == 1
        else {GroupedRows, GroupedNorm}
    )
    assert reads_apart(group.tree) is (blocks == 1 and not small)


@pytest.mark.parametrize("blocks", [1, 3])
def test_rows_are_those_of_adapters_by_themselves(blocks, trained, adapter, prompts, architecture):
    model = trained(architecture)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    experts = {s: with_adapter(model, adapter(architecture, s, rank=s)) for s in (3, 5)}
    group = ExpertGroups().group(model, experts, SplitModels(), blocks)
    assert_alike(group, [model, *experts.values()], prompts, blocks)
    assert kinds(group) == {GroupedLora}
    assert not reads_apart(group.tree)
    own = {id(parameter) for parameter in model.parameters()}
    assert {id(p) for p in group.tree.parameters()} <= own
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@torch.no_grad()
@pytest.mark.parametrize("on_cpu", [True, False])
@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("time", [(), (3,)])
def test_changes_are_added_to_the_experts_rows(time, blocks, on_cpu, monkeypatch):
    """With the products of the CPU, and with the kernel that devices take."""
    torch.manual_seed(0)
    leaf, rows = nn.Linear(8, 5), 2 * (blocks + 3)
    around = [LoraLinear(leaf, torch.randn(8, r), torch.randn(r, 5)) for r in (2, 4)]
    x, want = torch.randn(rows, *time, 8), []
    for part, layer in zip(x.split([2 * blocks, 2, 2, 2]), [leaf, *around, leaf], strict=True):
        added = part @ layer.down @ layer.up if layer is not leaf else 0
        want.append(leaf(part) + added)
    module = GroupedLora(leaf, [*around, leaf], blocks)
    apart = zip(x.split([2 * blocks, 2, 2, 2]), [leaf, *around, leaf], strict=True)
    torch.testing.assert_close(torch.cat([layer(part) for part, layer in apart]), torch.cat(want))
    monkeypatch.setattr(torch.Tensor, "is_cpu", on_cpu)
    got = module(x)
    monkeypatch.undo()
    torch.testing.assert_close(got, torch.cat(want))


def test_an_adapter_is_grouped_beside_a_separate_expert(trained, adapter, prompts):
    model, other = trained(), trained(seed=2)
    merged = with_adapter(model, adapter("llama-gqa", 3, targets=["q_proj"]))
    group = ExpertGroups().group(model, {"a": merged, "b": other}, SplitModels(), 1)
    assert_alike(group, [model, merged, other], prompts)


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
def test_an_adapter_of_the_head_runs_apart_and_holds_nobody_up(trained, adapter, prompts):
    model = trained()
    head = with_adapter(model, adapter("llama-gqa", 3, targets=["lm_head"]))
    body = with_adapter(model, adapter("llama-gqa", 4, targets=["q_proj"]))
    assert obstacle(model, head) == "its head has a low-rank addition"
    group = ExpertGroups().group(model, {"a": head, "b": body}, SplitModels(), 1)
    assert list(group.heads) == ["b"]
    assert_alike(group, [model, body], prompts)


@pytest.mark.filterwarnings("ignore:Adapter 'default'")  # peft takes biases for broken matrices
@pytest.mark.parametrize("option", [{"bias": "all"}, {"lora_bias": True}])
def test_an_adapter_with_biases_of_its_own_is_grouped(option, trained, adapter, prompts):
    model = trained("neox")
    with_biases = with_adapter(model, adapter("neox", 3, **option))
    group = ExpertGroups().group(model, {"a": with_biases}, SplitModels(), 1)
    assert_alike(group, [model, with_biases], prompts)
    assert GroupedRows in kinds(group)


def test_layers_that_an_adapter_leaves_alone_are_the_bases(trained, adapter, prompts):
    model = trained()
    merged = with_adapter(model, adapter("llama-gqa", 3, targets=["q_proj"]))
    group = ExpertGroups().group(model, {"a": merged}, SplitModels(), 1)
    assert_alike(group, [model, merged], prompts)
    body, tree = model.model, group.tree
    assert type(tree.layers[0].self_attn.q_proj) is GroupedLora
    assert tree.layers[0].mlp.up_proj is body.layers[0].mlp.up_proj
    assert tree.embed_tokens is body.embed_tokens and tree.norm is body.norm


def test_an_adapter_of_another_base_is_a_separate_expert(trained, adapter, prompts):
    model, other = trained(), trained(seed=9)
    merged = with_adapter(other, adapter("llama-gqa", 3))
    group = ExpertGroups().group(model, {"a": merged}, SplitModels(), 1)
    assert_alike(group, [model, merged], prompts)
    assert GroupedLora not in kinds(group)


# ------------------------------------------------------------------ weights that change


@pytest.mark.parametrize("which", [0, 1])
def test_weights_that_change_between_calls_are_seen(which, trained, prompts, architecture):
    models, groups, split_models = (
        [trained(architecture, seed) for seed in (0, 1)],
        ExpertGroups(),
        SplitModels(),
    )
    experts = {"a": models[1]}
    first = groups.group(models[0], experts, split_models, 1)
    with torch.no_grad():
        for parameter in models[which].parameters():
            parameter.data.mul_(1.1)  # not even torch counts this as a change
    again = groups.group(models[0], experts, split_models, 1)
    assert again is first
    assert_alike(again, models, prompts)
    for module in models[which].modules():
        if isinstance(module, nn.LayerNorm):
            module.weight = nn.Parameter(2 * module.weight.detach())
    assert_alike(groups.group(models[0], experts, split_models, 1), models, prompts)


def test_a_layer_that_is_replaced_is_seen(trained, prompts):
    model, expert, groups = trained(), trained(seed=1), ExpertGroups()
    groups.group(model, {"a": expert}, SplitModels(), 1)
    expert.model.layers[0].mlp = trained(seed=5).model.layers[1].mlp
    assert_alike(groups.group(model, {"a": expert}, SplitModels(), 1), [model, expert], prompts)
    for each in (model, expert):
        each.model.layers[0].mlp.act_fn = nn.Tanh().eval()
    assert_alike(groups.group(model, {"a": expert}, SplitModels(), 1), [model, expert], prompts)


# ------------------------------------------------------------------ what is not grouped


def test_models_that_differ_in_more_than_weights_stay_apart(trained, tiny):
    model = trained()
    assert obstacle(model, trained(seed=1)) is None
    assert "GPT2LMHeadModel" in obstacle(model, tiny("gpt2-tied"))
    assert "its rms_norm_eps is another" in obstacle(model, _changed(trained(seed=1), eps=0.1))
    assert "vocab_size" in obstacle(model, tiny(seed=1, vocab=130))
    assert "another shape, type" in obstacle(model, trained(seed=1).bfloat16())
    assert "in training" in obstacle(model, trained(seed=1).train())
    hooked = trained(seed=1)
    hooked.model.layers[1].mlp.register_forward_hook(lambda *_: None)
    assert "its model.layers.1.mlp or the base's has hooks" in obstacle(model, hooked)
    assert ExpertGroups().group(model, {"a": hooked}, SplitModels(), 1) is None


def test_the_recorders_of_transformers_hinder_nothing(trained, prompts):
    """Once asked for hidden states, a model keeps hooks that idle from then on."""
    models = [trained(seed=seed) for seed in (0, 1)]
    for model in models:
        model(**prompts(), output_hidden_states=True)
    assert any(module._forward_hooks for module in models[0].modules())
    group = ExpertGroups().group(models[0], {"a": models[1]}, SplitModels(), 1)
    assert_alike(group, models, prompts)


def _changed(model, eps):
    model.config.rms_norm_eps = eps
    return model


def test_a_model_whose_rows_mix_is_found_out(trained):
    """A body that turns its rows about would give an expert the base's layers."""
    model, expert = trained(), trained(seed=1)
    kind = type(model.model.layers[0].mlp)

    class Mixing(kind):
        def forward(self, x):
            return super().forward(x.flip(0)).flip(0)

    for each in (model, expert):
        each.model.layers[0].mlp.__class__ = Mixing
    groups = ExpertGroups()
    assert groups.why_not_grouped(model, expert) is None
    assert groups.group(model, {"a": expert}, SplitModels(), 1) is None
    assert "does not treat its rows alike" in groups.why_not_grouped(model, expert)


def test_only_experts_of_the_base_s_dtype_are_grouped(trained, prompts):
    model, fit = trained(), trained(seed=1)
    group = ExpertGroups().group(
        model, {"a": trained(seed=2).bfloat16(), "b": fit}, SplitModels(), 1
    )
    assert list(group.heads) == ["b"]
    assert_alike(group, [model, fit], prompts)


# ------------------------------------------------------------------ in the loop


@pytest.fixture
def both(monkeypatch):
    """Runs one call on the loop and on the processor path."""

    def go(steered, **options):
        mine = steered.generate(**options)
        with monkeypatch.context() as patch:
            patch.setattr("plugalign.generation.wrap.obstacle", lambda *_: "a test")
            theirs = steered.generate(**options)
        return mine.tolist(), theirs.tolist()

    return go


@pytest.fixture
def forwards():
    """The rows and columns that the given models' embeddings read, as they come."""
    seen, embed = [], nn.functional.embedding

    def watch(ids, *args, **kwargs):
        seen.append(tuple(ids.shape))
        return embed(ids, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.functional, "embedding", watch)
        yield seen


@pytest.mark.parametrize("which", ["separate", "adapters", "sum"])
def test_the_loop_gives_the_processor_paths_ids(
    which, both, trained, adapter, tokenizer, prompts, architecture
):
    model = trained(architecture)
    if which == "adapters":
        controller = pa.DExperts(adapter(architecture, 3), adapter(architecture, 4))
    else:
        controller = pa.DExperts(trained(architecture, 1), trained(architecture, 2))
    if which == "sum":
        with torch.no_grad():
            read = model(torch.tensor([[11, 12, 13]]), use_cache=True).past_key_values.layers
        prefix = torch.stack([torch.stack([la.keys[0], la.values[0]]) for la in read])
        contrast = pa.PrefixTuning(prefix, -prefix).against(top_p=0.95)
        controller = controller + pa.SelfDebias(["w5 w6 w7", "w8"]) + contrast
    steered = pa.wrap(model, tokenizer, controller)
    said = steered.explain(max_new_tokens=3).splitlines()
    assert (
        sum(line.endswith("rows of the base's forward") and "expert" in line for line in said) == 2
    )
    for options in ({}, {"num_return_sequences": 2, "do_sample": True, "top_k": 1}):
        mine, theirs = both(steered, **prompts(), **options, max_new_tokens=8)
        assert mine == theirs


def test_one_forward_reads_for_all(trained, tokenizer, prompts, forwards):
    controller = pa.DExperts(trained(seed=1), trained(seed=2)) + pa.SelfDebias(["w5 w6"])
    steered = pa.wrap(trained(), tokenizer, controller)
    steered.generate(**prompts(rows=2), max_new_tokens=1)  # finds out how the models are made
    forwards.clear()
    steered.generate(**prompts(rows=2), max_new_tokens=3)
    base, expert = [(2 * 2, 7 + 2), (2 * 2, 1), (2 * 2, 1)], [(2, 7 + 2), (2, 1), (2, 1)]
    assert forwards == [shape for b, e in zip(base, expert, strict=True) for shape in (b, e, e)]


def test_a_static_cache_takes_no_rows(both, trained, tokenizer, prompts):
    steered = pa.wrap(trained(), tokenizer, pa.DExperts(trained(seed=1)))
    static = {"cache_implementation": "static", "max_new_tokens": 5}
    assert "a forward of its own: the base takes no rows" in steered.explain(**static)
    mine, theirs = both(steered, **prompts(), **static)
    assert mine == theirs


def test_the_cache_that_comes_back_is_the_bases(trained, tokenizer, prompts):
    model, out = trained(), {"return_dict_in_generate": True, "max_new_tokens": 4}
    steered = pa.wrap(model, tokenizer, pa.DExperts(trained(seed=1)))
    got = steered.generate(**prompts(), **out)
    ids = got.sequences[:, :-1]
    mask = torch.cat([prompts()["attention_mask"], torch.ones(3, 3, dtype=torch.long)], 1)
    with torch.no_grad():
        want = model(
            ids, attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp_min(0)
        ).past_key_values
    seen = mask.bool()[:, None, :, None]
    for one, other in zip(got.past_key_values.layers, want.layers, strict=True):
        assert one.keys.shape == other.keys.shape
        torch.testing.assert_close(one.keys * seen, other.keys * seen, atol=1e-4, rtol=1e-4)


def test_local_attention_layers(both, tokenizer, prompts):
    def neo(seed):
        torch.manual_seed(seed)
        config = GPTNeoConfig(
            vocab_size=120,
            hidden_size=32,
            num_layers=2,
            num_heads=4,
            window_size=4,
            attention_types=[[["global", "local"], 1]],
            max_position_embeddings=128,
            pad_token_id=0,
            eos_token_id=1,
            bos_token_id=1,
            initializer_range=0.3,
        )
        return GPTNeoForCausalLM(config).eval()

    steered = pa.wrap(neo(0), tokenizer, pa.DExperts(neo(1), neo(2)))
    assert steered.explain(max_new_tokens=3).count("rows of the base's forward") == 2
    mine, theirs = both(steered, **prompts(), max_new_tokens=8)
    assert mine == theirs


def test_inference_mode_leaves_nothing_behind(trained, adapter, tokenizer, prompts):
    experts = trained(seed=1), adapter("llama-gqa", 3)
    for expert, anti in (experts, experts[:1] * 2, experts[1:] * 2):
        steered = pa.wrap(trained(), tokenizer, pa.DExperts(expert, anti))
        with torch.inference_mode():
            inside = steered.generate(**prompts(), max_new_tokens=4).tolist()
        assert steered.generate(**prompts(), max_new_tokens=4).tolist() == inside


def test_a_fault_in_an_experts_rows_names_it(trained, tokenizer, prompts):
    expert = trained(seed=1)
    with torch.no_grad():
        expert.model.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
    steered = pa.wrap(trained(), tokenizer, pa.DExperts(expert))
    with pytest.raises(FloatingPointError, match=r"the source 'expert .*' gave NaN logits at step"):
        steered.generate(**prompts(), max_new_tokens=3)
