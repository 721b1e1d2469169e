from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from producers.propagation import (
    DEMO_POSITIONS,
    RAYLEIGH_M_S,
    TRAINING_POSITIONS,
    VALIDATION_POSITIONS,
    bending_speed,
    draw_position,
    draw_positions,
    frequencies_hz,
    impulse_response,
    path_response,
    sensor_response,
    transfer,
)

RATE_HZ = 500_000.0


def arrival(response, low_hz, high_hz):
    """When a band of an impulse response is loudest, s."""
    spectrum = np.fft.rfft(response)
    grid = np.fft.rfftfreq(len(response), 1 / RATE_HZ)
    spectrum[(grid < low_hz) | (grid > high_hz)] = 0
    return float(np.argmax(np.abs(np.fft.irfft(spectrum, len(response)))) / RATE_HZ)


def test_bending_waves_travel_with_the_root_of_frequency_in_thin_plates_and_at_the_rayleigh_speed_in_thick_ones():
    low = bending_speed(np.array([500.0, 2_000.0]), 0.004)
    assert low[1] / low[0] == pytest.approx(2.0, rel=0.02)
    high = bending_speed(np.array([1e8]), 0.012)[0]
    assert high == pytest.approx(RAYLEIGH_M_S, rel=0.01)


def test_high_frequencies_arrive_before_low_ones():
    position = replace(TRAINING_POSITIONS[0], distance_m=1.0, echoes=0, extensional_share=0.0)
    response = impulse_response(position, RATE_HZ)
    assert arrival(response, 60_000, 120_000) < arrival(response, 5_000, 10_000) - 200e-6


def test_distance_delays_a_sound():
    near, far = (
        impulse_response(replace(TRAINING_POSITIONS[0], distance_m=d, echoes=0, extensional_share=0.0), RATE_HZ)
        for d in (0.2, 1.0)
    )
    speed_m_s = 0.8 / (arrival(far, 30_000, 60_000) - arrival(near, 30_000, 60_000))
    # The group of bending waves: faster than the phase, slower than the plate's fastest wave.
    assert 1_500 < speed_m_s < 4_000


def test_distance_takes_more_from_high_frequencies_than_from_low_ones():
    near, far = (replace(TRAINING_POSITIONS[0], distance_m=d, echoes=0, extensional_share=0.0) for d in (0.2, 1.0))
    grid = np.array([10_000.0, 200_000.0])
    loss = np.abs(path_response(far, grid)) / np.abs(path_response(near, grid))
    assert loss[1] < loss[0] < 0.5


def test_echoes_lengthen_a_sound():
    shares = []
    for echoes in (0, 8):
        energy = impulse_response(replace(TRAINING_POSITIONS[0], echoes=echoes), RATE_HZ) ** 2
        shares.append(np.sum(energy[int(0.0005 * RATE_HZ) :]) / np.sum(energy))
    assert shares[1] > 2 * shares[0]


@pytest.mark.parametrize("resonance_hz", [60_000.0, 150_000.0])
def test_a_sensor_hears_best_at_its_resonance(resonance_hz):
    position = replace(TRAINING_POSITIONS[0], resonance_hz=resonance_hz, resonance_q=6.0)
    grid = frequencies_hz(5_000, RATE_HZ)
    response = np.abs(sensor_response(position, grid, RATE_HZ))
    assert grid[np.argmax(response)] == pytest.approx(resonance_hz, rel=0.1)
    assert response[0] == 0


def test_transfer_is_the_spectrum_of_the_impulse_response():
    position = DEMO_POSITIONS[3]
    response = np.fft.irfft(transfer(position, RATE_HZ, 32_768), 32_768)
    np.testing.assert_allclose(response[:8_000], impulse_response(position, RATE_HZ), atol=1e-12)


def test_training_validation_and_demo_share_no_position():
    every = [
        *TRAINING_POSITIONS,
        *VALIDATION_POSITIONS,
        *DEMO_POSITIONS,
        *draw_positions(0, 50),
        *draw_positions(7, 50),
    ]
    assert len({position.seed for position in every}) == len(every)
    assert len({position.distance_m for position in every}) == len(every)
    assert len({position.resonance_hz for position in every}) == len(every)
    assert (len(TRAINING_POSITIONS), len(VALIDATION_POSITIONS), len(DEMO_POSITIONS)) == (12, 4, 8)


def test_each_set_has_both_sensor_families():
    for positions in (TRAINING_POSITIONS, VALIDATION_POSITIONS, DEMO_POSITIONS):
        assert {position.resonance_hz > 100_000 for position in positions} == {True, False}


def test_demo_positions_are_named_like_sensors_of_a_plant():
    assert DEMO_POSITIONS[0].name == "plant1/pump1/ch0"
    assert DEMO_POSITIONS[7].name == "plant1/pump4/ch1"


def test_the_same_seed_draws_the_same_position_and_the_same_response():
    assert draw_position("a", 5) == draw_position("a", 5)
    impulse_response.cache_clear()
    first = impulse_response(draw_position("a", 5), RATE_HZ).copy()
    impulse_response.cache_clear()
    np.testing.assert_array_equal(first, impulse_response(draw_position("a", 5), RATE_HZ))


def test_positions_differ_in_what_they_do_to_a_sound():
    responses = [impulse_response(position, RATE_HZ) for position in DEMO_POSITIONS]
    for one, other in pairwise(responses):
        assert abs(np.corrcoef(one, other)[0, 1]) < 0.8


def test_a_negative_seed_is_refused():
    with pytest.raises(ValueError, match="-1"):
        draw_positions(-1, 3)
