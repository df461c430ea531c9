"""Speech Commands: from archives and npz parts to prepared clips."""

import gzip
import io
import json
import sys
import tarfile
import types
import wave

import numpy as np
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core import shuffle
from tensorflow_datasets.core.download import extractor
from tensorflow_datasets.datasets.speech_commands import (
    speech_commands_dataset_builder as stock,
)

from experiments.data import prepare, speech_store
from experiments.data.clips import LABELS, SPEECH_SETS, AudioError, Clip
from experiments.data.prepared import NotPreparedError
from experiments.data.speech import load_clips
from experiments.data.speech_archives import ALL_CLIPS, TEST_CLIPS, URL, read_archives
from tests.experiments.speech_files import RATE, arrays, wav, write_archive

WHOLE, TEST = "speech_commands", "speech_commands_test"


def noise(seed, length=RATE):
    return np.random.default_rng(seed).integers(-999, 999, length).astype(np.int16)


def all_clips():
    """Contents of the archive of all clips, by name; lists are among the clips."""
    return {
        "README.md": b"nothing",
        "_background_noise_/README.md": b"nothing",
        "_background_noise_/running_tap.wav": wav(noise(0, 35200)),
        "_background_noise_/white_noise.wav": wav(noise(1, 32000)),
        "yes/0a_nohash_0.wav": wav(noise(2)),
        "validation_list.txt": b"stop/0b_nohash_1.wav\ntree/0b_nohash_0.wav",
        "stop/0b_nohash_1.wav": wav(noise(3)),
        "stop/0c_nohash_0.wav": wav(noise(4, 9000)),
        "marvin/0a_nohash_0.wav": wav(noise(5)),
        "tree/0b_nohash_0.wav": wav(noise(6)),
        "down/0d_nohash_0.wav": wav(noise(7)),
        "testing_list.txt": b"down/0d_nohash_0.wav\n",
    }


def clips_for_the_test():
    return {
        "LICENSE": b"nothing",
        "down/0d_nohash_0.wav": wav(noise(7)),
        "_silence_/12.wav": wav(noise(8)),
        "_unknown_/dog_0d_nohash_0.wav.wav": wav(noise(9)),
    }


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("archives")
    write_archive(folder / ALL_CLIPS, all_clips())
    write_archive(folder / TEST_CLIPS, clips_for_the_test())
    return folder


