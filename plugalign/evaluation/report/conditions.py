"""The manifest in words: settings beside a method's name, and the conditions of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from plugalign.evaluation.run_folder.manifest import (
    ChatRecord,
    ControllerRecord,
    JudgeRecord,
    Manifest,
    PromptsRecord,
    Settings,
)
from plugalign.files.shown import one_line

LONGEST = 16  # characters of a setting that stands beside a method's name
BEGINNING = 40  # characters of a text that does where a method has no short setting


def settings_lines(methods: Mapping[str, ControllerRecord | None]) -> dict[str, str]:
    """`settings_line` of every method that has settings, by its name, without line breaks."""
    lines = {name: one_line(settings_line(controller)) for name, controller in methods.items()}
    return {name: line for name, line in lines.items() if line}


def settings_line(controller: ControllerRecord | None) -> str:
    """A method's settings in a line, to stand beside its name; what is long is left out of it, but
    for the beginning of a text where nothing is short."""
    if controller is None:
        return ""
    if controller.parts:
        parts = (f"{p.weight:g} x {p.kind} ({settings_line(p)})" for p in controller.parts)
        return " + ".join(parts)
    config = controller.config
    shown = {k: v for k, v in config.items() if v is not None and k != "fitted_for"}
    shown |= {k: weights for k, v in shown.items() if (weights := _weights(v))}
    short = [f"{k} {v}" for k, v in shown.items() if _is_short(v)]
    if shown and not short:
        texts = [f"{k} “{v[:BEGINNING].strip()}…”" for k, v in shown.items() if isinstance(v, str)]
        return next(iter(texts), "…")
    return ", ".join([*short, "…"] if len(short) < len(shown) else short)


def _is_short(value: Any) -> bool:
    return isinstance(value, (int, float)) or (isinstance(value, str) and len(value) <= LONGEST)


def _weights(value: Any) -> str:
    """The weights of what is added up, where a setting lists that."""
    parts = value if isinstance(value, list) else []
    found = [part["weight"] for part in parts if isinstance(part, dict) and "weight" in part]
    return " + ".join(f"{weight:g}" for weight in found).replace("+ -", "- ")


def conditions_of(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """What a run depends on, in rows of a term and what it was; an older run knows less."""
    settings, where = manifest.settings, manifest.conditions
    if model := settings.model:
        yield "Model", f"{model.name} ({model.kind}, {model.dtype}, weights {model.weights})"
    if prompts := settings.prompts:
        yield "Prompts", _prompts(manifest, prompts)
    paths = manifest.data.judges if manifest.data else {}
    judges = (_judge(j, settings.judge_details.get(j), paths.get(j)) for j in settings.judges)
    yield "Judges", ", ".join(judges)
    scorer = settings.scorer
    yield "Perplexity under", "the base without steering" if scorer.is_base else scorer.name
    if settings.chat:
        yield "Chats", _chat(settings.chat)
    yield "Decoding", _decoding(settings)
    if outside := settings.perplexity_model:
        yield "Outside perplexity under", f"{outside.name} ({outside.kind}, {outside.dtype})"
    if manifest.command:
        yield "Command", manifest.command
    yield "Versions", ", ".join(f"{k} {v}" for k, v in manifest.versions.items())
    if where:
        yield (
            "Measured on",
            f"{where.processor} ({where.device}), {where.threads} threads, Python {where.python}, "
            f"{where.platform}",
        )


def _prompts(manifest: Manifest, prompts: PromptsRecord) -> str:
    source = "of the pocket world" if manifest.pocket else "given as texts"
    source = (manifest.data and manifest.data.path) or source
    return f"{prompts.count} ({source}), SHA-256 {prompts.sha256[:16]}"


def _decoding(settings: Settings) -> str:
    """How answers were made; settings at which nothing happens are left out."""
    least, most = settings.min_new_tokens, settings.max_new_tokens
    length = f"{least} to {most} tokens" if least else f"at most {most} tokens"
    parts = [f"greedy, {length}"]
    if settings.num_beams > 1:
        parts = [f"beam search with {settings.num_beams} beams, {length}"]
    elif not settings.greedy:
        parts = [f"{settings.samples} samples of {length}", f"top-p {settings.top_p:g}"]
        parts += [f"top-k {settings.top_k}"] if settings.top_k else []
        parts += [f"temperature {settings.temperature:g}", f"seed {settings.seed}"]
    if settings.repetition_penalty != 1:
        parts.append(f"repetition penalty {settings.repetition_penalty:g}")
    return ", ".join([*parts, f"batches of {settings.batch_size}"])


def _chat(chat: ChatRecord) -> str:
    """Whether prompts were chats, and why."""
    if not chat.used:
        return f"no: {chat.why}"
    shown = f"yes: {chat.why}; chat template {chat.template}"
    return shown if chat.system is None else f"{shown}, system message “{chat.system}”"


def _judge(name: str, record: JudgeRecord | None, path: str | None) -> str:
    """A judge by its name, what it is and where it came from."""
    if record is None:
        return name
    known = [record.kind, *([path] if path else [])]
    known += [f"SHA-256 {record.sha256.split(':')[-1][:16]}"] if record.sha256 else []
    known += [f"toxic from {record.threshold:g}"] if record.threshold is not None else []
    return f"{name} ({', '.join(known)})"
