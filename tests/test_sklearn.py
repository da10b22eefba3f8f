import pickle
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import pytest
import scipy.sparse
from scipy.special import expit
from sklearn.base import BaseEstimator, clone
from sklearn.datasets import load_digits, make_regression
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LinearRegression, SGDClassifier
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import distsgd as ds
from distsgd import ConfigError

pytestmark = pytest.mark.long

Samples: TypeAlias = np.ndarray | scipy.sparse.csr_matrix
Classifier, Regressor = ds.sklearn.DistributedSGDClassifier, ds.sklearn.DistributedSGDRegressor
DRAWS = np.random.default_rng(0)
X, Y = DRAWS.normal(size=(120, 5)), DRAWS.normal(size=120)
TWO, THREE = np.where(X[:, 0] > 0.2, "yes", "no"), np.digitize(X[:, 1], [-0.5, 0.5]) * 10
SPARSE = scipy.sparse.random(150, 30, density=0.1, format="csr", rng=DRAWS)
SPARSE_TWO = np.asarray(SPARSE[:, :15].sum(axis=1) > SPARSE[:, 15:].sum(axis=1)).ravel()
DIGITS = load_digits(return_X_y=True)


@pytest.mark.filterwarnings("ignore::distsgd.DistsgdWarning")  # many checks have fewer samples than a batch
@parametrize_with_checks([Classifier(), Classifier(loss="svm"), Regressor()])
def test_estimators_keep_scikit_learns_rules(estimator: BaseEstimator, check: Callable[..., None]) -> None:
    """Every check that scikit-learn has for an estimator passes, and none is expected to fail."""
    check(estimator)


def problem_of(make: Callable[..., ds.Problem], x: Samples, y: np.ndarray, l2: float) -> ds.Problem:
    """Return the problem that an estimator minimises; a feature that is 1 has the intercept."""
    ones = np.ones((x.shape[0], 1))
    if make is not ds.problems.softmax:  # which has biases
        x = scipy.sparse.hstack([x, ones]) if scipy.sparse.issparse(x) else np.hstack([x, ones])
    return make(ds.data.from_arrays(x, y, test=0, name="X"), l2)


@pytest.mark.parametrize(
    ("make", "loss", "x", "y"),
    [
        (ds.problems.logistic, {}, X, TWO),
        (ds.problems.logistic, {}, SPARSE, SPARSE_TWO),
        (ds.problems.svm, {"loss": "svm"}, X, TWO),
        (ds.problems.svm, {"loss": "svm"}, SPARSE, SPARSE_TWO),
        (ds.problems.softmax, {}, X, THREE),
        (ds.problems.least_squares, None, X, Y),
        (ds.problems.least_squares, None, SPARSE, Y[:1] + SPARSE[:, 0].toarray().ravel()),
    ],
)
def test_a_fit_is_a_simulated_run(
    make: Callable[..., ds.Problem], loss: dict[str, str] | None, x: Samples, y: np.ndarray
) -> None:
    """Coefficients have the bits of `simulate` on the same problem, fleet, budget and seed."""
    settings = {"batch": 8, "epochs": 3}
    fleet = ds.Fleet(3, ds.exponential(1.0))
    kind, others = (Regressor, {}) if loss is None else (Classifier, loss)
    found = kind("downpour", fleet=fleet, learning_rate=0.05, l2=0.01, random_state=7, **others, **settings).fit(x, y)
    labels = np.unique(y, return_inverse=True)[1] if kind is Classifier else y
    run = ds.simulate(ds.algorithms.downpour(0.05), problem_of(make, x, labels, 0.01), fleet, seed=7, **settings)
    assert np.vstack([found.coef_.T.reshape(x.shape[1], -1), found.intercept_]).tobytes() == run.x.tobytes()
    assert found.run_.x.tobytes() == run.x.tobytes()
    assert found.history_["loss"][-1] == run.history["loss"][-1]
    assert (found.history_["epoch"].len(), found.n_iter_) == (4, 3)


def test_an_algorithm_and_a_staleness_are_taken_as_they_are() -> None:
    """An algorithm of its own rate on sampled staleness has the bits of `simulate`."""
    algorithm, stale = ds.algorithms.downpour(0.3), ds.stale_reads(ds.uniform(0, 4), 1)
    found = Classifier(algorithm, fleet=stale, batch=4, epochs=2, l2=0).fit(X, TWO)
    run = ds.simulate(algorithm, problem_of(ds.problems.logistic, X, TWO == "yes", 0.0), stale, batch=4, epochs=2)
    assert found.run_.x.tobytes() == run.x.tobytes()


