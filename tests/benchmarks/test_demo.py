"""The demo, whole, as ``make demo`` runs it."""

import os
import re
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
LAST_LINE = r"demo: WT Dice (0\.\d{3}), TC Dice (0\.\d{3}), ET Dice (0\.\d{3}) \(\d+ s\)"


@pytest.mark.slow
def test_demo_learns_the_phantom_and_leaves_the_users_folders_alone(tmp_path, run_command, nnunet_folders):
    folder = tmp_path / "demo"
    users = nnunet_folders.environment
    done = run_command(["python", CHECKOUT / "benchmarks" / "demo.py", "--folder", folder], **users)
    scores = re.fullmatch(LAST_LINE, done.stdout.splitlines()[-1])
    assert scores, done.stdout[-500:]
    assert float(scores[1]) >= 0.85
    for command in ("nnUNetv2_plan_and_preprocess", "nnUNetv2_train 501 3d_demo 0", "nnUNetv2_predict"):
        assert f"\n$ {command}" in done.stdout
    assert (folder / "demo.png").stat().st_size > 50_000
    for user_folder in users.values():
        assert os.listdir(user_folder) == []


def test_demo_does_not_delete_a_folder_it_did_not_make(tmp_path, run_command):
    precious = tmp_path / "thesis.tex"
    precious.write_text("chapter 1")
    done = run_command(["python", CHECKOUT / "benchmarks" / "demo.py", "--folder", tmp_path], check=False)
    assert done.returncode != 0
    assert done.stderr.startswith("demo: ")
    assert "Traceback" not in done.stderr
    assert precious.read_text() == "chapter 1"
