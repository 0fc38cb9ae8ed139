"""No more threads than a job may use, though nnU-Net's commands ask for one per core, and memory that is kept."""

import json
import os
import platform
import shutil
import sys

import pytest
import small_dataset
import torch
from small_project import Project

from nnunet_logvmamba import cores

PREDICT = """
import torch
from nnunetv2.inference.predict_from_raw_data import predict_entry_point

predict_entry_point()
print("predicted in threads:", torch.get_num_threads())
"""


@pytest.mark.parametrize(
    ("variables", "threads"),
    [
        ({}, 16),
        ({"OMP_NUM_THREADS": "4"}, 4),
        ({"OMP_NUM_THREADS": " 4,2"}, 4),
        ({"OMP_NUM_THREADS": "64"}, 16),
        ({"OMP_NUM_THREADS": "4", "OMP_THREAD_LIMIT": "2"}, 2),
        ({"OMP_NUM_THREADS": "0"}, 16),
        ({"OMP_NUM_THREADS": "", "OMP_THREAD_LIMIT": "many"}, 16),
    ],
)
def test_threads_follow_the_cores_and_openmps_variables(variables, threads, monkeypatch):
    monkeypatch.setattr(cores, "usable_cores", lambda: 16)
    for name in cores.THREAD_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cores.usable_threads() == threads


def test_threads_are_taken_away_and_never_added(monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.setattr(cores, "usable_threads", lambda: 2)
    try:
        for asked, given in ((1, 1), (3, 2)):
            torch.set_num_threads(asked)
            cores.keep_to_usable_threads()
            assert torch.get_num_threads() == given
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux, where a process can be kept to some cores")
def test_a_process_that_is_kept_to_one_core_counts_one(run_command):
    first = min(os.sched_getaffinity(0))
    code = f"import os; os.sched_setaffinity(0, {{{first}}}); from nnunet_logvmamba import cores; "
    assert run_command(["python", "-c", code + "print(cores.usable_cores())"]).stdout == "1\n"


STEPS = """
import ctypes
import resource
from nnunet_logvmamba import cores

{keep}
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
for _ in range(6):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    maps = [libc.malloc(20 * 2**20) for _ in range(4)]
    for one in maps:
        ctypes.memset(one, 1, 20 * 2**20)
    for one in reversed(maps):
        libc.free(one)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc, whose memory comes and goes")
def test_memory_that_a_step_freed_is_there_for_the_next_one(run_command):
    keeps = ("", "cores.keep_freed_memory()")
    gone, kept = (int(run_command(["python", "-c", STEPS.format(keep=keep)]).stdout) for keep in keeps)
    pages = 4 * 20 * 2**20 // os.sysconf("SC_PAGE_SIZE")
    assert gone > 0.9 * pages
    assert kept < 0.1 * pages


WORKER = """
import ctypes
import os
from nnunet_logvmamba import cores

for _ in range(2):
    cores.keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
{fork}
maps = [libc.malloc(20 * 2**20) for _ in range(4)]
for one in maps:
    ctypes.memset(one, 1, 20 * 2**20)
for one in reversed(maps):
    libc.free(one)
pages = int(open("/proc/self/statm").read().split()[1])
print(pages * os.sysconf("SC_PAGE_SIZE") // 2**20, flush=True)
os._exit(0)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc, which would keep it")
def test_workers_give_back_what_they_free_and_so_does_a_process_whose_user_says_how(run_command):
    def resident(fork: str = "", **environment: str) -> int:
        return int(run_command(["python", "-c", WORKER.format(fork=fork)], **environment).stdout)

    assert resident() > 80
    assert resident(MALLOC_ARENA_MAX=1) > 80, "which says nothing of that"
    assert resident("if os.fork(): os.wait(); os._exit(0)") < 60
    assert resident(GLIBC_TUNABLES="glibc.malloc.mmap_threshold=131072:glibc.malloc.trim_threshold=131072") < 60


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc, whose memory comes and goes")
def test_workers_take_memory_no_more_often_than_without_us(run_command):
    code = """
import os, resource
import numpy as np
{keep}
if os.fork():
    os.wait()
    os._exit(0)
for _ in range(20):
    one = np.ones(2**20)
    two = one + one
    del one, two
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    one = np.ones(2**20)
    two = one + one
    del one, two
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, flush=True)
os._exit(0)
"""
    keeps = ("", "from nnunet_logvmamba import cores; cores.keep_freed_memory()")
    theirs, ours = (int(run_command(["python", "-c", code.format(keep=keep)]).stdout) for keep in keeps)
    assert ours <= theirs + 100


@pytest.mark.skipif(os.cpu_count() == 1, reason="needs a second core, which nnU-Net would use")
def test_training_and_prediction_take_the_threads_they_are_given(nnunet_folders, tmp_path, run_command):
    """Under this limit oneDNN's backward would wait for a second thread, without an end."""
    small_dataset.write_raw(nnunet_folders.raw)
    small_dataset.copy_into(nnunet_folders)
    project = Project(nnunet_folders, small_dataset.NAME)
    project.narrow("3d_fullres")
    project.configure("3d_fullres_narrow", "short", "--keep-network", num_epochs=1, num_iterations_per_epoch=1)
    fold = project.train("short", OMP_THREAD_LIMIT="1", timeout=600)
    assert json.loads((fold.path / "logvmamba.json").read_text())["device"]["threads"] == 1
    (log,) = fold.path.glob("training_log*.txt")
    limits = ["OMP_NUM_THREADS=2", "OMP_THREAD_LIMIT=1"]
    words = ", ".join([f"{cores.usable_cores()} of {os.cpu_count()} cores may be used", *limits])
    assert f"Threads: 1 ({words})." in log.read_text()

    images = tmp_path / "images"
    images.mkdir()
    shutil.copy(nnunet_folders.raw / small_dataset.NAME / "imagesTr" / "ball_0_0000.nii.gz", images)
    options = ["-i", images, "-o", tmp_path / "out", "-d", project.number, "-c", "short", "-f", 0, "-device", "cpu"]
    options += ["-tr", "nnUNetTrainerLoGVMamba", "-npp", 1, "-nps", 1]
    variables = {**nnunet_folders.environment, "OMP_THREAD_LIMIT": "1"}
    done = run_command(["python", "-c", PREDICT, *options], timeout=600, **variables)
    assert "predicted in threads: 1\n" in done.stdout
    assert (tmp_path / "out" / "ball_0.nii.gz").is_file()
