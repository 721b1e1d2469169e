from pathlib import Path

import pytest
from hypothesis import settings

# How long an example takes says more of what else the machine does than of the code.
settings.register_profile("aewatch", deadline=None)
settings.load_profile("aewatch")

REAL_DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real recordings beside the checkout."""
    if not REAL_DATA.is_dir():
        pytest.skip(f"no real recordings on this machine: {REAL_DATA} is not there")
    return REAL_DATA