@pytest.fixture(scope="module")
def data_dir(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        # TensorFlow Datasets needs TensorFlow to shuffle what is larger than this.
        patch.setattr(shuffle, "MAX_MEM_BUFFER_SIZE", 1)
        for name in SPEECH_SETS:
            prepare.main([name, f"--source={source}", f"--data-dir={folder}"])
    return folder


class NotDecodedError(Exception):
    pass


def from_file(file, format):  # noqa: A002  # pydub's name
    """What pydub's AudioSegment does for the stock builder."""
    assert format == "wav"
    try:
        with wave.open(io.BytesIO(file.read())) as reader:
            raw = reader.readframes(reader.getnframes())
    except (wave.Error, EOFError) as error:
        raise NotDecodedError from error
    samples = np.frombuffer(raw, "<i2")
    return types.SimpleNamespace(get_array_of_samples=lambda: samples)


@pytest.fixture
def stock_examples(source, monkeypatch):
    """The examples of each split, by the functions of the stock builder."""
    pydub = types.SimpleNamespace(
        AudioSegment=types.SimpleNamespace(from_file=from_file),
        exceptions=types.SimpleNamespace(CouldntDecodeError=NotDecodedError),
    )
    imports = types.SimpleNamespace(lazy_imports=types.SimpleNamespace(pydub=pydub))
    monkeypatch.setattr(stock, "lazy_imports_lib", imports)

    def members(name):
        return extractor.iter_tar(io.BytesIO((source / name).read_bytes()))

    def examples(name, names):
        return list(stock.Builder._generate_examples(None, members(name), names))

    train, validation = stock.Builder._split_archive(None, members(ALL_CLIPS))
    return {
        "train": examples(ALL_CLIPS, train),
        "validation": examples(ALL_CLIPS, validation),
        "test": examples(TEST_CLIPS, None),
    }


@pytest.mark.parametrize("name", SPEECH_SETS)
def test_the_archives_become_what_the_stock_builder_makes(
    name, data_dir, stock_examples
):
    made = tfds.builder_from_directory(data_dir / name / "0.0.3")
    assert made.info.features["label"].names == [*stock.WORDS, "_silence_", "_unknown_"]
    assert set(made.info.splits) == set(SPEECH_SETS[name])
    for split in SPEECH_SETS[name]:
        found = list(made.as_data_source(split))
        assert len(found) == len(stock_examples[split])
        for mine, (key, other) in zip(found, stock_examples[split]):
            assert mine["file_name"].decode().replace("/", "_") == key
            assert LABELS[mine["label"]] == other["label"]
            assert mine["audio"].dtype == np.int16
            np.testing.assert_array_equal(mine["audio"], other["audio"])
    assert "tensorflow" not in sys.modules


def test_words_and_speakers_come_from_the_file_names(data_dir):
    clips = load_clips(WHOLE, data_dir, RATE)
    # Segments of noise begin every half second; the last half second begins none.
    train = ["_silence_"] * 2 + ["yes", "stop", "marvin"]
    validation = ["_silence_"] * 3 + ["stop", "tree"]
    assert clips.words.tolist() == [*train, *validation, "down", "_silence_", "dog"]
    of_train = ["", "", "0a", "0c", "0a"]
    of_validation = ["", "", "", "0b", "0b"]
    of_test = ["0d", "", "0d"]
    assert clips.speakers.tolist() == of_train + of_validation + of_test
    np.testing.assert_array_equal(clips.samples[1], noise(1, 32000)[8000:24000])
    # A clip of less than a second is padded at its end.
    np.testing.assert_array_equal(clips.samples[3], np.pad(noise(4, 9000), (0, 7000)))
    alone = load_clips(TEST, data_dir, RATE)
    for mine, part in zip(alone, clips):
        np.testing.assert_array_equal(mine, part[10:])
    with pytest.raises(AudioError, match="_background_noise_.* 16000 samples; .* 9$"):
        load_clips(WHOLE, data_dir, 9)


def test_clips_keep_their_order_through_files(tmp_path, monkeypatch):
    speech = arrays()
    half = len(speech["labels"]) // 2
    for number, rows in enumerate((slice(0, half), slice(half, None))):
        of_clips = {
            k: x[rows] for k, x in speech.items() if len(x.shape) and k[0] != "c"
        }
        np.savez(tmp_path / f"part{number}.npz", **{**speech, **of_clips})
    monkeypatch.setattr(speech_store, "SHARD", 20)
    made = speech_store.SpeechBuilder(TEST, tmp_path / "data", tmp_path)
    made.download_and_prepare()
    assert made.info.splits["test"].shard_lengths == [20, 20, 16]
    clips = load_clips(TEST, tmp_path / "data", RATE)
    np.testing.assert_array_equal(clips.samples, speech["samples"])
    np.testing.assert_array_equal(clips.words, speech["classes"][speech["labels"]])
    np.testing.assert_array_equal(clips.speakers, speech["speakers"])


def with_byte(at, value):
    """A WAV file with another byte in its header."""
    content = bytearray(wav(noise(0)))
    content[at] = value
    return bytes(content)


def test_other_chunks_of_a_clip_are_ignored(tmp_path):
    content = wav(noise(0))
    at = content.index(b"data")
    chunks = content[8:at] + b"LIST\x05\x00\x00\x00INFOx\x00" + content[at:]
    listed = b"RIFF" + len(chunks).to_bytes(4, "little") + chunks
    path = tmp_path / TEST_CLIPS
    write_archive(path, {"stop/0e_nohash_0.wav": listed})
    (clip,) = read_archives({TEST_CLIPS: path})["test"].clips
    np.testing.assert_array_equal(clip.samples, noise(0))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("stop/0e_nohash_0.wav", b"nothing", "'stop/0e_nohash_0.wav' in .* no.* WAV"),
        ("stop/0e_nohash_0.wav", b"", "is not a WAV file of PCM: it ends early"),
        ("stop/0e_nohash_0.wav", with_byte(16, 255), "is not a WAV file of PCM"),
        ("stop/0e_nohash_0.wav", with_byte(20, 3), "of PCM: unknown format: 3"),
        ("stop/0e_nohash_0.wav", wav(noise(0))[:-9], "is truncated"),
        ("stop/0e_nohash_0.wav", wav(noise(0), rate=8000), "sample_rate=8000; allowed"),
        ("stop/0e_nohash_0.wav", wav(noise(0), channels=2), "has 2 channels"),
        ("stop/0e_nohash_0.wav", wav(noise(0), width=1), "has 8 bits per sample"),
        ("stop/0e_nohash_0.wav", wav(noise(0)[:0]), "has 0 samples"),
        ("stop/somebody.wav", wav(noise(0)), "'stop/somebody.wav' .* names no speaker"),
    ],
)
def test_bad_clips_of_archives_are_named(tmp_path, name, content, message):
    write_archive(tmp_path / TEST_CLIPS, {**clips_for_the_test(), name: content})
    refused(TEST, tmp_path, message)


def refused(name, folder, message, *options):
    arguments = [name, f"--source={folder}", f"--data-dir={folder}", *options]
    with pytest.raises(SystemExit, match=f"error: .*{message}"):
        prepare.main(arguments)
    assert not (folder / name / "0.0.3").exists()


