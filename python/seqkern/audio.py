"""Sound to features: a waveform's log-mel spectrogram, for any sequence model.

    frames of n_fft samples every hop_length, times a periodic Hann window -> |DFT|^2 -> mel filters -> log

Plain NumPy, in float64 inside. The result `[..., frames, n_mels]` is what `models.SequenceModel` takes.
"""

from __future__ import annotations

import numpy as np

from .nn._arrays import check_array, shape_text
from .nn._init import check_choice, check_size

SCALES = ("slaney", "htk")


def hz_to_mel(hz: np.ndarray, scale: str = "slaney") -> np.ndarray:
    """Pitch as heard. htk: 2595 log10(1 + f / 700). slaney: linear to 1 kHz (15 mel), then 27 mel per factor 6.4."""
    check_choice(scale, "scale", SCALES)
    f = np.asarray(hz, np.float64)
    if scale == "htk":
        return 2595 * np.log10(1 + f / 700)
    return np.where(f < 1000, f * 3 / 200, 15 + 27 * np.log(np.maximum(f, 1000) / 1000) / np.log(6.4))


def mel_to_hz(mel: np.ndarray, scale: str = "slaney") -> np.ndarray:
    """The inverse of `hz_to_mel`."""
    check_choice(scale, "scale", SCALES)
    m = np.asarray(mel, np.float64)
    if scale == "htk":
        return 700 * (10 ** (m / 2595) - 1)
    return np.where(m < 15, m * 200 / 3, 1000 * 6.4 ** ((m - 15) / 27))


def mel_filters(
    sample_rate: int,
    n_fft: int,
    n_mels: int = 80,
    *,
    f_min: float = 0.0,
    f_max: float | None = None,
    scale: str = "slaney",
    norm: str | None = "slaney",
) -> np.ndarray:
    """Triangles `[n_fft // 2 + 1, n_mels]` over the DFT's bins, equally wide on the mel scale.

    Filter k rises from the k-th to the k+1-st of n_mels + 2 points from f_min to f_max (half the sample
    rate if None) and falls to the k+2-nd. norm: "slaney" divides each by half its width in Hz, so that
    all pass the same energy of white noise; None leaves their peaks at 1.
    """
    check_size(sample_rate, "sample_rate")
    check_size(n_fft, "n_fft", 2)
    check_size(n_mels, "n_mels")
    check_choice(norm, "norm", (None, "slaney"))
    top = sample_rate / 2 if f_max is None else float(f_max)
    if not 0 <= f_min < top <= sample_rate / 2:
        raise ValueError(f"f_min and f_max must satisfy 0 <= f_min < f_max <= {sample_rate / 2}, got {f_min}, {top}")
    ends = hz_to_mel(np.array([f_min, top]), scale)
    points = mel_to_hz(np.linspace(ends[0], ends[1], n_mels + 2), scale)
    bins = np.arange(n_fft // 2 + 1)[:, None] * (sample_rate / n_fft)
    low, peak, high = points[:-2], points[1:-1], points[2:]
    filters = np.maximum(0, np.minimum((bins - low) / (peak - low), (high - bins) / (high - peak)))
    return np.asarray(filters * (2 / (high - low)) if norm else filters)


def log_mel_spectrogram(
    waveform: np.ndarray,
    sample_rate: int = 16_000,
    *,
    n_fft: int = 400,
    hop_length: int = 160,
    n_mels: int = 80,
    f_min: float = 0.0,
    f_max: float | None = None,
    scale: str = "slaney",
    norm: str | None = "slaney",
    floor: float = 1e-10,
) -> np.ndarray:
    """waveform `[..., samples]` -> natural log of the mel powers, at least `floor`: `[..., frames, n_mels]`.

    frames = 1 + samples // hop_length: frame t is centred on sample t * hop_length, the ends mirrored
    (torch.stft's center=True, pad_mode="reflect"). The result has the waveform's dtype.
    """
    check_array(waveform, "waveform")
    check_size(hop_length, "hop_length")
    filters = mel_filters(sample_rate, n_fft, n_mels, f_min=f_min, f_max=f_max, scale=scale, norm=norm)
    if waveform.dtype.kind != "f":
        raise TypeError(f"waveform must be floating point, got {waveform.dtype}")
    if waveform.ndim < 1 or waveform.shape[-1] <= n_fft // 2:
        raise ValueError(
            f"waveform must be [..., samples] with samples > n_fft / 2 = {n_fft // 2}, got {shape_text(waveform.shape)}"
        )
    if not floor > 0:
        raise ValueError(f"floor must be > 0, got {floor}")
    around = [(0, 0)] * (waveform.ndim - 1) + [(n_fft // 2, n_fft // 2)]
    padded = np.pad(waveform.astype(np.float64), around, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, n_fft, axis=-1)[..., ::hop_length, :]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)
    power = np.abs(np.fft.rfft(frames * window, axis=-1)) ** 2
    return np.log(np.maximum(power @ filters, floor)).astype(waveform.dtype)
