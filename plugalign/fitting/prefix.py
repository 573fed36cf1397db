"""Trains one key/value prefix for each class of texts, by a contrastive loss.

``L = w_d * (-log softmax_c(-NLL_c(x))[y]) + w_g * NLL_y(x)`` over the classes c of a text x with
class y (Qian et al. 2022, equations 2 to 4): the right prefix must explain the text, and explain it
better than the other one. Each prefix comes from a small matrix through a two-layer map (PEFT's
prefix encoder). It starts as the keys and values that the model itself keeps of a real text of
the class, so training begins at a model that still writes its language. The model stays frozen.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import DynamicCache

from plugalign.adapters.layers import shared_copy
from plugalign.controllers.prefix_tuning import PrefixContrast, PrefixTuning
from plugalign.engine.prefixing import cache_shape
from plugalign.fitting.data import Labelled, encode
from plugalign.fitting.fudge import labelled_batches
from plugalign.fitting.training import (
    check_finite,
    check_settings,
    fingerprint,
    train,
    working_folder,
)
from plugalign.identity import Identity


def fit_prefix(
    model: Any,
    tokenizer: Any,
    data: Labelled,
    out: Path,
    *,
    desired: str | None = None,
    prefix_length: int = 10,
    width: int = 256,
    steps: int = 400,
    batch_size: int = 16,
    lr: float = 1e-3,
    w_d: float = 0.5,
    w_g: float = 0.5,
    max_length: int = 32,
    seed: int = 0,
    contrast: bool = False,
    alpha: float = 2.0,
) -> PrefixTuning | PrefixContrast:
    """Trains the prefixes of both classes and saves the controller in ``out``.

    A run that was killed and is started again continues. The model given is not changed.

    Args:
        desired: the label of the desired class, see `Labelled.binary`.
        prefix_length: P, positions of each prefix.
        width: of the map between the small matrix and the keys and values.
        lr: small models need far more than the paper's 5e-5 for GPT-2 medium.
        w_d: weight of telling the classes apart. w_g: of explaining the text.
        max_length: of a training text, in tokens; longer ones are cut.
        contrast: makes a controller of both prefixes, which adds ``alpha`` times their difference,
            instead of one that generates behind the desired prefix.

    Raises:
        ValueError: for settings out of range, or data without both classes.
        ImportError: if peft is missing; names the extra.
    """
    check_settings(
        prefix_length=prefix_length, width=width, steps=steps, batch_size=batch_size, lr=lr,
        max_length=max_length,
    )  # fmt: skip
    check_finite(w_d=w_d, w_g=w_g, alpha=alpha)
    sides = [encode(tokenizer, texts, max_length, end=False) for texts in data.binary(desired)]
    good, bad = ([row for row in rows if len(row) > 1] for rows in sides)
    origin = Identity.of(model, tokenizer)
    prefixes = Prefixes(model, tokenizer, (good, bad), prefix_length, width, seed)
    batch = labelled_batches(good, bad, batch_size, seed, model.device)

    def loss(step: int) -> Tensor:
        ids, mask, label, _ = batch(step)
        return contrastive_loss(prefixes.nll(ids, mask), (label == 0).long(), w_d, w_g)

    made_of = fingerprint(
        good, bad, prefix_length, width, batch_size, float(w_d), float(w_g), origin.to_dict()
    )
    with working_folder(out) as work:
        train(
            parameters=dict(prefixes.encoders.named_parameters()), loss=loss, steps=steps, lr=lr,
            title=f"prefixes ({len(good)} + {len(bad)} texts)", seed=seed, run=made_of,
            checkpoint=work / "prefix.checkpoint",
        )  # fmt: skip
        with torch.no_grad():
            pair = prefixes.keys_values().detach().cpu()
        fitted = PrefixTuning(pair[0].clone(), pair[1].clone(), fitted_for=origin)
        controller = fitted.against(alpha) if contrast else fitted
        controller.save_pretrained(out)
    return controller


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
    """

    def __init__(self, model: Any, tokenizer: Any, texts: Any, length: int, width: int, seed: int):
        self.model = shared_copy(model)  # frozen: gradients pass through it and stay nowhere
        self.length, self.shape = length, cache_shape(model)
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
        moved = [encoder(positions).view(self.length, layers, 2, heads, size)
                 for encoder in self.encoders]  # fmt: skip
        return self.start + torch.stack([m.permute(1, 2, 3, 0, 4) for m in moved])

    def nll(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Each text's negative log-likelihood behind each prefix, ``(C, B)``, after its first
        token. Texts ``(B, T)`` are right-padded."""
        pairs = self.keys_values().to(self.model.dtype)
        rows, classes = len(ids), len(pairs)
        cache = DynamicCache()
        for layer in range(pairs.shape[1]):
            keys, values = (pairs[:, layer, i].repeat_interleave(rows, 0) for i in (0, 1))
            cache.update(keys, values, layer)
        ids, mask = ids.repeat(classes, 1), mask.repeat(classes, 1)
        front = mask.new_ones(len(mask), self.length)
        columns = torch.arange(self.length, self.length + ids.shape[1], device=ids.device)
        logits = self.model(
            input_ids=ids, attention_mask=torch.cat([front, mask], 1), use_cache=True,
            position_ids=columns[None].expand(len(ids), -1), past_key_values=cache,
        ).logits  # fmt: skip
        losses = cross_entropy(logits[:, :-1].float().transpose(1, 2), ids[:, 1:], reduction="none")
        return (losses * mask[:, 1:]).sum(1).view(classes, rows)


def _start(model: Any, tokenizer: Any, texts: Any, length: int) -> Tensor:
    """What the model keeps of the first texts of a class, ``(layers, 2, H_kv, P, D_head)``."""
    ids = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    for row in texts:
        ids += row
        if len(ids) >= length:
            break
    ids = (ids * length)[:length]
    cache = DynamicCache()
    with torch.no_grad():
        model(
            input_ids=torch.tensor([ids], device=model.device), past_key_values=cache,
            use_cache=True,
        )  # fmt: skip
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
        task_type="CAUSAL_LM", num_virtual_tokens=length, token_dim=heads * size,
        num_layers=layers, num_attention_heads=heads, encoder_hidden_size=width,
        prefix_projection=True, num_transformer_submodules=1,
    )  # fmt: skip
    encoder: Any = PrefixEncoder(config)
    nn.init.zeros_(encoder.transform[-1].weight)
    nn.init.zeros_(encoder.transform[-1].bias)
    return encoder
