"""Trains one key/value prefix for each class of texts, by a contrastive loss.

``L = w_d * (-log softmax_c(-NLL_c(x))[y]) + w_g * NLL_y(x)`` over the classes c of a text x with
class y (Qian et al. 2022, equations 2 to 4): the right prefix must explain the text, and explain it
better than the other one. Each prefix comes from a small matrix through a two-layer map (PEFT's
prefix encoder). It starts as the keys and values that the model itself keeps of a real text of
the class, so training begins at a model that still writes its language. The model stays frozen.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import DynamicCache

from plugalign.adapters.layers import shared_copy
from plugalign.algebra.identity import identify
from plugalign.controllers.prefix_tuning import PrefixContrast, PrefixTuning
from plugalign.engine.readers.prefix_hook import cache_shape
from plugalign.fitting import workspace
from plugalign.fitting.answers import followed, frame_of
from plugalign.fitting.budget import affordable_look, affordable_steps, remember
from plugalign.fitting.clock import Clock
from plugalign.fitting.data import Labelled
from plugalign.fitting.held_out import HeldOut
from plugalign.fitting.labelled import Examples, auc, encoded
from plugalign.fitting.settings import (
    Count,
    FitSettings,
    LearningRate,
    Minutes,
    Seed,
    Weight,
    check_context,
    fit_function,
)
from plugalign.fitting.training import train

TRAINING = 0.97  # share of the time, but for what it takes to measure


class PrefixSettings(FitSettings):
    """Settings of `fit_prefix`.

    Attributes:
        desired: the label of the desired class, see `Labelled.binary`.
        prefix_length: P, positions of each prefix.
        width: of the map between the small matrix and the keys and values.
        steps: at most; it ends when held-out texts are classified and explained no better.
        lr: small models need far more than the paper's 5e-5 for GPT-2 medium.
        w_d: weight of classifying; w_g: of explaining the text.
        max_length: of a training text, in tokens; longer ones are cut.
        contrast: makes a controller of both prefixes, which adds ``alpha`` times their difference,
            instead of one that generates behind the desired prefix.
        minutes: make fewer steps where these take longer.
    """

    desired: str | None = None
    prefix_length: Count = 10
    width: Count = 256
    steps: Count = 400
    batch_size: Count = 16
    lr: LearningRate = 1e-3
    w_d: Weight = 0.5
    w_g: Weight = 0.5
    max_length: Count = 32
    seed: Seed = 0
    contrast: bool = False
    alpha: Weight = 2.0
    minutes: Minutes | None = None

    def recorded(self) -> dict[str, Any]:
        """For fit.json. The method's name says that both prefixes are used."""
        found = super().recorded() | {"alpha": self.alpha if self.contrast else None}
        return {name: value for name, value in found.items() if name != "contrast"}


@fit_function(PrefixSettings)
def fit_prefix(
    model: Any, tokenizer: Any, data: Labelled, out: Path, settings: PrefixSettings
) -> PrefixTuning | PrefixContrast:
    """Trains the prefixes of both classes and saves the controller in ``out``.

    A run that was killed and is started again continues. The model given is not changed. The
    keyword arguments are those of `PrefixSettings`.

    Raises:
        ValueError: for settings out of range, or data without both classes.
        ImportError: if peft is missing; names the extra.
    """
    frame = frame_of(model, tokenizer, settings)
    check_context(model, len(frame.context) + settings.max_length + settings.prefix_length)
    sides = data.binary(settings.desired)

    def work(folder: Path, result: Path) -> dict[str, Any]:
        clock = Clock(settings.minutes).part(TRAINING)
        learnt, held = encoded(
            tokenizer, sides, settings.max_length, settings.seed, end=True, least=2, frame=frame
        )
        said = len(frame.context)  # prefixes start from texts alone
        prefixes = Prefixes(
            model,
            tokenizer,
            [[row[said:] for row in side] for side in learnt.sides()],
            settings.prefix_length,
            settings.width,
            settings.seed,
            frame.first,
        )
        measured = _trained(prefixes, learnt, held, settings, folder, clock)
        with torch.no_grad():
            pair = prefixes.keys_values().detach().cpu()
        origin = identify(model, tokenizer)
        fitted = PrefixTuning(pair[0].clone(), pair[1].clone(), fitted_for=origin)
        chosen = fitted.against(settings.alpha) if settings.contrast else fitted
        chosen.save_pretrained(result)
        return measured

    method = "prefix_contrast" if settings.contrast else "prefix"
    about = frame.record()
    record = workspace.record(method, model, tokenizer, data, settings.recorded(), about)
    workspace.make(out, record, work, workspace.write_data_sheet)
    kind = PrefixContrast if settings.contrast else PrefixTuning
    fitted: PrefixTuning | PrefixContrast = kind.from_pretrained(out)
    return fitted


