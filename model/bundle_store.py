"""The model store: a folder in which every bundle lies under its version. Needs no torch."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from model.bundle import (
    CARD_FILE,
    MAX_CARD_BYTES,
    MAX_WEIGHTS_BYTES,
    WEIGHTS_FILE,
    BundleCard,
    BundleError,
    load_weights,
    read_card,
)

README_FILE = "README.md"


@dataclass(frozen=True, slots=True)
class StoredBundle:
    """A folder of the store; `problem` says why it has no card."""

    folder: Path
    card: BundleCard | None
    problem: str = ""


def add_bundle(store: Path, bundle: str | os.PathLike[str]) -> BundleCard:
    """Copy the bundle in folder `bundle` to `<store>/<version>/`, whole or not at all; returns its card.

    The copy is what is checked. One that is there already and sound stays as it is; a damaged one is replaced.

    Raises
    ------
    BundleError
        If the bundle cannot be used, or the store cannot be written.
    """
    try:
        store.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".adding-", dir=store) as scratch:
            staged = Path(scratch) / "bundle"
            staged.mkdir()
            for name in (CARD_FILE, WEIGHTS_FILE, README_FILE):
                source = Path(bundle) / name
                if name != README_FILE or source.is_file():
                    _copy(source, staged / name)
            try:
                card = read_card(staged)
                load_weights(staged, card)
            except BundleError as error:
                raise BundleError(str(error).replace(str(staged), os.fspath(bundle))) from error
            folder = store / card.version
            if folder.exists() and not _is_sound(folder, card.version):
                shutil.rmtree(folder)
            if not folder.exists():
                staged.rename(folder)
    except OSError as error:
        raise BundleError(f"{store}: {error.strerror or error}; name another folder with model.store") from error
    return card


def stored_bundles(store: Path) -> list[StoredBundle]:
    """What is in the store, in the order of the versions; only the cards are looked at."""
    if not store.is_dir():
        return []
    found = []
    for folder in sorted(path for path in store.iterdir() if path.is_dir() and not path.name.startswith(".")):
        try:
            card = read_card(folder)
        except BundleError as error:
            found.append(StoredBundle(folder, None, str(error)))
            continue
        wrong = "" if card.version == folder.name else f"{folder}: holds version {card.version}; add it anew"
        found.append(StoredBundle(folder, None if wrong else card, wrong))
    return found


def find_bundle(version: str, places: Iterable[Path]) -> Path:
    """The first of these folders that holds the bundle of this version, going by its card.

    Raises
    ------
    BundleError
        Naming every place that was looked at and what is there.
    """
    seen = []
    for place in dict.fromkeys(places):
        try:
            found = read_card(place).version
        except BundleError as error:
            seen.append(str(error) if (place / CARD_FILE).exists() else f"nothing at {place}")
            continue
        if found == version:
            return place
        seen.append(f"{place} holds {found}")
    raise BundleError(f"model {version} is not to be found here: {'; '.join(seen)}; bring it with `aewatch model add`")


def _copy(source: Path, target: Path) -> None:
    limit = MAX_WEIGHTS_BYTES if source.name == WEIGHTS_FILE else MAX_CARD_BYTES
    try:
        with source.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise BundleError(
            f"{source}: {error.strerror}; a bundle is a folder with {CARD_FILE} and {WEIGHTS_FILE}"
        ) from error
    if len(data) > limit:
        raise BundleError(f"{source}: over {limit:,} bytes, which no bundle has")
    with target.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _is_sound(folder: Path, version: str) -> bool:
    try:
        card = read_card(folder)
        load_weights(folder, card)
    except BundleError:
        return False
    return card.version == version
