from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest

from model.architecture import EcapaDims, FrontEndSpec, HeadSpec, parameter_shapes
from model.describe import describe_architecture, describe_bundle, layer_rows
from model.untrained import write_untrained_bundle


@pytest.mark.parametrize("context", ["none", "window"])
def test_the_rows_add_up_to_all_parameters(context: Literal["none", "window"]) -> None:
    dims, front_end = EcapaDims(channels=64, mfa_channels=48), FrontEndSpec(context=context)
    rows = layer_rows(front_end, dims, HeadSpec(), 5, 65_536)
    trainable = [
        shape
        for name, shape in parameter_shapes(dims, front_end.features, HeadSpec(), 5, front_end.context_rows).items()
        if not name.startswith(("unknown.", "front_end.")) and "running" not in name
    ]
    total = 0
    for shape in trainable:
        size = 1
        for side in shape:
            size *= side
        total += size
    assert sum(row.parameters for row in rows) == total


def test_the_papers_network_is_shown_with_its_size() -> None:
    text = describe_architecture(1_024)
    assert "15,444,544" in text
    assert "80 × 410" in text
    assert "6,978,176" in describe_architecture(512)
    with pytest.raises(ValueError, match="do not divide"):
        describe_architecture(100)


def test_a_bundle_is_shown_with_rate_labels_window_and_version(tmp_path: Path) -> None:
    card = write_untrained_bundle(tmp_path / "b", network=EcapaDims(channels=16, mfa_channels=16))
    text = describe_bundle(tmp_path / "b")
    for part in (card.version, "500,000 Hz", "65,536 samples, 131.1 ms", "32,768 samples", "knock (fault)", "16 × 410"):
        assert part in text
    write_untrained_bundle(tmp_path / "n", network=EcapaDims(channels=16, mfa_channels=16), rate_is_nominal=True)
    assert "nominal" in describe_bundle(tmp_path / "n")


def test_showing_a_bundle_does_not_import_torch(tmp_path: Path) -> None:
    write_untrained_bundle(tmp_path / "b", network=EcapaDims(channels=16, mfa_channels=16))
    program = (
        "import sys; from model.describe import describe_bundle; "
        f"describe_bundle({str(tmp_path / 'b')!r}); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
