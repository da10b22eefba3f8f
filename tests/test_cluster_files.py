import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import typer
import yaml

from distsgd.commands.cli import app
from distsgd.live.ray.session import package

FOLDER = Path(__file__).parent.parent / "cluster"
DOCKERFILE = (FOLDER / "Dockerfile").read_text()
README = (FOLDER / "README.md").read_text()
PINNED = re.search(r"^ARG RAY_VERSION=(\S+)$", DOCKERFILE, flags=re.MULTILINE)[1]
LAUNCHERS = ("hosts.yaml", "aws.yaml")


def launcher(name: str) -> dict[str, Any]:
    """Return the content of a launcher's file."""
    return yaml.safe_load((FOLDER / name).read_text())


def rayjob() -> dict[str, Any]:
    """Return the manifest of the job."""
    documents = yaml.safe_load_all((FOLDER / "rayjob.yaml").read_text())
    (found,) = (one for one in documents if one["kind"] == "RayJob")
    return found


def install_steps() -> list[str]:
    """Return what the image installs, with its version of Ray."""
    steps = re.findall(r"^RUN (.+)$", DOCKERFILE, flags=re.MULTILINE)
    return [step.replace("${RAY_VERSION}", PINNED) for step in steps]


def command_lines() -> Iterator[str]:
    """Yield every command line of ours in the folder."""
    ours = re.compile(r"distsgd (?:compare|submit) [^`#]+(?=$| #)")
    for path in FOLDER.iterdir():
        yield from (found[0] for found in map(ours.search, path.read_text().splitlines()) if found)


@pytest.mark.parametrize("name", LAUNCHERS)
def test_a_launcher_s_file_is_one_of_ray_s(name: str) -> None:
    """The file has the keys and types that Ray's own schema knows."""
    schema = Path(package("ray").__file__).parent / "autoscaler" / "ray-schema.json"
    jsonschema.validate(launcher(name), json.loads(schema.read_text()))


@pytest.mark.parametrize("name", LAUNCHERS)
def test_nodes_join_their_head(name: str) -> None:
    """Workers go to the port on which the head listens, and all want the token that travels."""
    content = launcher(name)
    (head,) = (line for line in content["head_start_ray_commands"] if "ray start" in line)
    (worker,) = (line for line in content["worker_start_ray_commands"] if "ray start" in line)
    port = re.search(r"--port=(\d+)", head)[1]
    assert f"--address=$RAY_HEAD_IP:{port}" in worker
    assert all(line.startswith("RAY_AUTH_MODE=token ") for line in (head, worker))
    assert any(target.endswith(".ray/auth_token") for target in content["file_mounts"])
    assert "--dashboard-host=127.0.0.1" in head


def test_the_hosts_are_all_used() -> None:
    """As many workers may start as hosts are listed."""
    content = launcher("hosts.yaml")
    assert content["max_workers"] == len(content["provider"]["worker_ips"])


def test_one_version_of_ray_everywhere() -> None:
    """Every version of Ray in the folder is the pinned one."""
    assert rayjob()["spec"]["rayClusterSpec"]["rayVersion"] == PINNED
    pattern = r"(?:ray\[default\]==|rayproject/ray:|distsgd:)(\d[\d.]*\d)"
    for path in FOLDER.iterdir():
        assert set(re.findall(pattern, path.read_text())) <= {PINNED}, path.name


def test_every_node_is_installed_alike() -> None:
    """What the image installs is what README says, and what the launchers do on every node."""
    said = [line.removeprefix("$ ") for line in README.splitlines() if line.startswith("$ pip ")]
    assert install_steps() == said
    for name in LAUNCHERS:
        steps = launcher(name)["setup_commands"]
        assert [step.partition(" && ")[2] for step in steps] == said


def test_the_image_has_what_an_installation_needs() -> None:
    """The files that the image copies are there, and those that the package is built from too."""
    copied = re.findall(r"^COPY --chown=\S+ (.+) \S+$", DOCKERFILE, flags=re.MULTILINE)
    names = {name for line in copied for name in line.split()}
    assert all((FOLDER.parent / name).exists() for name in names)
    assert names >= {"pyproject.toml", "README.md", "LICENSE", "distsgd"}


@pytest.mark.parametrize("line", sorted(set(command_lines())))
def test_every_command_line_is_ours(line: str) -> None:
    """Each command line in the folder is understood by the command that it names."""
    words = shlex.split(line)
    command = typer.main.get_command(app).commands[words[1]]
    command.make_context(words[1], words[2:])


def test_the_job_reads_and_writes_what_is_mounted() -> None:
    """The experiment and the results of the job lie on volumes of the head, the only writer."""
    words = shlex.split(rayjob()["spec"]["entrypoint"])
    spec = rayjob()["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    (container,) = spec["containers"]
    mounted = {one["mountPath"]: one["name"] for one in container["volumeMounts"]}
    assert {str(Path(words[4]).parent), str(Path(words[-1]).parent)} == mounted.keys()
    assert {one["name"] for one in spec["volumes"]} == set(mounted.values())


def test_the_readme_has_every_file() -> None:
    """README says of every file what it is for."""
    for path in FOLDER.iterdir():
        assert path.name == "README.md" or f"`{path.name}`" in README, path.name
