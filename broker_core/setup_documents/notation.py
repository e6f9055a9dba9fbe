"""Writing data down as YAML, HCL and shell words, by each notation's own quoting rules.

Promise: whatever a string holds, the notation's parser reads exactly that string back, and nothing of it as syntax.
Only what set-up documents are made of is written: mappings with string keys, lists, strings, booleans, numbers. Pure;
imports nothing of ours.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_PLAIN_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_YAML_KEY = re.compile(r"[A-Za-z]+(::[A-Za-z0-9]+)*")
#: what YAML 1.1 reads as something else than a string
_YAML_WORDS = frozenset("y n yes no on off true false null".split())
#: characters of a list that still stands on one line, and of a comment's line
_SHORT, _WIDTH = 80, 110


class Expression(str):
    """HCL that is written as it stands: a reference, never something that a customer gave."""


def comment(notes: Sequence[str]) -> str:
    """The notes as comments: ``#`` is one in all three notations. No note holds a line break."""
    lines = (line for note in notes for line in textwrap.wrap(note, _WIDTH, subsequent_indent="  "))
    return "".join(f"# {line}\n" for line in lines)


def yaml(document: Mapping[str, Any]) -> str:
    """A mapping as block YAML. Strings are JSON strings, which YAML 1.2 reads alike: no word is a boolean or a date."""
    return "\n".join(_yaml_mapping(document)) + "\n"


def _yaml_mapping(mapping: Mapping[str, Any]) -> Iterator[str]:
    for key, value in mapping.items():
        is_plain = _YAML_KEY.fullmatch(key) and key.lower() not in _YAML_WORDS
        name = key if is_plain else _json(key)
        yield from _yaml_item(f"{name}:", value)


def _yaml_item(head: str, value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        yield head
        yield from (f"  {line}" for line in _yaml_mapping(value))
    elif isinstance(value, list | tuple):
        yield head
        for entry in value:
            first, *rest = _yaml_mapping(entry) if isinstance(entry, Mapping) else [_json(entry)]
            yield f"  - {first}"
            yield from (f"    {line}" for line in rest)
    else:
        yield f"{head} {_json(value)}"


def hcl(value: Any) -> str:
    """One value as an HCL expression, laid out as ``terraform fmt`` does."""
    if isinstance(value, Expression):
        return value
    if isinstance(value, Mapping):
        return "{\n" + _indented(hcl_arguments(value)) + "}"
    if isinstance(value, list | tuple):
        entries = [hcl(entry) for entry in value]
        flat = f"[{', '.join(entries)}]"
        is_short = len(flat) <= _SHORT and "\n" not in flat
        return flat if is_short else "[\n" + _indented("".join(f"{entry},\n" for entry in entries)) + "]"
    # ${ and %{ would begin a template
    return _json(value).replace("${", "$${").replace("%{", "%%{")


def hcl_arguments(arguments: Mapping[str, Any]) -> str:
    """``name = value`` lines; neighbours that take one line each have their signs aligned."""
    pairs = [(key if _PLAIN_KEY.fullmatch(key) else hcl(key), hcl(value)) for key, value in arguments.items()]
    lines, group = [], list[tuple[str, str]]()
    for pair in pairs:
        if "\n" not in pair[1]:
            group.append(pair)
            continue
        lines += [*_aligned(group), f"{pair[0]} = {pair[1]}"]
        group = []
    return "".join(f"{line}\n" for line in [*lines, *_aligned(group)])


def hcl_block(head: str, *parts: str) -> str:
    """A block; ``parts`` are arguments and inner blocks, an empty line between them."""
    inside = "\n".join(parts)
    return f"{head} {{\n{_indented(inside)}}}\n" if parts else f"{head} {{}}\n"


def _aligned(pairs: Sequence[tuple[str, str]]) -> list[str]:
    width = max((len(name) for name, _ in pairs), default=0)
    return [f"{name:{width}} = {value}" for name, value in pairs]


def _indented(text: str) -> str:
    return textwrap.indent(text, "  ")


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=True)
