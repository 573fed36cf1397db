"""Instrument files: JSON, checked before any model is asked.

A file of a published instrument needs no more than its scale and its items::

    {"name": "...", "source": "...", "licence": "...",
     "scale": {"relevance": ["not at all relevant", ...], "agreement": [...]},
     "items": [{"id": 1, "part": "relevance", "foundation": "care", "text": "..."},
               {"id": 2, "part": "agreement", "foundation": "care", "text": "...",
                "reversed": true},
               {"id": 3, "part": "agreement", "catch": "high", "text": "..."}]}

``scale`` may be one list, for items without parts. "foundation" and "dimension" are one thing; an
item of the foundation "catch" is a catch item, whose expected answer is low in the part "relevance"
and high in "agreement" unless ``"catch": "low"`` or ``"high"`` says so. ``"PART_prompt"`` is the
instruction of a part. For the parts "relevance" and "agreement" (and items without parts count as
"agreement") wordings, content-free items and validity items ship with the package; ``"parts"``
replaces them, and gives those of any other part. The validity items that ship are frames, by the
number in their ids, each filled in for both ends: the ends are alike in tone, length, syntax and
what words the frames share, and differ in what is said. Items of your own should, too::

    "parts": {"likeness": {"wordings": [{"instruction": "...", "question": "{item}\\nAnswer:"},
                                        ...],
                           "content_free": ["N/A", ...], "contrast": ["like", "unlike"],
                           "validity": [{"id": "v1", "expected": "high", "valence": "good",
                                         "text": "..."}, ...]}}
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AliasChoices, BaseModel, ConfigDict, Field

from plugalign.files.json_text import read_object
from plugalign.files.shown import listed, printable, shown
from plugalign.files.typed import validated
from plugalign.values.questionnaire.instrument import Expected, Instrument, Item, Part, Wording

FOLDER = Path(__file__).with_name("instruments")
SHIPPED = {"foundations": "foundations.json", "basic-values": "basic_values.json"}
CATCH, DEFAULT_PART, PROMPT = "catch", "agreement", "_prompt"
USUAL_CATCH: Mapping[str, Expected] = {"relevance": "low", "agreement": "high"}
WORDINGS, VALIDITY = 3, 12  # the least: runs, and validity items of each end
MOST_LEVELS = 26  # answers that letters can name


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("a text is needed")
    return text


def _question(text: str) -> str:
    if text.count("{item}") != 1 or text.endswith(" "):
        raise ValueError("a question holds {item} once, and ends without a blank")
    return text


Text = Annotated[str, AfterValidator(_not_blank)]
Question = Annotated[Text, AfterValidator(_question)]
Scale = Annotated[list[Text], Field(min_length=2, max_length=MOST_LEVELS)]


class _Checked(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class WordingEntry(_Checked):
    """See `plugalign.values.questionnaire.instrument.Wording`."""

    instruction: Text
    question: Question


class ValidityEntry(_Checked):
    """An item of which is known how a reader answers."""

    id: int | Text
    text: Text
    expected: Expected
    valence: Literal["good", "bad"]


class PartEntry(_Checked):
    """How a part is asked; what is None ships with the package."""

    instruction: Text | None = None
    wordings: list[WordingEntry] | None = Field(default=None, min_length=WORDINGS)
    content_free: list[Text] | None = Field(default=None, min_length=1)
    contrast: tuple[Text, Text] | None = Field(default=None, strict=False)
    validity: list[ValidityEntry] | None = None


class ItemEntry(_Checked):
    """An item, or a catch item."""

    id: int | Text
    text: Text
    part: Text = DEFAULT_PART
    dimension: Text | None = Field(None, validation_alias=AliasChoices("dimension", "foundation"))
    reversed: bool = False
    catch: Expected | None = None


class InstrumentFile(_Checked):
    """What an instrument file holds."""

    name: Text
    scale: Scale | dict[Text, Scale]
    items: list[ItemEntry] = Field(min_length=1)
    source: str = ""
    licence: str = ""
    note: str = ""
    centre: bool = False
    dimensions: list[Text] | None = Field(default=None, min_length=2)
    parts: dict[Text, PartEntry] = {}


def read_instrument(given: str | Path) -> Instrument:
    """The instrument in a file, or one that ships with the package.

    Args:
        given: a file's path; or "foundations" or "basic-values".

    Raises:
        ValueError: naming the file, the item, what is wrong and the cure.
    """
    path = FOLDER / SHIPPED[str(given)] if str(given) in SHIPPED else Path(given)
    place = printable(str(path))
    content = _with_prompts(read_object(path), place)
    if "scale" not in content:
        raise ValueError(
            f"{place}: there is no 'scale'; give the answers in order, from low to high, as one "
            "list or as a list by part"
        )
    return _Resolver(validated(InstrumentFile, content, place), place).instrument()


def _with_prompts(content: dict[str, Any], place: str) -> dict[str, Any]:
    """The content with each "PART_prompt" as the instruction of its part."""
    found = {name: value for name, value in content.items() if not name.endswith(PROMPT)}
    for name in content.keys() - found.keys():
        part, parts = name.removesuffix(PROMPT), found.setdefault("parts", {})
        entry = parts.setdefault(part, {}) if isinstance(parts, dict) else None
        if not isinstance(entry, dict) or "instruction" in entry:
            raise ValueError(f"{place}: {name} and parts.{part}.instruction are one; keep one")
        entry["instruction"] = content[name]
    return found


class _Resolver:
    """Turns a file into an instrument, and says what does not fit together."""

    def __init__(self, file: InstrumentFile, place: str):
        self._file, self._place = file, place
        common = validated(_Common, read_object(FOLDER / "common.json"), "common.json")
        self._common = common.parts

    def instrument(self) -> Instrument:
        file = self._file
        items = [self._item(entry) for entry in file.items]
        dimensions = self._dimensions(items)
        scales = self._scales(list(dict.fromkeys(item.part for item in items)))
        parts = {name: self._part(name, scale) for name, scale in scales.items()}
        for name in parts:
            items += self._tests(name)
        self._check_once([(item.id, "the id") for item in items])
        self._check_once([(f"{i.part}: {i.text}", "the item") for i in items])
        return Instrument(
            name=file.name,
            source=file.source,
            licence=file.licence,
            note=file.note,
            centre=file.centre,
            dimensions=dimensions,
            parts=parts,
            items=tuple(items),
        )

    def _fault(self, text: str) -> ValueError:
        return ValueError(f"{self._place}: {text}")

    def _item(self, entry: ItemEntry) -> Item:
        named, dimension, expected = f"item {shown(entry.id)}", entry.dimension, entry.catch
        if dimension not in (None, CATCH):
            if expected is not None:
                raise self._fault(f"{named} has a dimension and is a catch item; keep one of them")
            return Item(str(entry.id), entry.part, entry.text, "item", dimension, entry.reversed)
        if dimension == CATCH:
            expected = expected or USUAL_CATCH.get(entry.part)
        if expected is None or entry.reversed:
            raise self._fault(
                f"{named} has neither a 'dimension' nor, as catch items have, 'catch': 'low' or "
                "'high' (the end of the scale that a reader answers with), or is a reversed catch "
                "item; give one of them"
            )
        return Item(str(entry.id), entry.part, entry.text, "catch", expected=expected)

    def _dimensions(self, items: Sequence[Item]) -> tuple[str, ...]:
        used = list(dict.fromkeys(item.dimension for item in items if item.kind == "item"))
        known = self._file.dimensions or used
        for item in items:
            if item.kind == "item" and item.dimension not in known:
                raise self._fault(
                    f"item {shown(item.id)} is of the dimension {shown(item.dimension)}, which "
                    f"'dimensions' does not name; named are {listed(known)}"
                )
        if empty := [name for name in known if name not in used]:
            raise self._fault(f"the dimension {shown(empty[0])} has no item; give one, or leave it")
        if len(known) < 2:
            raise self._fault("a profile has two dimensions or more; give the items' dimensions")
        return tuple(known)

    def _scales(self, used: Sequence[str]) -> dict[str, tuple[str, ...]]:
        given = self._file.scale
        scales = given if isinstance(given, dict) else dict.fromkeys(used, given)
        if lacking := [part for part in used if part not in scales]:
            raise self._fault(
                f"the part {shown(lacking[0])} has no scale; 'scale' has those of {listed(scales)}"
            )
        for part in used:
            if twice := [a for a, count in Counter(scales[part]).items() if count > 1]:
                raise self._fault(f"the scale of {shown(part)} has {shown(twice[0])} twice")
        named = [*(given if isinstance(given, dict) else ()), *self._file.parts]
        if unused := [part for part in named if part not in used]:
            raise self._fault(f"no item is of the part {shown(unused[0])}; give one, or leave it")
        lengths = {part: len(scales[part]) for part in used}
        if len(set(lengths.values())) > 1:
            raise self._fault(
                f"the scales differ in length ({lengths}), so scores cannot be averaged over "
                "parts; make a file of each"
            )
        return {part: tuple(scales[part]) for part in used}

    def _part(self, name: str, scale: tuple[str, ...]) -> Part:
        own = self._file.parts.get(name, PartEntry())
        wordings = [Wording(w.instruction, w.question) for w in self._of(name, "wordings")]
        if own.instruction is not None:
            if own.wordings is not None:
                raise self._fault(f"parts.{name}: give an instruction or wordings, not both")
            wordings[0] = Wording(own.instruction, wordings[0].question)
        high, low = self._of(name, "contrast")
        return Part(name, scale, tuple(wordings), (high, low))

    def _tests(self, name: str) -> list[Item]:
        """The content-free and the validity items of a part."""
        free = self._of(name, "content_free")
        tests = [
            Item(f"{name}-content-free-{number}", name, text, "content-free")
            for number, text in enumerate(free, start=1)
        ]
        entries = self._of(name, "validity")
        for end in ("high", "low"):
            of_end = [entry for entry in entries if entry.expected == end]
            good = sum(entry.valence == "good" for entry in of_end)
            if len(of_end) < VALIDITY or abs(2 * good - len(of_end)) > 1:
                raise self._fault(
                    f"the part {shown(name)} has {len(of_end)} validity items of the {end} end, "
                    f"{good} of them good; give {VALIDITY} or more of each end, half good, half bad"
                )
        for e in entries:
            item = Item(str(e.id), name, e.text, "validity", expected=e.expected, valence=e.valence)
            tests.append(item)
        return tests

    def _of(self, name: str, field: str) -> Any:
        """A field of a part: the file's own, else the package's."""
        for parts in (self._file.parts, self._common):
            if name in parts and getattr(parts[name], field) is not None:
                return getattr(parts[name], field)
        raise self._fault(
            f"the part {shown(name)} is none of {listed(self._common)}, so give its {field} in "
            f"'parts'"
        )

    def _check_once(self, named: Sequence[tuple[str, str]]) -> None:
        for (value, what), count in Counter(named).items():
            if count > 1:
                raise self._fault(f"{what} {shown(value)} stands there twice; keep one")


class _Common(_Checked):
    """What ships for the usual parts."""

    parts: dict[str, PartEntry]
