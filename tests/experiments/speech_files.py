"""Synthetic speech, as arrays and in files of the formats that are read.

Words are sequences of tones, speakers differ in pitch.
"""

import io
import tarfile
import wave

import numpy as np

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


def wav(samples, *, rate=RATE, channels=1, width=2):
    """A WAV file of 16-bit samples, or of their high bytes."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setparams((channels, width, rate, 0, "NONE", "not compressed"))
        raw = samples if width == 2 else (samples >> 8).astype(np.int8)
        writer.writeframes(raw.tobytes())
    return file.getvalue()


def write_archive(path, files):
    """A compressed tar file of contents by name, with folders, as the official ones."""
    with tarfile.open(path, "w:gz") as archive:
        folder = tarfile.TarInfo("./")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, content in files.items():
            member = tarfile.TarInfo(f"./{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
