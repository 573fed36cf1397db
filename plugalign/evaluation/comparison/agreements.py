"""How far the judges of a comparison agree with reference scores, set by set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from plugalign.evaluation.judging.agreement import agreement
from plugalign.evaluation.judging.load import Judge
from plugalign.evaluation.run_folder.manifest import AgreementSet
from plugalign.files.fingerprint import file_hash
from plugalign.files.shown import check_name, shown
from plugalign.loading import load_references

References = str | Path | Sequence[str | Path] | Mapping[str, str | Path]


def agreements(judges: Mapping[str, Judge], given: References | None) -> list[AgreementSet]:
    """How far every judge agrees with the reference scores in each of these files.

    Args:
        judges: by name.
        given: a file, several, or files by the names that they have in table and report; without
            one a set has its file's name.

    Raises:
        ValueError: naming the file, if it is malformed or cannot tell a judge from a coin, or a
            name that cannot be.
    """
    return [_agreement(judges, name, path) for name, path in named_files(given).items()]


def named_files(given: References | None) -> dict[str, Path]:
    """The files by name; those of several folders that are called alike have their paths.

    Raises:
        ValueError: for an argument of another type, or a name that cannot be.
    """
    if isinstance(given, Mapping):
        files = dict(given)
    elif isinstance(given, (str, Path)):
        files = {Path(given).name: given}
    elif given is None or isinstance(given, (list, tuple)):
        paths = list(dict.fromkeys(map(_path, given or ())))
        alike = Counter(path.name for path in paths)
        files = {path.name if alike[path.name] == 1 else str(path): path for path in paths}
    else:
        raise ValueError(f"agreement takes a file, a list, or files by name, got {shown(given)}")
    for name in files:
        if not isinstance(name, str):
            raise ValueError(f"agreement takes files by name, got the name {shown(name)}")
        check_name(name, "a reference set")
    return {name: _path(file) for name, file in files.items()}


def _path(given: object) -> Path:
    if not isinstance(given, (str, Path)) or not str(given).strip():
        raise ValueError(f"agreement takes paths of files, got {shown(given)}")
    return Path(given)


def _agreement(judges: Mapping[str, Judge], source: str, path: Path) -> AgreementSet:
    texts, references = load_references(path)
    found = {}
    for name, judge in judges.items():
        verdicts = judge.verdicts(texts)
        try:
            found[name] = agreement(verdicts.scores, references)
        except ValueError as error:
            reason = f" ({verdicts.first_error})" if verdicts.failed else ""
            raise ValueError(f"{path}, judge {name!r}: {error}{reason}") from error
    return AgreementSet(source=source, sha256=file_hash(path), judges=found)
