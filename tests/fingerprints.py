"""nnU-Net's fingerprint of a small data set, from fewer voxels than it draws by default."""

from __future__ import annotations

from collections.abc import Mapping

from commands import environment_with


def write_fingerprint(number: int | str, folders: Mapping[str, str]) -> None:
    """Let nnU-Net's extractor write the fingerprint of a data set; its commands keep one that exists."""
    from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor

    with environment_with(folders):
        extractor = DatasetFingerprintExtractor(int(number), num_processes=1)
        extractor.show_progress_bar = False
        # A hundred million voxels, however small the data set, take longer than planning and preprocessing do.
        extractor.num_foreground_voxels_for_intensitystats = 1e6
        extractor.run()
