"""The accumulative cross entropy against torch's own, and its soft targets."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

from bavit.background.loss import accumulative_cross_entropy, loss_sums, soft_targets


@pytest.fixture
def logits() -> torch.Tensor:
    return torch.randn(3, 20, 2, generator=torch.Generator().manual_seed(1), requires_grad=True)


@pytest.fixture
def labels() -> torch.Tensor:
    found = torch.randint(0, 2, (3, 20), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
    found[0, ::3] = 255
    return found


@pytest.mark.parametrize("weights", [None, (0.3, 2.0)])
def test_it_is_the_mean_cross_entropy_over_all_tokens(
    logits: torch.Tensor, labels: torch.Tensor, weights: tuple[float, float] | None
) -> None:
    found = accumulative_cross_entropy(logits, labels, weights)
    expected = cross_entropy(
        logits.reshape(-1, 2),
        labels.reshape(-1).long(),
        weight=None if weights is None else torch.tensor(weights),
        ignore_index=255,
    )
    torch.testing.assert_close(found, expected)
    (gradient,) = torch.autograd.grad(found, logits, retain_graph=True)
    (wanted,) = torch.autograd.grad(expected, logits)
    torch.testing.assert_close(gradient, wanted)


def test_tokens_are_averaged_over_the_batch_not_image_by_image(logits: torch.Tensor, labels: torch.Tensor) -> None:
    """An image with many ignored tokens weighs less: this is what tells the mean of means apart."""
    parts = [accumulative_cross_entropy(logits[i : i + 1], labels[i : i + 1]) for i in range(3)]
    assert not torch.isclose(torch.stack(parts).mean(), accumulative_cross_entropy(logits, labels), atol=1e-7)


def test_sums_of_ranks_add_up(logits: torch.Tensor, labels: torch.Tensor) -> None:
    parts = [loss_sums(logits[i : i + 1], labels[i : i + 1], (0.3, 2.0)) for i in range(3)]
    total, weight = (sum(values) for values in zip(*parts, strict=True))
    torch.testing.assert_close(total / weight, accumulative_cross_entropy(logits, labels, (0.3, 2.0)))


def test_a_batch_of_ignored_tokens_has_no_loss_and_no_gradient(logits: torch.Tensor) -> None:
    loss = accumulative_cross_entropy(logits, torch.full((3, 20), 255, dtype=torch.uint8))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss == 0
    assert (gradient == 0).all()


def test_soft_targets_of_0_and_1_are_labels(logits: torch.Tensor, labels: torch.Tensor) -> None:
    targets = (labels == 1).float()
    torch.testing.assert_close(
        accumulative_cross_entropy(logits, labels, targets=targets), accumulative_cross_entropy(logits, labels)
    )


@pytest.mark.parametrize("tau", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_soft_targets_cross_one_half_at_the_threshold(tau: float) -> None:
    scores = torch.linspace(0, 1, 1001)
    found = soft_targets(scores, tau)
    assert (found.diff() >= 0).all()
    assert ((found >= 0.5) == (scores >= tau)).all()
    assert found[-1] == 1
    assert found[0] == (0 if tau > 0 else 0.5)
