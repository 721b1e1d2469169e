"""Network and front end are the paper's: against its authors' layout in plain operations, and against the formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torchaudio.transforms import MelSpectrogram

from model.architecture import EcapaDims, FrontEndSpec, HeadSpec, count_parameters, parameter_shapes
from model.front_end import FrontEnd
from model.network import EcapaTdnn
from model.training.import_weights import from_speechbrain, from_taoruijie
from tests.reference_ecapa import (
    drawn,
    speechbrain_embedding,
    speechbrain_shapes,
    taoruijie_embedding,
    taoruijie_shapes,
)

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def _network(weights: dict[str, np.ndarray], dims: EcapaDims) -> EcapaTdnn:
    with torch.device("meta"):
        network = EcapaTdnn(dims)
    state = {name.removeprefix("network."): torch.from_numpy(np.array(array)) for name, array in weights.items()}
    state |= {n: torch.tensor(0) for n in network.state_dict() if n.endswith("num_batches_tracked")}
    network.load_state_dict(state, assign=True)
    return network.eval()


def _features(frames: int) -> Tensor:
    return 3.0 * torch.randn(1, 80, frames, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize(("channels", "parameters"), [(1_024, 15_444_544), (512, 6_978_176)])
def test_the_reference_and_our_network_have_as_many_parameters_as_the_paper_says(
    channels: int, parameters: int
) -> None:
    theirs = taoruijie_shapes(channels)
    trained = [name for name in theirs if not name.startswith("torchfbank") and not name.endswith(STATISTICS)]
    assert sum(math.prod(theirs[name]) for name in trained) == parameters
    assert count_parameters(parameter_shapes(EcapaDims(channels=channels), 80, HeadSpec(), 4)) == parameters


@torch.inference_mode()
@pytest.mark.parametrize(("channels", "frames"), [(1_024, 60), (512, 101), (64, 410)])
def test_the_references_weights_give_the_references_embeddings(channels: int, frames: int) -> None:
    theirs = drawn(taoruijie_shapes(channels))
    weights, dims = from_taoruijie({name: tensor.numpy() for name, tensor in theirs.items()})
    assert dims == EcapaDims(channels=channels)
    expected = taoruijie_embedding(theirs, _features(frames))
    assert 0.1 < expected.std() < 100.0
    torch.testing.assert_close(_network(weights, dims)(_features(frames)), expected, atol=1e-6, rtol=0)


@torch.inference_mode()
def test_speechbrains_weights_at_their_size_give_speechbrains_embeddings() -> None:
    theirs = drawn(speechbrain_shapes(1_024, mfa=3_072))
    weights, dims = from_speechbrain({name: tensor.numpy() for name, tensor in theirs.items()})
    assert dims == EcapaDims(mfa_channels=3_072, attention=128, variant="speechbrain")
    expected = speechbrain_embedding(theirs, _features(50))
    assert 0.1 < expected.std() < 100.0
    torch.testing.assert_close(_network(weights, dims)(_features(50)), expected, atol=1e-6, rtol=0)


def _samples(count: int) -> Tensor:
    """Noise at a tenth of full scale, and a tone that begins in the middle."""
    t = torch.arange(count, dtype=torch.float64)
    noise = torch.randn(count, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return 0.1 * noise + 0.3 * torch.sin(0.7 * t) * (t > count / 2)


def _emphasised(samples: Tensor) -> Tensor:
    return samples - 0.97 * torch.cat([samples[1:2], samples[:-1]])


@pytest.mark.parametrize("count", [512, 4_000, 65_536])
def test_mel_values_are_those_of_torchaudio(count: int) -> None:
    mel = MelSpectrogram(
        sample_rate=16_000,
        n_fft=512,
        win_length=400,
        hop_length=160,
        f_min=20,
        f_max=7_600,
        window_fn=torch.hamming_window,
        n_mels=80,
    ).double()
    samples = _samples(count)
    expected = (mel(_emphasised(samples)) + 1e-6).log()
    front_end = FrontEnd(FrontEndSpec()).double()
    torch.testing.assert_close(front_end.log_mel(samples[None])[0], expected, atol=1e-9, rtol=0)
    expected -= expected.mean(dim=1, keepdim=True)
    torch.testing.assert_close(front_end(samples[None])[0][0], expected, atol=1e-9, rtol=0)


def test_mel_values_are_those_of_a_fourier_transform_written_as_a_sum() -> None:
    samples = _samples(1_600)
    emphasised = np.pad(_emphasised(samples).numpy(), 256, mode="reflect")
    window = [0.0] * 56 + [0.54 - 0.46 * math.cos(2 * math.pi * n / 400) for n in range(400)] + [0.0] * 56
    angle = 2 * math.pi * np.outer(np.arange(257), np.arange(512)) / 512

    def mel(hz: float) -> float:
        return 2595 * math.log10(1 + hz / 700)

    def hz(mel: float) -> float:
        return 700 * (10 ** (mel / 2595) - 1)

    edges = [hz(mel(20) + (mel(7_600) - mel(20)) * n / 81) for n in range(82)]
    expected = np.empty((80, 11))
    for frame in range(11):
        part = emphasised[160 * frame : 160 * frame + 512] * window
        power = (part * np.cos(angle)).sum(axis=1) ** 2 + (part * np.sin(angle)).sum(axis=1) ** 2
        for band, (low, centre, high) in enumerate(zip(edges, edges[1:], edges[2:], strict=False)):
            at = np.arange(257) * 8_000 / 256
            triangle = np.clip(np.minimum((at - low) / (centre - low), (high - at) / (high - centre)), 0, None)
            expected[band, frame] = math.log((triangle * power).sum() + 1e-6)
    found = FrontEnd(FrontEndSpec()).double().log_mel(samples[None])[0].numpy()
    # The filters, as in the paper, are torchaudio's, which makes them in float32.
    np.testing.assert_allclose(found, expected, atol=1e-4)


@torch.inference_mode()
def test_in_the_precision_of_the_engine_embeddings_stay_those_of_the_reference() -> None:
    theirs = drawn(taoruijie_shapes(64))
    weights, dims = from_taoruijie({name: tensor.numpy() for name, tensor in theirs.items()})
    single = {name: array.astype(np.float32) for name, array in weights.items()}
    expected = taoruijie_embedding(theirs, _features(410))
    found = _network(single, dims)(_features(410).float())
    torch.testing.assert_close(found.double(), expected, atol=1e-4 * float(expected.std()), rtol=0)
