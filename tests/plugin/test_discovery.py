"""nnU-Net finds our trainers in any shell, leaves the user's alone, and Python's start stays as light as it was."""

import importlib.metadata
import json
import os
import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from commands import NnunetFolders
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from nnunet_logvmamba.networks.catalogue import NETWORKS
from nnunet_logvmamba.plugin import startup

HOOK = Path(startup.__file__).with_name("nnunet_logvmamba.pth")

FIND = """
import json, pickle, sys
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as find
found = []
for name in sys.argv[1:]:
    first, second = find(name), find(name)
    assert first is second, f"two look-ups of {name} gave two classes"
    assert pickle.loads(pickle.dumps(first)) is first
    found.append([first.__module__, first.__qualname__])
from nnunet_logvmamba.networks.catalogue import NETWORKS
heavy = {"monai", *(f"nnunet_logvmamba.networks.{network.home}" for network in NETWORKS)} & sys.modules.keys()
assert not heavy, f"looking for a trainer loaded {heavy}"
print(json.dumps(found))
"""

# As in a process that has not loaded the trainers yet.
UNPICKLE = """
for name in [name for name in sys.modules if name.startswith("nnunet_logvmamba.plugin.trainers")]:
    del sys.modules[name]
with open({file!r}, "rb") as stored:
    print(pickle.load(stored).__qualname__)
"""

USERS_TRAINER = """
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

class nnUNetTrainerOfTheUser(nnUNetTrainer):
    pass
"""


@pytest.fixture
def users_folder(tmp_path) -> Path:
    folder = tmp_path / "my trainers"
    folder.mkdir()
    (folder / "my_trainers.py").write_text(USERS_TRAINER)
    return folder


def test_python_starts_with_our_folder_set_and_without_torch(run_command):
    code = "import os, sys; print(os.environ['nnUNet_extTrainer']); print({'torch', 'numpy'} & sys.modules.keys())"
    folder, loaded = run_command(["python", "-c", code]).stdout.splitlines()
    assert folder == startup.EXT_FOLDER
    assert loaded == "set()"


def test_the_hook_loads_nothing_at_start_but_itself(run_command):
    code = "import sys; print(*sorted(name for name in sys.modules if name.startswith('nnunet')))"
    loaded = run_command(["python", "-c", code]).stdout.split()
    assert loaded == ["nnunet_logvmamba", "nnunet_logvmamba.plugin", "nnunet_logvmamba.plugin.startup"]


def test_nnunet_finds_every_family_and_names_made_on_demand_which_survive_pickling(run_command, tmp_path):
    from nnunet_logvmamba.plugin import trainers

    file = tmp_path / "trainer.pkl"
    file.write_bytes(pickle.dumps(trainers.nnUNetTrainerGVMamba_7epochs_seed1))
    names = [f"nnUNetTrainer{family}" for family in ("LoGVMamba", "LVMamba", "GVMamba", "VMamba", "NoSSM")]
    names += [f"nnUNetTrainer{row.trainer}" for row in NETWORKS if row.home.startswith("peers.")]
    names += ["nnUNetTrainerLoGVMamba_5epochs", "nnUNetTrainerNoSSM_seed0", "nnUNetTrainerLVMamba_5epochs_seed3"]
    done = run_command(["python", "-c", FIND + UNPICKLE.format(file=str(file)), *names])
    found, unpickled = done.stdout.splitlines()[-2:]
    assert json.loads(found) == [["nnunet_logvmamba.plugin.trainers", name] for name in names]
    assert unpickled == "nnUNetTrainerGVMamba_7epochs_seed1"


def test_a_misspelt_name_ends_the_stock_command_with_the_nearest_one(run_command, tmp_path):
    folders = NnunetFolders.below(tmp_path)
    done = run_command(
        ["nnUNetv2_train", 998, "2d", 0, "-tr", "nnUNetTrainerLogVMamba_seed1_5epoch"],
        check=False,
        PYTHONWARNINGS="ignore::FutureWarning",  # of torch 2.15, at torchvision
        **folders.environment,
    )
    assert done.returncode == 1
    said, *rest = done.stderr.splitlines()
    assert not rest, "neither a traceback nor what torchvision has to say"
    assert said.startswith(
        "There is no trainer 'nnUNetTrainerLogVMamba_seed1_5epoch', the nearest is "
        "nnUNetTrainerLoGVMamba_5epochs_seed1: names are "
        "nnUNetTrainer<Family>[_adam|_adamw|_paper|_published|_sgd][_<N>epochs][_seed<K>]"
    )
    assert all(not list(folder.iterdir()) for folder in tmp_path.iterdir())


@pytest.mark.parametrize("name", ["nnUNetTrainerLoGVMamba_0epochs", "nnUNetTrainerlogvmamba", "LoGVMamba"])
def test_a_name_close_to_ours_is_refused_by_nnunets_search(name):
    with pytest.raises(
        RuntimeError, match=f"There is no trainer '{name}', the nearest is nnUNetTrainerLoGVMamba: "
    ) as end:
        recursive_find_trainer_class_by_name(name)
    assert isinstance(end.value, SystemExit)  # which ends a command without a traceback
    assert end.value.code == str(end.value)
    assert "\n" not in str(end.value)


@pytest.mark.parametrize("name", ["nnUNetTrainer_5epoch", "nnUNetTrainerMedNeXt", "nnUNetTrainerOfTheUser"])
def test_a_name_unlike_ours_ends_in_nnunets_own_message(name):
    with pytest.raises(RuntimeError, match=f"Could not find requested nnunet trainer {name}"):
        recursive_find_trainer_class_by_name(name)


