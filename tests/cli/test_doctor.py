"""``logvmamba doctor`` says what works, by running it, and what to do about the rest."""

import json
import os
import subprocess
from importlib.metadata import version

import pytest
import torch
from commands import NnunetFolders, run_command

from nnunet_logvmamba import __version__, ops
from nnunet_logvmamba.cli import doctor, main


@pytest.fixture(scope="module")
def healthy(tmp_path_factory) -> subprocess.CompletedProcess:
    """The doctor's table where nnU-Net's folders are set."""
    folders = NnunetFolders.below(tmp_path_factory.mktemp("nnunet"))
    return run_command(["logvmamba", "doctor"], check=False, **folders.environment)


def test_a_complete_installation_is_ready_to_train(healthy):
    assert healthy.returncode == 0, healthy.stdout + healthy.stderr
    assert healthy.stdout.splitlines()[-1] == "doctor: ready to train"
    assert "FAILS" not in healthy.stdout


def test_versions_trainer_and_caches_are_shown(healthy):
    rows = [line.split(maxsplit=2) for line in healthy.stdout.splitlines() if line.startswith("  ")]
    shown = {name: text for _, name, text in rows if name != "-tr"}
    assert shown["nnunet-logvmamba"] == __version__
    assert shown["torch"] == version("torch")
    assert shown["mamba-ssm"]
    assert "torch.compile" in shown
    assert "found: nnunet_logvmamba.plugin.trainers.nnUNetTrainerLoGVMamba" in healthy.stdout


def test_every_backend_that_is_available_was_run_and_is_right(healthy):
    working = [line.split()[1] for line in healthy.stdout.splitlines() if "largest relative error" in line]
    assert set(working) >= set(ops.available_backends("cpu"))


