"""An experiment as a job of a Ray cluster that this machine need not be part of.

1. All goes through one port, that of Ray's dashboard: the experiment's folder and this package
   travel with the job, its log and its report come back.
2. The job works in a folder on the cluster, by default one of its own on the disk of the head. A
   second, tiny job reads the report from there: no disk is shared, and a report can be fetched
   whenever, as long as that folder exists.
3. The job's own call of ``ray.init`` names no runtime environment, which could conflict with ours.
"""

import base64
import contextlib
import io
import json
import logging
import os
import re
import secrets
import shlex
import shutil
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from distsgd.errors import ConfigError
from distsgd.live.ray.session import package

LARGEST_BYTES = 100 * 2**20
"""What Ray's dashboard takes in one upload [bytes]."""
LEFT_BEHIND = (".*", "__pycache__", "results")
"""What of an experiment's folder stays here: hidden files, caches, our own results."""
REPORT = ("report.html", "summary.json")
PROBE_S = 5.0
"""How long a dashboard may take to answer [s]."""
POLL_S = 1.0
"""Time between two looks at a job [s]."""
LOST_S = 60.0
"""How long a dashboard may be away while a job is followed [s]."""
SUCCEEDED = "SUCCEEDED"
ENDED = {SUCCEEDED, "FAILED", "STOPPED"}
"""States after which nothing happens to a job."""


class Order(NamedTuple):
    """What a job is to do."""

    file: Path | None
    """Experiment file; None for the built-in comparison."""
    arguments: Sequence[str] = ()
    """More of the command line of ``distsgd compare``."""
    storage: str | None = None
    """Folder on the cluster in which the comparison works; None for a fresh one of the head."""


