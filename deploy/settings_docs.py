"""`docs/settings.md`, made from the settings themselves so that it cannot go stale."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from deploy.settings import ENV_PREFIX, Section, Settings

HEAD = """# Settings

Made by `aewatch config docs > docs/settings.md`; `aewatch config show` prints what is in force.

Settings come from `aewatch.toml` in the working directory (or the file that `AEWATCH_CONFIG` or `aewatch --config`
names) and from environment variables, which win. A variable is `AEWATCH_`, the table, two underscores and the field:

```toml
# aewatch.toml
[kafka]
bootstrap_servers = "kafka1:9092,kafka2:9092"

[alarms.conditions.knock]
k = 3
```

```sh
export AEWATCH_KAFKA__BOOTSTRAP_SERVERS=kafka1:9092,kafka2:9092
export AEWATCH_REDIS__URL=rediss://aewatch:secret@redis:6379/0
```

A name that is no setting is an error, in the file and in the environment. `kafka.bootstrap_servers` and `redis.url`
point at the local stack of `aewatch up` unless they are set, at whatever ports it was started.
"""


def markdown() -> str:
    """The whole page."""
    parts = [HEAD]
    for table, field in Settings.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            parts.append(f"\n## `[{table}]`\n\n{_sentence(field.annotation)}\n\n{_table(table, field.annotation)}")
        else:
            parts.append(f"\n## `[{table}]`\n\nThe alarm rules: [alarms.md](alarms.md) has all of them.\n")
    return "".join(parts)


def _sentence(section: type[Section]) -> str:
    return (section.__doc__ or "").strip().splitlines()[0]


def _table(table: str, section: type[Section]) -> str:
    rows = ["| field | default | what | variable |", "|---|---|---|---|"]
    for name, field in section.model_fields.items():
        what = field.description or ""
        choices = _choices(field)
        if choices:
            what += f"; one of {', '.join(f'`{choice}`' for choice in choices)}"
        rows.append(f"| `{name}` | {_default(field)} | {what} | `{ENV_PREFIX}{table.upper()}__{name.upper()}` |")
    return "\n".join(rows) + "\n"


def _choices(field: FieldInfo) -> tuple[Any, ...]:
    return get_args(field.annotation) if get_origin(field.annotation) is Literal else ()


def _default(field: FieldInfo) -> str:
    value = field.default
    if value is None:
        return "not set"
    if value is PydanticUndefined:
        return "needed"
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if isinstance(value, Path):
        value = str(value)
    return f"`{json.dumps(value)}`"
