"""scikit-learn's interface: linear models whose coefficients a run of distributed SGD finds.

1. A fit is one run, of an algorithm on a fleet or on live workers; it has the bits that `simulate`
   has on the same problem.
2. The intercept is the coefficient of a feature that is 1 in every sample, and is regularised as
   the others are.
3. A run that diverges is a warning in a fit, and its coefficients predict nothing.
"""

import inspect
import math
import warnings
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from numbers import Integral
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import hstack, issparse, sparray
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from distsgd import problems
from distsgd.algorithm import Algorithm
from distsgd.algorithms import registry
from distsgd.data import Data, from_arrays
from distsgd.errors import ConfigError, check_name, check_number
from distsgd.fold.request import ModelFleet
from distsgd.fold.simulate import simulate
from distsgd.live.launch import launch
from distsgd.order.fleet import Fleet
from distsgd.problem import Problem
from distsgd.run import Run
from distsgd.sparse import Floats

__all__ = ["DistributedSGDClassifier", "DistributedSGDRegressor"]

Table: TypeAlias = ArrayLike | sparray
"""Samples and features, as scikit-learn takes them."""
Loss: TypeAlias = Literal["logistic", "svm"]

_FLEET = Fleet(workers=4)


@dataclass(eq=False, repr=False)
class _Linear(BaseEstimator):  # type: ignore[misc] # scikit-learn ships no types
    """What both estimators do: a run, and the linear map that it has found."""

    algorithm: Algorithm | str = "downpour"
    _: KW_ONLY
    fleet: ModelFleet | None = None
    workers: int | None = None
    learning_rate: float | None = None
    epochs: float = 10
    batch: int = 32
    l2: float = 1e-4
    random_state: int | np.random.RandomState | None = 0

    _default_rate = 0.1

    def __sklearn_tags__(self) -> Any:  # noqa: ANN401 # scikit-learn's Tags
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    def _minimise(self, problem: Problem) -> Floats:
        """Return where a run on `problem` ends, and keep the run."""
        run = self.run_ = self._run(problem)
        self.history_ = run.history
        self.n_iter_ = max(1, round(run.history["epoch"][-1]))
        if run.status == "diverged":
            advice = "lower learning_rate, or scale the features with StandardScaler"
            what = f"{run.settings['algorithm']['name']} diverged at update {run.diverged_at}; {advice}"
            warnings.warn(what, ConvergenceWarning, stacklevel=3)
        return run.x

    def _run(self, problem: Problem) -> Run:
        epochs = check_number("epochs", self.epochs, above=0)
        given: dict[str, Any] = {"epochs": epochs, "batch": self.batch, "seed": self._seed()}
        given["evaluations"] = math.ceil(epochs)  # they cost as much as an epoch of gradients
        if self.workers is None:
            fleet = _FLEET if self.fleet is None else self.fleet
            return simulate(self._algorithm(), problem, fleet, **given)
        if self.fleet is not None:
            raise ConfigError("give fleet, which is simulated, or workers, which are real processes, not both")
        return launch(self._algorithm(), problem, workers=self.workers, **given)

    def _algorithm(self) -> Algorithm:
        if isinstance(self.algorithm, str):
            rate = self._default_rate if self.learning_rate is None else self.learning_rate
            return _named(self.algorithm)(rate)
        if self.learning_rate is None:
            return self.algorithm
        raise ConfigError(
            f"learning_rate must be None, not {self.learning_rate!r}, where algorithm is an Algorithm, which has its"
            ' own; give a name, such as algorithm="downpour"'
        )

    def _seed(self) -> int:
        given = self.random_state
        return int(given) if isinstance(given, Integral) else int(check_random_state(given).randint(2**31))

    def _samples(self, X: Table, **how: Any) -> Any:  # noqa: ANN401 # of `validate_data`, as what it returns
        return validate_data(self, X, accept_sparse="csr", dtype=np.float64, **how)

    def _margins(self, X: Table) -> Floats:
        """Return coef_ X + intercept_, float64[n, ...]."""
        check_is_fitted(self)
        samples = self._samples(X, reset=False)
        if self.run_.status == "diverged":  # rule 3
            raise ConfigError("the run of fit diverged, so that its coefficients predict nothing; lower learning_rate")
        margins: Floats = samples @ self.coef_.T + self.intercept_
        return margins


