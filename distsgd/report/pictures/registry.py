"""All pictures of a comparison, in the order of the page."""

from collections.abc import Callable, Sequence

from altair.utils.schemapi import debug_mode

from distsgd.experiment.outcome import Outcome
from distsgd.report.numbers.summary import Summary
from distsgd.report.pictures.charts import Picture, Subject
from distsgd.report.pictures.classes import class_picture
from distsgd.report.pictures.learning_rate import map_picture, sensitivity_picture
from distsgd.report.pictures.loss import loss_picture
from distsgd.report.pictures.profiles import profile_picture
from distsgd.report.pictures.ratios import ratio_picture
from distsgd.report.pictures.simulated_and_live import both_losses_picture, both_staleness_picture
from distsgd.report.pictures.speed_up import speed_up_picture
from distsgd.report.pictures.staleness import loss_against_staleness_picture, staleness_picture
from distsgd.report.pictures.time_to_target import target_picture
from distsgd.report.pictures.worker_timeline import timeline_picture

OF_CASE: tuple[Callable[[Subject], Picture | None], ...] = (
    loss_picture,
    both_losses_picture,
    both_staleness_picture,
    target_picture,
    ratio_picture,
    staleness_picture,
    class_picture,
    timeline_picture,
)
"""The pictures of one problem on one fleet."""


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
        found = [
            loss_against_staleness_picture(summary, outcomes),
            speed_up_picture(summary),
            profile_picture(summary),
            map_picture(summary, outcomes),
            sensitivity_picture(summary),
            *(draw(Subject(summary, outcomes, case)) for case in summary.cases for draw in OF_CASE),
        ]
    return [picture for picture in found if picture is not None and picture.views]
