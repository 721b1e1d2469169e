from __future__ import annotations

import pytest
import torch
from torch import Tensor

from model.architecture import EcapaDims, FrontEndSpec, HeadSpec, count_parameters, parameter_shapes
from model.network import AttentiveStatistics, EcapaTdnn, Recogniser

SMALL = EcapaDims(channels=32, mfa_channels=24, attention=8, embedding=12, scale=4, se_bottleneck=8)


def _trained_looking(module: torch.nn.Module, seed: int = 0) -> None:
    """Random batch norm statistics and biases, so that zeros do not stay zeros on their way."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in module.state_dict().items():
        if name.endswith("running_var"):
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
        elif tensor.is_floating_point() and tensor.ndim == 1:
            tensor.copy_(torch.randn(tensor.shape, generator=generator))


@pytest.mark.parametrize(("channels", "parameters"), [(1_024, 15_444_544), (512, 6_978_176)])
def test_the_network_has_exactly_as_many_parameters_as_the_papers(channels: int, parameters: int) -> None:
    with torch.device("meta"):
        network = EcapaTdnn(EcapaDims(channels=channels))
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    shapes = parameter_shapes(EcapaDims(channels=channels), 80, HeadSpec(), 4)
    assert count_parameters(shapes) == parameters
    if channels == 1_024:
        assert round(parameters / 2**20, 2) == 14.73  # as the paper's log prints it


@pytest.mark.parametrize("head", [HeadSpec(kind="linear"), HeadSpec(kind="cosine")])
@pytest.mark.parametrize("dims", [SMALL, EcapaDims(channels=48, scale=3, dilations=(1, 2))])
def test_the_shapes_known_without_torch_are_those_of_the_network(head: HeadSpec, dims: EcapaDims) -> None:
    model = Recogniser(FrontEndSpec(), dims, head, 5)
    weights = {name: array.shape for name, array in model.weights().items()}
    assert weights == parameter_shapes(dims, 80, head, 5)


def test_a_padded_window_gives_what_it_gives_alone() -> None:
    network = EcapaTdnn(SMALL, features=20).double().eval()
    _trained_looking(network)
    lengths = (1, 3, 17, 40)
    batch = torch.zeros(4, 20, 55, dtype=torch.float64)
    mask = torch.zeros(4, 1, 55, dtype=torch.float64)
    for row, length in enumerate(lengths):
        batch[row, :, :length] = torch.randn(20, length, dtype=torch.float64)
        mask[row, :, :length] = 1.0
    together = network(batch, mask)
    for row, length in enumerate(lengths):
        alone = network(batch[row : row + 1, :, :length])
        torch.testing.assert_close(together[row : row + 1], alone, atol=1e-12, rtol=1e-12)


def test_a_mask_of_ones_is_no_mask() -> None:
    network = EcapaTdnn(SMALL, features=20).double().eval()
    _trained_looking(network)
    features = torch.randn(2, 20, 30, dtype=torch.float64)
    masked = network(features, torch.ones(2, 1, 30, dtype=torch.float64))
    torch.testing.assert_close(masked, network(features), atol=1e-12, rtol=1e-12)


def test_each_block_is_given_the_sum_of_all_outputs_before_it() -> None:
    network = EcapaTdnn(SMALL, features=20).eval()
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []
    network.entry.register_forward_hook(lambda module, given, output: outputs.append(output))
    for block in network.blocks:
        block.register_forward_hook(lambda module, given, output: (inputs.append(given[0]), outputs.append(output))[0])
    network(torch.randn(1, 20, 30))
    assert len(inputs) == 3
    for number, given in enumerate(inputs):
        torch.testing.assert_close(given, torch.stack(outputs[: number + 1]).sum(dim=0))


def test_constant_features_give_finite_embeddings_and_gradients() -> None:
    network = EcapaTdnn(SMALL, features=20).train()
    features = torch.zeros(3, 20, 30, requires_grad=True)
    network(features).square().sum().backward()
    assert features.grad is not None
    assert torch.isfinite(features.grad).all()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)


def test_a_single_frame_which_has_no_spread_at_all_gives_finite_gradients() -> None:
    pooling = AttentiveStatistics(6, 4).train()
    frames = torch.randn(3, 6, 1, requires_grad=True)
    pooling(frames, None).sum().backward()
    assert frames.grad is not None
    assert torch.isfinite(frames.grad).all()


def test_a_cosine_head_looks_at_the_direction_of_an_embedding_alone() -> None:
    model = Recogniser(FrontEndSpec(), SMALL, HeadSpec(kind="cosine", scale=30.0), 5)
    embedding = torch.randn(4, SMALL.embedding)
    logits = model.head(embedding)
    torch.testing.assert_close(logits, model.head(embedding * 7.0))
    expected = torch.nn.functional.cosine_similarity(embedding[:, None], model.head.weight[None], dim=2)
    torch.testing.assert_close(logits, 30.0 * expected)


def test_channels_that_do_not_divide_into_the_res2_groups_are_refused() -> None:
    with pytest.raises(ValueError, match="100 channels do not divide into 8"):
        EcapaDims(channels=100)
