"""Spoken words as pictures: which clips are in which split, and their values."""

import numpy as np
import pytest

from experiments import data
from experiments.data import prepare
from experiments.data.clips import WORDS
from experiments.data.speech_features import LOG_FLOOR, FeatureShape, mel_filters
from tests.experiments.speech_files import arrays

# The words of each speaker, of whom there are 12; noise and a word without a label of
# its own come on top.
OF_A_SPEAKER = ("up", "up", "go", "no")


@pytest.fixture(scope="module")
def speech():
    speech = arrays()
    other = {"samples": speech["samples"][:1], "labels": np.array([1], np.uint8)}
    return speech | {
        **{name: np.concatenate([speech[name], part]) for name, part in other.items()},
        "speakers": [*speech["speakers"], "speaker0"],
    }


@pytest.fixture(scope="module")
def data_dir(speech, tmp_path_factory):
    folder = tmp_path_factory.mktemp("speech")
    np.savez(folder / "part.npz", **speech)
    prepare.main(["speech_commands_test", f"--source={folder}", f"--data-dir={folder}"])
    return folder


def load(data_dir, **options):
    return data.load("spoken_words", data.DataOptions(data_dir, **options))


@pytest.fixture(scope="module")
def whole(data_dir):
    return load(data_dir, validation_examples=8)


def pictures(samples):
    """In float64, frame by frame."""
    frames = [
        samples[..., 160 * k : 160 * k + 400] / 32768 * np.hanning(401)[:-1]
        for k in range(98)
    ]
    power = np.abs(np.fft.rfft(np.stack(frames, 1), 512)) ** 2
    logs = np.log(power @ mel_filters(FeatureShape()) + LOG_FLOOR)
    return np.stack([logs[:, k : k + 7].mean(1) for k in range(0, 98, 7)], axis=1)


def by_band(images):
    return (images - images.mean((0, 1))) / images.std((0, 1))


def rows_of(dataset, speech):
    """For each split the rows of the source that its pictures show."""
    # Standardizing is affine, and that of all clips together takes it out.
    reference = by_band(pictures(speech["samples"][:48]))
    images = by_band(np.concatenate([s.images[..., 0] for s in dataset[1:]]))
    apart = np.abs(images[:, None] - reference).max((2, 3))
    np.testing.assert_allclose(apart.min(1), 0, atol=1e-3)
    ends = np.cumsum([len(s.labels) for s in dataset[1:]])
    return np.split(apart.argmin(1), ends[:-1])


def test_every_spoken_word_is_in_one_split_and_every_speaker_too(whole, speech):
    rows = rows_of(whole, speech)
    assert sorted(np.concatenate(rows)) == list(range(48))
    assert [len(r) for r in rows] == [32, 8, 8]
    speakers = [set(r // 4) for r in rows]
    assert [len(s) for s in speakers] == [8, 2, 2]
    for split, found in zip(whole[1:], rows):
        assert [WORDS[label] for label in split.labels] == [
            OF_A_SPEAKER[row % 4] for row in found
        ]


def test_bands_are_standardized_on_the_training_clips(whole, speech):
    assert whole.num_classes == 10
    assert whole.train.images.shape == (32, 14, 40, 1)
    assert whole.train.images.dtype == np.float32
    assert whole.train.labels.dtype == np.int32
    spoken = pictures(speech["samples"])
    train, _, test = rows_of(whole, speech)
    mean, deviation = spoken[train].mean((0, 1)), spoken[train].std((0, 1))
    # An energy has a relative error of about 1e-6 in float32, and so have logarithms
    # of some tens; deviations are near one.
    for split, rows in ((whole.train, train), (whole.test, test)):
        expected = (spoken[rows] - mean) / deviation
        np.testing.assert_allclose(split.images[..., 0], expected, atol=1e-4)


def test_the_options_limit_the_splits_and_leave_the_test_alone(whole, data_dir, speech):
    few = load(data_dir, validation_examples=6, train_examples=5)
    assert few.train.labels.shape == (5,)
    np.testing.assert_array_equal(few.train.labels, whole.train.labels[:5])
    np.testing.assert_array_equal(few.validation.labels, whole.validation.labels[:6])
    np.testing.assert_array_equal(few.test.labels, whole.test.labels)
    assert load(data_dir, validation_examples=0).validation is None
    again = load(data_dir, validation_examples=8)
    for one, other in zip(again[1:], whole[1:]):
        np.testing.assert_array_equal(one.images, other.images)
        np.testing.assert_array_equal(one.labels, other.labels)
    other = rows_of(load(data_dir, validation_examples=8, split_seed=1), speech)
    mine = rows_of(whole, speech)
    assert set(other[1]) != set(mine[1])
    np.testing.assert_array_equal(other[2], mine[2])


def test_too_few_clips_and_missing_data_are_told(data_dir, tmp_path):
    with pytest.raises(
        ValueError,
        match="train_examples=33 and validation_examples=6 .* the 40 of .* 32 are left",
    ):
        load(data_dir, validation_examples=6, train_examples=33)
    with pytest.raises(ValueError, match="validation_examples=37 .* 0 are left"):
        load(data_dir, validation_examples=37)
    with pytest.raises(data.NotPreparedError, match="prepare speech_commands_test --d"):
        load(tmp_path)


def test_too_few_speakers_are_told(speech, tmp_path):
    one = np.flatnonzero(np.asarray(speech["speakers"]) == "speaker0")
    rows = ("samples", "labels", "speakers")
    part = {k: np.asarray(v)[one] if k in rows else v for k, v in speech.items()}
    np.savez(tmp_path / "part.npz", **part)
    prepare.main(
        ["speech_commands_test", f"--source={tmp_path}", f"--data-dir={tmp_path}"]
    )
    with pytest.raises(ValueError, match="too few speakers: none is left for the test"):
        load(tmp_path)