def test_what_is_not_given_is_as_documented() -> None:
    """Without more an estimator runs Downpour SGD on 4 workers at rate 0.1, or 0.01 for numbers."""
    for estimator, y, rate in ((Classifier(), TWO, 0.1), (Regressor(), Y, 0.01)):
        settings = estimator.fit(X, y).run_.settings
        plain = ds.simulate(ds.algorithms.downpour(rate), ds.problems.quadratic([1.0]), ds.Fleet(4), epochs=10 / 2**27)
        assert [settings[key] for key in ("algorithm", "fleet", "seed", "batch")] == [
            plain.settings[key] for key in ("algorithm", "fleet", "seed", "batch")
        ]
        assert settings["budget"] == {"epochs": 10.0}
        assert settings["problem"]["l2"] == 1e-4


def test_digits_are_told_apart_as_by_scikit_learn() -> None:
    """One worker is as accurate as `SGDClassifier` on other samples, up to three in a hundred."""
    x, other_x, y, other_y = train_test_split(DIGITS[0] / 16, DIGITS[1], random_state=0)
    theirs = SGDClassifier(loss="log_loss", random_state=0).fit(x, y).score(other_x, other_y)
    ours = Classifier("serial", fleet=ds.Fleet(1), learning_rate=0.5, epochs=20).fit(x, y).score(other_x, other_y)
    assert ours > theirs - 0.03
    assert theirs > 0.9


def test_least_squares_are_scikit_learns() -> None:
    """Numbers without noise have the coefficients of `LinearRegression` where a run converges."""
    x, y, true = make_regression(300, 4, bias=5.0, coef=True, random_state=0)
    ours = Regressor("synchronous", learning_rate=0.2, epochs=60, l2=0).fit(x, y)
    theirs = LinearRegression().fit(x, y)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, rtol=1e-6)
    np.testing.assert_allclose(ours.coef_, true, rtol=1e-6)
    assert ours.intercept_[0] == pytest.approx(5.0, rel=1e-6)
    assert ours.score(x, y) == pytest.approx(1.0)


def test_probabilities_are_those_of_the_margins() -> None:
    """Two classes have the sigmoid of their margin, up to rounding, and more have shares of 1."""
    two, three = Classifier().fit(X, TWO), Classifier().fit(X, THREE)
    margins = two.decision_function(X)
    np.testing.assert_allclose(margins, X @ two.coef_[0] + two.intercept_[0], rtol=1e-12)
    np.testing.assert_allclose(two.predict_proba(X)[:, 1], expit(margins), rtol=1e-12)
    assert (two.predict(X) == np.where(margins > 0, "yes", "no")).all()
    shares = three.predict_proba(X)
    np.testing.assert_allclose(shares.sum(axis=1), 1.0, rtol=1e-12)
    assert (three.predict(X) == three.classes_[shares.argmax(axis=1)]).all()
    assert three.decision_function(X).shape == (len(X), 3)
    assert not hasattr(Classifier(loss="svm"), "predict_proba")


def test_sparse_samples_are_dense_ones_with_zeros() -> None:
    """Without a regulariser both have the same coefficients, up to the order of sums."""
    for estimator, y in ((Classifier(l2=0), SPARSE_TWO), (Regressor(l2=0), SPARSE[:, 0].toarray().ravel())):
        sparse, dense = clone(estimator).fit(SPARSE, y), clone(estimator).fit(SPARSE.toarray(), y)
        np.testing.assert_allclose(sparse.coef_, dense.coef_, rtol=1e-9, atol=1e-15)
        np.testing.assert_allclose(sparse.predict(SPARSE), sparse.predict(SPARSE.toarray()), rtol=1e-9)


def test_a_grid_is_searched_on_two_cores() -> None:
    """A pipeline is tuned over rates and fleets in processes, with the scores of one process."""
    steps, name = make_pipeline(StandardScaler(), Regressor(epochs=2, batch=4)), "distributedsgdregressor"
    grid = {f"{name}__learning_rate": [1e-4, 0.1], f"{name}__fleet": [ds.Fleet(2), ds.fixed_staleness(3)]}
    found, again = (GridSearchCV(steps, grid, cv=2, n_jobs=n_jobs).fit(X, X[:, 0]) for n_jobs in (2, 1))
    assert found.best_params_[f"{name}__learning_rate"] == 0.1
    assert found.best_score_ > 0.9
    for key in ("mean_test_score", "std_test_score"):
        assert found.cv_results_[key].tobytes() == again.cv_results_[key].tobytes()
    assert found.best_estimator_[-1].run_.hash == again.best_estimator_[-1].run_.hash


