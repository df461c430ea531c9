"""``python -m experiments.keyword_spotting``: the whole study, resumed if interrupted.

A network of frames and a decoder spot a word in continuous recordings. The network is
trained with cross-entropy on aligned states, then by the decoder's score with each
optimizer. For example::

    python -m experiments.data.prepare speech_commands_test
    python -m experiments.keyword_spotting --config.keyword stop

Every job leaves a record; ``--report-only`` writes the tables and the picture again.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

import rich.console
import tyro

from experiments import data
from experiments.errors import UserError, ending_with_a_message
from experiments.keyword_spotting.config import KeywordConfig
from experiments.keyword_spotting.plan import Plan, check_settings, stages
from experiments.keyword_spotting.prepare import read_clips
from experiments.keyword_spotting.report import write_report
from experiments.tuning.runner import Runner
from experiments.tuning.study import run_study

MODULE = "experiments.keyword_spotting"
SMALL_METHODS = ("adam", "minimize")
SMALL_VARIANTS = ("no hard negatives",)


@dataclasses.dataclass(frozen=True)
class KeywordArguments:
    """Compares optimizers on keyword spotting that is trained by its end metric.

    Attributes:
      config: the data, the network and the windows.
      data_dir: folder of all prepared data sets.
      source: folder of npz parts, as described in `experiments.data.clip_parts`, to
        read in place of a prepared data set.
      out: folder of the records, the tables and the picture.
      small: a few methods for a few steps and one ablation, to see that it runs.
      report_only: write the report without running anything.
    """

    config: KeywordConfig = dataclasses.field(default_factory=KeywordConfig)
    data_dir: Path = data.DATA_DIR
    source: Path | None = None
    out: Path = Path("runs/keyword_spotting")
    small: bool = False
    report_only: bool = False


def plan_of(given: KeywordArguments) -> Plan:
    """The study that the arguments choose."""
    if not given.small:
        return Plan(given.config, given.out)
    return Plan(
        given.config,
        given.out,
        methods=SMALL_METHODS,
        variants=SMALL_VARIANTS,
        ablated="adam",
        budget=4,
        reports=2,
        seeds=(0,),
    )


def run(given: KeywordArguments, console: rich.console.Console) -> str:
    """Runs what has no record yet; the text of the report.

    Raises:
      UserError: if there is nothing to report, or a clip cannot be used.
      ValueError: if the folder is that of another study, or a record is corrupt.
    """
    plan = plan_of(given)
    if given.report_only and not any(plan.out.glob("finals/*.json")):
        raise UserError(
            f"out={str(plan.out)!r} holds no records; run the study first, by the same "
            "command without --report-only"
        )
    check_settings(plan)
    if not given.report_only:
        read = functools.partial(read_clips, given.config, given.data_dir, given.source)
        run_study(stages(plan, read), Runner(given.data_dir), console)
    text = write_report(plan, given.out)
    console.print(text)
    return text


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command; wrong input ends it with a message."""
    given = tyro.cli(KeywordArguments, prog=f"python -m {MODULE}", args=arguments)
    with ending_with_a_message(MODULE, arguments):
        run(given, rich.console.Console())


if __name__ == "__main__":
    main()
