from __future__ import annotations

import math
from itertools import pairwise

import msgspec
import pytest
import torch
from torch.nn import functional

from model.architecture import HeadSpec
from model.network import Head
from model.training.losses import Mixed, aam_softmax, classification_loss, head_outputs
from model.training.recipe import Loss

PLAIN = Loss(kind="cross_entropy", margin=0.0, scale=1.0, label_smoothing=0.0, logit_adjustment=0.0)
MARGIN = Loss(kind="aam_softmax", margin=0.2, scale=12.0, label_smoothing=0.0, logit_adjustment=0.0)


def test_the_margin_is_added_to_the_angle_of_the_true_label() -> None:
    cosine = torch.tensor([[0.3, -0.2, 0.9]])
    turned = math.cos(math.acos(0.3) + 0.2)
    expected = functional.cross_entropy(30.0 * torch.tensor([[turned, -0.2, 0.9]]), torch.tensor([0]))
    torch.testing.assert_close(aam_softmax(cosine, torch.tensor([0])), expected)


def test_without_a_margin_it_is_cross_entropy_of_the_scaled_cosines() -> None:
    cosine = torch.rand(6, 4) * 1.8 - 0.9
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    torch.testing.assert_close(
        aam_softmax(cosine, labels, margin=0.0, scale=10.0), functional.cross_entropy(10.0 * cosine, labels)
    )


def test_the_loss_never_falls_as_the_angle_to_the_true_label_grows() -> None:
    angles = torch.linspace(0.0, math.pi, 200)
    losses = [float(aam_softmax(torch.stack([a.cos(), torch.tensor(0.0)])[None], torch.tensor([0]))) for a in angles]
    assert all(later >= earlier - 1e-5 for earlier, later in pairwise(losses))


@pytest.mark.parametrize("true_cosine", [1.0, -1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_is_finite_where_the_cosine_is_one(true_cosine: float, dtype: torch.dtype) -> None:
    cosine = torch.tensor([[true_cosine, -true_cosine]], dtype=dtype, requires_grad=True)
    loss = aam_softmax(cosine, torch.tensor([0]))
    loss.backward()
    assert loss.dtype == torch.float32
    assert cosine.grad is not None
    assert torch.isfinite(cosine.grad).all()


def test_embeddings_that_lie_on_their_labels_direction_train_on() -> None:
    head = Head(HeadSpec(kind="cosine"), 8, 4)
    embeddings = head.weight.detach().clone().requires_grad_()
    classification_loss(head_outputs(head, embeddings), torch.arange(4), MARGIN).backward()
    assert embeddings.grad is not None
    assert torch.isfinite(embeddings.grad).all()
    assert head.weight.grad is not None
    assert torch.isfinite(head.weight.grad).all()


def test_a_linear_head_is_trained_with_cross_entropy_and_a_cosine_head_with_the_margin() -> None:
    embeddings, labels = torch.randn(5, 8), torch.tensor([0, 1, 2, 0, 1])
    linear, cosine = Head(HeadSpec(), 8, 3), Head(HeadSpec(kind="cosine", scale=12.0), 8, 3)
    torch.testing.assert_close(
        classification_loss(head_outputs(linear, embeddings), labels, PLAIN),
        functional.cross_entropy(linear(embeddings), labels),
    )
    torch.testing.assert_close(
        classification_loss(head_outputs(cosine, embeddings), labels, MARGIN),
        aam_softmax(cosine.cosine(embeddings), labels, scale=12.0),
    )


@pytest.mark.parametrize("spec", [PLAIN, MARGIN])
def test_a_mixed_window_is_pulled_to_both_labels_by_their_weights(spec: Loss) -> None:
    outputs = torch.rand(4, 3) * 1.6 - 0.8
    own, other = torch.tensor([0, 1, 2, 0]), torch.tensor([1, 1, 0, 2])
    weights = torch.tensor([0.5, 1.0, 0.75, 0.9])
    each = [
        float(weight) * classification_loss(outputs[i : i + 1], own[i : i + 1], spec)
        + (1 - float(weight)) * classification_loss(outputs[i : i + 1], other[i : i + 1], spec)
        for i, weight in enumerate(weights)
    ]
    torch.testing.assert_close(
        classification_loss(outputs, own, spec, mixed=Mixed(other, weights)), torch.stack(each).mean()
    )


@pytest.mark.parametrize("spec", [PLAIN, MARGIN])
def test_label_smoothing_leaves_a_share_to_every_label(spec: Loss) -> None:
    outputs, labels = torch.rand(6, 3) * 1.6 - 0.8, torch.tensor([0, 1, 2, 0, 1, 2])
    smooth = msgspec.structs.replace(spec, label_smoothing=0.3, margin=0.0)
    logits = float(spec.scale) * outputs
    targets = functional.one_hot(labels, 3) * 0.7 + 0.1
    expected = -(targets * logits.log_softmax(dim=1)).sum(dim=1).mean()
    torch.testing.assert_close(classification_loss(outputs, labels, smooth), expected)


def test_logit_adjustment_makes_up_for_the_shares() -> None:
    shares = torch.tensor([0.9, 0.1])
    spec = msgspec.structs.replace(PLAIN, logit_adjustment=1.0)
    # Outputs that know nothing: training finds the label's share as its probability, and has nothing to learn.
    outputs = torch.zeros(10, 2, requires_grad=True)
    labels = torch.tensor([0] * 9 + [1])
    classification_loss(outputs, labels, spec, shares=shares).backward()
    assert outputs.grad is not None
    torch.testing.assert_close(outputs.grad.sum(dim=0), torch.zeros(2), atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="needs the share"):
        classification_loss(outputs, labels, spec)


def test_the_loss_of_bfloat16_outputs_is_computed_in_float32() -> None:
    outputs, labels = torch.rand(6, 3).bfloat16(), torch.tensor([0, 1, 2, 0, 1, 2])
    for spec in (PLAIN, MARGIN):
        loss = classification_loss(outputs, labels, spec)
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, classification_loss(outputs.float(), labels, spec))
