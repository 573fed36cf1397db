"""What is compared: the model, the controllers, the prompts and the judges, checked and loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from plugalign import pocket
from plugalign.algebra.controller import Controller
from plugalign.catalogue import ALONE
from plugalign.evaluation.comparison.decoding import Decoding
from plugalign.evaluation.comparison.generation import end_tokens
from plugalign.evaluation.comparison.prompts import Prompts, load_prompts, paragraphs
from plugalign.evaluation.comparison.references import BASE, References
from plugalign.evaluation.comparison.scoring import Scorer
from plugalign.evaluation.comparison.variants import varied
from plugalign.evaluation.judging.identity import describe_judge, judge_source, specs_of
from plugalign.evaluation.judging.load import Judge, check_judges, load_judges
from plugalign.evaluation.metrics.metric import Metric, Metrics, check_measures, sorted_metrics
from plugalign.evaluation.run_folder.describe import (
    conditions,
    describe_chat,
    describe_controller,
    describe_model,
    versions,
)
from plugalign.evaluation.run_folder.manifest import (
    DataRecord,
    JudgeRecord,
    Manifest,
    PromptsRecord,
    ScorerRecord,
    Settings,
)
from plugalign.files.precision import explained
from plugalign.files.shown import shown
from plugalign.fitting.workspace import fitted_on_chats
from plugalign.generation.chat_format import ChatChoice, choose_chat
from plugalign.loading import check_model, load_controllers, resolve_model, unfitted
from plugalign.pocket.world import PROMPT_SEED
from plugalign.pocket.world import prompts as pocket_prompts

POCKET_PROMPTS = 100


@dataclass(frozen=True)
class Study:
    """What is compared, checked and loaded.

    Attributes:
        loaded_as: the precision of a model that was given by name, and the reason for it.
        outside: an outside model for a second perplexity, and its tokenizer.
        fitted_on_chats: of controllers whose folders say so.
    """

    model: Any
    tokenizer: Any
    controllers: dict[str, Controller]
    prompts: Prompts
    judges: dict[str, Judge]
    judge_specs: dict[str, Any]
    metrics: Metrics
    scorer: tuple[Any, Any] | None
    is_pocket: bool
    chat: ChatChoice
    loaded_as: str | None = None
    outside: tuple[Any, Any] | None = None
    fitted_on_chats: Mapping[str, bool] = field(default_factory=dict)

    def notes(self) -> Iterator[str]:
        """What was decided before the work, for the log."""
        if self.loaded_as is not None:
            yield f"the model is in {self.loaded_as}"
        chat = self.chat.format is not None
        yield self.chat.note()
        for name, on_chats in self.fitted_on_chats.items():
            if on_chats != chat:
                was, now = ("chats", "texts") if on_chats else ("plain texts", "chats")
                yield (
                    f"{name} was fitted on {was}, and prompts are {now}: fit it with --chat too, "
                    f"where its fit takes that"
                )

    @property
    def ends(self) -> list[int]:
        """The tokens that end an answer."""
        return self.chat.end_tokens(end_tokens(self.model, self.tokenizer))

    def manifest(
        self, decoding: Decoding, references: References, command: str | None = None
    ) -> Manifest:
        """Everything that the run depends on; "settings" and "versions" say which run it is."""
        return Manifest(
            settings=self._settings(decoding, references),
            versions=versions(),
            data=DataRecord(
                path=self.prompts.path,
                sha256=self.prompts.sha256,
                judges={name: judge_source(spec) for name, spec in self.judge_specs.items()},
            ),
            pocket=self.is_pocket,
            conditions=conditions(self.model.device),
            command=command,
        ).named()

    def _settings(self, decoding: Decoding, references: References) -> Settings:
        methods = {name: describe_controller(c) for name, c in self.controllers.items()}
        base = describe_model(self.model, self.tokenizer)
        scorer = describe_model(*self.scorer) if self.scorer else base
        return Settings(
            model=base,
            methods={BASE: None, **methods},
            references={n: references.supports.get(n) for n in references.generators},
            cut_alike=dict(references.cut_alike),
            prompts=PromptsRecord(count=len(self.prompts.texts), sha256=self.prompts.fingerprint()),
            judges=tuple(self.judges),
            judge_details={name: self._judge(name) for name in self.judges},
            metrics={metric.name: metric.record() for metric in self.metrics.every},
            scorer=ScorerRecord(**scorer.model_dump(), is_base=self.scorer is None),
            perplexity_model=describe_model(*self.outside) if self.outside else None,
            chat=describe_chat(self.chat),
            **asdict(decoding),
        )

    def _judge(self, name: str) -> JudgeRecord:
        found = (m.threshold for m in self.metrics.judged if m.threshold is not None)
        threshold = next(found, None)
        record = describe_judge(self.judges[name], self.judge_specs[name], self.model.dtype)
        return record.model_copy(update={"threshold": threshold})

    def perplexity(self, encoded: Sequence[Sequence[int]]) -> Scorer:
        """The model under which answers are scored."""
        if self.scorer is not None:
            return self._reader(*self.scorer)
        return Scorer(self.model, self.tokenizer, self.prompts.texts, encoded, self.ends)

    def outside_perplexity(self) -> Scorer | None:
        """The outside model under which answers are scored too, if there is one."""
        return None if self.outside is None else self._reader(*self.outside)

    def _reader(self, model: Any, tokenizer: Any) -> Scorer:
        return Scorer(model, tokenizer, self._read_by(model, tokenizer), None)

    def _read_by(self, model: Any, tokenizer: Any) -> list[str]:
        """The prompts as the texts that another model reads: chats in its own template, if it is
        an instruct model too, else each message as a paragraph."""
        used = self.chat.format
        if used is None:
            return list(self.prompts.texts)
        own = choose_chat(model, tokenizer).format
        if own is not None:
            own = replace(own, system=used.system)
        return [
            paragraphs(p, used.system) if own is None else own.text(p) for p in self.prompts.every
        ]


def make_study(
    model: Any,
    tokenizer: Any,
    methods: Sequence[str] | None,
    controllers: Mapping[str, Any] | None,
    settings: Mapping[str, Any],
    prompts: str | Path | Sequence[Any] | None,
    limit: int | None,
    judges: Mapping[str, Any] | Sequence[Any] | None,
    scorer: Any,
    metrics: Sequence[Metric] | None,
    dtype: str,
    chat: str = "auto",
    system: str | None = None,
    perplexity_model: Any = None,
) -> Study:
    """Checks and loads the arguments of `plugalign.evaluation.comparison.compare.compare`.

    Raises:
        ValueError: for anything wrong with them.
    """
    is_pocket = model is None
    if not is_pocket:
        _require(prompts=prompts, judges=judges)
    texts, chosen_metrics = _prompts(prompts, limit), sorted_metrics(metrics)
    check_measures(chosen_metrics, texts.texts)
    _check_some(methods, controllers, is_pocket)
    given = pocket.controllers() if controllers is None and is_pocket else controllers or {}
    chosen = varied(load_controllers(_chosen(methods, given)), settings)
    specs = ["pocket"] if judges is None else judges
    loaded = load_judges(specs)
    check_judges(loaded.values(), texts.texts)
    by_name = isinstance(model, (str, Path))
    for named in (model, scorer, perplexity_model):
        check_model(named)
    model, tokenizer = resolve_model(model, tokenizer, dtype)
    return Study(
        model=model,
        tokenizer=tokenizer,
        controllers=chosen,
        prompts=texts,
        judges=loaded,
        judge_specs=dict(zip(loaded, specs_of(specs), strict=True)),
        metrics=chosen_metrics,
        scorer=None if scorer is None else resolve_model(scorer, None, dtype),
        is_pocket=is_pocket,
        loaded_as=explained(dtype) if by_name else None,
        outside=_outside(perplexity_model, dtype),
        fitted_on_chats=_fitted_on_chats(_chosen(methods, given)),
        chat=choose_chat(model, tokenizer, chat, system, conversations=texts.have_conversations),
    )


def _fitted_on_chats(given: Mapping[str, Any]) -> dict[str, bool]:
    """Whether controllers were fitted on chats, of those whose folders say so."""
    folders = {n: Path(each) for n, each in given.items() if isinstance(each, (str, Path))}
    found = {name: fitted_on_chats(folder) for name, folder in folders.items()}
    return {name: on_chats for name, on_chats in found.items() if on_chats is not None}


def _outside(given: Any, dtype: str) -> tuple[Any, Any] | None:
    """An outside model and its tokenizer, which may be given as a pair."""
    if given is None:
        return None
    if isinstance(given, (str, Path)):
        return resolve_model(given, None, dtype)
    if isinstance(given, tuple) and len(given) == 2:
        return resolve_model(*given)
    raise TypeError(
        f"perplexity_model is a hub id, a folder, or a pair of a model and its tokenizer, got "
        f"{shown(given)}"
    )


def _require(**needed: Any) -> None:
    """With a model of one's own the pocket world's parts would measure nothing."""
    if missing := [name for name, value in needed.items() if value is None]:
        raise ValueError(f"with a model of your own, give {' and '.join(missing)} too")


def _prompts(prompts: str | Path | Sequence[Any] | None, limit: int | None) -> Prompts:
    if prompts is None:
        return load_prompts(pocket_prompts(POCKET_PROMPTS, PROMPT_SEED), limit)
    return load_prompts(prompts, limit)


def _check_some(
    methods: Sequence[str] | None, controllers: Mapping[str, Any] | None, is_pocket: bool
) -> None:
    """Refuses to compare what was given as nothing; the plain model alone has a name."""
    if methods is None and controllers is None and not is_pocket:
        raise ValueError(
            f"with a model of your own, say what to compare: controllers (NAME=FOLDER of what was "
            f"fitted), or methods ({', '.join(ALONE)} need nothing fitted, and '{BASE}' is the "
            f"plain model alone)"
        )
    if methods is not None and not methods:
        raise ValueError(f"there is no method; name at least one, or '{BASE}' for the plain model")
    if methods is None and controllers is not None and not controllers:
        raise ValueError("there is no controller; give at least one, or leave controllers out")


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
