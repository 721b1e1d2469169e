from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch.nn import functional

from model.architecture import HeadSpec
from model.losses import aam_softmax, classification_loss
from model.network import Head


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
    classification_loss(head, embeddings, torch.arange(4)).backward()
    assert embeddings.grad is not None
    assert torch.isfinite(embeddings.grad).all()
    assert head.weight.grad is not None
    assert torch.isfinite(head.weight.grad).all()


def test_a_linear_head_is_trained_with_cross_entropy_and_a_cosine_head_with_the_margin() -> None:
    embeddings, labels = torch.randn(5, 8), torch.tensor([0, 1, 2, 0, 1])
    linear, cosine = Head(HeadSpec(), 8, 3), Head(HeadSpec(kind="cosine", scale=12.0), 8, 3)
    torch.testing.assert_close(
        classification_loss(linear, embeddings, labels), functional.cross_entropy(linear(embeddings), labels)
    )
    torch.testing.assert_close(
        classification_loss(cosine, embeddings, labels), aam_softmax(cosine.cosine(embeddings), labels, scale=12.0)
    )
    assert classification_loss(cosine, embeddings, labels) > functional.cross_entropy(cosine(embeddings), labels)
