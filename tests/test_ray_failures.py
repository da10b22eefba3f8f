import pytest

from distsgd.errors import ConfigError, DistsgdError, WorkerLost
from distsgd.live.ray.failures import refused, reported


class Failing:
    """An actor whose part cannot be played."""

    @reported
    def work(self, error: Exception) -> None:
        """Raise what is given."""
        raise error


@pytest.mark.parametrize(
    ("error", "kind", "sentence"),
    [
        (WorkerLost("a push has come to the lead alone"), WorkerLost, "a push has come to the lead alone"),
        (ZeroDivisionError("by zero"), DistsgdError, "ZeroDivisionError: by zero"),
        (ImportError("No module named 'torch'"), ConfigError, "has no package torch; install distsgd there"),
    ],
    ids=["known", "unknown", "package"],
)
def test_an_actor_that_fails_answers_with_what_it_was(error: Exception, kind: type, sentence: str) -> None:
    """What an actor raises is the answer to its call, so that the driver knows its kind."""
    failure = Failing().work(error)
    assert failure.kind is kind
    assert sentence in failure.sentence
    assert isinstance(refused("node 1", error), kind)
