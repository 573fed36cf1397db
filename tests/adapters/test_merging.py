"""An adapter's folder in the place of a model, as for ``--model``."""

from __future__ import annotations

import json

import peft
import pytest
import torch
from peft import get_peft_model
from typer.testing import CliRunner

from plugalign.cli import app
from plugalign.loading import load_model, random_model

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def base(tiny, tokenizer, tmp_path):
    """A saved model under an adapter, and the folder of both."""
    tiny().save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"modules_to_save": ["lm_head"]}])
def test_it_is_the_base_with_the_adapter(options, base, tiny, save_adapter, by_peft):
    where = {"base_model_name_or_path": str(base)}
    folder = save_adapter(tiny(), **options, **where)
    model, tokenizer = load_model(str(folder))
    ids = torch.arange(3, 30)[None]
    with torch.no_grad():
        want = by_peft(tiny(), folder)(ids).logits
        torch.testing.assert_close(model(ids).logits, want, atol=1e-4, rtol=1e-4)
    assert tokenizer.get_vocab() == load_model(str(base))[1].get_vocab()
    assert model.name_or_path == str(folder)
    assert not any("peft" in type(module).__module__ for module in model.modules())
    random_model(str(folder))


def test_its_own_tokenizer_comes_first(base, tiny, tokenizer, save_adapter):
    folder = save_adapter(tiny(), base_model_name_or_path=str(base))
    tokenizer.add_tokens(["one-more"])
    tokenizer.save_pretrained(folder)
    assert "one-more" in load_model(str(folder))[1].get_vocab()


def test_what_cannot_be_merged_is_refused_by_name(base, tiny, tokenizer, save_adapter, tmp_path):
    where = {"base_model_name_or_path": str(base)}
    folder = save_adapter(tiny())
    with pytest.raises(ValueError, match="does not name the adapter's base"):
        load_model(str(folder))
    folder = save_adapter(tiny("gpt2-tied"), "gpt2", **where)
    with pytest.raises(ValueError, match=r"cannot load the model '.*gpt2': "):
        load_model(str(folder))
    prompts = peft.PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
    get_peft_model(tiny(), prompts).save_pretrained(tmp_path / "prompts")
    path = tmp_path / "prompts" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | where))
    with pytest.raises(ValueError, match="a PROMPT_TUNING adapter trains prompts, which cannot be"):
        load_model(str(tmp_path / "prompts"))


def test_the_command_line_takes_it(base, tiny, save_adapter, tmp_path):
    folder = save_adapter(tiny(), base_model_name_or_path=str(base))
    options = ["--batch", "1", "--new-tokens", "4", "--methods", "self_debias"]
    result = CliRunner().invoke(app, ["bench", "--model", str(folder), *options])
    assert result.exit_code == 0, result.output
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({"base_model_name_or_path": 3}))
    result = CliRunner().invoke(app, ["bench", "--model", str(folder), *options])
    assert result.exit_code != 0 and "Traceback" not in result.output
