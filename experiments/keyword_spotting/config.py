"""The settings of the study."""

import dataclasses
from typing import Literal

from experiments.data.speech_features import FeatureShape

# Phonemes of the words of Speech Commands (ARPAbet, from the CMU dictionary).
LEXICON: dict[str, str] = {
    "bed": "B EH D",
    "bird": "B ER D",
    "cat": "K AE T",
    "dog": "D AO G",
    "down": "D AW N",
    "eight": "EY T",
    "five": "F AY V",
    "four": "F AO R",
    "go": "G OW",
    "happy": "HH AE P IY",
    "house": "HH AW S",
    "left": "L EH F T",
    "marvin": "M AA R V IH N",
    "nine": "N AY N",
    "no": "N OW",
    "off": "AO F",
    "on": "AA N",
    "one": "W AH N",
    "right": "R AY T",
    "seven": "S EH V AH N",
    "sheila": "SH IY L AH",
    "six": "S IH K S",
    "stop": "S T AA P",
    "three": "TH R IY",
    "tree": "T R IY",
    "two": "T UW",
    "up": "AH P",
    "visual": "V IH ZH AH W AH L",
    "wow": "W AW",
    "yes": "Y EH S",
    "zero": "Z IH R OW",
}
STATES_PER_PHONEME = 3
# Distance of the frames of context that the network sees: neighbors overlap by more
# than half and are much alike.
STRIDE = 3


@dataclasses.dataclass(frozen=True)
class KeywordConfig:
    """Everything that determines the study, except the optimizers and their budgets.

    Attributes:
      dataset: the prepared data set; the clips of all its splits are used together.
      keyword: the word to spot, a word of `LEXICON`.
      fractions: shares of the speakers for training, validation and test.
      split_seed: seed of the choice of speakers.
      least_snr: least ratio of speech to noise, in dB.
      greatest_snr: greatest ratio of speech to noise, in dB.
      variants: mixtures of each training clip with different noise.
      keyword_variants: the same for each training clip with the keyword.
      validation_passes: times that the validation stream uses each of its clips.
      test_passes: times that the test stream uses each of its clips.
      context: frames before and after each frame that the network sees, a multiple of
        `STRIDE`.
      width: units of each hidden layer.
      depth: number of hidden layers.
      window_frames: longest window for training by the end metric.
      least_iou: least overlap of a positive window with the keyword.
      greatest_iou: greatest overlap of a negative window with the keyword.
      positives: number of windows with the keyword.
      windows: number of windows of each kind without it, see `windows.sample_windows`;
        at most as many as there are ``positives``.
      mined: number of windows without the keyword that are taken because the detector
        scores them highest.
      l2: factor of the penalty on squared weights in training by the end metric.
      batch_size: examples per step of training by cross-entropy.
      epochs: passes of each round of alignment; the last training has three times as
        many.
      rounds: most rounds of alignment.
      moved: share of frames that may still change their state when alignment ends.
      refractory: least number of frames from a detection to the next.
      tolerance: frames by which a detection may lie outside of the keyword.
    """

    dataset: Literal["speech_commands_test", "speech_commands"] = "speech_commands_test"
    keyword: str = "stop"
    fractions: tuple[float, float, float] = (0.5, 0.15, 0.35)
    split_seed: int = 0
    least_snr: float = 0.0
    greatest_snr: float = 20.0
    variants: int = 2
    keyword_variants: int = 8
    validation_passes: int = 3
    test_passes: int = 2
    context: int = 9
    width: int = 64
    depth: int = 3
    window_frames: int = 96
    least_iou: float = 0.95
    greatest_iou: float = 0.5
    positives: int = 1000
    windows: int = 200
    mined: int = 2000
    l2: float = 1e-4
    batch_size: int = 64
    epochs: int = 3
    rounds: int = 4
    moved: float = 0.05
    refractory: int = 100
    tolerance: int = 25

    def __post_init__(self) -> None:
        if not self.keyword:
            raise ValueError("keyword='' must not be empty; 'stop' is the default")
        if self.keyword not in LEXICON:
            raise ValueError(
                f"keyword={self.keyword!r} has no phonemes; allowed are "
                f"{sorted(LEXICON)}"
            )
        if abs(sum(self.fractions) - 1) > 1e-9 or min(self.fractions) <= 0:
            raise ValueError(
                f"fractions={self.fractions!r} must be greater than 0 and sum to 1"
            )
        if self.least_snr > self.greatest_snr:
            raise ValueError(
                f"least_snr={self.least_snr!r} must be at most "
                f"greatest_snr={self.greatest_snr!r}"
            )
        for name in ("least_iou", "greatest_iou"):
            value = getattr(self, name)
            if not 0 < value < 1:
                raise ValueError(f"{name}={value!r} must be between 0 and 1")
        for name in (
            "variants",
            "keyword_variants",
            "validation_passes",
            "test_passes",
            "width",
            "depth",
            "positives",
            "windows",
            "mined",
            "batch_size",
            "epochs",
            "rounds",
            "refractory",
        ):
            value = getattr(self, name)
            if value < 1:
                raise ValueError(f"{name}={value!r} must be at least 1")
        if self.windows > self.positives:
            raise ValueError(
                f"windows={self.windows!r} must be at most positives={self.positives!r}"
            )
        if self.context < 0 or self.context % STRIDE:
            raise ValueError(
                f"context={self.context!r} must be a multiple of {STRIDE}, at least 0"
            )
        if self.window_frames < self.states:
            raise ValueError(
                f"window_frames={self.window_frames!r} must be at least the "
                f"{self.states} states of {self.keyword!r}"
            )

    @property
    def states(self) -> int:
        """Number of states of the keyword."""
        return STATES_PER_PHONEME * len(LEXICON[self.keyword].split())

    @property
    def classes(self) -> int:
        """The keyword's states, silence and background, in this order."""
        return self.states + 2

    @property
    def features(self) -> FeatureShape:
        """How features are computed."""
        return FeatureShape()
