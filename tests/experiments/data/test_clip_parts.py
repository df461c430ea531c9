"""Clips of speech in npz parts."""

import io

import numpy as np
import pytest

from experiments.data.clip_parts import read_parts
from experiments.data.clips import AudioError, stack
from tests.experiments.speech_files import RATE, arrays


def test_flac_parts(tmp_path):
    soundfile = pytest.importorskip("soundfile")
    speech = arrays()
    files = []
    for samples in speech["samples"]:
        buffer = io.BytesIO()
        soundfile.write(buffer, samples, RATE, format="FLAC", subtype="PCM_16")
        files.append(buffer.getvalue())
    part = {name: array for name, array in speech.items() if name != "samples"}
    part["offsets"] = np.cumsum([0, *map(len, files)])
    part["flac"] = np.frombuffer(b"".join(files), np.uint8)
    np.savez(tmp_path / "part.npz", **part)
    clips = stack(read_parts(tmp_path).clips, RATE)
    np.testing.assert_array_equal(clips.samples, speech["samples"])
    part["flac"] = np.zeros_like(part["flac"])
    np.savez(tmp_path / "part.npz", **part)
    with pytest.raises(AudioError, match="clip 0 of .* is not a FLAC file"):
        next(read_parts(tmp_path).clips)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sample_rate": np.int32(8000)}, "sample_rate=8000; allowed is 16000"),
        ({"samples": np.zeros((56, 0), np.int16)}, "0 samples; there must be"),
        ({"samples": np.zeros((56, 16001), np.int16)}, "16001 samples; .* 1 to 16000"),
        ({"samples": np.zeros((56, 9), np.float32)}, "dtype=float32; allowed is int16"),
    ],
)
def test_bad_clips_of_parts_are_named(tmp_path, changes, message):
    np.savez(tmp_path / "part.npz", **{**arrays(), **changes})
    with pytest.raises(AudioError, match=f"clip 0 of .*part.npz has .*{message}"):
        stack(read_parts(tmp_path).clips, RATE)


def refuses(folder, message):
    with pytest.raises(AudioError, match=message):
        next(read_parts(folder).clips)


def test_missing_and_broken_parts(tmp_path):
    part = tmp_path / "part.npz"
    refuses(
        tmp_path, r"holds no \*.npz files; .* archives must be prepared with python"
    )
    for content in (b"", b"nothing"):
        part.write_bytes(content)
        refuses(tmp_path, "part.npz is not a part with the arrays")
    with part.open("wb") as file:
        np.save(file, np.zeros(3))
    refuses(tmp_path, "part.npz is not a part with the arrays")
    np.savez(part, samples=arrays()["samples"])
    refuses(tmp_path, "labels")
    np.savez_compressed(part, **arrays())
    broken = bytearray(part.read_bytes())
    for at in range(60, 200):
        broken[at] ^= 0x55
    part.write_bytes(broken)
    refuses(tmp_path, "part.npz is not a part with the arrays")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"speakers": np.array(["a"] * 55)}, "of different numbers of clips"),
        ({"filenames": np.array(["a"] * 57)}, "of different numbers of clips"),
        ({"classes": np.array(["up", "go"])}, "labels must be from 0 to 1"),
        ({"labels": np.full(56, -1)}, "labels must be from 0 to 4"),
        ({"labels": np.zeros(56)}, "labels has dtype=float64; allowed are integers"),
        ({"labels": np.zeros((56, 1), int)}, "labels has ndim=2; allowed is 1"),
        ({"samples": np.zeros(56, np.int16)}, "samples has ndim=1; allowed is 2"),
        ({"samples": np.zeros((56, 9, 2), np.int16)}, "samples has ndim=3; allowed"),
        ({"sample_rate": np.array([RATE, RATE])}, "sample_rate has ndim=1; allowed"),
    ],
)
def test_arrays_that_do_not_fit_are_named(tmp_path, changes, message):
    np.savez(tmp_path / "part.npz", **{**arrays(), **changes})
    refuses(tmp_path, f"part.npz is not a part .*{message}")


def test_parts_without_clips(tmp_path):
    none = {"labels": np.zeros(0, int), "samples": np.zeros((0, 9), np.int16)}
    np.savez(
        tmp_path / "part.npz", **{**arrays(), **none, "speakers": np.array([], str)}
    )
    refuses(tmp_path, "files of source=.* hold no clips")


def test_words_without_a_speaker_are_refused(tmp_path):
    """They would be divided like noise, and one speaker would be in several parts."""
    speakers = arrays()["speakers"].astype("S9")
    speakers[2] = b""
    np.savez(tmp_path / "part.npz", **{**arrays(), "speakers": speakers})
    with pytest.raises(AudioError, match="clip 2 of .* word 'go' but has no speaker"):
        list(read_parts(tmp_path).clips)


def test_numbered_parts_must_all_be_there(tmp_path):
    np.savez(tmp_path / "clips_part1of2.npz", **arrays())
    refuses(tmp_path, r"holds 1 of the 2 files clips_part\*of2.npz")
    np.savez(tmp_path / "clips_part0of2.npz", **arrays(1))
    clips = list(read_parts(tmp_path).clips)
    assert len(clips) == 112
    np.testing.assert_array_equal(clips[0].samples, arrays(1)["samples"][0])
