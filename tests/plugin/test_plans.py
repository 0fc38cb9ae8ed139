"""Plans: stock ones become our arguments, and what we write is built by stock nnU-Net."""

import inspect
import json
from copy import deepcopy
from pathlib import Path

import pytest
import small_dataset
import torch
from commands import run_command
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_logvmamba.cli import main
from nnunet_logvmamba.networks import LoGVMambaUNet
from nnunet_logvmamba.plugin import environment, plans, trainers

# As nnU-Net's planners write them, for a few of the patches that issue from real data sets.
KERNEL, STRIDE = [3, 3, 3], [2, 2, 2]
ANISOTROPIC = {
    "features_per_stage": [32, 64, 128, 256, 320, 320],
    "kernel_sizes": [[1, 3, 3], [1, 3, 3], KERNEL, KERNEL, KERNEL, KERNEL],
    "strides": [[1, 1, 1], [1, 2, 2], [1, 2, 2], STRIDE, STRIDE, [1, 2, 2]],
}


@pytest.fixture
def plans_file(nnunet_folders) -> Path:
    return small_dataset.copy_into(nnunet_folders)


def contents(plans_file: Path) -> tuple[dict, dict]:
    return json.loads(plans_file.read_text()), json.loads((plans_file.parent / "dataset.json").read_text())


@pytest.fixture
def stock(plans_file) -> tuple[dict, dict]:
    """Plans and dataset.json as nnU-Net wrote them."""
    return contents(plans_file)


