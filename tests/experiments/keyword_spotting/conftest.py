"""Synthetic speech: words are sequences of tones, speakers differ in pitch."""

import numpy as np
import pytest

RATE = 16000
TONES = {"up": (500, 1500), "go": (2500, 900), "no": (1500, 3000)}
CLASSES = ["_silence_", "_unknown_", "up", "go", "no"]
SPEAKERS = 12


def clip(rng, tones, pitch):
    samples = 20.0 * rng.normal(size=RATE)
    at = int(rng.integers(3000, 7000))
    for tone in tones:
        time = np.arange(int(rng.integers(2000, 3000))) / RATE
        samples[at : at + len(time)] += 8000 * np.sin(2 * np.pi * tone * pitch * time)
        at += len(time)
    return samples


def arrays(seed=0):
    rng = np.random.default_rng(seed)
    samples, labels, speakers = [], [], []
    for speaker in range(SPEAKERS):
        pitch = rng.uniform(0.9, 1.1)
        for word in ("up", "up", "go", "no"):
            samples.append(clip(rng, TONES[word], pitch))
            labels.append(CLASSES.index(word))
            speakers.append(f"speaker{speaker}")
    for _ in range(8):
        samples.append(300 * rng.normal(size=RATE))
        labels.append(0)
        speakers.append("")
    return {
        "samples": np.array(samples).astype(np.int16),
        "labels": np.array(labels, np.uint8),
        "classes": np.array(CLASSES),
        "speakers": np.array(speakers),
        "sample_rate": np.int32(RATE),
    }


@pytest.fixture(scope="session")
def speech():
    return arrays()


@pytest.fixture(scope="session")
def source(speech, tmp_path_factory):
    folder = tmp_path_factory.mktemp("speech")
    np.savez(folder / "part.npz", **speech)
    return folder
