"""Kinds of live sources by name: those built in, and those that installed packages add.

A package adds one by an entry point in the group `aewatch.sources`, see docs/sources.md.
"""

from __future__ import annotations

import importlib
from importlib.metadata import entry_points

from producers.live.source import LiveSource, SourceError

GROUP = "aewatch.sources"

BUILT_IN = {
    "simulator": "producers.live.simulated:Simulated",
    "recording": "producers.live.recording_file:RecordingFile",
    "folder": "producers.live.folder:Folder",
    "tradb": "producers.live.vallen_tradb:VallenTradb",
    "pcm-stdin": "producers.live.pcm:PcmStdin",
    "pcm-tcp": "producers.live.pcm:PcmTcp",
    "pcm-udp": "producers.live.pcm:PcmUdp",
    "mqtt": "producers.live.mqtt:Mqtt",
    "sound-card": "producers.live.sound_card:SoundCard",
    "linwave": "producers.live.vallen_devices:LinWave",
    "spotwave": "producers.live.vallen_devices:SpotWave",
}


def kinds() -> list[str]:
    """Names of all kinds, sorted."""
    return sorted(BUILT_IN.keys() | {point.name for point in entry_points(group=GROUP)})


def source_class(kind: str) -> type[LiveSource]:
    """The class of that name; a built-in one wins.

    Raises
    ------
    SourceError
        If there is none, or it cannot be imported, or lacks what `producers.live.source` asks for.
    """
    if kind in BUILT_IN:
        module, _, name = BUILT_IN[kind].partition(":")
        found = getattr(importlib.import_module(module), name)
    else:
        points = [point for point in entry_points(group=GROUP) if point.name == kind]
        if not points:
            raise SourceError(f"kind {kind!r}: no such source; there are {', '.join(kinds())}")
        try:
            found = points[0].load()
        except Exception as error:  # whatever the code of others raises
            raise SourceError(f"kind {kind!r}: {points[0].value} cannot be imported: {error!r}") from error
    if not hasattr(found, "Settings") or not (hasattr(found, "blocks") or hasattr(found, "frames")):
        raise SourceError(f"kind {kind!r}: {found!r} has no `Settings`, or neither `blocks` nor `frames`")
    chosen: type[LiveSource] = found
    return chosen


def missing_here(source: type[LiveSource]) -> str:
    """What a source needs that is not installed, and the way out; empty where nothing is missing.

    A source says it by a static method `require`, which raises `SourceError`; not all have one.
    """
    try:
        getattr(source, "require", lambda: None)()
    except SourceError as error:
        return str(error)
    return ""