@pytest.fixture
def cascade(stock) -> tuple[dict, dict]:
    """The same plans with a lowres configuration and the cascade, linked as nnU-Net links them."""
    content, dataset = deepcopy(stock)
    configurations = content["configurations"]
    configurations["3d_lowres"] = {**deepcopy(configurations["3d_fullres"]), "next_stage": "3d_cascade_fullres"}
    configurations["3d_lowres"].update(data_identifier="nnUNetPlans_3d_lowres", spacing=[2.0, 2.0, 2.0])
    configurations["3d_cascade_fullres"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    return content, dataset


def build_by(trainer, content: dict, name: str, channels: int = 1, deep_supervision: bool = False):
    manager = PlansManager(content)
    configuration = manager.get_configuration(name)
    return trainer.build_network_architecture(manager, configuration, channels, 3, deep_supervision)


# Stock plans become our arguments


def residual(architecture: dict) -> dict:
    """The same plan as nnU-Net's residual-encoder planner writes it."""
    arguments = architecture["arch_kwargs"]
    stages = arguments["n_stages"]
    changed = {k: v for k, v in arguments.items() if not k.startswith("n_conv")}
    changed["n_blocks_per_stage"] = [1, 3, 4, 6, 6, 6][:stages]
    changed["n_conv_per_stage_decoder"] = [1] * (stages - 1)
    name = "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"
    return {**architecture, "network_class_name": name, "arch_kwargs": changed}


@pytest.mark.parametrize("as_planned", [dict, residual], ids=["PlainConvUNet", "ResidualEncoderUNet"])
@pytest.mark.parametrize("name", ["2d", "3d_fullres"])
def test_widths_kernels_strides_norms_are_the_plans_and_block_counts_are_dropped(name, as_planned, stock):
    configuration = stock[0]["configurations"][name]
    architecture = as_planned(configuration["architecture"])
    before = deepcopy(architecture)
    ours = plans.to_our_architecture(architecture, configuration["patch_size"])
    assert architecture == before
    assert ours["network_class_name"] == "nnunet_logvmamba.networks.LoGVMambaUNet"
    assert ours["_kw_requires_import"] == before["_kw_requires_import"]
    dropped = set(before["arch_kwargs"]) - set(ours["arch_kwargs"])
    assert dropped <= {"n_conv_per_stage", "n_conv_per_stage_decoder", "n_blocks_per_stage"}
    assert ours["arch_kwargs"] == {k: v for k, v in before["arch_kwargs"].items() if k not in dropped}


def test_norms_without_arguments_are_norms_by_themselves_and_none_at_all_is_refused(stock):
    configuration = stock[0]["configurations"]["2d"]
    architecture = deepcopy(configuration["architecture"])
    architecture["arch_kwargs"]["norm_op_kwargs"] = None
    ours = plans.to_our_architecture(architecture, configuration["patch_size"])
    assert ours["arch_kwargs"]["norm_op_kwargs"] == {}
    for name in ("norm_op", "nonlin"):
        architecture = deepcopy(configuration["architecture"])
        architecture["arch_kwargs"][name] = None
        with pytest.raises(ValueError, match=f"{name} is null in the plan; LoGVMambaUNet needs one"):
            plans.to_our_architecture(architecture, configuration["patch_size"])


def test_both_stock_networks_lead_to_the_same_network_of_ours(stock):
    content = deepcopy(stock[0])
    configurations = content["configurations"]
    architecture = residual(configurations["3d_fullres"]["architecture"])
    configurations["resenc"] = {**configurations["3d_fullres"], "architecture": architecture}
    plain, resenc = (
        build_by(trainers.nnUNetTrainerLoGVMamba, content, name).state_dict() for name in ("3d_fullres", "resenc")
    )
    assert {k: v.shape for k, v in plain.items()} == {k: v.shape for k, v in resenc.items()}


def test_the_stem_takes_the_first_width_and_mixing_stages_the_widths_from_the_first_on(stock):
    content = deepcopy(stock[0])
    content["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"].update(n_stages=6, **ANISOTROPIC)
    with torch.device("meta"):
        network = build_by(trainers.nnUNetTrainerLoGVMamba, content, "3d_fullres")
    widths = [mixer.out_proj.out_features for mixer in network.encoder.mixers]
    assert widths == [32, 64, 128, 256, 320]
    assert network.decoder.seg_layers[-1].in_channels == 32


@pytest.mark.parametrize("patch", [(14, 256, 224), (20, 320, 256)])
def test_anisotropic_plans_give_every_scale_that_nnunet_supervises(patch, stock):
    content = deepcopy(stock[0])
    architecture = content["configurations"]["3d_fullres"]["architecture"]
    arguments = deepcopy(ANISOTROPIC)
    if patch[0] % 4:
        arguments["strides"][4] = [1, 2, 2]
    architecture["arch_kwargs"].update(n_stages=6, **arguments)
    with torch.device("meta"):
        ours = build_by(trainers.nnUNetTrainerLoGVMamba, content, "3d_fullres", deep_supervision=True)
        architecture["arch_kwargs"].update(n_conv_per_stage=[2] * 6, n_conv_per_stage_decoder=[2] * 5)
        theirs = build_by(nnUNetTrainer, content, "3d_fullres", deep_supervision=True)
        image = torch.empty(2, 1, *patch)
        assert [output.shape for output in ours(image)] == [output.shape for output in theirs(image)]


# Configurations that carry our knobs


KNOBS = {"placement": "head", "state_size": 4, "directions": 2, "local_token_stages": [0], "squeeze": 8}


def test_a_configuration_holds_every_knob_and_can_be_written_as_json(stock):
    content, names = plans.add_configuration(*stock, "3d_fullres", "3d_fullres_head", arguments=KNOBS)
    assert names == ["3d_fullres_head"]
    entry = json.loads(json.dumps(content))["configurations"]["3d_fullres_head"]
    arguments = entry["architecture"]["arch_kwargs"]
    assert arguments == {**arguments, **plans.knobs(), **KNOBS}
    assert set(arguments) == set(LoGVMambaUNet.plan_arguments) | set(plans.knobs())
    assert entry["architecture"]["_kw_requires_import"] == ["conv_op", "norm_op", "dropout_op", "nonlin"]
    assert plans.TRAINING_KEY not in entry


@pytest.mark.parametrize("name", ["2d", "3d_fullres"])
def test_the_stock_trainer_builds_our_configuration_and_loads_its_weights(name, stock):
    content, _ = plans.add_configuration(*stock, name, f"{name}_head", arguments=KNOBS)
    ours = build_by(trainers.nnUNetTrainerLoGVMamba, content, f"{name}_head", deep_supervision=True)
    theirs = build_by(nnUNetTrainer, content, f"{name}_head")
    assert type(theirs) is type(ours) is LoGVMambaUNet
    theirs.load_state_dict(ours.state_dict())
    assert [mixer.ssm.state_size for mixer in theirs.encoder.mixers] == [4, 4]
    assert {mixer.placement for mixer in theirs.encoder.mixers} == {"head"}


def test_a_configuration_uses_the_data_that_is_preprocessed_already(stock):
    content, _ = plans.add_configuration(*stock, "3d_fullres", "new", batch_size=3, patch_size=[8, 12, 16])
    old, new = (PlansManager(content).get_configuration(name) for name in ("3d_fullres", "new"))
    assert new.data_identifier == old.data_identifier
    assert (new.batch_size, new.patch_size) == (3, [8, 12, 16])
    assert content["configurations"]["3d_fullres"] == stock[0]["configurations"]["3d_fullres"]


def test_knobs_and_settings_of_a_configuration_of_ours_are_passed_on(stock):
    first, _ = plans.add_configuration(
        *stock, "3d_fullres", "first", arguments=KNOBS, training={"num_epochs": 3, "seed": 1}
    )
    second, _ = plans.add_configuration(
        first, stock[1], "first", "second", arguments={"state_size": 2}, training={"seed": 2}
    )
    resolved = PlansManager(second).get_configuration("second")
    assert resolved.network_arch_init_kwargs == {**resolved.network_arch_init_kwargs, **KNOBS, "state_size": 2}
    assert resolved.configuration[plans.TRAINING_KEY] == {"num_epochs": 3, "seed": 2}


def test_the_network_can_be_kept_so_that_only_the_training_differs(stock):
    content, _ = plans.add_configuration(*stock, "3d_fullres", "short", training={"num_epochs": 1}, keep_network=True)
    assert content["configurations"]["short"] == {"inherits_from": "3d_fullres", "logvmamba": {"num_epochs": 1}}
    assert type(build_by(trainers.nnUNetTrainerStockNetwork, content, "short")) is PlainConvUNet
    assert type(build_by(trainers.nnUNetTrainerLoGVMamba, content, "short")) is LoGVMambaUNet


@pytest.mark.parametrize(
    ("base", "name", "lowres", "fullres"),
    [
        ("3d_lowres", "3d_lowres_head", "3d_lowres_head", "3d_cascade_fullres_head"),
        ("3d_cascade_fullres", "3d_cascade_fullres_head", "3d_lowres_head", "3d_cascade_fullres_head"),
        ("3d_lowres", "head", "head", "head_3d_cascade_fullres"),
    ],
)
def test_lowres_and_cascade_are_written_as_a_linked_pair(base, name, lowres, fullres, cascade):
    content, names = plans.add_configuration(*cascade, base, name, arguments=KNOBS, training={"num_epochs": 2})
    assert set(names) == {lowres, fullres}
    manager = PlansManager(content)
    low, full = manager.get_configuration(lowres), manager.get_configuration(fullres)
    assert (low.previous_stage_name, low.next_stage_names) == (None, [fullres])
    assert (full.previous_stage_name, full.next_stage_names) == (lowres, None)
    assert (low.data_identifier, full.data_identifier) == ("nnUNetPlans_3d_lowres", "nnUNetPlans_3d_fullres")
    for configuration in (low, full):
        assert configuration.network_arch_class_name == plans.NETWORK_CLASS_NAME
        assert configuration.network_arch_init_kwargs["placement"] == "head"
        assert configuration.configuration[plans.TRAINING_KEY] == {"num_epochs": 2}
    untouched = {k: v for k, v in content["configurations"].items() if k not in names}
    assert untouched == cascade[0]["configurations"]
    channels = 1 + len(small_dataset.LABELS) - 1  # the image, and lowres's prediction of each structure
    assert build_by(nnUNetTrainer, content, fullres, channels).encoder.stem[0].conv1.in_channels == channels


# The command


def command(*words: str) -> int:
    return main(["plans", "-d", small_dataset.NUMBER, *words])


def test_the_command_writes_a_configuration_that_stock_nnunet_can_read(plans_file, nnunet_folders):
    words = ["-d", small_dataset.NAME, "-c", "3d_fullres", "--name", "3d_fullres_head", "--set", "placement=head"]
    words += ["--set", "state_size=8", "squeeze=null", "--train", "num_epochs=3", "initial_lr=1e-3", "optimizer=adam"]
    before, _ = contents(plans_file)
    done = run_command(["logvmamba", "plans", *words], **nnunet_folders.environment)
    command = "nnUNetv2_train Dataset998_Balls 3d_fullres_head 0 -tr nnUNetTrainerLoGVMamba"
    assert command + environment.device_option() in done.stdout.splitlines()
    after, _ = contents(plans_file)
    entry = after["configurations"].pop("3d_fullres_head")
    assert after == before
    assert list(after) == list(before)
    assert entry["logvmamba"] == {"num_epochs": 3, "initial_lr": 1e-3, "optimizer": "adam"}
    arguments = entry["architecture"]["arch_kwargs"]
    assert (arguments["placement"], arguments["state_size"], arguments["squeeze"]) == ("head", 8, None)
    assert {path.name for path in plans_file.parent.iterdir() if path.is_file()} == {
        "dataset.json",
        "dataset_fingerprint.json",
        "nnUNetPlans.json",
    }


def test_data_that_are_not_preprocessed_come_with_nnunets_command(plans_file, capsys):
    words = ("--keep-network", "--train", "num_epochs=2")
    assert command("-c", "2d", "--name", "2d_own", *words) == 0
    assert "nnUNetv2_preprocess" not in capsys.readouterr().out
    for file in (plans_file.parent / "nnUNetPlans_2d").iterdir():
        file.unlink()
    assert command("-c", "2d", "--name", "2d_own", *words, "--overwrite") == 0
    printed = capsys.readouterr().out.splitlines()
    first = printed.index("nnUNetv2_preprocess -d 998 -plans_name nnUNetPlans -c 2d_own")
    assert printed[first + 1].startswith("nnUNetv2_train 998 2d_own 0 ")


def test_a_name_is_replaced_only_when_told(plans_file, capsys):
    words = ("-c", "2d", "--name", "2d_own", "--set")
    assert command(*words, "state_size=8") == 0
    first = plans_file.read_bytes()
    assert command(*words, "state_size=4") != 0
    assert capsys.readouterr().err.strip() == (
        "logvmamba: configuration '2d_own' exists already; choose another name or add --overwrite"
    )
    assert plans_file.read_bytes() == first
    assert command(*words, "state_size=4", "--overwrite") == 0
    entry = contents(plans_file)[0]["configurations"]["2d_own"]
    assert entry["architecture"]["arch_kwargs"]["state_size"] == 4


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("other", {}, None),
        ("3d_own", {}, "configuration '3d_own' exists already"),
        ("3d_fullres", {"batch_size": 7}, "was changed by another command"),
    ],
)
def test_what_another_command_writes_at_the_same_time_is_not_undone(
    name, change, said, plans_file, monkeypatch, capsys
):
    add, theirs = plans.add_configuration, contents(plans_file)[0]
    theirs["configurations"][name] = {**theirs["configurations"]["3d_fullres"], **change}

    def while_the_other_writes(*args, **options):
        found = add(*args, **options)
        plans.write_plans(plans_file, theirs)
        return found

    monkeypatch.setattr(plans, "add_configuration", while_the_other_writes)
    assert command("-c", "3d_fullres", "--name", "3d_own", "--train", "num_epochs=2") == (2 if said else 0)
    written = contents(plans_file)[0]
    if said:
        assert said in capsys.readouterr().err
        assert written == theirs
    else:
        assert written["configurations"].pop("3d_own")["logvmamba"] == {"num_epochs": 2}
        assert written == theirs


