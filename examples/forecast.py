"""Many to many: at every step of a noisy multivariate series, predict the next one.

    python examples/forecast.py

Four coupled channels: waves that drift in frequency, a product and a delayed copy of them, and
white noise on each. No model can beat the noise; guessing "as before" is the bar to clear.
Errors are mean squares, in units of each channel's variance.
"""

from __future__ import annotations

import numpy as np
from _training import draw_rows, mean_square, parser, sequence_training

NOISE, DELAY = 0.15, 12


def make_series(rng: np.random.Generator, series: int, length: int) -> tuple[np.ndarray, float]:
    """[series, length, 4] with unit variance, and the share of the noise in it."""
    speed = 0.25 + 0.05 * np.cumsum(rng.normal(0, 0.02, (series, length + DELAY)), axis=1)
    phase = rng.uniform(0, 2 * np.pi, (series, 1)) + np.cumsum(speed, axis=1)
    wave, slow = np.sin(phase), np.cos(0.37 * phase)
    clean = [wave, slow, wave * slow, np.roll(wave, DELAY, axis=1)]
    values = np.stack(clean, axis=-1)[:, DELAY:]
    noisy = values + NOISE * rng.standard_normal(values.shape)
    scale = noisy.std(axis=(0, 1))
    return (noisy / scale).astype(np.float32), float(np.mean(NOISE**2 / scale**2))


def main() -> None:
    options = parser(__doc__, layers=2, steps=1000, batch=16, plot="forecast.png")
    options.add_argument("--length", type=int, default=100, help="steps per series")
    args = options.parse_args()
    data, noise = make_series(np.random.default_rng(args.seed), 320, args.length)
    split = 256
    training = sequence_training(args, "length", input_size=4, output_size=4, task="many_to_many")
    model = training.model

    def compute(step: int) -> float:
        rows = draw_rows(args, step, split)
        output, pullback = model.vjp(data[rows, :-1])
        loss, dlogits = mean_square(output.logits - data[rows, 1:])
        pullback(dlogits)
        return loss

    def evaluate() -> float:
        return mean_square(model(data[split:, :-1]).logits - data[split:, 1:])[0]

    training.run(args, compute, evaluate)
    as_before = mean_square(data[split:, 1:] - data[split:, :-1])[0]
    print(f"held-out error {evaluate():.4f}; noise alone {noise:.4f}; as before {as_before:.4f}")
    training.plot(args.plot, title="predicting the next step", ylabel="mean square error")


if __name__ == "__main__":
    main()
