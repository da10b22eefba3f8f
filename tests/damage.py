"""Damage to files: flips of bits and bytes, truncations, insertions; and what a reader may say."""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from distsgd.errors import ConfigError

KINDS = ("bit", "byte", "cut", "insert", "remove")


def damaged(content: bytes, n: int, seed: int) -> Iterator[bytes]:
    """Yield `n` copies of `content` with one damage each."""
    random = np.random.default_rng(seed)
    for _ in range(n):
        yield _damaged(bytearray(content), random)


def _damaged(content: bytearray, random: np.random.Generator) -> bytes:
    kind, place = random.choice(KINDS, p=[0.4, 0.3, 0.1, 0.1, 0.1]), random.integers(len(content))
    if kind == "bit":
        content[place] ^= 1 << random.integers(8)
    elif kind == "byte":
        content[place] = random.choice([0, 0xFF, random.integers(256)])
    elif kind == "cut":
        del content[place:]
    elif kind == "insert":
        content[place:place] = random.bytes(random.integers(1, 9))
    else:
        del content[place : place + random.integers(1, 9)]
    return bytes(content)


def outcomes(
    path: Path, read: Callable[[], object], n: int, seed: int = 0, *, may_differ: bool = False
) -> Counter[str]:
    """Read a file `n` times, damaged differently each time, and count what came of it.

    What is read must be what was written, or a `ConfigError`; `may_differ` allows other content
    too, where a file has no digest. Anything else is raised.
    """
    content, counts = path.read_bytes(), Counter[str]()
    expected = read()
    for number, wrong in enumerate(damaged(content, n, seed)):
        path.write_bytes(wrong)
        try:
            found = read()
        except ConfigError:
            counts["sentence"] += 1
        except BaseException as error:
            error.add_note(f"damage {number} of seed {seed} to {path.name}: {wrong[:2000]!r}")
            raise
        else:
            same = found == expected
            assert same or may_differ, f"damage {number} of seed {seed} to {path.name}"
            counts["same" if same else "other"] += 1
    path.write_bytes(content)
    print(path.name, dict(counts))  # pytest -rP shows it
    return counts