def test_the_stages_of_a_cascade_are_trained_one_after_the_other_the_first_on_every_case(cascade, plans_file, capsys):
    plans.write_plans(plans_file, cascade[0])
    assert command("-c", "3d_cascade_fullres", "--name", "3d_cascade_fullres_own") == 0
    trained = [line.split()[2:4] for line in capsys.readouterr().out.splitlines() if line.startswith("nnUNetv2_train")]
    assert trained == [["3d_lowres_own", "all"], ["3d_cascade_fullres_own", "0"]]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--batch-size 1", "ATTENTION: new: with a batch size of 1 nnU-Net places no patch on foreground"),
        ("--batch-size 3", "note: new: 1 of 3 patch(es) of a batch placed on foreground"),
        (
            "--batch-size 1 --train probabilistic_oversampling=true",
            "note: new: every patch is placed on foreground with",
        ),
    ],
)
def test_what_a_batch_size_means_for_foreground_is_said_where_it_is_chosen(words, said, plans_file, capsys):
    assert command("-c", "3d_fullres", "--name", "new", *words.split()) == 0
    assert said in capsys.readouterr().out


def test_a_batch_size_of_one_that_was_planned_is_said_too(plans_file, capsys):
    content = contents(plans_file)[0]
    content["configurations"]["3d_fullres"]["batch_size"] = 1
    plans_file.write_text(json.dumps(content))
    assert command("-c", "3d_fullres", "--name", "new") == 0
    assert "ATTENTION: new: with a batch size of 1" in capsys.readouterr().out