def _trained(
    prefixes: Prefixes,
    learnt: Examples,
    held: Examples,
    settings: PrefixSettings,
    folder: Path,
    clock: Clock,
) -> dict[str, Any]:
    """Trains the prefixes in place and measures them on the held-out texts."""
    pick = learnt.picks(settings.batch_size, settings.seed)

    def loss(step: int) -> Tensor:
        ids, mask, seen, label, _ = learnt.batch(pick(step), prefixes.model.device)
        nll = prefixes.nll(ids, mask, seen)
        return contrastive_loss(nll, (label == 0).long(), settings.w_d, settings.w_g)

    parameters, title = dict(prefixes.encoders.named_parameters()), "prefixes"
    note = folder / "prefix.json"

    def look(texts: int) -> float:
        return _judged(prefixes, held.first(texts), settings)[0]

    looked, read = folder / "look.json", settings.steps * settings.batch_size
    looking = affordable_look(look, len(held), parameters, clock, read=read, note=looked)
    clock = clock.part(but=looking.each * len(held))
    steps, looks = affordable_steps(
        loss,
        parameters,
        settings.steps,
        clock,
        title=title,
        note=note,
        looking=lambda: looking.seconds,
    )
    remember(looked, looking._asdict())
    watch = HeldOut(partial(look, looking.texts), looks) if looking.texts else None
    losses = train(
        parameters=parameters,
        loss=loss,
        steps=steps,
        most=settings.steps,
        lr=settings.lr,
        title=title,
        seed=settings.seed,
        checkpoint=folder / "prefix.checkpoint",
        held_out=watch,
        clock=clock,
    )
    if watch is None:
        return {"steps": len(losses)}
    return {
        "steps": len(losses),
        "held_out": {
            **watch.best,
            "texts": len(held.first(looking.texts)),
            "auc": _judged(prefixes, held, settings)[1],
        },
    }


@torch.no_grad()
def _judged(prefixes: Prefixes, held: Examples, settings: PrefixSettings) -> tuple[float, float]:
    """The mean loss of held-out texts, and the AUC of their likelihoods' ratio."""
    total, scores, labels = 0.0, [], []
    for texts in held.in_order(settings.batch_size):
        ids, mask, seen, label, _ = held.batch(texts, prefixes.model.device)
        nll = prefixes.nll(ids, mask, seen)
        loss = contrastive_loss(nll, (label == 0).long(), settings.w_d, settings.w_g)
        total += len(texts) * float(loss)
        scores.append(nll[1] - nll[0])
        labels.append(label)
    return total / len(held), auc(torch.cat(scores), torch.cat(labels))


def contrastive_loss(nll: Tensor, label: Tensor, w_d: float, w_g: float) -> Tensor:
    """``w_d`` times telling the classes apart plus ``w_g`` times explaining the text.

    Args:
        nll: each text's negative log-likelihood behind each class's prefix ``(C, B)``, in nats.
        label: the class of each text ``(B,)``.
    """
    apart = cross_entropy(-nll.T, label)
    return w_d * apart + w_g * nll.gather(0, label[None]).mean()