@pytest.fixture(scope="module")
def unwell(tmp_path_factory) -> tuple[int, dict]:
    """Exit code and findings where no folder is set and torchvision is the one of another torch."""
    folder = tmp_path_factory.mktemp("packages")
    (folder / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    done = run_command(["logvmamba", "doctor", "--json"], check=False, PYTHONPATH=folder)
    return done.returncode, json.loads(done.stdout)


def test_what_would_make_training_fail_makes_the_doctor_fail(unwell):
    code, report = unwell
    failing = [finding["name"] for finding in report["findings"] if finding["state"] == doctor.FAILS]
    assert (code, report["training_would_fail"]) == (1, True)
    assert failing == ["torchvision", "-tr nnUNetTrainerLoGVMamba", "nnUNet_preprocessed", "nnUNet_results"]


def test_the_torchvision_trap_is_named_with_its_remedy(unwell):
    texts = [finding["text"] for finding in unwell[1]["findings"] if finding["name"] == "torchvision"]
    assert "operator torchvision::nms does not exist" in texts[-1]
    assert "pip install" in texts[-1] or "pytorch.org" in texts[-1]


def test_an_unset_folder_comes_with_the_line_that_sets_it(unwell):
    texts = {finding["name"]: finding["text"] for finding in unwell[1]["findings"]}
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        assert f"export {name}=" in texts[name]


def test_a_backend_with_wrong_values_is_caught(monkeypatch):
    from nnunet_logvmamba.ops import backends
    from nnunet_logvmamba.ops.scan import chunked

    assert backends.what_fails("chunked", "cpu") is None
    right = chunked.forward

    def slightly_wrong(*args):
        y, state = right(*args)
        return y * 1.001, state

    monkeypatch.setattr(chunked, "forward", slightly_wrong)
    rows = list(doctor._scan_backends(torch.device("cpu")))
    assert next(row for row in rows if row.name == "chunked").text.startswith("It gives wrong values")


def test_a_user_without_a_name_does_not_end_the_examination(monkeypatch):
    def nameless():
        raise KeyError("getpwuid(): uid not found: 1234")

    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setattr(doctor.getpass, "getuser", nameless)
    assert "set TORCHINDUCTOR_CACHE_DIR" in next(doctor._caches()).text


def test_a_thread_limit_under_which_stock_training_would_hang_is_found(monkeypatch):
    cores = os.cpu_count()
    monkeypatch.delenv("OMP_THREAD_LIMIT", raising=False)
    assert not list(doctor._thread_limit())
    monkeypatch.setenv("OMP_THREAD_LIMIT", str(cores))
    assert not list(doctor._thread_limit())
    monkeypatch.setattr(os, "cpu_count", lambda: cores + 1)
    (finding,) = doctor._thread_limit()
    assert finding.state == doctor.FAILS
    assert "unset OMP_THREAD_LIMIT" in finding.text


def test_a_compiler_that_nnunet_needs_and_that_is_not_there_makes_the_doctor_fail():
    from torch._inductor import config

    device = torch.device("cpu")
    with config.patch({"cpp.cxx": ("no-such-compiler",)}):
        finding = doctor._compiler(device)
    assert finding.state == doctor.FAILS
    assert "no-such-compiler" in finding.text or "C++ compiler" in finding.text
    assert "export nnUNet_compile=f" in finding.text
    torch.compiler.reset()
    assert doctor._compiler(device).state == doctor.OK


def test_a_folder_for_kernels_that_nothing_can_be_added_to_is_noted(monkeypatch, tmp_path):
    from nnunet_logvmamba.ops import backends

    states = []
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file" / "cache", tmp_path / "cache"):
        monkeypatch.setattr(backends, "_TRITON_CACHE_DIR", str(folder))
        finding = list(doctor._caches())[-1]
        states.append((finding.name, finding.state, "may not write" in finding.text))
    assert states == [("triton", doctor.NOTE, True), ("triton", doctor.OK, False)]


@pytest.mark.gpu
def test_backends_are_run_on_the_gpu_too(healthy):
    assert "selective scan on cuda:0" in healthy.stdout


def test_help_and_version_do_not_wait_for_torch():
    code = "import sys; from nnunet_logvmamba.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    shown = run_command(["python", "-c", code + "print('torch' in sys.modules)"]).stdout
    assert all(command in shown for command in ("doctor", "plans", "summary"))
    assert shown.splitlines()[-1] == "False"
    assert run_command(["logvmamba", "--version"]).stdout == f"logvmamba {__version__}\n"


def test_what_the_user_can_put_right_is_one_sentence_without_a_traceback():
    done = run_command(["logvmamba", "plans", "-d", "501", "-c", "3d_fullres", "--name", "mine"], check=False)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("logvmamba: ")


def test_an_unknown_command_names_the_known_ones(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["diagnose"])
    assert exit_.value.code == 2
    assert "doctor" in capsys.readouterr().err


def test_a_user_without_a_home_does_not_end_the_examination(monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    for name in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pathlib.Path.home", homeless)
    texts = {finding.name: finding.text for finding in doctor._caches()}
    assert "set NUMBA_CACHE_DIR" in texts["numba"]


def test_a_results_folder_that_is_not_there_is_one_that_training_makes(tmp_path, monkeypatch):
    def found(path: object) -> doctor.Finding:
        monkeypatch.setenv("nnUNet_results", str(path))
        return next(one for one in doctor._paths() if one.name == "nnUNet_results")

    one = found(tmp_path / "to come" / "results")
    assert one.state == doctor.NOTE
    assert one.text.endswith(f"training makes it and writes to it: mkdir -p '{tmp_path / 'to come' / 'results'}'")
    (tmp_path / "file").touch()
    assert found(tmp_path / "file").state == doctor.FAILS
    assert found(tmp_path / "file" / "results").state == doctor.FAILS
    assert "you cannot make it" in found(tmp_path / "file" / "results").text
    assert found(tmp_path).state == doctor.OK
    assert "not set" in found("").text
    monkeypatch.setenv("HOME", str(tmp_path))
    assert found("~/results").state == doctor.FAILS
    assert "nnUNet_results is ~/results, in which nnU-Net does not replace ~ by your home" in found("~/results").text


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_results_folder_that_cannot_be_written_to_fails(tmp_path, monkeypatch):
    tmp_path.chmod(0o500)
    for path in (tmp_path, tmp_path / "results"):
        monkeypatch.setenv("nnUNet_results", str(path))
        assert next(one for one in doctor._paths() if one.name == "nnUNet_results").state == doctor.FAILS
