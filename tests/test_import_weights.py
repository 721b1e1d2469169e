from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from model.architecture import EcapaDims, FrontEndSpec, HeadSpec, parameter_shapes
from model.bundle import BundleError
from model.network import EcapaTdnn
from model.training.import_weights import (
    WeightsImportError,
    for_front_end,
    from_speechbrain,
    from_taoruijie,
    import_file,
    read_initial,
    write_initial,
)
from model.untrained import write_untrained_bundle
from tests.reference_ecapa import (
    Tensors,
    drawn,
    speechbrain_embedding,
    speechbrain_shapes,
    taoruijie_embedding,
    taoruijie_shapes,
)

SMALL = {"mfa": 24, "attention": 12, "se": 6, "scale": 4}


def _taoruijie(seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensors:
    return drawn(taoruijie_shapes(32, **SMALL), seed, dtype)


def _speechbrain(seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensors:
    return drawn(speechbrain_shapes(32, **SMALL), seed, dtype)


def _arrays(tensors: Tensors) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def _embeddings(weights: dict[str, np.ndarray], dims: EcapaDims, features: Tensor) -> Tensor:
    """Of our network, in float64."""
    network = EcapaTdnn(dims, features.shape[1]).double().eval()
    state = {name.removeprefix("network."): torch.from_numpy(np.array(array)) for name, array in weights.items()}
    missing, unexpected = network.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing)
    with torch.inference_mode():
        return network(features)


def _features(frames: int = 61, seed: int = 3) -> Tensor:
    return 3.0 * torch.randn(3, 80, frames, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("frames", [9, 61, 410])
def test_taoruijie_weights_give_the_embeddings_that_they_give_there(frames: int) -> None:
    theirs = _taoruijie()
    weights, dims = from_taoruijie(_arrays(theirs))
    assert dims == EcapaDims(channels=32, mfa_channels=24, attention=12, se_bottleneck=6, scale=4)
    expected = taoruijie_embedding(theirs, _features(frames))
    torch.testing.assert_close(_embeddings(weights, dims, _features(frames)), expected, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("frames", [9, 61, 410])
def test_speechbrain_weights_give_the_embeddings_that_they_give_there(frames: int) -> None:
    theirs = _speechbrain()
    weights, dims = from_speechbrain(_arrays(theirs))
    assert dims == EcapaDims(
        channels=32, mfa_channels=24, attention=12, se_bottleneck=6, scale=4, variant="speechbrain"
    )
    expected = speechbrain_embedding(theirs, _features(frames))
    torch.testing.assert_close(_embeddings(weights, dims, _features(frames)), expected, atol=1e-9, rtol=1e-9)


def test_what_a_speechbrain_norm_turns_round_or_makes_constant_is_folded_exactly() -> None:
    theirs = _speechbrain()
    gains = theirs["mfa.norm.norm.weight"]
    gains[:3] = 0.0
    assert (gains < 0).any()
    theirs["mfa.conv.conv.bias"][5:8] = -100.0  # never gets through the ReLU
    theirs["mfa.norm.norm.weight"][6] = -1e-7
    weights, dims = from_speechbrain(_arrays(theirs))
    expected = speechbrain_embedding(theirs, _features())
    torch.testing.assert_close(_embeddings(weights, dims, _features()), expected, atol=1e-9, rtol=1e-9)


def test_a_speechbrain_network_gives_a_padded_window_what_it_gives_it_alone() -> None:
    weights, dims = from_speechbrain(_arrays(_speechbrain()))
    network = EcapaTdnn(dims).double().eval()
    network.load_state_dict(
        {name.removeprefix("network."): torch.from_numpy(array) for name, array in weights.items()}, strict=False
    )
    lengths = (1, 4, 17, 61)
    batch, mask = torch.zeros(4, 80, 70, dtype=torch.float64), torch.zeros(4, 1, 70, dtype=torch.float64)
    for row, length in enumerate(lengths):
        batch[row, :, :length] = _features()[0, :, :length]
        mask[row, :, :length] = 1.0
    together = network(batch, mask)
    for row, length in enumerate(lengths):
        alone = network(batch[row : row + 1, :, :length])
        torch.testing.assert_close(together[row : row + 1], alone, atol=1e-12, rtol=1e-12)


def _saved(tmp_path: Path, content: Any, name: str = "pretrain.model") -> Path:
    path = tmp_path / name
    torch.save(content, path)
    return path


def test_the_file_of_a_whole_speaker_model_is_read_as_its_authors_save_it(tmp_path: Path) -> None:
    theirs = _taoruijie(dtype=torch.float32)
    whole = {f"speaker_encoder.{name}": tensor for name, tensor in theirs.items()}
    path = _saved(tmp_path, {**whole, "speaker_loss.weight": torch.zeros(5994, 192)})
    weights, dims = import_file(path)
    shapes = {n: s for n, s in parameter_shapes(dims, 80, HeadSpec(), 2).items() if n.startswith("network.")}
    assert {name: array.shape for name, array in weights.items()} == shapes
    assert all(array.dtype == np.float32 for array in weights.values())
    np.testing.assert_array_equal(weights["network.entry.conv.weight"], theirs["conv1.weight"])
    np.testing.assert_array_equal(weights["network.embed.weight"][:, :, 0], theirs["fc6.weight"])


@pytest.mark.parametrize("wrap", ["", "module.speaker_encoder.", "speaker_encoder."])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_prefixes_and_file_kinds_are_told_apart(tmp_path: Path, wrap: str, suffix: str) -> None:
    tensors = {f"{wrap}{name}": tensor for name, tensor in _taoruijie(dtype=torch.float32).items()}
    if suffix == ".safetensors":
        safetensors.torch.save_file(tensors, tmp_path / "x.safetensors")
    else:
        _saved(tmp_path, {"epoch": 3, "state_dict": tensors}, "x.pt")
    weights, _ = import_file(tmp_path / f"x{suffix}")
    np.testing.assert_array_equal(weights["network.entry.norm.bias"], tensors[f"{wrap}bn1.bias"])


def test_a_speechbrain_file_in_half_precision_is_read_too(tmp_path: Path) -> None:
    tensors = {n: t if n.endswith("tracked") else t.bfloat16() for n, t in _speechbrain().items()}
    weights, dims = import_file(_saved(tmp_path, tensors, "embedding_model.ckpt"))
    assert dims.variant == "speechbrain"
    np.testing.assert_array_equal(weights["network.entry.conv.bias"], tensors["blocks.0.conv.conv.bias"].float())


def test_what_was_imported_can_be_kept_and_started_from(tmp_path: Path) -> None:
    weights, dims = import_file(_saved(tmp_path, _speechbrain(), "embedding_model.ckpt"))
    write_initial(tmp_path / "start.safetensors", weights, dims)
    again, same = read_initial(tmp_path / "start.safetensors")
    assert same == dims
    assert again.keys() == weights.keys()
    assert all(np.array_equal(again[name], array) for name, array in weights.items())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["embedding_model.ckpt", "start.safetensors"]


def test_a_bundle_is_a_start_without_its_head(tmp_path: Path) -> None:
    dims = EcapaDims(channels=16, mfa_channels=8, attention=4, embedding=6, scale=2, se_bottleneck=4, dilations=(2,))
    write_untrained_bundle(tmp_path / "b", network=dims)
    weights, found = read_initial(tmp_path / "b")
    assert found == dims
    assert weights.keys() == {n for n in parameter_shapes(dims, 80, HeadSpec(), 5) if n.startswith("network.")}
    with pytest.raises(BundleError, match=r"model\.json"):
        read_initial(tmp_path)


def test_weights_for_mel_bins_begin_by_passing_over_the_means_beside_them() -> None:
    weights, _ = from_taoruijie(_arrays(_taoruijie()))
    assert for_front_end(weights, FrontEndSpec()).keys() == weights.keys()
    wider = for_front_end(weights, FrontEndSpec(context="window"))["network.entry.conv.weight"]
    assert wider.shape == (32, FrontEndSpec(context="window").features, 5)
    np.testing.assert_array_equal(wider[:, :80], weights["network.entry.conv.weight"])
    assert not wider[:, 80:].any()
    with pytest.raises(WeightsImportError, match=r"take 80 features.*gives 40; set front_end\.n_mels=80"):
        for_front_end(weights, FrontEndSpec(n_mels=40))


def _without(name: str) -> Any:
    return lambda tensors: {other: tensor for other, tensor in tensors.items() if other != name}


def _with(name: str, *shape: int) -> Any:
    return lambda tensors: {**tensors, name: torch.zeros(shape)}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_without("layer2.bns.1.running_var"), r"layer2\.bns\.1\.running_var is missing"),
        (_without("fc6.weight"), r"fc6\.weight is missing"),
        (_with("layer3.conv3.weight", 32, 31, 1), r"layer3\.conv3\.weight is \(32, 31, 1\), \(32, 32, 1\) is wanted"),
        (_with("conv1.weight", 32, 80, 3), r"conv1\.weight is \(32, 80, 3\), \(32, 80, 5\) is wanted"),
        (_with("fc6.weight", 192, 47), r"fc6\.weight is \(192, 47\), \(192, 48\) is wanted"),
        (_with("layer1.convs.0.weight", 9, 9, 3), r"3 groups of 9 channels and one untouched are not 32"),
        (_with("layer1.se.se.2.weight", 6), r"layer1\.se\.se\.2\.weight: this layout has no such tensor"),
        (_with("conv1.weight"), r"conv1\.weight is a single number"),
        (lambda t: {**t, "bn5.bias": t["bn5.bias"] / 0}, r"pooled_norm\.bias is not finite"),
        (lambda t: {**t, **{f"b.{n}": v for n, v in t.items()}}, "more than one network: under the top"),
        (lambda t: {"encoder.weight": torch.zeros(3)}, r"no tensor layer1.* its 1 tensors begin with encoder\.weight"),
        (lambda t: torch.zeros(3), "no tensor"),
    ],
)
def test_what_does_not_fit_is_named_with_its_shape_and_the_one_wanted(change: Any, said: str, tmp_path: Path) -> None:
    path = _saved(tmp_path, change(_taoruijie(dtype=torch.float32)))
    with pytest.raises(WeightsImportError, match=said) as caught:
        import_file(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_without("mfa.norm.norm.weight"), r"mfa\.norm\.norm\.weight is missing"),
        (_with("mfa.norm.norm.bias", 3), r"mfa\.norm\.norm\.bias is \(3,\), \(24,\) is wanted"),
        (_with("asp.tdnn.conv.conv.weight", 12, 24, 1), r"asp\.tdnn.* is \(12, 24, 1\), \(12, 72, 1\) is wanted"),
        (_with("blocks.2.shortcut.conv.weight", 32, 16, 1), "unlike widths"),
        (_with("blocks.4.tdnn1.conv.conv.weight", 32, 32, 1), "4 SE-Res2Net blocks"),
    ],
)
def test_a_speechbrain_network_that_ours_cannot_be_is_refused(change: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsImportError, match=said):
        import_file(_saved(tmp_path, change(_speechbrain()), "embedding_model.ckpt"))