def _named(name: str) -> Callable[..., Algorithm]:
    """Return the constructor of an algorithm that needs nothing but a learning rate."""
    check_name("algorithm", name, registry)
    make = registry[name].constructor
    needed = [one.name for one in inspect.signature(make).parameters.values() if one.default is one.empty]
    if len(needed) > 1:
        whole = f"distsgd.algorithms.{name}({', '.join(needed)})"
        raise ConfigError(f"algorithm {name!r} needs more than a learning rate; give {whole} in place of its name")
    return make


def _with_ones(X: Table) -> Table:
    """Return samples with one more feature, which is 1 in each of them."""
    ones = np.ones((np.shape(X)[0], 1))
    return hstack([X, ones], format="csr") if issparse(X) else np.hstack([X, ones])


def _data(X: Table, y: ArrayLike) -> Data:
    return from_arrays(X, y, test=0, name="X")


def _is_logistic(classifier: "DistributedSGDClassifier") -> bool:
    return classifier.loss == "logistic"


@dataclass(eq=False, repr=False)
class DistributedSGDClassifier(ClassifierMixin, _Linear):  # type: ignore[misc] # scikit-learn ships no types
    """Linear classifier, trained by an algorithm of distributed SGD.

    A fit is one run, simulated or live. So a grid search over `fleet` says what staleness costs,
    and one over `algorithm` what to use.

    Parameters
    ----------
    algorithm : Algorithm or str, default "downpour"
        What to run: a name, which is given `learning_rate`, or an algorithm with a rate of its own.
    fleet : Fleet or StaleReads, optional
        The machines, or the staleness, on which it is simulated; by default 4 equal workers.
    workers : int, optional
        Run for real, with so many worker processes on this machine, instead of on a fleet. Their
        order is that of reality: two fits differ.
    learning_rate : float, optional
        Rate of an algorithm that is given by its name, > 0; by default 0.1.
    epochs : float, default 10
        Passes over the samples by all workers together, > 0.
    batch : int, default 32
        Samples of one gradient, >= 1.
    l2 : float, default 1e-4
        Strength of the regulariser l2 / 2 |x|^2, >= 0, on coefficients and intercept.
    random_state : int, RandomState or None, default 0
        Seed of machines and samples, as `seed` of `simulate`; with None each fit draws another one.
    loss : {"logistic", "svm"}, default "logistic"
        Logistic regression, a softmax where there are more than two classes, or the support vector
        machine of two classes.

    Attributes
    ----------
    coef_ : float64[1, features] or float64[classes, features]
        Coefficients: of the second class if there are two, else of each class.
    intercept_ : float64[1] or float64[classes]
        Coefficients of a feature that is 1 in every sample.
    classes_ : array[classes]
        Labels of the classes, in order.
    run_ : Run
        The run, with its trace and status.
    history_ : polars.DataFrame
        The run's history: its start, and a row per epoch.
    n_iter_ : int
        Epochs, to the nearest number, at least 1.
    n_features_in_ : int
        Number of features.
    feature_names_in_ : array[features]
        Names of the features, where all were text.

    Raises
    ------
    ConfigError
        In a fit, if a parameter is out of its bounds, or has no meaning beside another one.

    Examples
    --------
    >>> import distsgd as ds
    >>> from sklearn.datasets import load_digits
    >>> x, y = load_digits(return_X_y=True)
    >>> stale = ds.sklearn.DistributedSGDClassifier(fleet=ds.fixed_staleness(8))
    >>> stale.fit(x / 16, y).score(x / 16, y) > 0.9
    True
    """

    _: KW_ONLY
    loss: Loss = "logistic"

    def __sklearn_tags__(self) -> Any:  # noqa: ANN401 # scikit-learn's Tags
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = _is_logistic(self)
        return tags

    def fit(self, X: Table, y: ArrayLike) -> "DistributedSGDClassifier":
        """Make a run on samples `X`, float64[n, features], dense or sparse, of the classes `y`.

        With more than two classes sparse samples are made dense.
        """
        check_name("loss", self.loss, get_args(Loss))
        X, y = self._samples(X, y=y)
        check_classification_targets(y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        x = self._minimise(self._problem(X, labels))
        n_margins = x.size // (self.n_features_in_ + 1)
        self.coef_, self.intercept_ = x[:-n_margins].reshape(-1, n_margins).T, x[-n_margins:]
        return self

    def _problem(self, X: Table, labels: NDArray[np.int64]) -> Problem:
        n_classes = len(self.classes_)
        if n_classes < 2:
            (only,) = self.classes_.tolist()
            raise ConfigError(f"y must have samples of at least 2 classes, not of 1 class, {only!r}")
        if n_classes == 2:
            return problems.registry[self.loss](_data(_with_ones(X), labels), self.l2)
        if _is_logistic(self):
            return problems.softmax(_data(X, labels), self.l2)
        what = "Only binary classification is supported"  # as scikit-learn begins it
        raise ConfigError(f"{what} with loss='svm', and y has {n_classes} classes; use loss='logistic'")

    def decision_function(self, X: Table) -> Floats:
        """Return the margin of the second class, float64[n], or of each, float64[n, classes]."""
        margins = self._margins(X)
        return margins[:, 0] if margins.shape[1] == 1 else margins

    def predict(self, X: Table) -> NDArray[Any]:
        """Return the most probable class of each sample, array[n]."""
        place = self._logits(X).argmax(axis=1)  # first, since it asks whether there has been a fit
        found: NDArray[Any] = self.classes_[place]
        return found

    @available_if(_is_logistic)  # type: ignore[untyped-decorator] # as above
    def predict_proba(self, X: Table) -> Floats:
        """Return the probability of each class, float64[n, classes]; a logistic loss has them."""
        shares: Floats = softmax(self._logits(X), axis=1)
        return shares

    def _logits(self, X: Table) -> Floats:
        margins = self._margins(X)
        return np.hstack([np.zeros_like(margins), margins]) if margins.shape[1] == 1 else margins


@dataclass(eq=False, repr=False)
class DistributedSGDRegressor(RegressorMixin, _Linear):  # type: ignore[misc] # scikit-learn ships no types
    """Least squares with a regulariser, trained by an algorithm of distributed SGD.

    Features of one scale, as of `sklearn.preprocessing.StandardScaler`, bear greater rates.

    Parameters
    ----------
    algorithm : Algorithm or str, default "downpour"
        What to run: a name, which is given `learning_rate`, or an algorithm with a rate of its own.
    fleet : Fleet or StaleReads, optional
        The machines, or the staleness, on which it is simulated; by default 4 equal workers.
    workers : int, optional
        Run for real, with so many worker processes on this machine, instead of on a fleet. Their
        order is that of reality: two fits differ.
    learning_rate : float, optional
        Rate of an algorithm that is given by its name, > 0; by default 0.01.
    epochs : float, default 10
        Passes over the samples by all workers together, > 0.
    batch : int, default 32
        Samples of one gradient, >= 1.
    l2 : float, default 1e-4
        Strength of the regulariser l2 / 2 |x|^2, >= 0, on coefficients and intercept.
    random_state : int, RandomState or None, default 0
        Seed of machines and samples, as `seed` of `simulate`; with None each fit draws another one.

    Attributes
    ----------
    coef_ : float64[features]
        Coefficients.
    intercept_ : float64[1]
        Coefficient of a feature that is 1 in every sample.
    run_ : Run
        The run, with its trace and status.
    history_ : polars.DataFrame
        The run's history: its start, and a row per epoch.
    n_iter_ : int
        Epochs, to the nearest number, at least 1.
    n_features_in_ : int
        Number of features.
    feature_names_in_ : array[features]
        Names of the features, where all were text.

    Raises
    ------
    ConfigError
        In a fit, if a parameter is out of its bounds, or has no meaning beside another one.

    Examples
    --------
    >>> import distsgd as ds
    >>> from sklearn.datasets import make_regression
    >>> x, y = make_regression(200, 5, random_state=0)
    >>> estimator = ds.sklearn.DistributedSGDRegressor("synchronous", learning_rate=0.1, epochs=50)
    >>> estimator.fit(x, y).score(x, y) > 0.99
    True
    """

    _default_rate = 0.01

    def fit(self, X: Table, y: ArrayLike) -> "DistributedSGDRegressor":
        """Make a run on samples `X`, float64[n, features], dense or sparse, of the numbers `y`."""
        X, y = self._samples(X, y=y, y_numeric=True)
        x = self._minimise(problems.least_squares(_data(_with_ones(X), y), self.l2))
        self.coef_, self.intercept_ = x[:-1], x[-1:]
        return self

    def predict(self, X: Table) -> Floats:
        """Return a number for each sample, float64[n]."""
        return self._margins(X)
