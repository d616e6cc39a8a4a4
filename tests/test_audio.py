"""The audio front end against its definition written out, and against transformers' own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from seqkern import audio


def triangle(f: float, low: float, peak: float, high: float) -> float:
    if low < f <= peak:
        return (f - low) / (peak - low)
    return (high - f) / (high - peak) if peak < f < high else 0.0


@pytest.mark.parametrize("scale", ["slaney", "htk"])
@pytest.mark.parametrize("norm", [None, "slaney"])
def test_log_mel_by_definition(scale: str, norm: str | None, rng: Any) -> None:
    """The DFT as a sum of cosines and sines, the triangles bin by bin, in plain loops."""
    rate, n, hop, mels, samples = 8000, 32, 12, 5, 100
    wave = rng.standard_normal(samples)
    found = audio.log_mel_spectrogram(
        wave, rate, n_fft=n, hop_length=hop, n_mels=mels, f_min=100.0, f_max=3500.0, scale=scale, norm=norm
    )
    assert found.shape == (1 + samples // hop, mels)
    points = audio.mel_to_hz(np.linspace(*audio.hz_to_mel(np.array([100.0, 3500.0]), scale), mels + 2), scale)
    for t in range(len(found)):
        spot = np.arange(t * hop - n // 2, t * hop + n // 2)
        spot = np.abs(spot)
        spot = np.where(spot > samples - 1, 2 * (samples - 1) - spot, spot)
        frame = wave[spot] * np.hanning(n + 1)[:-1]
        for k in range(mels):
            total = 0.0
            for b in range(n // 2 + 1):
                turn = 2 * np.pi * b * np.arange(n) / n
                power = (frame @ np.cos(turn)) ** 2 + (frame @ np.sin(turn)) ** 2
                total += power * triangle(b * rate / n, *points[k : k + 3])
            total *= 2 / (points[k + 2] - points[k]) if norm else 1.0
            assert found[t, k] == pytest.approx(np.log(max(total, 1e-10)), rel=1e-9)


@pytest.mark.parametrize("scale", ["slaney", "htk"])
def test_mel_scales(scale: str) -> None:
    hz = np.array([0.0, 440.0, 1000.0, 3000.0, 8000.0])
    np.testing.assert_allclose(audio.mel_to_hz(audio.hz_to_mel(hz, scale), scale), hz, atol=1e-9)
    # librosa's documentation: 60 Hz is 0.9 mel (slaney); HTK's: 1 kHz is 1000 mel, to a promille.
    assert audio.hz_to_mel(np.array(60.0), "slaney") == pytest.approx(0.9)
    assert audio.hz_to_mel(np.array(1000.0), "htk") == pytest.approx(1000, rel=1e-3)


@pytest.mark.parametrize("scale", ["slaney", "htk"])
@pytest.mark.parametrize("norm", [None, "slaney"])
def test_transformers_agrees(scale: str, norm: str | None, rng: Any) -> None:
    theirs = pytest.importorskip("transformers.audio_utils", reason="transformers is the second oracle")
    expected = theirs.mel_filter_bank(201, 40, 20.0, 7600.0, 16_000, norm=norm, mel_scale=scale)
    found = audio.mel_filters(16_000, 400, 40, f_min=20.0, f_max=7600.0, scale=scale, norm=norm)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
    wave = rng.standard_normal(2000)
    window = theirs.window_function(400, "hann")
    power = theirs.spectrogram(wave, window, 400, 160, fft_length=400, power=2.0, mel_filters=expected, log_mel="log")
    ours = audio.log_mel_spectrogram(wave, n_mels=40, f_min=20.0, f_max=7600.0, scale=scale, norm=norm)
    np.testing.assert_allclose(ours, power.T, rtol=1e-4, atol=1e-4)  # theirs is in float32


def test_batches_dtypes_and_a_pure_tone(rng: Any) -> None:
    t = np.arange(16_000) / 16_000
    wave = np.stack([np.sin(2 * np.pi * 440 * t), np.sin(2 * np.pi * 2000 * t)]).astype(np.float32)
    found = audio.log_mel_spectrogram(wave)
    assert found.shape == (2, 101, 80) and found.dtype == np.float32
    np.testing.assert_array_equal(found[1], audio.log_mel_spectrogram(wave[1]))
    points = audio.mel_to_hz(np.linspace(0, audio.hz_to_mel(np.array(8000.0)), 82))[1:-1]
    for row, hz in zip(found, (440, 2000), strict=True):
        assert abs(points[row[50].argmax()] - hz) < 40  # the filter whose peak lies at the tone
    assert (audio.log_mel_spectrogram(np.zeros(1000)) == np.log(1e-10)).all()


def test_errors_name_what_is_wrong() -> None:
    wave = np.zeros(1000)
    calls: list[tuple[Any, str]] = [
        (lambda: audio.log_mel_spectrogram(wave[:200]), r"samples > n_fft / 2 = 200, got \[200\]"),
        (lambda: audio.log_mel_spectrogram(wave, scale="bark"), "scale must be one of"),
        (lambda: audio.log_mel_spectrogram(wave, norm="peak"), "norm must be one of"),
        (lambda: audio.log_mel_spectrogram(wave, f_max=9000.0), "f_max"),
        (lambda: audio.log_mel_spectrogram(wave, floor=0.0), "floor must be > 0"),
        (lambda: audio.log_mel_spectrogram(wave, hop_length=0), "hop_length must be at least 1"),
    ]
    for call, message in calls:
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(TypeError, match="waveform must be floating point, got int64"):
        audio.log_mel_spectrogram(np.zeros(1000, int))
    with pytest.raises(TypeError, match="waveform must be an array, got list"):
        audio.log_mel_spectrogram([0.0] * 1000)  # type: ignore[arg-type]
