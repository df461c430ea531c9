"""The split of clips by speaker."""

import numpy as np

from experiments.data.clips import Clips
from experiments.data.speakers import split_by_speaker
from tests.experiments.speech_files import arrays


def test_parts_share_no_speaker_and_hold_all_clips():
    speech = arrays()
    words = speech["classes"][speech["labels"]]
    clips = Clips(speech["samples"], words, np.array(speech["speakers"]))
    parts = split_by_speaker(clips, (0.5, 0.25, 0.25), seed=0)
    speakers = [set(part.speakers) - {""} for part in parts]
    assert [len(s) for s in speakers] == [6, 3, 3]
    assert len(set.union(*speakers)) == 12
    assert [(part.words == "_silence_").sum() for part in parts] == [4, 2, 2]
    assert sum(len(part.words) for part in parts) == len(clips.words)