def test_the_printed_command_names_a_data_set_whose_number_nnunet_would_mix_up(plans_file, capsys):
    assert command("-c", "2d", "--name", "first") == 0
    assert "nnUNetv2_train 998 first 0" in capsys.readouterr().out
    (plans_file.parent.parent / "Dataset9981_Other").mkdir()
    assert command("-c", "2d", "--name", "second") == 0
    assert f"nnUNetv2_train {small_dataset.NAME} second 0" in capsys.readouterr().out


def rewrite(plans_file: Path, **changes: object) -> None:
    file = plans_file.parent / "dataset.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_labels_and_channels_are_taken_in_every_spelling_of_nnunet(plans_file, capsys):
    rewrite(plans_file, labels={"background": "0", "shell": 1.0, "core": " 2"}, modality={"0": "MR"}, numTraining="5")
    assert command("-c", "3d_fullres", "--name", "new") == 0
    assert main(["summary", "-d", small_dataset.NUMBER, "-c", "new"]) == 0
    assert "1 input channels" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"labels": {"background": 0, "shell": "one"}}, "the label 'shell' must be a whole number or a list of them"),
        ({"labels": {"background": 0, "shell": 1.5}}, "must be a whole number or a list of them, not 1.5"),
        ({"labels": {"shell": 1}}, "Background label not declared"),
        ({"labels": {"background": 0, "shell": 1, "ignore": "2"}}, "Ignore label has to be an integer"),
        ({"labels": {"background": 0, "both": [1, 2], "core": 2}}, "regions_class_order"),
        ({"channel_names": ["MR"]}, "'channel_names' must be a table"),
        ({"channel_names": {}}, "names no channels in 'channel_names'"),
    ],
)
def test_a_dataset_json_that_nnunet_refuses_is_named(changes, sentence, plans_file, capsys):
    rewrite(plans_file, **changes)
    before = plans_file.read_bytes()
    for words in (["plans", "-d", small_dataset.NUMBER, "-c", "2d", "--name", "new"], ["summary", "-d", "998"]):
        assert main(words) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert f"{plans_file.parent / 'dataset.json'}" in line
        assert sentence in line
        assert line.endswith(": correct it there, and plan anew")
    assert plans_file.read_bytes() == before


