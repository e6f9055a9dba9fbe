"""What commands share: settings from the environment, errors as exit codes, values from files, JSON out."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from enum import Enum
from typing import TYPE_CHECKING, Any, BinaryIO
from uuid import UUID

import click

from broker_core.errors import BrokerError, ConfigurationError, Transient, Unavailable
from broker_core.settings import Settings

if TYPE_CHECKING:
    from broker_core.bootstrap import App

REFUSED, AWAY, WRONG_SETTING = 1, 69, 78

#: of commands that are about one workspace
workspace_option = click.option("--workspace", required=True, help="The workspace's id.")


@contextmanager
def exit_codes() -> Iterator[None]:
    """Turn an error of ours into one line on stderr and an exit code."""
    try:
        yield
    except ConfigurationError as error:
        _leave(error, WRONG_SETTING)
    except (Unavailable, Transient) as error:
        _leave(error, AWAY)
    except BrokerError as error:
        _leave(error, REFUSED)


def _leave(error: BrokerError, code: int) -> None:
    click.echo(f"broker: {error}", err=True)
    sys.exit(code)


def settings() -> Settings:
    """This process's settings. Raises ConfigurationError."""
    return Settings.from_environment(os.environ)


@contextmanager
def app() -> Iterator[App]:
    """An App for one command, closed at its end. Raises ConfigurationError."""
    # here, as are the libraries of single commands: help, checks and usage errors need none of them
    from broker_core.bootstrap import build_app
    from broker_core.observability import start_process

    finish = start_process("axiorank-broker-cli", os.environ)
    try:
        built = build_app(settings())
        try:
            yield built
        finally:
            built.close()
    finally:
        finish()


def read(source: BinaryIO, most: int) -> bytes:
    """All of a file or stdin, up to ``most`` bytes and one. The caller refuses what is larger."""
    return source.read(most + 1)


def show(document: Any) -> None:
    """Print one JSON document, keys as the HTTP surface writes them."""
    click.echo(as_json(document))


def as_json(document: Any) -> str:
    """The same as text."""
    return json.dumps(_plain(document), indent=2, ensure_ascii=False)


def present(described: dict[str, Any]) -> dict[str, Any]:
    """What is there: as in an answer of the HTTP surface, a field that is None is left out."""
    return {name: value for name, value in described.items() if value is not None}


def _plain(given: Any) -> Any:
    if dataclasses.is_dataclass(given) and not isinstance(given, type):
        fields = dataclasses.fields(given)
        return {_camel(field.name): _plain(getattr(given, field.name)) for field in fields if field.repr}
    if isinstance(given, dict):
        return {key: _plain(value) for key, value in given.items()}
    if isinstance(given, list | tuple):
        return [_plain(item) for item in given]
    if isinstance(given, Enum):
        return given.value
    if isinstance(given, datetime):
        return given.isoformat().replace("+00:00", "Z")
    return str(given) if isinstance(given, UUID) else given


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(part.capitalize() for part in rest)
