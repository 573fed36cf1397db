"""Data sheets: every saved controller has one, which says what is known and what is not."""

from __future__ import annotations

import json

import pytest
import yaml
from huggingface_hub import ModelCard

import plugalign as pa
from plugalign import pocket
from plugalign.algebra.data_sheet import FIT, README, Notes, Provenance, read_provenance

STATED = {
    "license": "apache-2.0",
    "training_data": "invented comments, CC0",
    "intended_use": "demonstrations",
    "limitations": "it knows 1,280 words",
}


def sheet(folder):
    return (folder / README).read_text(encoding="utf-8")


def front(folder):
    return yaml.safe_load(sheet(folder).split("---\n")[1])


def test_a_controller_without_a_fit_says_so(tmp_path):
    pa.SelfDebias(["w5"]).save_pretrained(tmp_path)
    text = sheet(tmp_path)
    assert text.count("# SelfDebias, a controller of plugalign") == 1
    assert "Nothing was measured" in text and "Nothing was learned" in text
    assert "More Information Needed" not in text
    assert front(tmp_path)["license"] == "unknown"
    assert ModelCard.load(tmp_path / README).data.library_name == "plugalign"


def test_what_a_fit_knows_is_filled_in_and_kept(tmp_path):
    fitted = pocket.controllers()["fudge"]
    fitted.save_pretrained(tmp_path / "once", model_card_kwargs=STATED)
    pa.Controller.from_pretrained(tmp_path / "once").save_pretrained(tmp_path / "twice")
    fit = json.loads((pocket.parts() / "controllers" / "fudge" / FIT).read_text())
    for folder in (tmp_path / "once", tmp_path / "twice"):
        assert json.loads((folder / FIT).read_text()) == fit
        text = sheet(folder)
        assert "n = 4000 texts (2225 of “polite”, 1775 of “rude”)" in text
        assert f"auc {fit['measured']['held_out']['auc']:g}" in text
        assert fit["data"]["sha256"] in text and "Fitted for: pocket" in text
        assert {name: front(folder)[name] for name in STATED} == STATED
        assert STATED["limitations"] in text


def test_other_settings_have_the_same_origin(tmp_path):
    fitted = pocket.controllers()["fudge"]
    assert (
        fitted.with_settings(weight=2.0).provenance
        == fitted.provenance
        != pa.SelfDebias().provenance
    )


def test_a_sum_shows_its_parts(tmp_path):
    parts = pocket.controllers()
    both = 0.5 * parts["fudge"] + parts["self_debias"].when(pa.FirstSteps(3))
    both.save_pretrained(tmp_path)
    text = sheet(tmp_path)
    assert "| 0.5 | Fudge | 4000 | auc" in text
    assert "| 1 | SelfDebias.when(FirstSteps) | - | - | unknown |" in text
    assert "n = 4000 texts" in sheet(tmp_path / "part_0")
    json_form = pa.Controller.from_pretrained(tmp_path).data_sheet().to_json()
    assert [part["weight"] for part in json_form["parts"]] == [0.5, 1.0]
    assert json_form["parts"][0]["n"] == 4000
    assert json_form["parts"][1]["parts"][0]["class"] == "SelfDebias"


def test_what_people_wrote_is_not_overwritten(tmp_path):
    pa.SelfDebias(["w5"]).save_pretrained(tmp_path)
    (tmp_path / README).write_text(
        "---\nlicense: mit\nauthor: me\n---\nmy words\n", encoding="utf-8"
    )
    again = pa.Controller.from_pretrained(tmp_path)
    assert again.provenance.notes == Notes(license="mit")
    again.save_pretrained(tmp_path)
    assert sheet(tmp_path).endswith("my words\n")


@pytest.mark.parametrize(
    ("content", "stated"),
    [
        ("no front matter", {}),
        ("---\n[1, 2]\n---\n", {}),
        ("---\nlicense: mit\n---\n", {"license": "mit"}),
    ],
)
def test_any_readme_may_lie_there(tmp_path, content, stated):
    (tmp_path / README).write_text(content, encoding="utf-8")
    assert read_provenance(tmp_path).notes == Notes(**stated)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            README,
            "---\nlicense: 3\n---\n",
            r"README.md: license of a data sheet must be words, got 3",
        ),
        (README, "---\nlicense: [\n---\n", r"README.md: malformed YAML in its front matter"),
        (FIT, "{", r"fit.json is damaged"),
        (FIT, "[]", r"fit.json is damaged, it is no JSON object"),
    ],
)
def test_a_damaged_one_is_named(tmp_path, name, content, message):
    pa.SelfDebias(["w5"]).save_pretrained(tmp_path)
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_provenance(tmp_path)
    with pytest.warns(RuntimeWarning, match=message):  # it works without
        assert pa.Controller.from_pretrained(tmp_path).provenance == Provenance()


def test_an_unknown_statement_is_refused(tmp_path):
    with pytest.raises(TypeError, match="licence"):
        pa.SelfDebias(["w5"]).save_pretrained(tmp_path, model_card_kwargs={"licence": "mit"})