def test_a_data_set_of_too_few_cases_for_folds_is_trained_with_all_of_them(plans_file, capsys):
    rewrite(plans_file, numTraining=4)
    assert command("-c", "2d", "--name", "few") == 0
    assert "nnUNetv2_train 998 few all " in capsys.readouterr().out
    (plans_file.parent / "splits_final.json").write_text(json.dumps([{"train": ["ball_0"], "val": ["ball_1"]}]))
    assert command("-c", "2d", "--name", "own_folds") == 0
    assert "nnUNetv2_train 998 own_folds 0 " in capsys.readouterr().out


@pytest.mark.parametrize("words", [("plans", "-c", "2d", "--name", "new"), ("summary",)])
def test_plans_of_another_planner_that_are_not_there_come_with_the_command_of_their_planner(words, plans_file, capsys):
    (plans_file.parent / "nnUNetResEncUNetMPlans.json").write_text(plans_file.read_text())
    assert main([*words, "-d", small_dataset.NUMBER, "-p", "nnUNetResEncUNetXLPlans"]) == 2
    said = capsys.readouterr().err
    there = (
        f"nnUNetResEncUNetXLPlans in {plans_file.parent}, only nnUNetPlans, nnUNetResEncUNetMPlans: name those, or make"
    )
    assert f"there are no plans {there} them with nnUNetv2_plan_experiment -d 998 -pl PLANNER" in said
    plans_file.unlink()
    assert main([*words, "-d", small_dataset.NUMBER]) == 2
    assert f"{plans_file} does not exist: run nnUNetv2_plan_and_preprocess" in capsys.readouterr().err


