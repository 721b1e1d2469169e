"""`aewatch config`: what is in force, and what could be set."""

from __future__ import annotations

import json

import click

from deploy.cli.session import settings, without_password


@click.group()
def config() -> None:
    """Show the settings in force."""


@config.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def show(as_json: bool) -> None:
    """Print every setting in force as TOML; secrets are masked."""
    from deploy.settings import config_path

    loaded = settings()
    values = loaded.model_dump(mode="json")
    values["redis"]["url"] = without_password(loaded.redis.url.get_secret_value())
    if as_json:
        click.echo(json.dumps(values, indent=2))
        return
    click.echo(f"# from {config_path() or 'defaults'} and AEWATCH_… variables")
    for table, fields in values.items():
        click.echo(f"\n[{table}]")
        for name, value in fields.items():
            click.echo(f"# {name} is not set" if value is None else f"{name} = {json.dumps(value)}")


@config.command()
def docs() -> None:
    """Print all settings with their defaults and meaning, as Markdown; `docs/settings.md` is made with it."""
    from deploy.settings_docs import markdown

    click.echo(markdown(), nl=False)
