"""Clips: reading, splitting by speaker, and what is refused."""

import io

import numpy as np
import pytest

from experiments.keyword_spotting.audio import (
    AudioError,
    check_keyword,
    read_clips,
    split_by_speaker,
)
from experiments.keyword_spotting.config import KeywordConfig

RATE = 16000


def write(folder, speech, **changes):
    np.savez(folder / "part.npz", **{**speech, **changes})
    return folder


def test_clips_are_read(source, speech):
    clips = read_clips(source, RATE, RATE)
    np.testing.assert_array_equal(clips.samples, speech["samples"])
    assert clips.words[:4].tolist() == ["up", "up", "go", "no"]
    assert clips.speakers[0] == "speaker0"


def test_parts_share_no_speaker_and_hold_all_clips(source):
    clips = read_clips(source, RATE, RATE)
    parts = split_by_speaker(clips, (0.5, 0.25, 0.25), seed=0)
    speakers = [set(part.speakers) - {""} for part in parts]
    assert [len(s) for s in speakers] == [6, 3, 3]
    assert len(set.union(*speakers)) == 12
    assert [(part.words == "_silence_").sum() for part in parts] == [4, 2, 2]
    assert sum(len(part.words) for part in parts) == len(clips.words)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sample_rate": np.int32(8000)}, "sample_rate=8000; allowed is 16000"),
        ({"samples": np.zeros((56, 0), np.int16)}, "has 0 samples; allowed are 1 to"),
        ({"samples": np.zeros((56, 16001), np.int16)}, "has 16001 samples"),
        ({"samples": np.zeros((56, 9, 2), np.int16)}, "has 2 channels; allowed is one"),
        ({"samples": np.zeros((56, 9), np.float32)}, "dtype=float32; allowed is int16"),
    ],
)
def test_bad_clips_are_named(tmp_path, speech, changes, message):
    with pytest.raises(AudioError, match=f"clip 0 of .*part.npz has .*{message[-9:]}"):
        read_clips(write(tmp_path, speech, **changes), RATE, RATE)
    with pytest.raises(AudioError, match=message):
        read_clips(tmp_path, RATE, RATE)


def test_missing_and_broken_parts(tmp_path, speech):
    with pytest.raises(AudioError, match=r"holds no \*.npz files"):
        read_clips(tmp_path, RATE, RATE)
    (tmp_path / "part.npz").write_bytes(b"nothing")
    with pytest.raises(AudioError, match="is not a part with the arrays"):
        read_clips(tmp_path, RATE, RATE)
    np.savez(tmp_path / "part.npz", samples=speech["samples"])
    with pytest.raises(AudioError, match="labels"):
        read_clips(tmp_path, RATE, RATE)


def test_flac_parts(tmp_path, speech):
    soundfile = pytest.importorskip("soundfile")
    files = []
    for samples in speech["samples"]:
        buffer = io.BytesIO()
        soundfile.write(buffer, samples, RATE, format="FLAC", subtype="PCM_16")
        files.append(buffer.getvalue())
    part = {name: array for name, array in speech.items() if name != "samples"}
    part["offsets"] = np.cumsum([0, *map(len, files)])
    part["flac"] = np.frombuffer(b"".join(files), np.uint8)
    np.savez(tmp_path / "part.npz", **part)
    clips = read_clips(tmp_path, RATE, RATE)
    np.testing.assert_array_equal(clips.samples, speech["samples"])
    part["flac"] = np.zeros_like(part["flac"])
    np.savez(tmp_path / "part.npz", **part)
    with pytest.raises(AudioError, match="clip 0 of .* is not a FLAC file"):
        read_clips(tmp_path, RATE, RATE)


def test_keywords_that_cannot_be_spotted(source):
    with pytest.raises(ValueError, match="keyword='' must not be empty"):
        KeywordConfig(keyword="")
    with pytest.raises(ValueError, match="keyword='hello' has no phonemes; allowed"):
        KeywordConfig(keyword="hello")
    clips = read_clips(source, RATE, RATE)
    with pytest.raises(AudioError, match=r"'stop' .* no clip; the data set has \['go'"):
        check_keyword("stop", clips)


@pytest.mark.parametrize(
    "setting",
    [
        {"fractions": (0.5, 0.5, 0.5)},
        {"least_snr": 30.0},
        {"least_iou": 1.5},
        {"windows": 0},
        {"window_frames": 5},
        {"context": 4},
    ],
)
def test_wrong_settings_are_named(setting):
    (name,) = setting
    with pytest.raises(ValueError, match=f"^{name}="):
        KeywordConfig(**setting)
