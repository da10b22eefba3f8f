import numpy as np
import pytest

from distsgd import algorithms
from distsgd.algorithm import Algorithm, At, Rules, message_columns
from distsgd.live.messages.columns import Layout
from distsgd.live.server import store
from distsgd.live.server.decisions import Action, Decision
from distsgd.live.server.store import Store, prepare

ALGORITHMS = [
    algorithms.downpour(0.1),
    algorithms.downpour(0.1, server="adagrad"),
    algorithms.adaptive_revision(0.1),
    algorithms.elastic_averaging(0.1),
]


def close(version: int) -> Decision:
    """Return the decision to close a round."""
    return Decision(Action.CLOSE, step=3, version=version, staleness=2, factor=0.5)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda one: f"{one.name}-{len(one.hyper)}")
def test_rounds_have_the_bits_of_a_fold(
    algorithm: Algorithm, monkeypatch: pytest.MonkeyPatch, dtype: type, *, compiled: bool
) -> None:
    """A round is added in worker order, divided, and given to the rule, whichever code calls it."""
    monkeypatch.setattr(store, "COMPILED_FROM", 0 if compiled else 10**9)
    random, n = np.random.default_rng(0), len(message_columns(algorithm))

    def column() -> np.ndarray:
        return random.normal(size=7).astype(dtype)

    x, h, rules = column(), algorithm.hyper, Rules.of(algorithm, np.dtype(dtype))
    found, state = Store(algorithm, x, 3), rules.server_init(h, x)
    for version, order in enumerate([[2, 0, 1], [1], [0, 2], [1, 1, 0]]):
        pushes = [(worker, [column() for _ in range(n)]) for worker in order]
        for worker, columns in pushes:
            found.hold(worker, columns)
        found.close(close(version))
        pushes.sort(key=lambda one: one[0])
        total = pushes[0][1]
        for _, columns in pushes[1:]:
            total = [one + other for one, other in zip(total, columns, strict=True)]
        mean = [column.astype(np.float64) / len(pushes) for column in total]
        kind = type(rules.send(h, rules.init(h, x), At(0, 0, 3, 0, 1.0))[1])
        state = rules.apply(h, state, kind(*mean), At(version, 2, 3, 3, 0.5))
    for name, numbers in found.columns.items():
        assert numbers.dtype == dtype
        assert numbers.tobytes() == np.full(7, getattr(state, name), dtype).tobytes()


@pytest.mark.parametrize("compiled", [False, True])
def test_past_versions_are_kept(monkeypatch: pytest.MonkeyPatch, *, compiled: bool) -> None:
    """As many versions as were asked for can be read, as they were."""
    monkeypatch.setattr(store, "COMPILED_FROM", 0 if compiled else 10**9)
    kept = Store(algorithms.downpour(0.1), np.ones(3), 1, n_past=2)
    seen = [kept.x.copy()]
    for version in range(5):
        kept.hold(0, [np.full(3, 1.0 + version)])
        kept.close(close(version))
        seen.append(kept.x.copy())
    for version in (3, 4, 5):
        assert kept.read(version)[0].tolist() == seen[version].tolist()
    with pytest.raises(IndexError):
        kept.read(2)


def test_a_detached_push_outlasts_its_box() -> None:
    """What a lost worker has pushed stays as it was, also where its out-box is written again."""
    one = Store(algorithms.downpour(0.1), np.zeros(2), 2)
    boxes = np.ones(2), np.ones(2)
    one.hold(0, [boxes[0]])
    one.hold(1, [boxes[1]])
    one.detach(0)
    boxes[0][:] = 99.0
    one.close(close(0)._replace(factor=1.0))
    assert one.x.tolist() == [-0.1, -0.1]


@pytest.mark.parametrize("dtype", [np.dtype(np.float64), np.dtype(np.float32)], ids=str)
def test_nothing_is_compiled_after_the_preparation(monkeypatch: pytest.MonkeyPatch, dtype: np.dtype) -> None:
    """Loops that were prepared before the fork are those that the shards use."""
    monkeypatch.setattr(store, "COMPILED_FROM", 2)
    algorithm = algorithms.synchronous(0.1)
    prepare(algorithm, Layout(4, 3, 2, 1, 1, dtype))
    generated = store.loops(store.RuleSet.of(algorithm, dtype), store.server_source)
    loops = [generated[name] for name in ("apply_one", "apply_mean")]
    before = [len(loop.signatures) for loop in loops]
    one = Store(algorithm, np.zeros(2, dtype), 3)
    for version, n in enumerate((1, 3)):
        for worker in range(n):
            one.hold(worker, [np.ones(2, dtype)])
        one.close(close(version))
    assert [len(loop.signatures) for loop in loops] == before == [1, 1]