def test_a_fitted_estimator_is_kept() -> None:
    """One that was pickled predicts with the same bits, and a clone of it is not fitted."""
    found = Classifier(fleet=ds.Fleet(2, ds.lognormal(1.0, 0.5))).fit(X, THREE)
    again = pickle.loads(pickle.dumps(found))
    assert again.predict_proba(X).tobytes() == found.predict_proba(X).tobytes()
    assert again.run_.hash == found.run_.hash
    assert again.history_.equals(found.history_)
    fresh = clone(found)
    assert fresh.get_params() == found.get_params()
    assert not hasattr(fresh, "coef_")


def test_live_workers_have_the_coefficients_of_their_replay() -> None:
    """A fit on worker processes ends where the order that it recorded leads, bit for bit."""
    found = Classifier(workers=2, learning_rate=0.05, epochs=5, batch=8, l2=0.01).fit(X, THREE)
    problem = ds.problems.softmax(ds.data.from_arrays(X, THREE // 10, test=0, name="X"), 0.01)
    again = ds.replay(found.run_, ds.algorithms.downpour(0.05), problem)
    assert found.run_.settings["fleet"]["kind"] == "local"
    assert np.vstack([found.coef_.T, found.intercept_]).tobytes() == again.x.tobytes()
    assert found.score(X, THREE) > 0.5


def test_a_random_state_is_the_seed_of_the_run() -> None:
    """A whole number is the seed, a generator draws one, and None draws another one in each fit."""
    seeds = {
        name: [Classifier(random_state=make()).fit(X, TWO).run_.settings["seed"] for _ in range(2)]
        for name, make in {"5": lambda: 5, "generator": lambda: np.random.RandomState(5), "None": lambda: None}.items()
    }
    assert seeds["5"] == [5, 5]
    assert seeds["generator"][0] == seeds["generator"][1]
    assert seeds["None"][0] != seeds["None"][1]


def test_a_run_that_diverges_is_told() -> None:
    """A rate that is too great is a warning in a fit, and an error where something is predicted."""
    estimator = Regressor("serial", learning_rate=1e9, epochs=100)
    with pytest.warns(ConvergenceWarning, match=r"^serial diverged at update \d+; lower learning_rate, or scale"):
        estimator.fit(X, Y)
    assert estimator.run_.status == "diverged"
    with pytest.raises(ConfigError, match="the run of fit diverged, so that its coefficients predict nothing; lower"):
        estimator.predict(X)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"algorithm": "downpur"}, "unknown algorithm 'downpur'; did you mean 'downpour'"),
        ({"algorithm": ds.algorithms.downpour}, r"algorithm must be .*downpour was not called; write downpour\(l"),
        ({"algorithm": "stale_synchronous"}, r"give distsgd.algorithms.stale_synchronous\(learning_rate, bound\)"),
        ({"algorithm": ds.algorithms.serial(0.1), "learning_rate": 0.2}, "learning_rate must be None, not 0.2, where"),
        ({"learning_rate": 0}, "learning_rate must be > 0 and finite, not 0"),
        ({"epochs": 0}, "epochs must be > 0 and finite, not 0"),
        ({"epochs": "ten"}, "epochs must be a number, not 'ten'"),
        ({"batch": 0.5}, "batch must be a whole number >= 1, not 0.5"),
        ({"l2": -1}, "l2 must be >= 0 and finite, not -1"),
        ({"loss": "hinge"}, "unknown loss 'hinge'; known: logistic, svm"),
        ({"random_state": -1}, "seed must be a whole number >= 0, not -1"),
        ({"workers": 2, "fleet": ds.Fleet(2)}, "give fleet, which is simulated, or workers, which are real"),
        ({"workers": 0}, "workers must be a whole number >= 1, not 0"),
        ({"workers": 2, "algorithm": "hogwild"}, "lock-free workers need sparse data"),
    ],
)
def test_parameters_that_do_not_fit_are_named(given: dict[str, object], says: str) -> None:
    """A fit says which parameter is out of its bounds, and what to do."""
    with pytest.raises(ConfigError, match=says):
        Classifier(**given).fit(X, TWO)


def test_classes_that_do_not_fit_are_named() -> None:
    """One class cannot be learned, and a support vector machine tells two apart."""
    with pytest.raises(ConfigError, match="samples of at least 2 classes, not of 1 class, 'a'"):
        Classifier().fit(X, np.full(len(X), "a"))
    with pytest.raises(ConfigError, match="loss='svm', and y has 3 classes; use loss='logistic'"):
        Classifier(loss="svm").fit(X, THREE)
