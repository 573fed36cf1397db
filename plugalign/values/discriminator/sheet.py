"""The data sheet of a discriminator: what it learned from, what it is worth, what it is for."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from plugalign.evaluation.statistics.paired import Interval
from plugalign.files.saved import read_settings

FILE, README = "sheet.json", "README.md"
AGAIN = "fit the discriminator again"
INTENDED = (
    "To score texts of the kind it learned from by this one value: as a judge of plugalign compare "
    "beside other judges, as a gate, or as a guide of decoding. Not to decide about people."
)
LIMITS = (
    "It reads what separates its two classes, which may be words alone: compare its AUC with "
    "that of TF-IDF. For texts of another kind, or another statement, its figures do not hold; "
    "between values of different kinds heads transferred weakly and unevenly where that was "
    "measured (AUC .41 to .73). Verdict sets hold for texts exchangeable with those that "
    "calibrated them; a set without any label is shown as undecided and counts as one that holds "
    "the label, so the coverage stated here is that of the conformal sets or higher. It learned "
    "from plain texts: as a guide, gate or scorer in a chat it also reads the template's tokens, "
    "and what it is worth there was not measured."
)


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class DataFile(_Part):
    """A file of labelled texts."""

    name: str
    sha256: str


class HeldOut(_Part):
    """What was measured on texts that neither the head nor its calibration has seen.

    Attributes:
        auc: that the head ranks a text that conforms above one that does not.
        tfidf: the same of TF-IDF and a logistic regression on the same texts; None where these
            share too few words. over_tfidf: the paired difference of the two; sheets of before lack
            it.
        coverage: the share of texts whose verdict set holds their label.
        decided: the share of texts with a single verdict.
        correct: the share of single verdicts that are the label.
    """

    texts: int
    auc: Interval
    tfidf: Interval | None
    over_tfidf: Interval | None = None
    coverage: Interval
    decided: Interval
    correct: Interval | None


class Sheet(_Part):
    """What a discriminator is.

    Attributes:
        files: none where there were no labels, or where these were given as objects.
        licence: of the data, as the user says.
        learned, calibrated: the numbers of texts of either part.
        level: the coverage that verdict sets were calibrated for.
        layers: the cross-validated AUC of each layer that was tried, where there were several.
        held_out: None where there were no labels.
    """

    statement: str
    model: str
    files: tuple[DataFile, ...] = ()
    licence: str | None = None
    conforming: int = 0
    breaking: int = 0
    learned: int = 0
    calibrated: int = 0
    level: float = 0.9
    layers: dict[int, float] = {}
    held_out: HeldOut | None = None

    @property
    def finding(self) -> str:
        """What it is worth, in one sentence."""
        found = self.held_out
        if found is None:
            return "unvalidated: it was measured on no labelled text"
        if found.auc.low <= 0.5:
            return f"not better than chance: AUC {ranged(found.auc)}"
        plain, gain = found.tfidf, found.over_tfidf
        if plain is None or (gain is not None and gain.low > 0):
            return f"better than chance: AUC {ranged(found.auc)}"
        beside = ranged(plain) if gain is None else f"{ranged(plain)}; difference {ranged(gain)}"
        return f"better than chance (AUC {ranged(found.auc)}), not better than TF-IDF ({beside})"

    def summary(self) -> str:
        """What a command says at the end."""
        found, said = self.held_out, f"{self.statement!r} by {self.model}: {self.finding}"
        if found is None:
            return said
        if found.tfidf is not None and "TF-IDF" not in said:
            said += f" (TF-IDF: {ranged(found.tfidf)})"
        return (
            f"{said}, on {found.texts} held-out texts. Verdict sets at "
            f"{self.level:.0%} hold the label of {found.coverage.value:.0%}, "
            f"{found.decided.value:.0%} of texts have a single verdict"
        )

    @classmethod
    def load(cls, folder: Path) -> Sheet:
        """Reads sheet.json in ``folder``.

        Raises:
            ValueError: if it is missing or damaged; names it.
        """
        return read_settings(folder / FILE, cls, AGAIN)

    def save(self, folder: Path) -> None:
        """Writes sheet.json and README.md into ``folder``."""
        text = self.model_dump_json(indent=2)
        (folder / FILE).write_text(text + "\n", encoding="utf-8")
        (folder / README).write_text(self.markdown(), encoding="utf-8")

    def markdown(self) -> str:
        """The sheet as a page."""
        rows = [f"| {name} | {value} |" for name, value in self._rows()]
        head = [f"# {self.statement}", "", f"A value discriminator: {self.finding}.", ""]
        table = ["| | |", "|---|---|", *rows, ""]
        ends = ["## Intended use", "", INTENDED, "", "## Limits", "", LIMITS, ""]
        return "\n".join([*head, *table, *ends])

    def _rows(self) -> list[tuple[str, str]]:
        rows = [("statement", self.statement), ("model", self.model)]
        if self.held_out is None:
            return [*rows, ("data", "none")]
        found, gain = self.held_out, self.held_out.over_tfidf
        files = ", ".join(f"{each.name} ({each.sha256[:16]})" for each in self.files)
        tried = ", ".join(f"{layer}: {auc:.3f}" for layer, auc in self.layers.items())
        return [
            *rows,
            ("data", files or "given as texts"),
            ("licence of the data", self.licence or "not given"),
            ("texts", f"{self.conforming} conform, {self.breaking} break the value"),
            ("learned from, calibrated on", f"{self.learned}, {self.calibrated}"),
            ("layers, cross-validated AUC", tried or "one layer"),
            ("held-out texts", str(found.texts)),
            ("held-out AUC", ranged(found.auc)),
            ("AUC of TF-IDF", "no words in common" if found.tfidf is None else ranged(found.tfidf)),
            ("AUC above that of TF-IDF", "-" if gain is None else ranged(gain)),
            ("coverage of verdict sets", ranged(found.coverage)),
            ("texts with a single verdict", ranged(found.decided)),
            ("of these correct", "-" if found.correct is None else ranged(found.correct)),
        ]


def ranged(interval: Interval) -> str:
    """An estimate with its interval."""
    return f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"
