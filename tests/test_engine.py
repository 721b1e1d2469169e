from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.architecture import EcapaDims, FrontEndSpec
from model.batching import LONGEST_SAMPLES, Bucket, batch_shapes, bucket_for, cover
from model.bundle import BundleError
from model.device import choose, cpu_has_bfloat16
from model.engine import Engine, Inference, agreeing_shapes
from model.untrained import write_untrained_bundle

SMALL = EcapaDims(channels=32, mfa_channels=24, attention=8, embedding=12, scale=4, se_bottleneck=8)
WINDOW_SAMPLES = 4_096

Window = npt.NDArray[np.int16] | npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "small"
    write_untrained_bundle(path, network=SMALL, window_samples=WINDOW_SAMPLES, hop_samples=2_048)
    return path


@pytest.fixture(scope="module")
def engine(bundle: Path) -> Engine:
    return Engine(bundle, device="cpu", threads=1)


def _window(seed: int, samples: int = WINDOW_SAMPLES, dtype: str = "int16") -> Window:
    rng = np.random.default_rng(seed)
    counts = (rng.standard_normal(samples) * rng.uniform(10, 3_000)).astype(np.int16)
    return counts if dtype == "int16" else counts.astype(np.float32) / np.float32(32_768)


def _assert_same_bits(one: Inference, rows: list[int], other: Inference) -> None:
    np.testing.assert_array_equal(one.probabilities[rows], other.probabilities)
    np.testing.assert_array_equal(one.unknown_scores[rows], other.unknown_scores)
    np.testing.assert_array_equal(one.embeddings[rows], other.embeddings)


windows = st.builds(
    _window,
    seed=st.integers(0, 1_000),
    samples=st.one_of(st.just(WINDOW_SAMPLES), st.integers(1, 12_000)),
    dtype=st.sampled_from(["int16", "float32"]),
)


@given(batch=st.lists(windows, min_size=1, max_size=12), data=st.data())
@settings(max_examples=25, deadline=None)
def test_a_window_gives_the_same_bits_alone_in_a_batch_and_in_any_order(
    engine: Engine, batch: list[Window], data: st.DataObject
) -> None:
    together = engine.infer(batch)
    order = data.draw(st.permutations(range(len(batch))))
    _assert_same_bits(together, order, engine.infer([batch[row] for row in order]))
    row = data.draw(st.integers(0, len(batch) - 1))
    _assert_same_bits(together, [row], engine.infer([batch[row]]))


def test_a_window_gives_the_same_bits_at_every_place_beside_longer_and_shorter_ones(engine: Engine) -> None:
    for samples in (300, 3_000, WINDOW_SAMPLES, 5_000):
        window = _window(1, samples)
        alone = engine.infer([window])
        for place in range(9):
            batch = [_window(10 + n, 512 + 700 * n) for n in range(8)]
            batch.insert(place, window)
            _assert_same_bits(engine.infer(batch), [place], alone)


def test_int16_and_the_same_signal_in_float32_give_the_same_bits(engine: Engine) -> None:
    for samples in (WINDOW_SAMPLES, 3_001):
        _assert_same_bits(engine.infer([_window(1, samples)]), [0], engine.infer([_window(1, samples, "float32")]))


def test_another_process_gives_the_same_bits(bundle: Path, engine: Engine, tmp_path: Path) -> None:
    program = (
        "import sys, numpy as np; from model.engine import Engine; "
        "e = Engine(sys.argv[1], device='cpu', threads=1); w = list(np.load(sys.argv[2])); "
        "np.save(sys.argv[3], e.infer(w).embeddings)"
    )
    batch = [_window(seed) for seed in range(5)]
    np.save(tmp_path / "windows.npy", np.stack(batch))
    arguments = [str(bundle), str(tmp_path / "windows.npy"), str(tmp_path / "embeddings.npy")]
    subprocess.run([sys.executable, "-c", program, *arguments], check=True)
    np.testing.assert_array_equal(np.load(tmp_path / "embeddings.npy"), engine.infer(batch).embeddings)


