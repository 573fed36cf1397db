"""What the commands' options have in common: names, lists, pairs, and what is refused early.

Nothing here imports torch or transformers: ``plugalign --help`` must not wait for them.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from plugalign.files.shown import check_name, shown
from plugalign.files.text import check_unicode

LARGEST_BATCH = 65_536

# Options that several commands have.
Dtype = Annotated[
    str,
    typer.Option(metavar="auto|bfloat16|float16|float32", help="The precision of the model."),
]
Chat = Annotated[
    str,
    typer.Option(
        metavar="auto|on|off",
        help="Texts inside the tokenizer's chat template; auto: for instruct models.",
    ),
]
System = Annotated[str | None, typer.Option(help="A system message in front of each chat.")]
Threads = Annotated[int | None, typer.Option(min=1, max=1024, help="CPU threads of torch.")]


def command_line() -> str:
    """The command as it was typed, quoted for a shell."""
    return shlex.join(["plugalign", *sys.argv[1:]])


def check_arguments(arguments: Sequence[str]) -> None:
    """Refuses what no name, path or text can hold, in any option.

    Raises:
        ValueError: naming the argument, for bytes that are not UTF-8, for NUL, and for nothing at
            all: an empty path would be the folder that one is in.
    """
    for number, argument in enumerate(arguments, start=1):
        check_unicode(argument, f"argument {number}")
        before = arguments[number - 2] if number > 1 else ""
        what = before if before.startswith("--") and "=" not in before else f"argument {number}"
        option, sign, value = argument.partition("=")
        if not sign or not option.startswith("--"):
            option, value = what, argument
        if not value.strip():
            raise ValueError(f"{option} is empty, got {shown(value)}; give a value or leave it out")


def refuse_others(context: typer.Context, mode: str, allowed: Iterable[str]) -> None:
    """Refuses options that a mode of a command does not look at.

    Args:
        mode: what is typed for it, for the message.
        allowed: the names of the parameters that it looks at.

    Raises:
        ValueError: naming the option.
    """
    for parameter in context.command.params:
        name = str(parameter.name)
        source = context.get_parameter_source(name)
        if name in allowed or source is None or source.name == "DEFAULT":
            continue
        raise ValueError(f"{mode} has no {parameter.opts[0]}; leave it out")


def value_of(parameter: Any, arguments: Sequence[str]) -> str:
    """The value of an option that was refused, as ", got …" behind the message; or nothing.

    Args:
        parameter: typer's parameter, None for an error that is not about one.
    """
    spelled = getattr(parameter, "opts", ())
    for number, argument in reversed(list(enumerate(arguments))):
        option, sign, value = argument.partition("=")
        if option in spelled and (sign or number + 1 < len(arguments)):
            return f", got {shown(value if sign else arguments[number + 1])}"
    return ""


def names(given: str | None, option: str) -> list[str] | None:
    """``A,B`` as a list of names.

    Raises:
        ValueError: for no name, an empty one, or one that stands there twice.
    """
    if given is None:
        return None
    found = [name.strip() for name in given.split(",")]
    if not all(found):
        raise ValueError(f"{option} takes names with commas between, got {shown(given)}")
    for name in found:
        check_name(name, "a method")
    _once(found, option, given)
    return found


def sizes(given: str, option: str) -> list[int]:
    """``1,8`` as a list of batch sizes.

    Raises:
        ValueError: for what is no number, or out of range.
    """
    try:
        found = [int(size) for size in given.split(",")]
    except ValueError:
        raise ValueError(
            f"{option} takes numbers with commas between, got {shown(given)}"
        ) from None
    if not all(1 <= size <= LARGEST_BATCH for size in found):
        raise ValueError(f"{option} takes numbers from 1 to {LARGEST_BATCH}, got {shown(given)}")
    return found


def shares(given: str | None, option: str) -> list[float] | None:
    """``0.2,0.5`` as numbers.

    Raises:
        ValueError: for what is no number.
    """
    if given is None:
        return None
    try:
        return [float(number) for number in given.split(",")]
    except ValueError:
        raise ValueError(
            f"{option} takes numbers with commas between, got {shown(given)}"
        ) from None


def named(given: Sequence[str] | None, option: str) -> dict[str, str] | None:
    """``NAME=VALUE`` options as a mapping; several may stand in one, separated by commas.

    Raises:
        ValueError: for one without a name or a value, or two of one name.
    """
    if given is None:
        return None
    pairs = [pair.partition("=") for pair in ",".join(given).split(",")]
    for name, sign, value in pairs:
        if not (name.strip() and sign and value.strip()):
            raise ValueError(f"{option} takes NAME=FOLDER, got {shown(name + sign + value)}")
        check_name(name, "a method")
    _once([name for name, _, _ in pairs], option, ",".join(given))
    return {name: value for name, _, value in pairs}


def judges(given: Sequence[str] | None) -> list[str] | dict[str, str] | None:
    """Judges by name where any was given one, else their specs.

    Raises:
        ValueError: for an empty one, or two of one name.
    """
    if given is None:
        return None
    for judge in given:
        name, sign, spec = judge.partition("=")
        if not name.strip() or (sign and not spec.strip()):
            raise ValueError(f"--judge takes JUDGE or NAME=JUDGE, got {shown(judge)}")
    if not any("=" in judge for judge in given):
        return list(given)
    pairs = [(name, spec or name) for name, _, spec in (judge.partition("=") for judge in given)]
    for name, _ in pairs:
        check_name(name, "a judge")
    _once([name for name, _ in pairs], "--judge", ",".join(given))
    return dict(pairs)


def references(given: Sequence[str] | None) -> list[str] | dict[str, str] | None:
    """Files of reference scores, by name where any was given one; others have their files' names.

    Raises:
        ValueError: for an empty one, or two of one name.
    """
    if given is None:
        return None
    pairs = [_named_file(each) for each in given]
    if not any(named for named, _, _ in pairs):
        return list(given)
    names = [name for _, name, _ in pairs]
    _once(names, "--agreement", ",".join(given))
    return {name: path for _, name, path in pairs}


def _named_file(given: str) -> tuple[bool, str, str]:
    """Whether it has a name, the name, and the path; a file may have "=" in its own."""
    name, sign, path = given.partition("=")
    if not sign or os.path.exists(given):
        return False, Path(given).name, given
    if not (name.strip() and path.strip()):
        raise ValueError(f"--agreement takes FILE or NAME=FILE, got {shown(given)}")
    check_name(name, "a reference set")
    return True, name, path


def columns(given: str | None, option: str) -> tuple[str, str] | None:
    """``FIRST,SECOND`` as two different columns.

    Raises:
        ValueError: for another number of them, or the same one twice.
    """
    if given is None:
        return None
    found = tuple(given.split(","))
    if len(found) != 2 or not all(map(str.strip, found)) or found[0] == found[1]:
        raise ValueError(f"{option} takes two columns, UNDESIRED,DESIRED, got {shown(given)}")
    return found[0], found[1]


def settings(given: Sequence[str] | None, option: str) -> dict[str, list[str]] | None:
    """``METHOD.SETTING=VALUE,...`` options as values by "METHOD.SETTING".

    Raises:
        ValueError: for one of another form, without a value, or two of one name.
    """
    if given is None:
        return None
    found: dict[str, list[str]] = {}
    for each in given:
        name, _, values = each.partition("=")
        method, dot, setting = name.rpartition(".")
        listed = [value.strip() for value in values.split(",")]
        if not (method and dot and setting and all(listed)):
            raise ValueError(
                f"{option} takes METHOD.SETTING=VALUE, or several values with commas between, got "
                f"{shown(each)}"
            )
        if name in found:
            raise ValueError(f"{option} sets {shown(name)} twice; put its values into one")
        found[name] = listed
    return found


def _once(found: Sequence[str], option: str, given: str) -> None:
    if twice := [name for name in found if found.count(name) > 1]:
        raise ValueError(f"{option} names {shown(twice[0])} twice, got {shown(given)}")
