"""Sound in, class out: synthesised tones, told apart by timbre and by how their pitch moves.

    python examples/tones.py

Half a second of sine, square or saw wave whose pitch rises, falls or stays, at any height and loudness, with
vibrato and noise: nine classes. The waveform becomes a log-mel spectrogram (`seqkern.audio`), a recurrent
network reads its frames. The held-out sounds are new draws.
"""

from __future__ import annotations

import numpy as np
from _training import parser, sequence_training
from seqkern import audio, nn

RATE, SAMPLES, MELS = 8000, 4000, 40
TIMBRES, MOVES = ("sine", "square", "saw"), ("rising", "falling", "steady")
CLASSES = [f"{timbre}, {move}" for timbre in TIMBRES for move in MOVES]


def make_sounds(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Waveforms [count, SAMPLES] and their classes."""
    labels = rng.integers(0, 9, count)
    timbre, move = (x[:, None] for x in np.divmod(labels, 3))
    t = np.arange(SAMPLES) / RATE
    octaves = rng.uniform(0.3, 1.0, (count, 1)) * np.array([1.0, -1.0, 0.0])[move]
    wobble = rng.uniform(0, 0.03, (count, 1)) * np.sin(2 * np.pi * rng.uniform(4, 7, (count, 1)) * t)
    pitch = 250 * 2 ** (rng.uniform(0, 1.5, (count, 1)) + octaves * (t / t[-1] - 0.5) + wobble)
    turns = np.cumsum(pitch, axis=1) / RATE + rng.uniform(0, 1, (count, 1))
    sine = np.sin(2 * np.pi * turns)
    waves = np.choose(timbre, [sine, np.sign(sine), 2 * (turns % 1) - 1])
    envelope = np.minimum(1, t / 0.02) * np.exp(-t * rng.uniform(0, 6, (count, 1)))
    loud = rng.uniform(0.1, 1.0, (count, 1))
    noise = rng.uniform(0.01, 0.1, (count, 1)) * rng.standard_normal((count, SAMPLES))
    return loud * (waves * envelope + noise), labels


def features(sounds: np.ndarray) -> np.ndarray:
    """Log-mel frames [count, frames, MELS], each sound with mean 0 and deviation 1."""
    mels = audio.log_mel_spectrogram(sounds, RATE, n_fft=256, hop_length=128, n_mels=MELS, f_min=60.0)
    mels -= mels.mean((1, 2), keepdims=True)
    return (mels / mels.std((1, 2), keepdims=True)).astype(np.float32)


def main() -> None:
    args = parser(__doc__, cell="gru", hidden=64, steps=600, batch=32, plot="tones.png").parse_args()
    training = sequence_training(args, input_size=MELS, output_size=9, bidirectional=True)
    model, cross_entropy = training.model, nn.CrossEntropyLoss()
    sounds, labels = make_sounds(np.random.default_rng([args.seed, 1]), 500)
    held_out = features(sounds)

    def compute(step: int) -> float:
        drawn, classes = make_sounds(np.random.default_rng([args.seed, 0, step]), args.batch)
        output, pullback = model.vjp(features(drawn))
        loss, pull_loss = cross_entropy.vjp(output.logits, classes)
        pullback(*pull_loss())
        return float(loss)

    training.run(args, compute, lambda: float(cross_entropy(model(held_out).logits, labels)))
    found = model(held_out).logits.argmax(-1)
    print(f"held-out accuracy: {100 * (found == labels).mean():.1f} % of 9 classes")
    for k in range(9):
        wrong = found[(labels == k) & (found != k)]
        if len(wrong):
            other = CLASSES[np.bincount(wrong).argmax()]
            print(f"    {CLASSES[k]}, mostly taken for {other}: {len(wrong)} of {(labels == k).sum()} wrong")
    training.plot(args.plot, title="tones", ylabel="cross-entropy")


if __name__ == "__main__":
    main()