@pytest.mark.parametrize("torch_threads", [1, 2])
def test_any_thread_may_infer_and_gets_the_same_bits(bundle: Path, torch_threads: int) -> None:
    engine = Engine(bundle, device="cpu", threads=torch_threads)
    batch = [_window(seed) for seed in range(3)]
    here = engine.infer(batch)
    elsewhere: list[Inference] = []
    threads = [threading.Thread(target=lambda: elsewhere.append(engine.infer(batch))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(elsewhere) == 3
    for there in elsewhere:
        _assert_same_bits(here, [0, 1, 2], there)


def test_engines_with_unlike_numbers_of_threads_do_not_disturb_each_other(bundle: Path) -> None:
    one, two = (Engine(bundle, device="cpu", threads=threads) for threads in (1, 2))
    batch = [_window(seed) for seed in range(4)]
    alone = one.infer(batch)
    two.infer(batch)
    assert torch.get_num_threads() == 2
    _assert_same_bits(alone, [0, 1, 2, 3], one.infer(batch))
    assert torch.get_num_threads() == 1


def test_the_engine_gives_what_the_network_gives(bundle: Path, engine: Engine) -> None:
    window = _window(3)
    model = engine._model.double()
    try:
        with torch.inference_mode():
            logits, embeddings = model(torch.from_numpy(window.astype(np.float64) / 32_768.0)[None])
            score = model.unknown(embeddings, logits)
        expected = torch.softmax(logits.double() / engine.card.temperature, dim=1)
    finally:
        model.float()
    found = engine.infer([window])
    np.testing.assert_allclose(found.probabilities, expected.numpy(), atol=1e-4)
    np.testing.assert_allclose(found.embeddings, embeddings.numpy(), atol=1e-3, rtol=1e-3)
    np.testing.assert_allclose(found.unknown_scores, score.numpy(), rtol=1e-3)


def test_a_window_that_is_padded_gives_what_it_gives_at_its_own_length(bundle: Path, engine: Engine) -> None:
    window = _window(4, 5_001)
    with torch.inference_mode():
        _, embeddings = engine._model(torch.from_numpy(window.astype(np.float32) / np.float32(32_768.0))[None])
    np.testing.assert_allclose(engine.infer([window]).embeddings, embeddings.numpy(), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("samples", [1, 2, 100, 511, 512, 513])
def test_very_short_windows_are_judged_too(engine: Engine, samples: int) -> None:
    found = engine.infer([_window(5, samples)])
    assert np.isfinite(found.probabilities).all()
    assert found.probabilities.sum() == pytest.approx(1.0, abs=1e-5)


def test_of_an_absurdly_long_window_the_start_is_judged(engine: Engine) -> None:
    long = np.resize(_window(6, 50_000), LONGEST_SAMPLES + 1_000_000)
    _assert_same_bits(engine.infer([long]), [0], engine.infer([long[:LONGEST_SAMPLES]]))


@pytest.mark.parametrize("context", ["none", "window"])
@pytest.mark.parametrize("level", ["none", "rms"])
@pytest.mark.parametrize("value", [0.0, 1.0, 1e-38, 3e38])
def test_silence_and_samples_at_the_ends_of_float32_give_finite_results(
    tmp_path: Path, level: str, context: str, value: float
) -> None:
    front_end = FrontEndSpec(level=level, context=context)  # type: ignore[arg-type]
    write_untrained_bundle(tmp_path / "b", network=SMALL, front_end=front_end)
    window = np.resize(np.array([value, -value], dtype=np.float32), 3_000)
    found = Engine(tmp_path / "b", device="cpu").infer([window])
    assert np.isfinite(found.probabilities).all()
    assert np.isfinite(found.embeddings).all()
    assert np.isfinite(found.unknown_scores).all()


def test_with_level_rms_the_scale_of_float_samples_does_not_matter(engine: Engine) -> None:
    window = _window(7, dtype="float32")
    tiny, huge = np.ldexp(window, -90), np.ldexp(window, 90)
    _assert_same_bits(engine.infer([window]), [0], engine.infer([tiny]))
    _assert_same_bits(engine.infer([window]), [0], engine.infer([huge]))


def test_with_rows_of_context_the_scale_of_float_samples_is_heard_and_the_loudest_are_clipped(tmp_path: Path) -> None:
    front_end = FrontEndSpec(level="rms", context="window")
    write_untrained_bundle(
        tmp_path / "b", network=SMALL, front_end=front_end, window_samples=WINDOW_SAMPLES, hop_samples=2_048
    )
    engine = Engine(tmp_path / "b", device="cpu", threads=1)
    window = _window(7, dtype="float32")
    window /= np.abs(window).max()
    as_it_is = engine.infer([window]).embeddings
    for exponent in (-40, -21, -5, 5, 20):  # at full scale ±1 as anybody would give it, and far from it
        assert np.abs(engine.infer([np.ldexp(window, exponent)]).embeddings - as_it_is).max() > 1e-3, exponent
    huge = np.ldexp(window, 90)
    _assert_same_bits(engine.infer([huge]), [0], engine.infer([np.clip(huge, -(2.0**20), 2.0**20)]))
    # At the end of what is taken as it is, nothing jumps.
    below, above = engine.infer([np.ldexp(window, 20)]), engine.infer([np.ldexp(window, 20) * np.float32(1.0001)])
    np.testing.assert_allclose(below.embeddings, above.embeddings, atol=1e-2)


def test_read_only_windows_and_views_are_taken_as_they_are(engine: Engine) -> None:
    window = _window(8)
    frozen = np.frombuffer(window.tobytes(), dtype="<i2")
    spread = np.repeat(window, 2)[::2]
    _assert_same_bits(engine.infer([window]), [0], engine.infer([frozen]))
    _assert_same_bits(engine.infer([window]), [0], engine.infer([spread]))


def test_no_windows_give_no_rows(engine: Engine) -> None:
    found = engine.infer([])
    assert found.probabilities.shape == (0, 5)
    assert found.embeddings.shape == (0, 12)


@pytest.mark.parametrize(
    ("window", "named"),
    [
        (np.empty(0, dtype=np.int16), r"window 1 has shape \(0,\)"),
        (np.zeros((2, 100), dtype=np.int16), r"window 1 has shape \(2, 100\)"),
        (np.zeros(100), "window 1 holds float64"),
        (np.array([0.0, np.nan], dtype=np.float32), "window 1 holds samples that are not finite"),
        (np.array([np.inf, -np.inf], dtype=np.float32), "window 1 holds samples that are not finite"),
    ],
)
def test_what_is_no_window_is_refused_by_its_number(
    engine: Engine, window: npt.NDArray[np.float32], named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        engine.infer([_window(1), window])


def test_the_engine_says_what_it_chose(bundle: Path) -> None:
    engine = Engine(bundle, device="cpu", threads=1)
    assert "not checked yet" in engine.describe()
    engine.warm_up()
    described = engine.describe()
    assert engine.card.version in described
    assert "float32" in described
    assert "threads    1" in described
    assert f"{WINDOW_SAMPLES} samples: " in described


def test_a_bundle_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="nothing"):
        Engine(tmp_path / "nothing")


def test_only_batch_sizes_that_give_the_same_bits_are_used() -> None:
    assert agreeing_shapes({1: b"x", 2: b"y", 4: b"y", 8: b"y", 16: b"z"}).used == (2, 4, 8)
    assert agreeing_shapes({1: b"x", 2: b"y", 4: b"y", 8: b"y", 16: b"z"}).refused == (1, 16)
    assert agreeing_shapes({1: b"x", 2: None, 4: None}).used == (1,)
    assert agreeing_shapes({1: b"x", 2: b"y", 4: b"z"}).used == (4,)
    assert agreeing_shapes({1: b"x", 2: b"x", 4: b"y", 8: b"y"}).used == (4, 8)
    assert agreeing_shapes({1: b"x", 2: b"y"}).fingerprint != agreeing_shapes({1: b"x", 2: b"w"}).fingerprint


def test_a_network_of_few_numbers_is_tried_on_so_many_windows_that_rare_differences_are_seen(tmp_path: Path) -> None:
    dims = EcapaDims(channels=8, mfa_channels=8, attention=4, embedding=6, scale=2, se_bottleneck=4, dilations=(2,))
    front_end = FrontEndSpec(n_fft=64, win_length=64, hop_length=32, n_mels=8, level="rms")
    write_untrained_bundle(tmp_path / "b", network=dims, front_end=front_end, window_samples=600, hop_samples=300)
    engine = Engine(tmp_path / "b", device="cpu", threads=1)
    batch = [_window(seed, (600, 431, 70, 20)[seed % 4], "float32") for seed in range(200)]
    together = engine.infer(batch)
    for row, window in enumerate(batch):
        _assert_same_bits(together, [row], engine.infer([window]))


def test_a_batch_size_whose_bits_depend_on_the_place_is_not_used(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(bundle, device="cpu", threads=1)
    run = engine._run

    def uneven(bucket: Bucket, shape: int, windows: list[Window]) -> tuple[npt.NDArray[np.float32], ...]:
        results = run(bucket, shape, windows)
        if shape == 4:
            results[2][3] = np.nextafter(results[2][3], np.float32(1.0))
        return results

    monkeypatch.setattr(engine, "_run", uneven)
    engine.warm_up()
    assert 4 not in engine._checked(bucket_for(WINDOW_SAMPLES, WINDOW_SAMPLES, 512)).used


@given(samples=st.integers(1, 1 << 24))
def test_a_bucket_holds_its_window_and_at_most_half_as_much_again(samples: int) -> None:
    bucket = bucket_for(samples, 4_096, 512)
    needed = max(512, min(samples, LONGEST_SAMPLES))
    assert needed <= bucket.samples <= max(512, needed * 3 // 2)
    assert bucket.exact == (samples == 4_096)


@given(count=st.integers(0, 500), shapes=st.sets(st.sampled_from([1, 2, 4, 8, 16, 32, 64]), min_size=1))
def test_batches_hold_all_windows_in_allowed_sizes_without_an_empty_one(count: int, shapes: set[int]) -> None:
    sizes = cover(count, tuple(shapes))
    assert set(sizes) <= shapes
    assert sum(sizes) >= count
    assert sum(sizes[:-1]) < count or not sizes


def test_few_places_are_left_empty_and_few_batches_are_run() -> None:
    assert cover(31, (1, 2, 4, 8, 16, 32)) == [32]
    assert cover(33, (1, 2, 4, 8, 16, 32)) == [32, 1]
    assert cover(9, (2, 4, 8)) == [8, 2]
    assert cover(1, (8,)) == [8]


def test_long_windows_come_in_small_batches() -> None:
    assert max(batch_shapes(Bucket(LONGEST_SAMPLES, exact=False), 32)) == 2
    assert batch_shapes(Bucket(512, exact=False), 32) == (1, 2, 4, 8, 16, 32)
    assert batch_shapes(Bucket(512, exact=False), 12) == (1, 2, 4, 8)


def test_float32_is_the_precision_of_a_cpu_unless_asked_otherwise() -> None:
    assert choose("cpu").precision == "float32"
    if cpu_has_bfloat16():
        assert choose("cpu", "bfloat16").precision == "bfloat16"
    else:
        with pytest.raises(ValueError, match="AMX or avx512_bf16"):
            choose("cpu", "bfloat16")


@pytest.mark.parametrize("device", ["tpu", "cuda:99", "mps", "cpu:bad"])
def test_a_device_that_is_not_there_is_refused_by_name(device: str) -> None:
    with pytest.raises(ValueError, match=device):
        choose(device)


def test_a_precision_that_is_not_known_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="float16"):
        choose("cpu", "float16")


@pytest.mark.skipif(not cpu_has_bfloat16(), reason="this CPU has no instructions for bfloat16")
def test_bfloat16_gives_the_same_bits_in_any_batch_and_is_close_to_float32(bundle: Path, engine: Engine) -> None:
    fast = Engine(bundle, device="cpu", precision="bfloat16", threads=1)
    batch = [_window(seed) for seed in range(5)]
    together = fast.infer(batch)
    for row, window in enumerate(batch):
        _assert_same_bits(together, [row], fast.infer([window]))
    np.testing.assert_allclose(together.probabilities, engine.infer(batch).probabilities, atol=0.05)
