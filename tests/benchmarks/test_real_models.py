"""The script that makes the results on real models: its parts, and all of it at tiny sizes."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
from results_data import lines, write_data
from transformers import BertConfig, BertModel
from typer import BadParameter

from plugalign import pocket
from plugalign.benchmarking.untrained import untrained
from plugalign.catalogue import ALONE, FITTERS, METHODS

FURTHER = (
    "contrastive",
    "dera",
    "equilibrium",
    "gedi",
    "lm_arithmetic",
    "mod",
    "safe_decoding",
    "value_guide",
)
BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("real_models")


@pytest.fixture
def tools(script: Any) -> Any:
    return importlib.import_module("results_tools")


def test_every_strength_is_a_setting_and_every_method_with_one_is_tuned(
    script: Any, tools: Any, tiny: Any
) -> None:
    names = {variant: method.name for method in METHODS for variant in method.fitters}
    names |= {name: name for name in ALONE} | {tools.ANTI: "dexperts"}
    names |= {name: name for name in FURTHER}
    assert names.keys() == {*FITTERS, *ALONE, tools.ANTI, *FURTHER}
    for name, (setting, values) in script.STRENGTHS.items():
        controller = untrained(names[name], tiny())
        found = [repr(controller.with_settings(**{setting: value}).config()) for value in values]
        assert len({*found}) == len(values)
    assert names.keys() - script.STRENGTHS.keys() == {
        "prefix",
        "value_statement",
        "lm_arithmetic",
        "mod",
    }


STUDIES = sorted(path.parent for path in BENCHMARKS.glob("results/*/*/tuning.json"))


@pytest.mark.parametrize("folder", STUDIES, ids=lambda folder: "-".join(folder.parts[-2:]))
def test_a_page_has_the_tables_of_its_results(
    folder: Path, script: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    importlib.import_module("real_models_table").main(folder)
    rows = [line for line in capsys.readouterr().out.splitlines() if line]
    assert len(rows) > 4 and not {*rows} - {*(folder / "README.md").read_text("utf-8").splitlines()}


def test_prompts_of_chats_ask_to_continue_other_texts_than_were_tuned_on(
    script: Any, tools: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "USED", 1)
    lines(tmp_path / tools.PROMPTS, [{"text": f"text {i} "} for i in range(-1, 6)])
    sizes = script.Sizes(2, 1, 3, 1, 1, 1, 1.0)

    def prompts(chat: str, skip: int, count: int) -> Any:
        study = script.Study(None, None, chat, None, {}, tmp_path, tmp_path, tmp_path, sizes)
        return study._prompts(skip, count)

    assert prompts("off", 3, 2) == ["text 3 ", "text 4 "]
    first, *_ = prompts("on", 3, 2)
    assert first == [{"role": "user", "content": "Continue this text: text 3"}]
    with pytest.raises(ValueError, match="has 1 prompts behind 6, not 2"):
        prompts("on", 5, 2)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*cannot tell rude answers:UserWarning")  # it is tiny
def test_one_command_fits_tunes_compares_and_writes_results_without_texts(
    script: Any, tools: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "USED", 0)
    data, model = write_data(tools, tmp_path / "data"), str(pocket.PARTS / pocket.MODEL)
    encoder, (_, tokenizer) = tmp_path / "encoder", pocket.load()
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(encoder)
    tokenizer.save_pretrained(encoder)
    out = tmp_path / "results"
    run: dict[str, Any] = {
        "model": model,
        "perplexity_model": model,
        "encoder": str(encoder),
        "data": data,
        "work": tmp_path / "work",
        "out": out,
        "prompts": 3,
        "samples": 2,
        "tuning": 4,
        "tuning_samples": 1,
        "new_tokens": 4,
        "batch_size": 6,
        "minutes": 0.002,
        "limit": None,
        "kind": ["texts", "chats"],
        "method": None,
        "dtype": "float32",
        "threads": 1,
    }
    with pytest.raises(BadParameter, match="talks is no kind of prompts; take texts or chats"):
        script.main(**run | {"kind": ["talks"]})
    with pytest.raises(
        BadParameter, match="gedy is no method; take of args, dexperts, dexperts_lora"
    ):
        script.main(**run | {"method": ["gedi", "gedy"]})
    script.main(**run)
    folder = out / "texts"  # the pocket model has no chat template
    assert [path.name for path in out.iterdir()] == ["texts"]
    summary = json.loads((folder / "summary.json").read_text())
    assert set(summary["methods"]) == {"base", *FITTERS, *ALONE, "dexperts_anti", *FURTHER}
    assert summary["perplexity_model"] and list(summary["judges"]) == ["encoder", "tfidf"]
    tuning = json.loads((folder / "tuning.json").read_text())
    assert tuning.keys() == script.STRENGTHS.keys()
    assert len(tuning["self_debias"]["trials"]) == 3
    fits = json.loads((folder / "fits.json").read_text())
    assert fits["mod/paradetox/dexperts_lora"]["settings"]["only"] == "expert"
    assert str(tmp_path) not in (folder / "manifest.json").read_text()
    before = (folder / "summary.json").read_bytes()
    script.main(**run)  # nothing is left to do
    assert (folder / "summary.json").read_bytes() == before
    some = {
        "work": tmp_path / "some",
        "out": tmp_path / "some",
        "method": ["gedi", "dexperts_anti"],
    }
    script.main(**run | some)
    summary = json.loads((tmp_path / "some/texts/summary.json").read_text())
    assert set(summary["methods"]) == {"base", "dexperts_anti", "gedi"}
    assert json.loads((tmp_path / "some/texts/fits.json").read_text()).keys() == {"dexperts"}
