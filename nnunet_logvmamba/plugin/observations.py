"""What was seen in the cases of a data set, and one sentence for all that are alike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

NAMED = 5
"""So many cases of a kind are called by their names."""


@dataclass(frozen=True)
class Seen:
    """One thing in one file.

    Attributes:
        kind: What it is, in one or two words; alike things have the same.
        said: A sentence without its full stop: the file, what is in it, what comes of it, the remedy.
        fatal: Whether nnU-Net cannot train or predict with it, or would do so with numbers that mean nothing.
    """

    kind: str
    said: str
    fatal: bool = False


@dataclass(frozen=True)
class Group:
    """All that is alike.

    Attributes:
        kind: As in :class:`Seen`.
        fatal: As in :class:`Seen`.
        cases: Everything that was said, by case.
    """

    kind: str
    fatal: bool
    cases: Mapping[str, tuple[str, ...]]

    @property
    def said(self) -> str:
        """The first sentence, behind the number of cases where there are more, and their names."""
        first = next(iter(self.cases.values()))[0]
        if len(self.cases) == 1:
            return first
        return f"{len(self.cases)} cases: {first}; likewise {names_of(list(self.cases)[1:])}"


def names_of(names: Sequence[str]) -> str:
    """Give the first names and the number of further ones."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def grouped(seen: Iterable[tuple[str, Seen]]) -> list[Group]:
    """Put together what is alike, fatal things first, in the order in which their kinds were met.

    Args:
        seen: Names of cases with what was seen in them.
    """
    kinds: dict[tuple[bool, str], dict[str, tuple[str, ...]]] = {}
    for case, one in seen:
        cases = kinds.setdefault((one.fatal, one.kind), {})
        cases[case] = (*cases.get(case, ()), one.said)
    groups = [Group(kind, fatal, cases) for (fatal, kind), cases in kinds.items()]
    return sorted(groups, key=lambda group: not group.fatal)


def by(sizes: Iterable[float]) -> str:
    """Give sizes along axes in words."""
    return " x ".join(f"{size:.4g}" for size in sizes)


@dataclass(frozen=True)
class Examination:
    """What was seen in a data set.

    Attributes:
        about: What was read and how, in a few words.
        cases: Their number.
        seen: Everything, with the names of the cases.
        facts: What is as it should be, by kind.
    """

    about: str
    cases: int
    seen: tuple[tuple[str, Seen], ...]
    facts: Mapping[str, str]

    @property
    def faults(self) -> list[str]:
        """The first sentence about each case that nnU-Net cannot train with."""
        return list({case: one.said for case, one in reversed(self.seen) if one.fatal}.values())[::-1]
