"""A case, what is known about a data set and its cases, and the error that a user can put right."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypedDict

SHOWN = 10  # names that a sentence lists before it is cut


class ConversionError(Exception):
    """Something the user can put right; its text is one sentence that names the file or value and the remedy."""


@dataclass(frozen=True)
class Case:
    """The source files of one case.

    Attributes:
        images: One file per channel, in channel order, or the one file that holds all channels.
        mask: What it is labelled with: a file, or several that are painted one over the other; None without labels.
        group: Patient, sequence or experiment; never on both sides of a split. By default the case itself.
        stratum: Kind of case that every fold gets its share of.
        about: Facts for the report that a later ``--restore`` needs, such as the name under which to submit.
    """

    name: str
    images: tuple[Path, ...]
    mask: Path | tuple[Path, ...] | None = None
    group: str | None = None
    stratum: str = ""
    about: Mapping[str, str] = field(default_factory=dict)

    @property
    def masks(self) -> tuple[Path, ...]:
        """All files of the mask."""
        return self.mask if isinstance(self.mask, tuple) else () if self.mask is None else (self.mask,)


@dataclass(frozen=True)
class Facts:
    """What the check of a case found.

    Attributes:
        histogram: Voxels per source label, none without a mask.
        counts: Other things worth counting.
        remarks: What a user should know, said once for all cases that it holds for, to a file that it holds for.
        readers: Those of nnU-Net's readers that can read the case, the one to prefer first; none where only one is
            made for it.
    """

    histogram: Mapping[int, int] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    remarks: Mapping[str, Path] = field(default_factory=dict)
    readers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Skipped:
    """A file or folder of the source that is not converted, and why."""

    path: Path
    reason: str


@dataclass(frozen=True)
class Description:
    """What a data set is: how its source masks are read and what its dataset.json says.

    Attributes:
        name: Second half of the folder name, ``Dataset501_<name>``.
        channels: Channel names in channel order; nnU-Net chooses the normalisation by them.
        labels: Name to label value, or to a list of values where regions are trained.
        label_map: Value in a source mask to value in ours; every other source value is illegal.
        regions_class_order: Label painted for each region, in the order of ``labels``; only with regions.
        foreign_values: Illegal source value to the likely reason, for the error message.
        notice: What the data owner asks of users, printed after each conversion beside reference and licence.
    """

    name: str
    channels: tuple[str, ...]
    labels: Mapping[str, int | list[int]]
    label_map: Mapping[int, int]
    licence: str
    reference: str
    text: str
    release: str
    regions_class_order: tuple[int, ...] | None = None
    foreign_values: Mapping[int, str] = field(default_factory=dict)
    notice: str = ""


class Work(TypedDict, total=False):
    """How a command works: with how many worker processes, and whether it only checks."""

    jobs: int
    dry_run: bool


class Options(Work, total=False):
    """The same, and whether a target that is not empty is replaced."""

    overwrite: bool


class Checker(Protocol):
    """Reads cases; sent to the worker processes, so it must pickle."""

    def check(self, case: Case) -> Facts:
        """Read every file of a case; raise a ConversionError that names case and file if anything is wrong."""


class Layout(Checker, Protocol):
    """How the cases of a data set are read and written."""

    @property
    def file_ending(self) -> str:
        """Of the files that are written."""

    @property
    def reader_writer(self) -> str:
        """Which of nnU-Net's readers is meant to read them."""

    @property
    def unit(self) -> str:
        """What a mask is counted in."""

    def write_images(self, case: Case, folder: Path) -> None:
        """Write the images of a checked case into ``folder`` under nnU-Net's names."""

    def write_labels(self, case: Case, dataset: Path, part: str) -> None:
        """Write the labels of a checked case into ``labels<part>`` of ``dataset``, ``part`` being Tr or Ts."""

    def label_folders(self, part: str) -> tuple[str, ...]:
        """Folders that :meth:`write_labels` writes into."""


class Restorer(Checker, Protocol):
    """How predictions are read and turned into what the data owner expects."""

    def write(self, case: Case, target: Path) -> None:
        """Write a checked prediction to ``target``."""