def test_labels_with_a_gap_are_refused_where_nnunet_counts_them_and_not_in_regions(plans_file, capsys):
    words = ["plans", "-d", small_dataset.NUMBER, "-c", "2d", "--name", "new"]
    rewrite(plans_file, labels={"background": 0, "shell": 1, "core": 4})
    for command in (words, ["summary", "-d", "998"]):
        assert main(command) == 2
        said = f"{plans_file.parent / 'dataset.json'}: no label has the number 2 although there is 4"
        assert said in capsys.readouterr().err
    regions = {"background": 0, "ball": [1, 4], "core": [4]}
    rewrite(plans_file, labels=regions, regions_class_order=[1, 4])
    assert main(words) == 0


@pytest.mark.parametrize("channels", [{"CT": "0"}, {"1": "MR", "0": "CT"}])
def test_channels_in_another_order_are_refused_for_new_configurations_and_read_all_the_same(
    channels, plans_file, capsys
):
    rewrite(plans_file, channel_names=channels)
    before = plans_file.read_bytes()
    assert main(["plans", "-d", small_dataset.NUMBER, "-c", "2d", "--name", "new"]) == 2
    assert "'channel_names' must have the numbers of the channels before their names" in capsys.readouterr().err
    assert plans_file.read_bytes() == before
    assert main(["summary", "-d", small_dataset.NUMBER, "-c", "2d"]) == 0


