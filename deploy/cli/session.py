"""What a subcommand needs to begin: the settings, logging, and a way to end with one clear line."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

import click

if TYPE_CHECKING:
    from deploy.settings import Settings


def settings() -> Settings:
    """The settings in force, and logging as they say.

    Raises
    ------
    click.ClickException
        Naming every field that is wrong and where it came from.
    """
    import tomllib

    from pydantic import ValidationError
    from pydantic_settings import SettingsError

    from deploy import logs
    from deploy.settings import CONFIG_VARIABLE, ENV_PREFIX, Settings, config_path

    path = config_path()
    if path is not None and not path.is_file():
        raise click.ClickException(f"{path}: no such settings file; AEWATCH_CONFIG or --config names it")
    unknown = sorted(
        name
        for name in os.environ
        if name.startswith(ENV_PREFIX)
        and name != CONFIG_VARIABLE
        and name.removeprefix(ENV_PREFIX).split("__")[0].lower() not in Settings.model_fields
    )
    if unknown:
        raise click.ClickException(f"no such setting: {', '.join(unknown)}; `aewatch config show` lists all of them")
    try:
        loaded = Settings().at_local_stack()
    except tomllib.TOMLDecodeError as error:
        raise click.ClickException(f"{path}: not valid TOML: {error}") from error
    except ValidationError as error:
        places = f"{ENV_PREFIX}… variables" + (f" or {path}" if path else "")
        wrong = "\n".join(
            f"  {'.'.join(map(str, item['loc']))}: {item['msg']}" + _given(item.get("input")) for item in error.errors()
        )
        raise click.ClickException(f"settings from {places} do not fit:\n{wrong}") from error
    except SettingsError as error:
        raise click.ClickException(f"settings: {error}") from error
    logs.configure(loaded.log.level, loaded.log.format)
    return loaded


def _given(value: object) -> str:
    return f" (given: {value!r})" if isinstance(value, str | int | float | bool) else ""


@contextlib.contextmanager
def plain_errors(*expected: type[BaseException]) -> Iterator[None]:
    """Turn errors a user can mend into one line and exit status 1."""
    try:
        yield
    except expected as error:
        raise click.ClickException(str(error) or type(error).__name__) from error


def without_password(url: str) -> str:
    """The URL with its password, if it has one, shown as stars."""
    parts = urlsplit(url)
    if parts.password is None:
        return url
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{parts.username or ''}:****@{host}"))
