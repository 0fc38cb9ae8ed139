"""One planned data set and one trained model, made once with stock commands, for the tests that use or copy them."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import NnunetFolders
from made_once import made_once
from small_project import Project

from dataset_conversion import Dataset501_BraTS2020, phantoms

CASE_SHAPE = (24, 24, 20)
DATASET = "Dataset501_BraTS2020"


@pytest.fixture(scope="session")
def planned() -> Project:
    """Six tumour phantoms with regions, planned and preprocessed, with short and narrow configurations; to be read."""

    def make(root: Path) -> None:
        folders = NnunetFolders.below(root)
        source = phantoms.write_brats2020(root / "source", 6, shape=CASE_SHAPE)
        Dataset501_BraTS2020.convert(source, folders.raw, folders.preprocessed)
        project = Project(folders, DATASET)
        project.plan("2d", "3d_fullres")
        project.narrow("2d", "3d_fullres")
        project.configure("3d_fullres_narrow", "3d_tiny")
        project.configure("2d_narrow", "2d_tiny")

    return Project(NnunetFolders.below(made_once("planned", make)), DATASET)


@pytest.fixture(scope="session")
def trained(planned) -> Project:
    """A project with a trained model: fold 0 of ``3d_tiny``, probabilities of the validation kept; to be read."""
    root = made_once("trained", lambda root: planned.copied_to(root).train("3d_tiny", 0, "--npz"))
    return Project(NnunetFolders.below(root), DATASET)


@pytest.fixture(scope="session")
def trained_2d(trained, tmp_path_factory) -> Project:
    """A copy of ``trained`` with fold 0 of ``2d_tiny`` as well; to be read."""
    project = trained.copied_to(tmp_path_factory.mktemp("trained_2d"))
    project.train("2d_tiny", 0, "--npz")
    return project


@pytest.fixture
def own_planned(planned, tmp_path) -> Project:
    """A copy of ``planned`` that the test may change."""
    return planned.copied_to(tmp_path / "nnunet")


@pytest.fixture
def own_trained(trained, tmp_path) -> Project:
    """A copy of ``trained`` that the test may change."""
    return trained.copied_to(tmp_path / "nnunet")


@pytest.fixture(scope="session")
def new_images(tmp_path_factory) -> Path:
    """Two phantoms that no model was trained on, named as ``nnUNetv2_predict`` wants them; segmentations beside it."""
    root = tmp_path_factory.mktemp("new")
    source = phantoms.write_brats2020(root / "source", 2, shape=CASE_SHAPE, first_number=101)
    return Dataset501_BraTS2020.convert(source, root) / "imagesTr"


@pytest.fixture(scope="session")
def predicted(trained, new_images, tmp_path_factory) -> Path:
    """What the trained model says about them; to be read."""
    target = tmp_path_factory.mktemp("predicted")
    trained.predict(new_images, target, "3d_tiny")
    return target
