from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from model.architecture import EcapaDims, FrontEndSpec, HeadSpec
from model.bundle import (
    CARD_FILE,
    WEIGHTS_FILE,
    BundleCard,
    BundleError,
    Label,
    TrainingRecord,
    UnknownRule,
    demo_bundle_path,
    load_weights,
    read_card,
    write_bundle,
)

DIMS = EcapaDims(channels=16, mfa_channels=8, attention=4, embedding=6, scale=2, se_bottleneck=4, dilations=(2,))


def _card(**changes: Any) -> BundleCard:
    fields: dict[str, Any] = {
        "name": "small",
        "front_end": FrontEndSpec(n_mels=20),
        "network": DIMS,
        "head": HeadSpec(),
        "labels": (Label("background", "background"), Label("knock", "fault")),
        "rate_hz": 500_000.0,
        "rate_is_nominal": False,
        "window_samples": 4_096,
        "hop_samples": 2_048,
        "temperature": 1.5,
        "unknown": UnknownRule("mahalanobis", 3.0),
        "thresholds": {"knock": 0.6},
        "training": TrainingRecord("noise", "abc", "aewatch model train-demo", 1, {"train": "a"}, "2026-11-01"),
        "metrics": {"accuracy": 0.5},
    }
    return BundleCard(**{**fields, **changes})


def _weights(card: BundleCard, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in card.shapes.items()}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    path = tmp_path / "models" / "small"
    write_bundle(path, _card(), _weights(_card()))
    return path


def test_a_bundle_reads_back_as_it_was_written(bundle: Path) -> None:
    card = read_card(bundle)
    assert msgspec.structs.replace(card, version="") == _card()
    assert len(card.version) == 16
    weights = load_weights(bundle)
    for name, array in _weights(_card()).items():
        np.testing.assert_array_equal(weights[name], array)
    assert card.label_names == ("background", "knock")
    assert card.roles == {"background": "background", "knock": "fault"}
    assert card.window_rate_hz == Fraction(500_000)
    assert _card(rate_is_nominal=True).window_rate_hz is None


def test_the_version_is_a_hash_of_card_and_weights(tmp_path: Path) -> None:
    first = write_bundle(tmp_path / "a", _card(), _weights(_card())).version
    assert write_bundle(tmp_path / "b", _card(), _weights(_card())).version == first
    assert write_bundle(tmp_path / "c", _card(temperature=1.6), _weights(_card())).version != first
    assert write_bundle(tmp_path / "d", _card(), _weights(_card(), seed=1)).version != first


