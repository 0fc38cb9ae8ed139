"""One planned data set and one trained model, made once with stock commands, for the tests that use or copy them."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import NnunetFolders
from small_project import Fold, Project

from dataset_conversion import Dataset501_BraTS2020, phantoms

CASE_SHAPE = (24, 24, 20)


@pytest.fixture(scope="session")
def planned(tmp_path_factory) -> Project:
    """Six tumour phantoms with regions, planned and preprocessed, with short and narrow configurations; to be read."""
    root = tmp_path_factory.mktemp("planned")
    folders = NnunetFolders.below(root / "nnunet")
    source = phantoms.write_brats2020(root / "source", 6, shape=CASE_SHAPE)
    project = Project(folders, Dataset501_BraTS2020.convert(source, folders.raw, folders.preprocessed).name)
    project.plan("2d", "3d_fullres")
    project.narrow("2d", "3d_fullres")
    project.configure("3d_fullres_narrow", "3d_tiny")
    project.configure("2d_narrow", "2d_tiny")
    return project


@pytest.fixture(scope="session")
def _trained(planned, tmp_path_factory) -> Project:
    return planned.copied_to(tmp_path_factory.mktemp("trained") / "nnunet")


@pytest.fixture(scope="session")
def trained(_trained) -> Project:
    """A project with a trained model: fold 0 of ``3d_tiny``, probabilities of the validation kept; to be read."""
    _trained.train("3d_tiny", 0, "--npz")
    return _trained


@pytest.fixture(scope="session")
def trained_2d(_trained) -> Fold:
    """Fold 0 of ``2d_tiny`` in the same project; to be read."""
    return _trained.train("2d_tiny", 0, "--npz")


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