@pytest.mark.parametrize("name", ["Dataset1001_Balls", "Dataset98765_Balls"])
def test_numbers_of_more_digits_are_known_by_number_and_name(name, plans_file, capsys):
    (plans_file.parent.parent / "Dataset100_Other").mkdir()
    plans_file.parent.rename(plans_file.parent.with_name(name))
    number = name.removeprefix("Dataset").removesuffix("_Balls")
    for index, dataset in enumerate((number, name, f"0{number}")):
        assert main(["plans", "-d", dataset, "-c", "2d", "--name", f"new{index}"]) == 0
        assert main(["summary", "-d", dataset, "-c", f"new{index}"]) == 0
    assert name in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--set placement=haed", "unknown placement 'haed'; valid are 'head', 'middle', 'split', 'interleaved'"),
        ("--set backend=fast", "'fast'; choose one of: auto, numba, triton, "),
        ("--set family=lov", "unknown family 'lov'; valid are 'log', 'l', 'g', 'vss', 'no_ssm'"),
        ("--set squeeze=5 local_token_stages=[0]", "32 channels, which squeeze 5 does not divide"),
        ("--set sqeeze=8", "unknown knob 'sqeeze' of LoGVMambaUNet; valid are family, "),
        ("--set directions=3", "directions is 3; valid are 1, 2, 4"),
        ("--set state_size=8.5", "'state_size' must be a whole number of at least 1, not 8.5"),
        ("--set mixer_stages=[2]", "mixer_stages names stage 2; this network has mixing stages 0 to 1"),
        ("--set window", "--set takes NAME=VALUE, not 'window'"),
        ("--set window=3 window=5", "--set names 'window' twice"),
        ("--train lr=1", "unknown setting 'lr' under 'logvmamba'; valid are num_epochs, "),
        ("--train optimizer=lion", "unknown optimizer 'lion' under 'logvmamba'; valid are adam, adamw, sgd"),
        ("--train num_epochs=0", "'num_epochs' under 'logvmamba' must be a whole number of at least 1, not 0"),
        ("--patch-size 18 16 16", "the patch size [18, 16, 16] must be divisible by [4, 4, 4], axis by axis"),
        ("--patch-size 16 16", "the patch size [16, 16] has 2 axes, but the configuration has 3: give 3 numbers"),
        ("--patch-size 16 16 16 16", "has 4 axes, but the configuration has 3: give 3 numbers"),
        ("--patch-size 4 4 4", "the patch size [4, 4, 4] is too small, take a larger one: the image of 4 x 4 x 4"),
        ("--batch-size 0", "the batch size must be at least 1, not 0"),
        ("--keep-network --set window=5", "knobs (window) belong to our network, which cannot go with --keep-network"),
        ("-c 3d_fulres", "there is no configuration '3d_fulres' in these plans; there are 2d, 3d_fullres"),
        ("--name 3d_fullres --overwrite", "configuration '3d_fullres' cannot be derived from itself"),
        ("--name a__b", "'a__b' cannot name a configuration"),
        ("-p otherPlans", "there are no plans otherPlans in"),
        ("-d 997", "one data set Dataset997_* is needed in "),
        ("-d balls", "'balls' is neither the number of a data set nor a name such as"),
    ],
)
def test_bad_input_is_answered_in_one_sentence_and_leaves_the_plans_alone(words, sentence, plans_file, capsys):
    before = plans_file.read_bytes()
    code = command("-c", "3d_fullres", "--name", "new", *words.split())
    printed = capsys.readouterr()
    assert code != 0
    assert sentence in printed.err
    assert len(printed.err.strip().splitlines()) == 1
    assert plans_file.read_bytes() == before
    assert [path.name for path in plans_file.parent.glob(".*")] == []


def test_a_configuration_that_others_come_from_is_not_replaced_by_one_of_them(plans_file, capsys):
    assert command("-c", "2d", "--name", "first") == 0
    assert command("-c", "first", "--name", "second") == 0
    before = plans_file.read_bytes()
    assert command("-c", "second", "--name", "first", "--overwrite") != 0
    assert "'first' cannot be replaced, because 'second' is derived from it" in capsys.readouterr().err
    assert plans_file.read_bytes() == before


