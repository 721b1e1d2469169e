import numpy as np

from model.denormals import flushed_denormals

SMALLEST = np.float32(1e-45)


def test_denormals_are_zero_within_and_themselves_again_afterwards() -> None:
    with flushed_denormals():
        assert SMALLEST * np.float32(1) == 0
    assert SMALLEST * np.float32(1) > 0


def test_a_thread_that_flushed_them_before_goes_on_doing_so() -> None:
    with flushed_denormals():
        with flushed_denormals():
            pass
        assert SMALLEST * np.float32(1) == 0
    assert SMALLEST * np.float32(1) > 0