def test_cards_are_read_without_importing_torch(bundle: Path) -> None:
    program = (
        "import sys; from model.bundle import read_card, load_weights; "
        f"read_card({str(bundle)!r}); load_weights({str(bundle)!r}); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_missing_bundle_is_named_and_what_a_bundle_is(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"nowhere.*model\.json.*No such file.*a bundle is a folder"):
        read_card(tmp_path / "nowhere")


def test_the_folder_of_a_training_points_to_its_bundle(bundle: Path) -> None:
    (bundle.parent / "run").mkdir()
    inside = bundle.rename(bundle.parent / "run" / "bundle")
    with pytest.raises(BundleError, match=rf"a training, not a bundle; did you mean {inside}\?"):
        read_card(inside.parent)


def test_missing_weights_are_named(bundle: Path) -> None:
    (bundle / WEIGHTS_FILE).unlink()
    with pytest.raises(BundleError, match=r"model\.safetensors: No such file"):
        load_weights(bundle)


def test_an_edited_card_no_longer_belongs_to_its_weights(bundle: Path) -> None:
    path = bundle / CARD_FILE
    path.write_text(path.read_text().replace('"temperature": 1.5', '"temperature": 1.7'))
    with pytest.raises(BundleError, match="the card says"):
        load_weights(bundle)


def test_weights_of_another_bundle_are_refused(bundle: Path, tmp_path: Path) -> None:
    write_bundle(tmp_path / "other", _card(), _weights(_card(), seed=1))
    (tmp_path / "other" / WEIGHTS_FILE).replace(bundle / WEIGHTS_FILE)
    with pytest.raises(BundleError, match="two bundles"):
        load_weights(bundle)


def test_reformatting_the_card_changes_nothing(bundle: Path) -> None:
    path = bundle / CARD_FILE
    path.write_text(json.dumps(json.loads(path.read_text()), sort_keys=True))
    load_weights(bundle)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"format": 2}, "format version 2, this program reads 1"),
        ({"format": None}, "format"),
        ({"labels": [{"name": "knock", "role": "catastrophe"}]}, "role"),
        ({"labels": [{"name": "a", "role": "fault"}, {"name": "a", "role": "fault"}]}, "labels repeat"),
        ({"rate_hz": -1.0}, "rate_hz is -1"),
        ({"window_samples": 1 << 40}, "window_samples is 1099511627776"),
        ({"hop_samples": 0}, "hop_samples is 0"),
        ({"temperature": 0.0}, "temperature is 0"),
        ({"thresholds": {"drop": 0.5}}, "drop"),
        ({"front_end": {"n_fft": 1 << 40}}, "n_fft is 1099511627776"),
        ({"network": {"channels": 1_000_000_000}}, "channels is 1000000000"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_wrong_card_is_refused_with_path_and_field(bundle: Path, change: dict[str, Any], named: str) -> None:
    path = bundle / CARD_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(BundleError, match=named) as caught:
        read_card(bundle)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[1, 2]", b"\xff\xfe", b'{"format": 1}'])
def test_a_card_that_is_no_card_is_refused(bundle: Path, content: bytes) -> None:
    (bundle / CARD_FILE).write_bytes(content)
    with pytest.raises(BundleError, match=CARD_FILE):
        read_card(bundle)


def test_files_far_larger_than_they_can_be_are_not_read(bundle: Path) -> None:
    with (bundle / WEIGHTS_FILE).open("r+b") as file:
        file.truncate(1 << 40)  # sparse: nothing is stored
    with pytest.raises(BundleError, match="1,099,511,627,776 bytes, at most"):
        load_weights(bundle)
    with (bundle / CARD_FILE).open("r+b") as file:
        file.truncate(1 << 40)
    with pytest.raises(BundleError, match="1,099,511,627,776 bytes, at most"):
        read_card(bundle)


@pytest.mark.parametrize("damage", [b"", b"garbage", b"\xff" * 64])
def test_damaged_weights_are_refused(bundle: Path, damage: bytes) -> None:
    (bundle / WEIGHTS_FILE).write_bytes(damage)
    with pytest.raises(BundleError, match="not a safetensors file"):
        load_weights(bundle)


def test_weights_that_do_not_fit_the_card_are_not_written(tmp_path: Path) -> None:
    weights = _weights(_card())
    with pytest.raises(BundleError, match=r"head\.bias is float32 \(3,\), the card asks for float32 \(2,\)"):
        write_bundle(tmp_path / "a", _card(), {**weights, "head.bias": np.zeros(3, np.float32)})
    with pytest.raises(BundleError, match="not finite"):
        write_bundle(tmp_path / "a", _card(), {**weights, "head.bias": np.full(2, np.nan, np.float32)})
    with pytest.raises(BundleError, match=r"1 tensors missing, the first is head\.bias"):
        write_bundle(tmp_path / "a", _card(), {name: weights[name] for name in weights if name != "head.bias"})
    with pytest.raises(BundleError, match="knows nothing of, the first is more"):
        write_bundle(tmp_path / "a", _card(), {**weights, "more": np.zeros(1, np.float32)})
    assert not (tmp_path / "a").exists()


def test_writing_over_a_bundle_replaces_it_and_leaves_nothing_else_behind(bundle: Path) -> None:
    before = read_card(bundle)
    after = write_bundle(bundle, _card(name="newer"), _weights(_card(), seed=2), readme="# newer\n")
    assert after.version != before.version
    assert read_card(bundle) == after
    load_weights(bundle)
    assert sorted(path.name for path in bundle.parent.iterdir()) == ["small"]
    assert sorted(path.name for path in bundle.iterdir()) == ["README.md", CARD_FILE, WEIGHTS_FILE]


def test_the_bundle_that_comes_along_is_whole() -> None:
    card = read_card(demo_bundle_path())
    load_weights(demo_bundle_path(), card)
    assert card.label_names == ("background", "pencil_lead_break", "friction", "knock", "drop")
    assert list(card.roles.values()) == ["background", "calibration", "fault", "fault", "fault"]
    assert (card.rate_hz, card.rate_is_nominal) == (500_000.0, False)
    assert (card.window_samples, card.hop_samples) == (65_536, 32_768)


def test_the_version_of_the_demo_bundle_is_what_it_was_on_its_first_day() -> None:
    card = read_card(demo_bundle_path())
    load_weights(demo_bundle_path(), card)
    assert card.version == "bf84e051c4d591ac"


def test_a_bundle_without_the_fields_that_came_later_stays_valid(bundle: Path) -> None:
    path = bundle / CARD_FILE
    card = json.loads(path.read_text())
    for field in ("counts", "recordings", "split", "recipe"):
        del card["training"][field]
    del card["front_end"]["context"]
    card["version"] = _hash_of(card, bundle)
    path.write_text(json.dumps(card))
    assert read_card(bundle).training.counts == {}
    load_weights(bundle)


def _hash_of(card: dict[str, Any], bundle: Path) -> str:
    """As the first bundles were hashed: JSON without spaces, names sorted, the version blank; then the weights."""
    text = json.dumps({**card, "version": ""}, sort_keys=True, separators=(",", ":")).replace("1e-06", "1e-6")
    digest = hashlib.sha256(text.encode())
    digest.update(hashlib.sha256((bundle / WEIGHTS_FILE).read_bytes()).digest())
    return digest.hexdigest()[:16]


@pytest.mark.parametrize("section", ["front_end", "network", "head"])
def test_a_choice_that_this_program_does_not_know_is_not_passed_over(bundle: Path, section: str) -> None:
    path = bundle / CARD_FILE
    card = json.loads(path.read_text())
    card[section]["flux_capacitor"] = True
    path.write_text(json.dumps(card))
    with pytest.raises(BundleError, match=f"{section} has flux_capacitor, unknown here; install a later aewatch"):
        read_card(bundle)


def test_weights_are_those_of_the_card_that_was_read_before_them(bundle: Path) -> None:
    before = read_card(bundle)
    after = write_bundle(bundle, _card(name="newer"), _weights(_card(), seed=2))
    with pytest.raises(BundleError, match=f"now version {after.version}, no longer {before.version}"):
        load_weights(bundle, before)