def test_a_layout_that_was_named_is_not_guessed_again(tmp_path: Path) -> None:
    path = _saved(tmp_path, _taoruijie())
    assert import_file(path, "taoruijie")[1].variant == "paper"
    with pytest.raises(WeightsImportError, match=r"no tensor blocks\.1\.res2net_block.*\(speechbrain\)"):
        import_file(path, "speechbrain")


class _Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("harm-was-done"),))


def test_a_file_that_would_run_code_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for content in (pickle.dumps(_Harmful()), b"", b"garbage", b"PK\x03\x04garbage"):
        (tmp_path / "x.pt").write_bytes(content)
        with pytest.raises(WeightsImportError, match=r"x\.pt"):
            import_file(tmp_path / "x.pt")
    torch.save({"harm": _Harmful()}, tmp_path / "x.pt")
    with pytest.raises(WeightsImportError, match="more than tensors"):
        import_file(tmp_path / "x.pt")
    assert not (tmp_path / "harm-was-done").exists()


def test_files_that_are_no_files_of_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsImportError, match=r"nowhere\.pt: No such file"):
        read_initial(tmp_path / "nowhere.pt")
    (tmp_path / "x.safetensors").write_bytes(b"garbage")
    with pytest.raises(WeightsImportError, match=r"x\.safetensors: cannot be read"):
        read_initial(tmp_path / "x.safetensors")
    with pytest.raises(WeightsImportError, match=r"x\.onnx: not a file of weights by its name"):
        read_initial(tmp_path / "x.onnx")


def test_a_checkpoint_of_a_training_is_to_be_named_by_its_bundle(tmp_path: Path) -> None:
    weights, _ = from_taoruijie(_arrays(_taoruijie()))
    tensors = {f"model.{name}": torch.from_numpy(np.array(array)) for name, array in weights.items()}
    safetensors.torch.save_file(tensors, tmp_path / "best.safetensors")
    with pytest.raises(WeightsImportError, match="name the bundle"):
        read_initial(tmp_path / "best.safetensors")