def test_missing_and_broken_archives(tmp_path):
    refused(TEST, tmp_path, f"the official .*{TEST_CLIPS}.* or npz parts")
    refused(TEST, tmp_path, "must be 'tfds' for", "--form=arrays")
    np.savez(tmp_path / "part.npz", **{**arrays(), "classes": np.array(["bird"] * 5)})
    refused(TEST, tmp_path, "clip 0 of part.npz has label='bird'; allowed are")
    write_archive(tmp_path / TEST_CLIPS, {"LICENSE": b"nothing"})
    refused(TEST, tmp_path, "no clip of the split 'test'")
    refused(WHOLE, tmp_path, f"official .*{ALL_CLIPS}', '{TEST_CLIPS}'.$")
    whole = tmp_path / ALL_CLIPS
    whole.write_bytes(b"nothing")
    refused(WHOLE, tmp_path, "is not an archive of Speech Commands, or is corrupt")
    files = all_clips()
    del files["testing_list.txt"]
    write_archive(whole, files)
    refused(WHOLE, tmp_path, r"lacks \['testing_list.txt'\]")
    write_archive(whole, all_clips())
    content = whole.read_bytes()
    # Within background noise, within a clip, and of the checksum at the end.
    for end in (30_000, -100_000, -6):
        whole.write_bytes(content[:end])
        refused(WHOLE, tmp_path, "is not an archive of Speech Commands, or is corrupt")


def test_a_damaged_archive_does_not_end_early(tmp_path):
    """At a header that is not one, tarfile ends as if the archive did."""
    path = tmp_path / TEST_CLIPS
    write_archive(path, clips_for_the_test())
    content = gzip.decompress(path.read_bytes())
    at = content.index(b"./_unknown_/dog")
    checksum_at_end = gzip.compress(content)[-8:]
    damaged = content[:at] + b"?" + content[at + 1 :]
    path.write_bytes(gzip.compress(damaged)[:-8] + checksum_at_end)
    refused(TEST, tmp_path, "or is corrupt: CRC check failed")


def test_a_name_that_is_there_twice_or_only_a_link(tmp_path):
    path = tmp_path / TEST_CLIPS
    name, content = "stop/0a_nohash_0.wav", wav(noise(0))
    with tarfile.open(path, "w:gz") as archive:
        for _ in range(2):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    refused(TEST, tmp_path, f"holds '{name}' twice")
    with tarfile.open(path, "w:gz") as archive:
        link = tarfile.TarInfo(name)
        link.type, link.linkname = tarfile.SYMTYPE, "nowhere.wav"
        archive.addfile(link)
    refused(TEST, tmp_path, "or is corrupt: .*nowhere.wav")


def test_what_is_missing_or_half_written_says_what_to_run(data_dir, source, tmp_path):
    command = f"python -m experiments.data.prepare {TEST} --data-dir {tmp_path}"
    with pytest.raises(NotPreparedError, match=command):
        load_clips(TEST, tmp_path, RATE)
    prepare.main([TEST, f"--source={source}", f"--data-dir={tmp_path}"])
    (shard,) = tmp_path.rglob("*.array_record*")
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    with pytest.raises(NotPreparedError, match=command):
        load_clips(TEST, tmp_path, RATE)
    prepare.main([TEST, f"--source={source}", f"--data-dir={tmp_path}"])
    assert len(load_clips(TEST, tmp_path, RATE).words) == 3
    with pytest.raises(ValueError, match="dataset='birds' is unknown; allowed are"):
        load_clips("birds", tmp_path, RATE)


def test_a_data_set_of_the_stock_builder_is_neither_used_nor_replaced(source, tmp_path):
    arguments = [WHOLE, f"--source={source}", f"--data-dir={tmp_path}"]
    prepare.main(arguments)
    path = tmp_path / WHOLE / "0.0.3" / "features.json"
    stored = json.loads(path.read_text("utf-8"))
    for name in ("speaker", "file_name"):
        del stored["featuresDict"]["features"][name]
    path.write_text(json.dumps(stored), "utf-8")
    message = "0.0.3 was prepared by .* no speakers; prepare .* in another folder"
    with pytest.raises(AudioError, match=message):
        load_clips(WHOLE, tmp_path, RATE)
    with pytest.raises(SystemExit, match=message):
        prepare.main(arguments)
    assert json.loads(path.read_text("utf-8")) == stored


@pytest.mark.parametrize(
    ("name", "archives"), [(WHOLE, [ALL_CLIPS, TEST_CLIPS]), (TEST, [TEST_CLIPS])]
)
def test_only_the_archives_that_are_needed_are_downloaded(
    name, archives, source, tmp_path, monkeypatch
):
    asked = []

    def download(dl_manager, data_dir, url, names):
        asked.extend(url + name for name in names)
        return {name: source / name for name in names}

    monkeypatch.setattr(speech_store, "download", download)
    prepare.main([name, f"--data-dir={tmp_path}"])
    assert asked == [URL + archive for archive in archives]
    # Those of the stock builder, with their sizes and checksums.
    for url in asked:
        assert speech_store.SpeechBuilder.url_infos[url] == stock.Builder.url_infos[url]


def test_words_of_a_clip():
    def word(label, file_name):
        return Clip(noise(0), label, "0a", file_name).word

    assert word("_unknown_", "marvin/0a_nohash_0.wav") == "marvin"
    assert word("_unknown_", "_unknown_/bed_0a_nohash_0.wav.wav") == "bed"
    assert word("_unknown_", "clip 3 of part.npz") == "_unknown_"
    assert word("stop", "stop/0a_nohash_0.wav") == "stop"
