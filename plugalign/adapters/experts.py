"""Experts from folders and hub ids: whole models and LoRA adapters of the base."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import StrictDataclassError
from pydantic import BaseModel, ConfigDict
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.peft_utils import find_adapter_config_file

from plugalign.adapters.options import CONFIG
from plugalign.algebra.identity import model_name, vocabulary_hash
from plugalign.files.pretrained import NOWHERE, is_bare, is_nowhere
from plugalign.files.saved import read_settings

AGAIN = "save the model and its tokenizer there again with save_pretrained"
TRUST = "read that code, and give trust_remote_code=True to the controller if it may run"
# What transformers raises on a folder that is damaged, from reading a file to building the model.
DAMAGE = (
    OSError,
    SafetensorError,
    StrictDataclassError,
    ValueError,
    RuntimeError,
    TypeError,
    KeyError,
    AttributeError,
)


# The files of tokenizers of every kind, of which save_pretrained of a model alone writes none.
TOKENIZER_FILES = ("*token*", "vocab*", "*.model")


class ModelConfig(BaseModel):
    """What every model's config.json must say."""

    model_config = ConfigDict(protected_namespaces=(), extra="allow", strict=True)

    model_type: str


def adapter_folder(expert: str | Path) -> Path | None:
    """The folder of the adapter that an expert is, also one on the hub; None for a whole model.

    Raises:
        ValueError: for a folder that holds neither; names what does.
    """
    path = Path(expert)
    if (path / CONFIG).is_file():
        return path
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ValueError(_neither(path))
        return None
    with _loading(expert):
        if find_adapter_config_file(str(expert)) is None:
            return None
        return Path(snapshot_download(str(expert), allow_patterns=["adapter_*"]))


def _neither(path: Path) -> str:
    named = [each.parent.name for each in sorted(path.glob(f"*/{CONFIG}"))]
    cure = f"give the folder of one of its adapters: {', '.join(named)}" if named else AGAIN
    return f"{path} holds neither a model (config.json) nor an adapter ({CONFIG}); {cure}"


def load_model(expert: str | Path, base: Any, tokenizer: Any, *, trust_remote_code: bool) -> Any:
    """A whole model that goes beside the base: in its precision, on its device, in eval mode. A
    folder without a tokenizer is taken as a model that is given as an object: its width is checked.

    Args:
        trust_remote_code: whether code that comes with the model may run.

    Raises:
        ValueError: if it cannot be loaded, lacks weights, or has another tokenizer than the base;
            names it.
    """
    path, options = Path(expert), {"trust_remote_code": trust_remote_code}
    if path.is_dir():
        read_settings(path / "config.json", ModelConfig, AGAIN)
    if not path.is_dir() or _has_tokenizer(path):
        with _loading(expert):
            own = AutoTokenizer.from_pretrained(expert, **options)
        check_tokenizer(expert, own, base, tokenizer)
    with _loading(expert):
        model, found = AutoModelForCausalLM.from_pretrained(
            expert, dtype=base.dtype, output_loading_info=True, **options
        )
    if missing := sorted(found["missing_keys"]):
        raise ValueError(
            f"'{expert}' lacks {len(missing)} of its weights, '{missing[0]}' for one; {AGAIN}"
        )
    check_width(model, base, tokenizer)
    return model.to(base.device).eval()


def _has_tokenizer(folder: Path) -> bool:
    return any(file for pattern in TOKENIZER_FILES for file in folder.glob(pattern))


@contextmanager
def _loading(expert: str | Path) -> Iterator[None]:
    """One clear error where a model cannot be loaded."""
    try:
        yield
    except Exception as error:
        if not (isinstance(error, DAMAGE) or is_bare(error)):
            raise
        if is_nowhere(error):
            raise ValueError(f"the expert '{expert}' cannot be loaded: {NOWHERE}") from error
        reason = shorten(str(error) or type(error).__name__, 400)
        cure = TRUST if "trust_remote_code" in str(error) else AGAIN
        raise ValueError(f"the expert '{expert}' cannot be loaded: {reason}; {cure}") from error


def check_tokenizer(expert: str | Path, own: Any, base: Any, tokenizer: Any) -> None:
    """Refuses an expert whose own tokenizer has another vocabulary than the base's."""
    if vocabulary_hash(own) != vocabulary_hash(tokenizer):
        raise ValueError(
            f"'{expert}' and '{model_name(base)}' have different tokenizers ({len(own)} and "
            f"{len(tokenizer)} tokens), so their logits cannot be added; take an expert made "
            "with the base's tokenizer"
        )


def check_width(expert: Any, base: Any, tokenizer: Any) -> None:
    """Refuses an expert whose head is too narrow for the base's vocabulary. Heads that are
    padded to different widths are aligned by the engine."""
    width = expert.get_output_embeddings().weight.shape[0]
    own = base.get_output_embeddings().weight.shape[0]
    if width != own and width < len(tokenizer):
        raise ValueError(
            f"'{model_name(expert)}' scores {width} tokens but '{model_name(base)}' has "
            f"{len(tokenizer)}; they have different tokenizers, so their logits cannot be added"
        )
