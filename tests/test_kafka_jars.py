"""Downloads from a repository that a test serves: a real HTTP server with jars of its own making."""

import hashlib
import threading
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from deploy.local_stack import StackError, kafka_jars
from deploy.local_stack.kafka_jars import Jar, cache_dir, jar_dir, listed_jars, provide_jars, terminal_progress

pytest.importorskip("jgo")


class Repository:
    """Serves files by path, and remembers what was asked for."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.short: set[str] = set()  # paths cut off after half of them
        repository = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                repository.asked.append(self.path)
                body = repository.files.get(self.path)
                if body is None:
                    self.send_error(404)
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body[: len(body) // 2] if self.path in repository.short else body)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def repository(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Repository]:
    """Three jars to be had, and an empty cache."""
    from jgo.maven import _core

    served = Repository()
    monkeypatch.setitem(_core.DEFAULT_REMOTE_REPOS, "central", served.url)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(kafka_jars.time, "sleep", lambda _: None)
    lines = ["[jars]"]
    for name in ("one", "two", "three"):
        body = name.encode() * 5000
        served.files[path_of(name)] = body
        lines.append(
            f'"org.example:{name}:1.0" = {{ size = {len(body)}, sha256 = "{hashlib.sha256(body).hexdigest()}" }}'
        )
    (tmp_path / "jars.toml").write_text("\n".join(lines))
    monkeypatch.setattr(kafka_jars, "LIST", tmp_path / "jars.toml")
    yield served
    served.server.shutdown()
    served.server.server_close()


def path_of(name: str) -> str:
    return f"/org/example/{name}/1.0/{name}-1.0.jar"


def left_over() -> set[str]:
    return {path.name for path in jar_dir().iterdir()} - {"lock"}


def test_the_class_path_comes_in_the_order_of_the_list_and_is_downloaded_only_once(repository: Repository) -> None:
    class_path = provide_jars()
    assert [path.name for path in class_path] == ["one-1.0.jar", "two-1.0.jar", "three-1.0.jar"]
    assert class_path[0].read_bytes() == repository.files[path_of("one")]
    repository.asked.clear()
    assert provide_jars() == class_path
    assert repository.asked == []


def test_progress_reaches_the_total_and_never_goes_beyond_it(repository: Repository) -> None:
    seen: list[tuple[int, int]] = []
    provide_jars(lambda here, total: seen.append((here, total)))
    total = sum(map(len, repository.files.values()))
    assert seen[0] == (0, total)
    assert seen[-1] == (total, total)
    assert all(0 <= here <= total for here, _ in seen)


def test_a_jar_that_is_not_the_listed_one_is_refused_and_not_left_in_the_cache(repository: Repository) -> None:
    repository.files[path_of("two")] = b"x" * len(repository.files[path_of("two")])
    with pytest.raises(StackError, match=r"two-1\.0\.jar: its SHA-256 is .* instead of .* copy the folder"):
        provide_jars()
    assert "two-1.0.jar" not in left_over()
    assert not any(name.startswith("partial-") for name in left_over())


def test_after_an_interruption_only_what_is_missing_is_downloaded(repository: Repository) -> None:
    repository.short.add(path_of("three"))
    with pytest.raises(StackError, match=r"three-1\.0\.jar"):
        provide_jars()
    assert "three-1.0.jar" not in left_over()
    complete = left_over()
    repository.short.clear()
    repository.asked.clear()
    provide_jars()
    assert path_of("three") in repository.asked
    assert not any(path_of(name.removesuffix("-1.0.jar")) in repository.asked for name in complete)


def test_what_a_killed_download_left_behind_is_removed(repository: Repository) -> None:
    (jar_dir() / "partial-killed" / "org").mkdir(parents=True)
    provide_jars()
    assert left_over() == {"one-1.0.jar", "two-1.0.jar", "three-1.0.jar"}


def test_a_connection_that_breaks_once_is_tried_again(repository: Repository) -> None:
    repository.short.add(path_of("one"))
    seen: list[int] = []

    def mend(here: int, _total: int) -> None:
        seen.append(here)
        if repository.asked.count(path_of("one")) == 2:
            repository.short.clear()

    provide_jars(mend)
    assert repository.asked.count(path_of("one")) >= 2
    assert seen[-1] == sum(map(len, repository.files.values()))


def test_a_jar_of_the_wrong_size_in_the_cache_is_replaced(repository: Repository) -> None:
    [first, *_] = provide_jars()
    first.write_bytes(b"cut off")
    provide_jars()
    assert first.read_bytes() == repository.files[path_of("one")]


def test_two_at_once_download_once(repository: Repository) -> None:
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: provide_jars(), range(2))
    assert first == second
    assert [repository.asked.count(path_of(name)) for name in ("one", "two", "three")] == [1, 1, 1]


def test_a_repository_out_of_reach_is_named_with_a_way_out(repository: Repository) -> None:
    repository.files.clear()
    with pytest.raises(StackError, match=r"-1\.0\.jar: .*copy the folder .*kafka-4\.3\.1 from a machine that has it"):
        provide_jars()


def test_the_cache_is_the_users_and_follows_xdg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "aewatch"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir() == Path.home() / ".cache" / "aewatch"


def test_the_list_holds_one_version_of_each_artifact_with_size_and_hash() -> None:
    jars = listed_jars()
    assert len({(jar.group, jar.artifact) for jar in jars}) == len(jars)
    assert all(len(jar.sha256) == 64 and jar.size > 0 for jar in jars)
    assert any(jar.artifact == "slf4j-simple" for jar in jars), "without it the broker logs nothing"
    roots = {tuple(root.split(":")) for root in kafka_jars.ROOTS}
    assert roots <= {(jar.group, jar.artifact, jar.version) for jar in jars}
    assert tomllib.loads(kafka_jars.LIST.read_text()).keys() == {"jars"}


def test_the_list_names_kafka_4_3_1_throughout() -> None:
    ours: list[Jar] = [jar for jar in listed_jars() if jar.group == "org.apache.kafka"]
    assert {jar.version for jar in ours} == {"4.3.1"}
    assert {"kafka_2.13", "kafka-clients", "kafka-server", "kafka-group-coordinator"} <= {jar.artifact for jar in ours}


def test_progress_on_anything_but_a_terminal_is_whole_lines(capsys: pytest.CaptureFixture[str]) -> None:
    show = terminal_progress("Kafka")
    show(0, 2_000_000)
    show(1_000_000, 2_000_000)
    show(2_000_000, 2_000_000)
    show(2_000_000, 2_000_000)
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["Kafka: 0.0 of 2.0 MB", "Kafka: 2.0 of 2.0 MB"]
    assert all("\r" not in line and "\x1b" not in line for line in lines)