@contextlib.contextmanager
def dashboard(address: str) -> Iterator[Any]:
    """Give Ray's ``JobSubmissionClient`` of the dashboard at `address`, ``http://HOST:8265``.

    If no dashboard answers there, or it refuses what the block asks for, it is a `ConfigError`.
    """
    _probe(address)
    errors = (RuntimeError, ValueError, ConnectionError, package("ray").exceptions.RayError)
    client = package("ray.job_submission").JobSubmissionClient
    for handler in logging.getLogger("ray").handlers:
        handler.setLevel(logging.ERROR)  # several of its loggers tell of each upload
    try:
        with _unset("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):  # they would override the argument
            connected = client(address)
        yield connected
    except (*errors, package("requests").RequestException) as error:
        raise _refused(address, str(error)) from None


def _refused(address: str, reason: str) -> ConfigError:
    plain = re.sub(r"^Request failed with status code \d+: ", "", reason.strip())
    (first, *_) = plain.splitlines() or [""]
    wants_token = "; set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN to what ray get-auth-token prints"
    hint = wants_token + " on the head" if re.search("[Aa]uthenticat", reason) else ""
    return ConfigError(f"the cluster at {address} refuses: {first.rstrip('.')}{hint}")


def fresh_id(order: Order) -> str:
    """Return an id for a job, which begins with the name of the experiment."""
    name = "builtin" if order.file is None else order.file.stem
    return f"{re.sub(r'[^A-Za-z0-9-]+', '-', name)}-{secrets.token_hex(4)}"


def submit(client: Any, order: Order, job: str) -> None:  # noqa: ANN401 # a class of ray
    """Send a comparison as a `job`, which goes on whatever becomes of this process."""
    folder = f"~/distsgd/{job}" if order.storage is None else shlex.quote(order.storage)
    with tempfile.TemporaryDirectory() as staged:
        client.submit_job(
            entrypoint=entrypoint(order, folder),
            submission_id=job,
            runtime_env=environment(order.file, Path(staged)),
            metadata={"folder": folder},
        )


def entrypoint(order: Order, folder: str) -> str:
    """Return the job's command line, which works in `folder`, quoted for a shell."""
    file = [] if order.file is None else [order.file.name]
    command = ["python", "-m", "distsgd", "compare", *file, "--on", "ray", *order.arguments]
    return f"{shlex.join(command)} --out {folder}"


def check_size(file: Path) -> None:
    """Raise a `ConfigError` if the folder of the experiment `file` is more than Ray takes."""
    folder = file.absolute().parent
    sizes = {
        path: path.stat().st_size
        for path in folder.rglob("*")
        if path.is_file() and not _is_left_behind(path.relative_to(folder))
    }
    if sum(sizes.values()) <= LARGEST_BYTES:
        return
    largest = sorted(sizes, key=sizes.__getitem__, reverse=True)[:3]
    named = ", ".join(f"{one.relative_to(folder)} ({sizes[one] / 1e6:,.1f} MB)" for one in largest)
    raise ConfigError(
        f"{folder} has {sum(sizes.values()) / 1e6:,.1f} MB, and Ray takes"
        f" {LARGEST_BYTES / 1e6:.0f} MB; the largest files are {named}. Keep the experiment in a"
        " folder of its own, and large data where every node can read them, with an absolute path"
    )


def check_sent(file: Path, path: str) -> None:
    """Raise a `ConfigError` if an experiment `file` names a `path` that stays here."""
    inside = Path(os.path.normpath(path))
    if inside.is_absolute() or (not _is_left_behind(inside) and (file.parent / inside).exists()):
        return
    raise ConfigError(
        f"{path} is no visible file in the folder of {file}, which is all that is sent; put it there,"
        " or give an absolute path that every node can read"
    )


def _is_left_behind(path: Path) -> bool:
    return any(part in LEFT_BEHIND or part.startswith(".") for part in path.parts)


def environment(file: Path | None, staged: Path) -> dict[str, Any]:
    """Return the runtime environment of a job: the folder of the experiment `file`, and distsgd.

    They are copied into the folder `staged`, since Ray would leave out of the originals what git
    ignores, such as data.
    """
    ignore = shutil.ignore_patterns(*LEFT_BEHIND)
    found: dict[str, Any] = {}
    if file is not None:
        shutil.copytree(file.absolute().parent, staged / "experiment", ignore=ignore)
        found["working_dir"] = str(staged / "experiment")
    own = Path(__file__).parents[2]
    if own.is_dir():  # otherwise it runs out of an archive, and must be installed on the cluster
        shutil.copytree(own, staged / own.name, ignore=ignore)
        found["py_modules"] = [str(staged / own.name)]
    return found


@contextlib.contextmanager
def _unset(*names: str) -> Iterator[None]:
    kept = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


def _probe(address: str) -> None:
    """Raise a `ConfigError` if no dashboard of Ray answers at `address`; its client would wait."""
    if urlsplit(address).scheme not in {"http", "https"} or not urlsplit(address).hostname:
        raise ConfigError(f"address must be http://HOST:8265, where Ray's dashboard listens, not {address}")
    try:
        with urllib.request.urlopen(f"{address.rstrip('/')}/api/version", timeout=PROBE_S) as page:
            json.load(page)["ray_version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, urllib.error.HTTPError) and error.code in {401, 403}:
            return  # its client will say that it wants a token
        raise ConfigError(
            f"no dashboard of Ray answers at {address}; give that of the head, which listens on port"
            " 8265 by default (ray start --head --dashboard-host 0.0.0.0), or forward its port"
        ) from None


def follow(client: Any, job: str, say: Callable[[str], None]) -> str:  # noqa: ANN401 # a class of ray
    """Tell each new piece of a job's log, and return the state in which it ended, of `ENDED`."""
    shown, state, heard = 0, "", time.monotonic()
    while state not in ENDED:
        try:
            state = client.get_job_status(job).value
            text = client.get_job_logs(job)  # after the state: of a job that has ended it is whole
        except package("requests").ConnectionError:
            if time.monotonic() - heard > LOST_S:
                raise
            state, text = "", " " * shown
        else:
            heard = time.monotonic()
        say(text[shown:])
        shown = len(text)
        time.sleep(0.0 if state in ENDED else POLL_S)
    return state


def fetch(client: Any, job: str) -> dict[str, bytes]:  # noqa: ANN401 # a class of ray
    """Return a job's files of `REPORT`, by name, or raise a `ConfigError` if there are none."""
    folder = (client.get_job_info(job).metadata or {}).get("folder")
    if folder is None:
        raise ConfigError(f"job {job} was not sent by distsgd submit, so that its folder is not known")
    text: list[str] = []
    follow(client, client.submit_job(entrypoint=delivery(folder)), text.append)
    found = received("".join(text))
    if not found:
        raise ConfigError(f"job {job} has written no report; distsgd submit --logs {job} says how far it came")
    return found


def delivery(folder: str) -> str:
    """Return the command line that prints the report in `folder`, which is quoted for a shell.

    It needs no Python and none of our packages: the log of a job is text, hence base64.
    """
    return f"tar -C {folder} -cz {' '.join(REPORT)} | base64 -w 0"


def received(text: str) -> dict[str, bytes]:
    """Return the files in the log of a `delivery`, by name; none if it has failed."""
    for line in reversed(text.splitlines()):
        with contextlib.suppress(ValueError, OSError, EOFError, tarfile.TarError, KeyError):
            archive = io.BytesIO(base64.b64decode(line, validate=True))
            with tarfile.open(fileobj=archive, mode="r:gz") as files:
                return {name: _content(files, name) for name in REPORT}
    return {}


def _content(files: tarfile.TarFile, name: str) -> bytes:
    file = files.extractfile(name)
    return b"" if file is None else file.read()
