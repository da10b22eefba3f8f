"""Every picture of a comparison, in the order of the page: those whose data exist."""

from collections.abc import Sequence

from altair.utils.schemapi import debug_mode

from distsgd.report.numbers.summary import Outcome, Summary
from distsgd.report.pictures.charts import Case, Picture
from distsgd.report.pictures.classes import class_picture
from distsgd.report.pictures.learning_rate import map_picture, sensitivity_picture
from distsgd.report.pictures.loss import both_losses_picture, loss_picture
from distsgd.report.pictures.ratios import profile_picture, ratio_picture, speed_up_picture
from distsgd.report.pictures.simulated_and_live import both_staleness_picture
from distsgd.report.pictures.staleness import staleness_picture, suffering_picture
from distsgd.report.pictures.time_to_target import target_picture
from distsgd.report.pictures.worker_timeline import timeline_picture


def pictures(summary: Summary, outcomes: Sequence[Outcome]) -> list[Picture]:
    """Return the pictures of a comparison: those of all fleets together, then case by case.

    Parameters
    ----------
    summary : Summary
        Its numbers.
    outcomes : sequence of Outcome
        Its runs.

    Returns
    -------
    list of Picture
        Each with at least one view. A picture whose data do not exist is not among them.
    """
    # Altair would check each part of each chart again: that takes longer than to draw it.
    with debug_mode(False):
        return _drawn(summary, outcomes)


def _drawn(summary: Summary, outcomes: Sequence[Outcome]) -> list[Picture]:
    found = [
        suffering_picture(summary, outcomes),
        speed_up_picture(summary),
        profile_picture(summary),
        map_picture(summary, outcomes),
        sensitivity_picture(summary),
    ]
    for case in summary.cases:
        found += _of_case(summary, outcomes, case)
    return [picture for picture in found if picture is not None and picture.views]


def _of_case(summary: Summary, outcomes: Sequence[Outcome], case: Case) -> list[Picture | None]:
    return [
        loss_picture(summary, outcomes, case),
        both_losses_picture(summary, outcomes, case),
        both_staleness_picture(summary, outcomes, case),
        target_picture(summary, outcomes, case),
        ratio_picture(summary, case),
        staleness_picture(summary, outcomes, case),
        class_picture(summary, case),
        timeline_picture(outcomes, case),
    ]
