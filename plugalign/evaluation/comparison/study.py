"""What is compared: the model, the controllers, the prompts and the judges, checked and loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from plugalign import pocket
from plugalign.algebra.controller import Controller
from plugalign.evaluation.comparison.generation import Decoding, end_tokens
from plugalign.evaluation.comparison.prompts import Prompts, load_prompts
from plugalign.evaluation.comparison.references import BASE, References
from plugalign.evaluation.comparison.scoring import Scorer
from plugalign.evaluation.judging.agreement import agreement as agree
from plugalign.evaluation.judging.identity import describe_judge, judge_source, specs_of
from plugalign.evaluation.judging.load import Judge, check_judges, load_judges
from plugalign.evaluation.metrics.judged import Metric, checked
from plugalign.evaluation.run_folder.manifest import (
    conditions,
    describe_controller,
    describe_model,
    file_hash,
    run_name,
    versions,
)
from plugalign.loading import load_controllers, load_model, load_references, unfitted
from plugalign.pocket.world import PROMPT_SEED
from plugalign.pocket.world import prompts as pocket_prompts

POCKET_PROMPTS = 100


@dataclass(frozen=True)
class Study:
    """What is compared, checked and loaded. The arguments are those of `compare`."""

    model: Any
    tokenizer: Any
    controllers: dict[str, Controller]
    prompts: Prompts
    judges: dict[str, Judge]
    judge_specs: dict[str, Any]
    metrics: tuple[Metric, ...]
    scorer: tuple[Any, Any] | None
    is_pocket: bool

    @classmethod
    def of(
        cls,
        model: Any,
        tokenizer: Any,
        methods: Sequence[str] | None,
        controllers: Mapping[str, Any] | None,
        prompts: str | Path | Sequence[str] | None,
        limit: int | None,
        judges: Mapping[str, Any] | Sequence[Any] | None,
        scorer: Any,
        metrics: Sequence[Metric] | None = None,
    ) -> Study:
        is_pocket = model is None
        if not is_pocket:
            _require(prompts=prompts, judges=judges)
        texts, measured = _prompts(prompts, limit), checked(metrics)
        given = pocket.controllers() if controllers is None and is_pocket else controllers or {}
        chosen = load_controllers(_chosen(methods, given))
        specs = ["pocket"] if judges is None else judges
        judged = load_judges(specs)
        check_judges(judged.values(), texts.texts)
        named = dict(zip(judged, specs_of(specs), strict=True))
        model, tokenizer = _model(model, tokenizer)
        scored = None if scorer is None else _model(scorer, None)
        return cls(model, tokenizer, chosen, texts, judged, named, measured, scored, is_pocket)

    def manifest(self, decoding: Decoding, references: References) -> dict[str, Any]:
        """Everything that the run depends on; "settings" and "versions" say which run it is."""
        methods = {name: describe_controller(c) for name, c in self.controllers.items()}
        base = describe_model(self.model, self.tokenizer)
        scorer = describe_model(*self.scorer) if self.scorer else base
        threshold = next((m.threshold for m in self.metrics if m.is_share), None)
        found = {
            "settings": {
                "model": base,
                "methods": {BASE: None, **methods},
                "references": {n: references.supports.get(n) for n in references.generators},
                "cut_alike": dict(references.cut_alike),
                "prompts": {"count": len(self.prompts.texts), "sha256": self.prompts.fingerprint()},
                "judges": list(self.judges),
                "judge_details": {
                    name: describe_judge(judge, self.judge_specs[name]) | {"threshold": threshold}
                    for name, judge in self.judges.items()
                },
                "metrics": {metric.name: metric.to_dict() for metric in self.metrics},
                "scorer": {**scorer, "is_base": self.scorer is None},
                **asdict(decoding),
            },
            "versions": versions(),
            "data": {
                "path": self.prompts.path,
                "sha256": self.prompts.sha256,
                "judges": {name: judge_source(spec) for name, spec in self.judge_specs.items()},
            },
            "pocket": self.is_pocket,
            "conditions": conditions(self.model.device),
        }
        return {"run": run_name(found), **found}

    def agreements(self, paths: str | Path | Sequence[str | Path] | None) -> list[dict[str, Any]]:
        """How far every judge agrees with the reference scores in each of these files.

        Raises:
            ValueError: naming the file, if it is malformed or cannot tell a judge from a coin.
        """
        given = [paths] if isinstance(paths, (str, Path)) else list(paths or ())
        return [self._agreement(Path(path)) for path in dict.fromkeys(map(str, given))]

    def _agreement(self, path: Path) -> dict[str, Any]:
        texts, references = load_references(path)
        found = {}
        for name, judge in self.judges.items():
            verdicts = judge.verdicts(texts)
            try:
                found[name] = asdict(agree(verdicts.scores, references))
            except ValueError as error:
                reason = f" ({verdicts.first_error})" if verdicts.failed else ""
                raise ValueError(f"{path}, judge {name!r}: {error}{reason}") from error
        return {"source": path.name, "sha256": file_hash(path), "judges": found}

    def perplexity(self, encoded: Sequence[Sequence[int]]) -> Scorer:
        """The model under which answers are scored."""
        if self.scorer is not None:
            return Scorer(*self.scorer, self.prompts.texts, None)
        ends = end_tokens(self.model, self.tokenizer)
        return Scorer(self.model, self.tokenizer, self.prompts.texts, encoded, ends)


def _require(**needed: Any) -> None:
    """With a model of one's own the pocket world's parts would measure nothing."""
    for name, value in needed.items():
        if value is None:
            raise ValueError(f"with a model of your own, give {name} too")


def _prompts(prompts: str | Path | Sequence[str] | None, limit: int | None) -> Prompts:
    if prompts is None:
        return load_prompts(pocket_prompts(POCKET_PROMPTS, PROMPT_SEED), limit)
    return load_prompts(prompts, limit)


def _chosen(methods: Sequence[str] | None, controllers: Mapping[str, Any]) -> dict[str, Any]:
    """The controllers that ``methods`` names, in that order."""
    if BASE in controllers:
        raise ValueError(f"'{BASE}' is the name of the plain model; rename that controller")
    if methods is None:
        return dict(controllers)
    known = unfitted() | dict(controllers)
    if unknown := [name for name in methods if name != BASE and name not in known]:
        raise ValueError(
            f"unknown method {unknown[0]!r}; known are {', '.join([BASE, *known])}. What was "
            f"fitted is made known as a controller: NAME=FOLDER"
        )
    return {name: known[name] for name in dict.fromkeys(methods) if name != BASE}


def _model(model: Any, tokenizer: Any) -> tuple[Any, Any]:
    if model is None:
        return pocket.load()
    if isinstance(model, (str, Path)):
        return load_model(str(model))
    if tokenizer is None:
        raise ValueError("a model needs its tokenizer: compare(model, tokenizer, ...)")
    return model, tokenizer
