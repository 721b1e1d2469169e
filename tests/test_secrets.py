"""Passwords are in settings and nowhere else: not in what is printed, logged or raised, nor on a command line."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from deploy import logs
from deploy.cli import COMMANDS, cli
from deploy.settings import KafkaSettings, RedisSettings, Settings
from stream.hidden_secrets import SHORTEST, hiding, passwords_of, without_password
from stream.redis_connection import connect

#: As awkward as a password can be; none of its parts appears anywhere else.
SECRET = "Zq7'\"\\x@:/wY%41 ü&k#9"
PARTS = ("Zq7", "wY%41", "k#9", "wY%2541", "k%239")


def leaks(text: str) -> bool:
    return any(part in text for part in PARTS)


def aewatch(*arguments: str, cwd: Path, **variables: str) -> str:
    """All it writes."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AEWATCH_")} | variables
    command = [sys.executable, "-m", "deploy.cli", *arguments]
    done = subprocess.run(
        command, text=True, check=False, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    return done.stdout


LOGIN = {
    "AEWATCH_KAFKA__BOOTSTRAP_SERVERS": "127.0.0.1:1",
    "AEWATCH_KAFKA__SECURITY_PROTOCOL": "SASL_PLAINTEXT",
    "AEWATCH_KAFKA__SASL_MECHANISM": "PLAIN",
    "AEWATCH_KAFKA__USERNAME": "ann",
    "AEWATCH_KAFKA__PASSWORD": SECRET,
    "AEWATCH_REDIS__URL": "redis://127.0.0.1:1/0",
    "AEWATCH_REDIS__USERNAME": "ann",
    "AEWATCH_REDIS__PASSWORD": SECRET,
    "AEWATCH_LOG__LEVEL": "DEBUG",
}


@pytest.mark.parametrize("command", [("config", "show"), ("config", "show", "--json"), ("dead-letters",)])
def test_no_command_shows_a_password(tmp_path: Path, command: tuple[str, ...]) -> None:
    said = aewatch(*command, cwd=tmp_path, **LOGIN)
    assert "127.0.0.1:1" in said
    assert not leaks(said), said


def test_a_redis_that_is_away_is_named_without_the_password_in_its_url(tmp_path: Path) -> None:
    said = aewatch(
        "alerts", "active", cwd=tmp_path, AEWATCH_REDIS__URL="redis://ann:Zq7@wY%41@127.0.0.1:1/0?password=k#9"
    )
    assert "redis://ann:***@127.0.0.1:1/0" in said
    assert not leaks(said), said


@pytest.mark.parametrize(
    ("toml", "variables"),
    [
        ('[kafka]\npasword = "Zq7"\n', {}),
        ("[kafka]\npassword = 77123\n", {}),
        ('[kafka]\npassword = ["Zq7"]\n', {}),
        ('[kafka]\npassword = "Zq7"\n', {}),  # no login without a username
        ('[redis]\nurl = "redis://ann:Zq7@h/0"\npassword = "wY%41"\n', {}),
        ('[kafka\npassword = "Zq7"\n', {}),
        ("", {"AEWATCH_KAFKA": '{"password": "Zq7"'}),
        ("", {"AEWATCH_KAFKA__PASWORD": "Zq7"}),
        (
            "",
            {"AEWATCH_REDIS__PASSWORD": "Zq7", "AEWATCH_REDIS__USERNAME": "", "AEWATCH_REDIS__URL": "redis://a:k#9@h"},
        ),
    ],
)
def test_a_mistake_in_the_settings_is_told_without_the_password(
    tmp_path: Path, toml: str, variables: dict[str, str]
) -> None:
    (tmp_path / "aewatch.toml").write_text(toml)
    said = aewatch("config", "show", cwd=tmp_path, **variables)
    assert "Error" in said
    assert not leaks(said), said
    assert "77123" not in said


def test_a_file_with_a_password_that_others_may_read_is_told_of(tmp_path: Path) -> None:
    file = tmp_path / "aewatch.toml"
    file.write_text('[redis]\nurl = "redis://ann:Zq7-wY@127.0.0.1:1/0"\n')
    file.chmod(0o644)
    said = aewatch("config", "show", cwd=tmp_path)
    assert "chmod 600" in said
    assert not leaks(said)
    file.chmod(0o600)
    assert "chmod 600" not in aewatch("config", "show", cwd=tmp_path)
    file.write_text("[kafka]\npartitions = 3\n")
    file.chmod(0o644)
    assert "chmod 600" not in aewatch("config", "show", cwd=tmp_path)


def commands(group: click.Group, context: click.Context) -> Iterator[click.Command]:
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield command
        if isinstance(command, click.Group):
            yield from commands(command, context)


def test_no_option_takes_a_password_as_others_can_see_a_command_line() -> None:
    found = list(commands(cli, click.Context(cli)))
    assert len(found) > len(COMMANDS)
    names = {option for command in found for parameter in command.params for option in parameter.opts}
    assert not [name for name in names if any(word in name for word in ("password", "secret", "token", "user"))]


@pytest.fixture
def logging_restored() -> Iterator[None]:
    root, others = logging.getLogger(), [logging.getLogger(name) for name in (*logs.OWN, "aiokafka.conn")]
    handlers, levels = list(root.handlers), [one.level for one in (root, *others)]
    yield
    root.handlers[:] = handlers
    for one, level in zip((root, *others), levels, strict=True):
        one.setLevel(level)


@pytest.mark.usefixtures("logging_restored")
@pytest.mark.parametrize("style", ["text", "json"])
def test_whoever_logs_a_known_password_logs_stars(capsys: pytest.CaptureFixture[str], style: str) -> None:
    url = RedisSettings(url=SecretStr("redis://h/0"), password=SecretStr(SECRET)).connection_url()
    logs.configure("DEBUG", style, [SECRET])
    log = logging.getLogger("a.library")
    log.debug("sending %s", b"\0ann\0" + SECRET.encode())
    log.debug("sending %r", SECRET)
    log.warning("connecting", extra={"url": url, "given": {"password": SECRET}})
    log.warning(json.dumps({"password": SECRET}))
    try:
        raise ValueError(f"{SECRET} is wrong, {url}")
    except ValueError:
        log.exception("it broke")
    said = capsys.readouterr().err
    assert said.count("***") >= 7
    assert "it broke" in said
    assert not leaks(said), said


@pytest.mark.usefixtures("logging_restored")
def test_logins_of_a_kafka_client_are_not_logged_even_at_debug(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("DEBUG", "text")
    logging.getLogger("aiokafka.conn").debug("Request to h:1 3: SaslAuthenticateRequest(%s)", b"\0ann\0short")
    logging.getLogger("aiokafka.consumer").debug("others are")
    said = capsys.readouterr().err
    assert "short" not in said
    assert "others are" in said


def test_the_settings_know_all_their_secrets() -> None:
    settings = Settings(
        kafka=KafkaSettings(security_protocol="SASL_SSL", username="u", password=SecretStr("one-secret")),
        redis=RedisSettings(url=SecretStr("redis+sentinel://u:tw%6F-secret@s:1/plant?sentinel_password=third-secret")),
    )
    assert {"one-secret", "two-secret", "third-secret"} <= set(settings.secrets)
    assert not any(secret in repr(settings) + settings.model_dump_json() for secret in settings.secrets)


@given(st.text(min_size=SHORTEST, max_size=30), st.sampled_from(["redis", "rediss", "unix", "redis+sentinel"]))
def test_no_password_is_left_in_a_url(password: str, scheme: str) -> None:
    shown = without_password(f"{scheme}://ann:{password}@127.0.0.1:6379/0")
    assert shown == f"{scheme}://ann:***@127.0.0.1:6379/0"


@given(st.text(min_size=SHORTEST, max_size=30), st.text(max_size=20))
def test_a_known_secret_is_hidden_in_any_text(secret: str, around: str) -> None:
    secret = f"Zq7{secret}wY"
    written = [secret, repr(secret), repr(secret.encode("utf-8", "surrogateescape")), json.dumps(secret)]
    written += [json.dumps(one, ensure_ascii=False) for one in written]
    text = hiding([secret])("|".join([around, *written, around]))
    assert "Zq7" not in text
    assert text.count("***") >= len(written)


def test_urls_without_a_password_stay_as_they_are() -> None:
    for url in ("redis://127.0.0.1:6379/0", "unix:///run/redis.sock", "redis://h/0?socket_timeout=3"):
        assert without_password(url) == url
        assert passwords_of(url) == []


def test_a_url_that_cannot_be_used_is_shown_without_its_password() -> None:
    for url in ("redis://ann:Zq7@h:port/0", "rediss://ann:Zq7@h/0?ssl_ca_certs=/nowhere", "http://ann:Zq7@h"):
        with pytest.raises(ValueError, match=r"\*\*\*") as error:
            connect(url)
        assert not leaks(str(error.value))


def test_every_setting_that_the_page_on_security_names_is_one() -> None:
    text = (Path(__file__).parents[1] / "docs" / "security.md").read_text(encoding="utf-8")
    named = re.findall(r"AEWATCH_(\w+?)__(\w+)=", text)
    assert len(named) >= 9
    for table, field in named:
        assert field.lower() in Settings.model_fields[table.lower()].annotation.model_fields  # type: ignore[union-attr]