@pytest.mark.parametrize("order", ["{theirs}{sep}{ours}", "{ours}{sep}{theirs}"])
def test_a_trainer_of_the_user_is_found_though_its_name_is_close_to_ours(order, tmp_path, monkeypatch):
    name = "nnUNetTrainerLoGVMamba2"
    (tmp_path / "close.py").write_text(USERS_TRAINER.replace("nnUNetTrainerOfTheUser", name))
    value = order.format(theirs=tmp_path, ours=startup.EXT_FOLDER, sep=os.pathsep)
    monkeypatch.setenv(startup.VARIABLE, value)
    assert recursive_find_trainer_class_by_name(name).__module__ == "close"
    with pytest.raises(RuntimeError, match="There is no trainer 'nnUNetTrainerLoGVMamba3'"):
        recursive_find_trainer_class_by_name("nnUNetTrainerLoGVMamba3")


def test_the_users_trainers_are_found_as_before_next_to_ours(run_command, users_folder):
    names = ["nnUNetTrainerOfTheUser", "nnUNetTrainerLoGVMamba_5epochs_seed3"]
    expected = [["my_trainers", names[0]], ["nnunet_logvmamba.plugin.trainers", names[1]]]
    find = FIND.replace("assert first is second", "assert first is second or name.endswith('User')")
    find = find.replace("assert pickle", "name.endswith('User') or pickle")  # a class of a forgotten module cannot be
    for value in (str(users_folder), os.pathsep.join([startup.EXT_FOLDER, str(users_folder)])):
        done = run_command(["python", "-c", find, *names], nnUNet_extTrainer=value)
        assert json.loads(done.stdout.splitlines()[-1]) == expected, value


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, "{ours}"),
        ("", "{ours}"),
        ("/theirs", "/theirs{sep}{ours}"),
        ("/one{sep}/two", "/one{sep}/two{sep}{ours}"),
        ("{ours}{sep}/theirs", "{ours}{sep}/theirs"),
        ("{ours}", "{ours}"),
    ],
)
def test_our_folder_is_appended_once_and_what_was_set_is_kept(before, after, monkeypatch):
    words = {"ours": startup.EXT_FOLDER, "sep": os.pathsep}
    monkeypatch.delenv(startup.VARIABLE, raising=False)
    if before is not None:
        monkeypatch.setenv(startup.VARIABLE, before.format(**words))
    for _ in range(2):
        startup.append_ext_folder()
        assert os.environ[startup.VARIABLE] == after.format(**words)


def said_by_torchvision(module: str, category: str) -> list[str]:
    """What comes out of a warning of that module where no other filter stands."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.resetwarnings()
        startup.silence_torchvision()
        exec(f"import warnings; warnings.warn('something', {category})", {"__name__": module})
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize(
    ("release", "module", "category", "heard"),
    [
        (startup.FORGIVING_TORCHVISION, "torchvision.io.image", "UserWarning", False),
        (startup.FORGIVING_TORCHVISION, "torchvision.io.image", "DeprecationWarning", True),
        (startup.FORGIVING_TORCHVISION, "torchvision.io", "UserWarning", True),
        (startup.FORGIVING_TORCHVISION, "torchvision.io.image_of_another", "UserWarning", True),
        ("0.28.0", "torchvision.io.image", "UserWarning", True),
    ],
)
def test_only_the_torchvision_that_was_chosen_for_it_may_fail_silently(
    release, module, category, heard, tmp_path, monkeypatch
):
    (tmp_path / f"torchvision-{release}.dist-info").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert said_by_torchvision(module, category) == ["something"] * heard


@pytest.mark.slow
def test_what_a_user_asks_of_warnings_comes_first(run_command):
    if importlib.metadata.version("torchvision") != startup.FORGIVING_TORCHVISION:
        pytest.skip("torchvision fits torch here and has nothing to say")
    assert run_command(["python", "-c", "import torchvision"]).stderr == ""
    assert "Failed to load image" in run_command(["python", "-W", "always", "-c", "import torchvision"]).stderr


def test_what_fails_at_the_start_is_said_and_python_starts(monkeypatch, capsys):
    monkeypatch.setattr(startup, "append_ext_folder", lambda: 1 / 0)
    startup.start()
    assert capsys.readouterr().err.endswith("failed at the start of Python: division by zero\n")


def test_the_hook_is_one_line_that_sorts_behind_the_editable_path_file():
    assert len(HOOK.read_text().splitlines()) == 1
    assert HOOK.read_text().startswith("import ")  # any other line is taken for a path
    assert sorted([HOOK.name, "_nnunet_logvmamba.pth"])[-1] == HOOK.name


@pytest.mark.parametrize("left_behind", ["", "nnunet_logvmamba/", "nnunet_logvmamba/plugin/"])
def test_what_a_half_done_removal_leaves_does_not_disturb_python(left_behind, tmp_path):
    (tmp_path / left_behind).mkdir(parents=True, exist_ok=True)
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); exec(open({str(HOOK)!r}).read()); print('started')"
    done = subprocess.run([sys.executable, "-S", "-E", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "started\n", "")


def test_the_folder_holds_one_module_and_no_package():
    assert [path.name for path in Path(startup.EXT_FOLDER).glob("*.py")] == ["nnunet_logvmamba_trainers.py"]


def test_an_environment_without_the_package_that_inherits_the_variable_still_gets_nnunets_own_message():
    module = Path(startup.EXT_FOLDER) / "nnunet_logvmamba_trainers.py"
    code = f"import runpy; print('__getattr__' in runpy.run_path({str(module)!r}))"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("True\n", "")