def test_an_unset_folder_of_preprocessed_data_is_named(monkeypatch, capsys):
    monkeypatch.delenv("nnUNet_preprocessed", raising=False)
    assert command("-c", "2d", "--name", "new") != 0
    assert "nnUNet_preprocessed is not set" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("knob", "wrong", "kind"),
    [
        ("squeeze", 1.5, "a whole number or null, not 1.5"),
        ("window", True, "a whole number of at least 1, not true"),
        ("mixer_stages", 1, "a list or null, not 1"),
        ("checkpointing", 1, "true or false, not 1"),
        ("drop_path", "x", 'a number, not "x"'),
        ("placement", None, "a word, not null"),
    ],
)
def test_the_kind_of_a_knob_is_that_of_the_networks_annotation(knob, wrong, kind):
    with pytest.raises(ValueError, match=f"'{knob}' must be {kind}$"):
        plans.check_knobs({knob: wrong})
    networks = (plans.NETWORK_CLASS_NAME, plans.SWIN_CLASS_NAME)
    for network in networks:
        usual = {name: value for name, value in plans.knobs(network).items() if value is not inspect.Parameter.empty}
        plans.check_knobs(json.loads(json.dumps(usual)), network)
    for value in (None, 2):
        plans.check_knobs({"squeeze": value, "directions": 2}, networks[0])
        plans.check_knobs({"squeeze": value, "directions": value, "features_per_stage": [8, 8]}, networks[1])


def test_a_plans_file_that_cannot_be_replaced_stays_whole(plans_file, monkeypatch):
    before = plans_file.read_bytes()
    with pytest.raises(TypeError, match="not JSON serializable"):
        plans.write_plans(plans_file, {"configurations": {"a": object()}})
    assert plans_file.read_bytes() == before
    assert [path.name for path in plans_file.parent.glob(".*")] == []


@pytest.mark.parametrize(
    ("fullres", "shape", "name", "reason"),
    [
        (
            {"patch_size": [40, 56, 40], "median_image_size_in_voxels": [36, 50, 35]},
            36,
            "3d_lowres",
            "only where a patch",
        ),
        (
            {"patch_size": [40, 56, 40], "median_image_size_in_voxels": [36, 50, 35]},
            36,
            "3d_cascade_fullres",
            "quarter",
        ),
        (
            {"patch_size": [64, 64, 64], "median_image_size_in_voxels": [110, 110, 110]},
            110,
            "3d_lowres",
            "nnU-Net drops",
        ),
        (None, 1, "3d_fullres", "plans nothing in 3D for images of one slice"),
        (None, 1, "3d_lowres", "plans nothing in 3D for images of one slice"),
        (None, 40, "3d_fullres", None),
        ({"patch_size": [64, 64, 64]}, 110, "3d_lowres", None),
        ({"patch_size": [40, 56, 40], "median_image_size_in_voxels": [36, 50, 35]}, 36, "3d_mine", None),
    ],
)
def test_what_nnunet_did_not_plan_comes_with_the_reason_where_it_is_known(fullres, shape, name, reason):
    configurations = {"2d": {}, **({} if fullres is None else {"3d_fullres": fullres})}
    content = {"configurations": configurations, "original_median_shape_after_transp": [shape, 50, 35]}
    said = plans.why_not_planned(content, name)
    assert (reason in said) if reason else said == ""


def test_the_reason_is_said_where_a_configuration_is_asked_for(plans_file, capsys):
    for words in (
        ["plans", "-d", "998", "-c", "3d_lowres", "--name", "x"],
        ["summary", "-d", "998", "-c", "3d_lowres"],
    ):
        assert main(words) == 2
        said = capsys.readouterr().err
        assert "there are 2d, 3d_fullres" in said
        assert "only where a patch of 3d_fullres covers less than a quarter of the median image" in said


def test_a_name_that_is_none_comes_with_the_data_sets_that_are_there(plans_file, capsys):
    assert command("-c", "2d", "--name", "x", "-d", "balls") == 2
    assert f"; in {plans_file.parents[1]} there are Dataset998_Balls" in capsys.readouterr().err
