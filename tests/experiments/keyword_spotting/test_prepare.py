"""The clips of the study: their source and the keyword."""

import numpy as np
import pytest

from experiments.data import prepare as data_prepare
from experiments.data.clips import AudioError, Clips
from experiments.keyword_spotting.clip_checks import check_parts
from experiments.keyword_spotting.config import KeywordConfig
from experiments.keyword_spotting.prepare import prepare, read_clips

CONFIG = KeywordConfig(keyword="up", fractions=(0.5, 0.25, 0.25))


@pytest.fixture(scope="module")
def clips(source):
    return read_clips(CONFIG, source, source)


def test_clips_are_read(clips, speech):
    np.testing.assert_array_equal(clips.samples, speech["samples"])
    assert clips.words[:4].tolist() == ["up", "up", "go", "no"]
    assert clips.speakers[0] == "speaker0"


def test_a_prepared_data_set_gives_the_clips_of_its_source(clips, source, tmp_path):
    data_prepare.main(
        ["speech_commands_test", f"--source={source}", f"--data-dir={tmp_path}"]
    )
    for mine, other in zip(read_clips(CONFIG, tmp_path, None), clips, strict=True):
        assert mine.dtype == other.dtype
        np.testing.assert_array_equal(mine, other)


def test_keywords_that_cannot_be_spotted(source):
    with pytest.raises(ValueError, match="keyword='' must not be empty"):
        KeywordConfig(keyword="")
    with pytest.raises(ValueError, match="keyword='hello' has no phonemes; allowed"):
        KeywordConfig(keyword="hello")
    with pytest.raises(AudioError, match=r"'stop' .* no clip; the data set has \['go'"):
        read_clips(KeywordConfig(keyword="stop"), source, source)


@pytest.mark.parametrize("missing", ["up", "_silence_"])
def test_every_part_needs_the_keyword_and_noise(missing):
    def part(*words):
        count = len(words)
        return Clips(np.ones((count, 9)), np.array(words), np.array(["a"] * count))

    full = part("up", "go", "_silence_")
    lacking = full.of(full.words != missing)
    check_parts("up", [full, full, full])
    with pytest.raises(
        AudioError, match=f"the 2 clips for validation is of .{missing}"
    ):
        check_parts("up", [full, lacking, full])


def test_speakers_who_never_say_the_keyword_are_refused(clips):
    said_by = clips.speakers[clips.words == "up"]
    few = clips.of((clips.words != "up") | (clips.speakers == said_by[0]))
    with pytest.raises(AudioError, match="clips for .* is of 'up'"):
        prepare(few, CONFIG)


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
