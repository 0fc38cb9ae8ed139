"""Tolerance of the surface Dice per structure, each with its source."""

from __future__ import annotations

import re
from dataclasses import dataclass

ABDOMEN = "U-Mamba and the FLARE 2022 challenge, abdominal organs"
ENDOSCOPY = "U-Mamba, EndoVis 2017 instruments"
CELLS = "U-Mamba, NeurIPS 2022 cells"


@dataclass(frozen=True)
class Tolerance:
    """How far a surface may be off and still count as met, in ``mm`` or ``px``, and who says so."""

    value: float
    unit: str
    source: str


TOLERANCES = {
    **{
        name: Tolerance(value, "mm", ABDOMEN)
        for value, names in {
            5: ("liver", "pancreas", "stomach"),
            3: ("kidney", "spleen", "esophagus", "oesophagus"),
            2: ("aorta", "inferior vena cava", "ivc", "postcava", "adrenal gland", "adrenal", "gallbladder"),
            7: ("duodenum",),
        }.items()
        for name in names
    },
    **{
        name: Tolerance(2, "px", ENDOSCOPY)
        for name in (
            "bipolar forceps",
            "prograsp forceps",
            "large needle driver",
            "vessel sealer",
            "grasping retractor",
            "monopolar curved scissors",
            "ultrasound probe",
        )
    },
    "instances": Tolerance(2, "px", CELLS),
}
"""By name of the structure: lower case, single words apart, without side and plural."""


def tolerance_of(structure: str, unit: str) -> Tolerance:
    """Give the published tolerance of a structure in that unit, or 2 of the unit, named as our default.

    Case, underscores, left and right, and a plural s do not matter: ``Right_Kidney`` is a kidney.
    """
    words = [word for word in re.split(r"[\W_]+", structure.lower()) if word not in {"", "left", "right"}]
    name = " ".join(words)
    for candidate in (name, name.removesuffix("s")):
        found = TOLERANCES.get(candidate)
        if found is not None and found.unit == unit:
            return found
    return Tolerance(2, unit, f"default, 2 {unit} where no tolerance is published for the structure")