class Prefixes:
    """The prefixes in training: where they start, and the encoders that move them from there.

    Args:
        texts: token ids of each class's texts, desired first.
        shared: so many tokens are the same in all texts that are read, and nothing is learnt of
            them: they are read once behind each prefix.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        texts: Any,
        length: int,
        width: int,
        seed: int,
        shared: int = 0,
    ):
        self.model = shared_copy(model)  # frozen: gradients pass through it and stay nowhere
        self.length, self.shared, self.shape = length, shared, cache_shape(model)
        starts = [_start(model, tokenizer, rows, length) for rows in texts]
        self.start = torch.stack(starts).float()  # (C, layers, 2, H_kv, P, D_head)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            encoders = [_encoder(self.shape, length, width) for _ in texts]
        self.encoders = nn.ModuleList(encoders).to(model.device)

    def keys_values(self) -> Tensor:
        """The prefixes as they are now, ``(C, layers, 2, H_kv, P, D_head)``."""
        layers, heads, size = self.shape
        positions = torch.arange(self.length, device=self.start.device)[None]
        moved = [
            encoder(positions).view(self.length, layers, 2, heads, size)
            for encoder in self.encoders
        ]
        return self.start + torch.stack([m.permute(1, 2, 3, 0, 4) for m in moved])

    def nll(self, ids: Tensor, mask: Tensor, learnt: Tensor | None = None) -> Tensor:
        """Each text's negative log-likelihood behind each prefix, ``(C, B)``, after its first
        token. Texts ``(B, T)`` are right-padded.

        Args:
            learnt: the columns ``(B, T)`` behind which tokens count; all by default.
        """
        pairs = self.keys_values().to(self.model.dtype)
        rows, classes, shared = len(ids), len(pairs), self.shared
        cache = DynamicCache()
        for layer in range(pairs.shape[1]):
            cache.update(pairs[:, layer, 0], pairs[:, layer, 1], layer)
        counted = followed((mask if learnt is None else learnt)[:, shared:]).repeat(classes, 1)
        mask = torch.cat([mask.new_ones(len(mask), self.length), mask], 1)
        if shared:
            self._logits(ids[:1, :shared], mask[:1, : self.length + shared], cache, classes)
        cache.batch_repeat_interleave(rows)
        ids = ids[:, shared:]
        logits = self._logits(ids, mask, cache, classes)[:, :-1].float()
        targets = ids[:, 1:].repeat(classes, 1)
        losses = cross_entropy(logits.transpose(1, 2), targets, reduction="none")
        return (losses * counted).sum(1).view(classes, rows)

    def _logits(self, ids: Tensor, mask: Tensor, cache: Any, classes: int) -> Tensor:
        """The logits of rows ``(R, n)`` behind what a cache holds of each class, ``(C R, n, V)``.

        Args:
            mask: of all that is read then, ``(R, T)``.
        """
        place = torch.arange(mask.shape[1] - ids.shape[1], mask.shape[1], device=ids.device)[None]
        logits: Tensor = self.model(
            input_ids=ids.repeat(classes, 1),
            attention_mask=mask.repeat(classes, 1),
            use_cache=True,
            position_ids=place.expand(classes * len(ids), -1),
            past_key_values=cache,
        ).logits
        return logits


def _start(model: Any, tokenizer: Any, texts: Any, length: int) -> Tensor:
    """What the model keeps of the first texts of a class, ``(layers, 2, H_kv, P, D_head)``."""
    ids = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    for row in texts:
        ids += row
        if len(ids) >= length:
            break
    row = torch.tensor([(ids * length)[:length]], device=model.device)
    cache = DynamicCache()
    with torch.no_grad():
        model(
            input_ids=row,
            attention_mask=torch.ones_like(row),
            past_key_values=cache,
            use_cache=True,
        )
    return torch.stack([torch.stack([layer.keys[0], layer.values[0]]) for layer in cache.layers])


def _encoder(shape: tuple[int, int, int], length: int, width: int) -> Any:
    """PEFT's prefix encoder; its last map starts at zero, so that nothing moves at first."""
    try:
        from peft import PrefixTuningConfig
        from peft.tuners.prefix_tuning import PrefixEncoder
    except ImportError as error:
        raise ImportError("prefix tuning needs peft: pip install 'plugalign[train]'") from error
    layers, heads, size = shape
    config = PrefixTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=length,
        token_dim=heads * size,
        num_layers=layers,
        num_attention_heads=heads,
        encoder_hidden_size=width,
        prefix_projection=True,
        num_transformer_submodules=1,
    )
    encoder: Any = PrefixEncoder(config)
    nn.init.zeros_(encoder.transform[-1].weight)
    nn.init.zeros_(encoder.transform[-1].bias)
    return encoder
