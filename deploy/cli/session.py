"""What a subcommand needs to begin: the settings, logging, and a way to end with one clear line."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from stream.hidden_secrets import without_password as without_password

if TYPE_CHECKING:
    from deploy.settings import Settings

MAX_FILE_BYTES = 1 << 20


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
    if path is not None and path.stat().st_size > MAX_FILE_BYTES:
        raise click.ClickException(f"{path}: over {MAX_FILE_BYTES:,} bytes; is it a settings file?")
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
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise click.ClickException(f"{path}: not valid TOML: {error}") from error
    except ValidationError as error:
        places = f"{ENV_PREFIX}… variables" + (f" or {path}" if path else "")
        wrong = "\n".join(
            f"  {'.'.join(map(str, item['loc']))}: {item['msg']}" + _given(item["loc"], item.get("input"))
            for item in error.errors()
        )
        raise click.ClickException(f"settings from {places} do not fit:\n{wrong}") from error
    except SettingsError as error:
        raise click.ClickException(f"settings: {error}") from error
    logs.configure(loaded.log.level, loaded.log.format, loaded.secrets)
    if path is not None:
        _warn_of_open_file(path, loaded)
    return loaded


def _given(place: tuple[int | str, ...], value: object) -> str:
    """What stood there, unless it may be a secret: its field is one, or nobody knows the field."""
    from pydantic import SecretStr

    from deploy.settings import Settings

    fields = Settings.model_fields
    field = None
    for name in place:
        field = fields.get(str(name))
        fields = getattr(getattr(field, "annotation", None), "model_fields", {})
    known = field is not None and field.annotation is not SecretStr
    return f" (given: {value!r})" if known and isinstance(value, str | int | float | bool) else ""


def _warn_of_open_file(path: Path, loaded: Settings) -> None:
    """Others on this machine may read a file of settings; a password in it is then theirs too."""
    import logging

    text = path.read_text(encoding="utf-8")
    if path.stat().st_mode & 0o077 and any(secret and secret in text for secret in loaded.secrets):
        logging.getLogger("aewatch.settings").warning(
            "%s holds a password and others may read it; chmod 600 it, or give the password as a variable", path
        )


@contextlib.contextmanager
def plain_errors(*expected: type[BaseException]) -> Iterator[None]:
    """Turn errors a user can mend into one line and exit status 1."""
    try:
        yield
    except expected as error:
        raise click.ClickException(str(error) or type(error).__name__) from error
