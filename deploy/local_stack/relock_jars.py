"""Resolves Kafka's jars anew after `kafka_jars.ROOTS` was changed, and writes `kafka-jars.toml`.

Run as `python -m deploy.local_stack.relock_jars`.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from pathlib import Path

from deploy.local_stack.kafka_jars import LIST, ROOTS, Jar


def resolve() -> list[Jar]:
    """Ask jgo, and with it the repository, for everything that `ROOTS` need at run time."""
    from jgo.env import EnvironmentBuilder, LinkStrategy
    from jgo.maven import MavenContext, PythonResolver

    work = Path(tempfile.mkdtemp(prefix="aewatch-jars-"))
    try:
        context = MavenContext(resolver=PythonResolver(), repo_cache=work / "repository")
        EnvironmentBuilder(context=context, link_strategy=LinkStrategy.HARD, cache_dir=work / "jgo").from_endpoint(
            "+".join(ROOTS)
        )
        found = {path.name for path in (work / "jgo").rglob("*.jar")}
        jars = []
        for path in sorted((work / "repository").rglob("*.jar")):
            if path.name in found:
                version, artifact = path.parts[-2:-4:-1]
                group = ".".join(path.relative_to(work / "repository").parts[:-3])
                data = path.read_bytes()
                jars.append(Jar(group, artifact, version, len(data), hashlib.sha256(data).hexdigest()))
        return jars
    finally:
        shutil.rmtree(work)


def main() -> None:
    """Write `kafka-jars.toml`."""
    jars = resolve()
    lines = [
        "# What Apache Kafka's broker runs on, as resolved from Maven Central. Made by:",
        "#   python -m deploy.local_stack.relock_jars",
        "[jars]",
        *(f'"{j.group}:{j.artifact}:{j.version}" = {{ size = {j.size}, sha256 = "{j.sha256}" }}' for j in jars),
    ]
    LIST.write_text("\n".join(lines) + "\n")
    print(f"{LIST}: {len(jars)} jars, {sum(jar.size for jar in jars) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
