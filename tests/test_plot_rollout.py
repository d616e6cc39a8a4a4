"""The attention roll-out and its picture."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from seqkern import plot


def probabilities(rng: Any, *shape: int) -> Any:
    weights = rng.uniform(size=shape)
    return weights / weights.sum(-1, keepdims=True)


def test_rollout_follows_every_path(rng: Any) -> None:
    """Over two layers: stay and stay, stay and move, move and stay, move and move, each with half a chance."""
    first, second = (probabilities(rng, 2, 3, 5, 5) for _ in range(2))
    found = plot.rollout([first, second])
    a, b, own = first.mean(1), second.mean(1), np.eye(5)
    expected = (own + a + b + b @ a)[:, 0] / 4
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-12)
    np.testing.assert_allclose(plot.rollout([first])[:, 0], (1 + a[:, 0, 0]) / 2, rtol=1e-12)
    with pytest.raises(ValueError, match="at least one layer"):
        plot.rollout([])


@pytest.mark.parametrize("channels", [1, 3])
def test_picture(channels: int, rng: Any, tmp_path: Any) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib draws the picture")
    images, attentions = rng.standard_normal((7, channels, 8, 12)), [probabilities(rng, 7, 2, 7, 7)] * 2
    path = tmp_path / "rollout.png"
    plot.attention_rollout(images, attentions, path, grid=(2, 3), titles=[str(k) for k in range(7)], columns=4)
    assert path.stat().st_size > 1000
    plot.attention_rollout(images[:1], [a[:1] for a in attentions], path, grid=(2, 3))
    for wrong in (images[0], images[:3], images[:, :1].repeat(2, 1)):
        with pytest.raises(ValueError, match=r"images must be \[7, 1 or 3, H, W\]"):
            plot.attention_rollout(wrong, attentions, path, grid=(2, 3))
