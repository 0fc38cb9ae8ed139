"""Models of forks and of authors outside of nnU-Net, taken into results folders that stock nnU-Net reads."""

import json
import shutil
from pathlib import Path

import forks
import pytest
import small_dataset
import small_model
import torch
from commands import run_command
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_logvmamba.errors import UserError
from nnunet_logvmamba.networks import catalogue
from nnunet_logvmamba.plugin import export
from nnunet_logvmamba.plugin.adopt import TWICE, UNFOLDING, adopt
from nnunet_logvmamba.plugin.checkpoints import read_checkpoint
from nnunet_logvmamba.plugin.model_check import check_model
from nnunet_logvmamba.plugin.plans import build_network, earlier, to_our_architecture

needs_golden = pytest.mark.skipif(not forks.GOLDEN.is_dir(), reason="no folder shared/golden beside the checkout")


@pytest.fixture(autouse=True)
def folders(nnunet_folders):
    return nnunet_folders


def finest(model: Path, x: torch.Tensor) -> torch.Tensor:
    """Logits of the network that ``nnUNetv2_predict`` builds and fills."""
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(model), None)
    with torch.no_grad():
        return predictor.network.eval()(x.float())


def assert_same(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    error = (ours - theirs).abs().max() / theirs.abs().max()
    assert ours.shape == theirs.shape
    assert error <= 1e-4, f"largest error {error:.1e} of the largest logit"


def prepare_dataset(folders, configuration: dict, channels: int, classes: int) -> None:
    """Plans of a data set, for weights that bring none."""
    base = folders.preprocessed / forks.NAME
    base.mkdir()
    name = "2d" if len(configuration["patch_size"]) == 2 else "3d_fullres"
    (base / "nnUNetPlans.json").write_text(json.dumps(forks.plans(name, configuration, channels)))
    (base / "dataset.json").write_text(json.dumps(forks.dataset_json(channels, classes)))


@needs_golden
@pytest.mark.parametrize(
    ("name", "trainer", "ours"),
    [
        ("umamba_bot_2d", "nnUNetTrainerUMambaBot", "UMambaBot"),
        ("umamba_bot_3d", "nnUNetTrainerUMambaBot", "UMambaBot"),
        ("umamba_enc_2d_even", "nnUNetTrainerUMambaEnc", "UMambaEnc"),
        ("umamba_enc_2d_odd", "nnUNetTrainerUMambaEnc", "UMambaEnc"),
        ("umamba_enc_3d", "nnUNetTrainerUMambaEncNoAMP", "UMambaEnc"),
        ("umamba_enc_3d_aniso", "nnUNetTrainerUMambaEnc", "UMambaEnc"),
        ("swin_umamba", "nnUNetTrainerSwinUMamba", "SwinUMamba"),
        ("swin_umamba", "nnUNetTrainerSwinUMambaScratch", "SwinUMamba"),
        ("swin_umamba_d", "nnUNetTrainerSwinUMambaD", "SwinUMambaD"),
        ("swin_umamba_d", "nnUNetTrainerSwinUMambaDScratch", "SwinUMambaD"),
    ],
)
def test_a_model_of_a_fork_gives_the_logits_that_it_gave(name, trainer, ours, tmp_path, folders):
    hyper, tensors = forks.golden(f"peers/{name}")
    x, state = tensors["in/x"], forks.weights(tensors)
    configuration = (
        forks.umamba_plan(hyper)
        if "features_per_stage" in hyper
        else forks.old_configuration(list(x.shape[2:]), x.shape[1])
    )
    if "features_per_stage" in hyper:
        state = forks.with_duplicates(state)
    source = forks.write_fork(tmp_path / "fork", trainer, state, configuration, x.shape[1], hyper["classes"])
    (adopted,) = adopt(source, forks.NAME)
    assert adopted.target.parent.parent.parent == folders.results / forks.NAME
    assert adopted.target.parent.parent.name.startswith(f"nnUNetTrainer{ours}__nnUNetPlans__")
    assert sum(sum(sizes) for sizes in adopted.taken.values()) == sum(
        value.numel() for value in forks.weights(tensors).values()
    )
    assert (TWICE in adopted.left) == ("features_per_stage" in hyper)
    assert_same(finest(adopted.target.parent.parent, x), tensors["logits/0"])


@needs_golden
@pytest.mark.parametrize("wrapped", [None, "state_dict", "model"])
def test_bare_weights_of_segmamba_give_the_logits_that_they_gave(wrapped, tmp_path, folders):
    hyper, tensors = forks.golden("peers/segmamba_net")
    state = {f"module.{key}": value for key, value in forks.weights(tensors).items()}
    torch.save(state if wrapped is None else {wrapped: state, "epoch": 7}, tmp_path / "segmamba.pt")
    _, channels, *patch = hyper["input"]
    prepare_dataset(folders, forks.old_configuration(patch, channels), channels, hyper["out_chans"])
    (adopted,) = adopt(tmp_path / "segmamba.pt", "701")
    x = tensors["in/x_int8"].float() / 32 if "in/x_int8" in tensors else tensors["in/x"]
    logits = finest(adopted.target.parent.parent, x)
    flat = logits.double().flatten(2)
    assert_same(flat.mean(-1), tensors["out/logits_mean"])
    for key, theirs in tensors.items():
        if key.startswith("out/logits_every"):
            every = slice(None, None, int(key.removeprefix("out/logits_every")))
            assert_same(logits[..., every, every, every], theirs)


@needs_golden
@pytest.mark.parametrize("name", ["net2d_small_even", "net3d_small_even"])
def test_bare_weights_of_log_vmambas_authors_give_the_logits_that_they_gave(name, tmp_path, folders):
    hyper, tensors = forks.golden(name)
    state, dims = forks.weights(tensors), tensors["in/x"].ndim - 2
    for key in [key for key in state if key.endswith("fold.weight")]:
        window = 3**dims
        kernel = torch.eye(window).view(window, 1, *[3] * dims)
        state[key.replace("fold.weight", "unfold_kernel")] = kernel
    if dims == 3:
        state = forks.with_duplicates(state)
    torch.save(state, tmp_path / "log.pth")
    channels, patch = tensors["in/x"].shape[1], list(tensors["in/x"].shape[2:])
    prepare_dataset(folders, forks.old_configuration(patch, channels), channels, hyper["classes"])
    (adopted,) = adopt(tmp_path / "log.pth", forks.NAME)
    assert {UNFOLDING} <= set(adopted.left)
    logits = finest(adopted.target.parent.parent, tensors["in/x"])
    if dims == 2:
        assert_same(logits, tensors["out/logits_0"])
    else:
        step = hyper["logits_stride"]
        assert_same(logits[:, :, ::step, ::step, ::step], tensors["out/logits_strided"])


# A small model of a fork, with weights that are drawn

BOT = "nnUNetTrainerUMambaBot"
PATCH, CHANNELS, CLASSES = [16, 16], 1, 3


def small_state(name: str = "UMambaBot", patch: list[int] = PATCH, **changes) -> dict[str, torch.Tensor]:
    """Weights of a small U-Mamba as its fork names them."""
    configuration = forks.old_configuration(patch, CHANNELS, **changes)
    manager = PlansManager(forks.plans("x", configuration, CHANNELS))
    resolved = manager.get_configuration("x")
    network = build_network(resolved, CHANNELS, CLASSES, True, catalogue.row(name).path)
    return forks.with_duplicates(forks.scrambled(network).state_dict())


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    return small_state()


@pytest.fixture
def fork(tmp_path, state):
    """Write the results folder of a small fork; arguments as for ``forks.write_fork``."""

    def fork(weights=state, configuration=None, trainer=BOT, channels=CHANNELS, classes=CLASSES, **options) -> Path:
        configuration = configuration or forks.old_configuration(PATCH, channels)
        return forks.write_fork(tmp_path / "fork", trainer, weights, configuration, channels, classes, **options)

    return fork


def without(state: dict, part: str) -> dict:
    return {name: value for name, value in state.items() if part not in name}


def changed(state: dict, **values: torch.Tensor) -> dict:
    return {name: values.get(name.replace(".", "_"), value) for name, value in state.items()}


@pytest.mark.parametrize(
    ("preset", "parameters", "entries"),
    [("umamba_bot3d", 207, 397), ("umamba_enc3d", 262, 518), ("swin_umamba2d", 257, 257)],
)
def test_checkpoints_are_made_with_as_many_entries_as_those_of_the_forks(preset, parameters, entries):
    with torch.device("meta"):
        state = catalogue.PRESETS[preset].load().from_preset(preset).state_dict()
    assert len(state) == parameters
    assert preset.startswith("swin") or len(forks.with_duplicates(state)) == entries


def test_what_is_written_is_what_our_trainers_write(fork, folders, state):
    source = fork(folds=(0, 3))
    adopted = adopt(source, forks.NAME)
    model = folders.results / forks.NAME / f"{BOT}__nnUNetPlans__2d"
    assert [one.target for one in adopted] == [model / f"fold_{fold}" / "checkpoint_final.pth" for fold in (0, 3)]
    assert {path.name for path in model.iterdir()} == {
        "plans.json",
        "dataset.json",
        "dataset_fingerprint.json",
        "fold_0",
        "fold_3",
    }
    content = read_checkpoint(adopted[0].target)
    assert content["trainer_name"] == BOT
    assert (content["current_epoch"], content["_best_ema"]) == (3, 0.5)
    assert (content["init_args"]["configuration"], content["init_args"]["fold"]) == ("2d", 0)
    assert content["inference_allowed_mirroring_axes"] == (0, 1)
    assert content["logging"]["train_losses"] == [0.5] * 3
    assert {type(value) for value in content["logging"]["train_losses"]} == {float}
    assert "nnunet_logvmamba" in content["network_weights"]._metadata[""]  # the checksum of the weights
    assert set(content["network_weights"]) == {
        name for name in state if ".all_modules." not in name and not name.startswith("decoder.encoder.")
    }
    saved = json.loads((model / "plans.json").read_text())
    configuration = saved["configurations"]["2d"]
    assert configuration["architecture"]["network_class_name"] == catalogue.row("UMambaBot").path
    assert not set(earlier.KEYS) & set(configuration)
    assert "continue_training" not in saved
    assert check_model(model) == 2


def test_checkpoints_alone_bring_their_plans_along(fork, folders):
    source = fork(beside=False, folds=(2,)) / "fold_2" / "checkpoint_final.pth"
    alone = source.rename(folders.raw / "somewhere.pth")
    (adopted,) = adopt(alone, forks.NAME)
    assert adopted.target.parent.name == "fold_2"
    (again,) = adopt(alone, forks.NAME, fold="all")
    assert again.target.parent.name == "fold_all"


@pytest.mark.parametrize("form", ["2.1", "2.1 inherited", "2.4", "2.8 with our network", "residual"])
def test_plans_of_every_version_describe_the_same_network(form, fork, folders, state):
    configuration = forks.old_configuration(PATCH, CHANNELS)
    source = fork()
    path = source / "plans.json"
    content = json.loads(path.read_text())
    if form == "2.1 inherited":
        own = {key: configuration.pop(key) for key in ("UNet_base_num_features", "batch_size")}
        base = configuration | {"UNet_base_num_features": 64, "batch_size": 3}
        content["configurations"] = {"base": base, "2d": {"inherits_from": "base", **own}}
    elif form.startswith("2.4") or form.startswith("2.8"):
        content = earlier.in_todays_form(content, "plans")
        if form.startswith("2.8"):
            entry = content["configurations"]["2d"]
            entry["architecture"] = to_our_architecture(entry["architecture"], PATCH, catalogue.row("UMambaBot").path)
    elif form == "residual":
        content["configurations"]["2d"]["UNet_class_name"] = "ResidualEncoderUNet"
    path.write_text(json.dumps(content))
    (adopted,) = adopt(source, forks.NAME)
    model = adopted.target.parent.parent
    kept = json.loads((model / "plans.json").read_text())["configurations"]
    assert kept["2d"]["architecture"]["arch_kwargs"]["features_per_stage"] == [8, 16, 16, 16]
    assert kept["2d"]["batch_size"] == 2
    network = export.read_network(model / "fold_0").network
    assert torch.equal(network.get_parameter("encoder.stem.0.conv1.weight"), state["encoder.stem.0.conv1.weight"])


def test_a_number_stands_for_the_data_set_that_is_here_or_that_the_plans_name(fork, folders):
    source = fork()
    (adopted,) = adopt(source, "701")
    assert adopted.target.parents[2].name == forks.NAME
    (folders.raw / "Dataset007_Other").mkdir()
    (adopted,) = adopt(source, "7")
    assert adopted.target.parents[2].name == "Dataset007_Other"
    content = json.loads((adopted.target.parents[1] / "plans.json").read_text())
    assert content["dataset_name"] == "Dataset007_Other"


def test_further_folds_join_a_model_and_others_are_replaced_only_when_told(fork, folders, state, tmp_path):
    source = fork(folds=(0, 1))
    adopt(source, forks.NAME, fold="0")
    (second,) = adopt(source, forks.NAME, fold="1")
    model = second.target.parents[1]
    assert {path.name for path in model.glob("fold_*")} == {"fold_0", "fold_1"}
    before = second.target.read_bytes()
    for words in ({"fold": "1"}, {}):
        with pytest.raises(UserError, match=r"fold_[01] exists: adopt another fold, or replace it: --overwrite"):
            adopt(source, forks.NAME, **words)
    assert second.target.read_bytes() == before
    assert len(adopt(source, forks.NAME, overwrite=True)) == 2
    other = forks.write_fork(
        tmp_path / "other", BOT, state, forks.old_configuration(PATCH, 1, batch_size=9), 1, CLASSES, folds=(2,)
    )
    with pytest.raises(UserError, match="holds a model with another plans.json: move that folder"):
        adopt(other, forks.NAME)
    assert {path.name for path in model.iterdir()} == {
        "plans.json",
        "dataset.json",
        "dataset_fingerprint.json",
        "fold_0",
        "fold_1",
    }


def test_a_source_that_lies_where_the_model_goes_is_not_replaced(fork, folders):
    source = fork()
    target = folders.results / forks.NAME / source.name
    target.parent.mkdir()
    source.rename(target)
    before = (target / "fold_0" / "checkpoint_final.pth").read_bytes()
    for source in (target, target / "fold_0", target / "fold_0" / "checkpoint_final.pth"):
        with pytest.raises(UserError, match="lies where the model goes, .*: move it away"):
            adopt(source, forks.NAME, overwrite=True)
    assert (target / "fold_0" / "checkpoint_final.pth").read_bytes() == before
    moved = target.rename(folders.results / "old")
    (adopted,) = adopt(moved, forks.NAME)
    assert adopted.target == target / "fold_0" / "checkpoint_final.pth"


# What does not fit


class Marker:
    """Leaves a trace if it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.mkdir, (self.path,)


NAN = torch.full((3,), float("nan"))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda s: without(s, "decoder.seg_layers.0."), "'decoder.seg_layers.0.bias' is absent in the weights"),
        (lambda s: without(s, "encoder.stem.0.conv1.weight"), "'encoder.stem.0.conv1.weight' is absent"),
        (lambda s: changed(s, mamba_layer_norm_weight=torch.zeros(5)), r"'mamba_layer.norm.weight' has shape \(5,\)"),
        (lambda s: changed(s, decoder_seg_layers_0_bias=NAN), "NaN or infinite values in 'decoder.seg_layers.0.bias'"),
        (
            lambda s: changed(s, decoder_encoder_stem_0_conv1_bias=torch.ones(8)),
            "two values for 'encoder.stem.0.conv1.bias'",
        ),
        (lambda s: {**s, "more.weight": torch.zeros(2)}, "'more.weight' has shape .* and is absent in the network"),
        (lambda s: {"conv.weight": torch.zeros(3)}, "weights of another network: those of U-Mamba-Enc, U-Mamba-Bot"),
        (lambda s: without(s, "mamba_layer."), "weights of another network"),
        (lambda s: {}, "holds no weights"),
    ],
)
def test_weights_that_do_not_fit_are_refused_in_one_sentence_and_nothing_is_written(
    change, sentence, fork, folders, state
):
    refused(fork(weights=change(state)), sentence, folders)


def refused(source: Path, sentence: str, folders, dataset: str = forks.NAME, **words) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        adopt(source, dataset, **words)
    assert "\n" not in str(caught.value)
    assert list(folders.results.iterdir()) == []


def test_a_checkpoint_of_another_trainer_or_system_is_refused(fork, folders):
    enc = small_state("UMambaEnc")
    refused(fork(weights=enc), "says that nnUNetTrainerUMambaBot wrote it and holds U-Mamba-Enc", folders)


def test_a_patch_that_its_channel_tokens_were_not_made_for_is_refused(fork, folders):
    source = fork(
        weights=small_state("UMambaEnc"),
        trainer="nnUNetTrainerUMambaEnc",
        configuration=forks.old_configuration([32, 16], CHANNELS),
    )
    refused(source, "does not fit U-Mamba-Enc as configuration '2d' describes it", folders)


def test_a_stock_model_of_nnunet_is_refused(fork, folders, state):
    network = PlainConvUNet(1, 2, [4, 4], torch.nn.Conv2d, 3, [1, 2], 1, 2, 1)
    refused(fork(weights=network.state_dict(), trainer="nnUNetTrainer"), "weights of another network", folders)


def test_a_foreign_pickle_is_refused_and_not_run(fork, folders, tmp_path):
    trace = tmp_path / "trace"
    refused(fork(more=Marker(trace)), r"holds more than weights and settings \(.*pathlib", folders)
    assert not trace.exists()


def test_plans_that_would_run_something_are_refused_and_not_run(fork, folders):
    source = fork()
    content = earlier.in_todays_form(json.loads((source / "plans.json").read_text()), "plans")
    content["configurations"]["2d"]["architecture"]["arch_kwargs"]["nonlin"] = "os.getcwd"
    (source / "plans.json").write_text(json.dumps(content))
    refused(source, r"neither a weight nor a setting \(os.getcwd\)", folders)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda data: data[: len(data) // 2], "is damaged .*: copy it anew"),
        (lambda data: b"", r"is damaged \(it is empty\)"),
        (lambda data: b"<html>", "does not begin as a file of PyTorch does"),
    ],
)
def test_a_damaged_checkpoint_is_refused(damage, sentence, fork, folders):
    path = fork() / "fold_0" / "checkpoint_final.pth"
    path.write_bytes(damage(path.read_bytes()))
    refused(path, sentence, folders)
    refused(path.parent.parent, sentence, folders)


def test_a_flipped_byte_is_refused(fork, folders):
    path = fork() / "fold_0" / "checkpoint_final.pth"
    small_model.flip(path)
    refused(path, "the checksum of its part .* is wrong", folders)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda p: p["configurations"].clear(), "has no configuration '2d'"),
        (lambda p: p["configurations"]["2d"].pop("UNet_base_num_features"), "no plans as nnU-Net writes them"),
        (lambda p: p["configurations"]["2d"].update(UNet_class_name="MyUNet"), "Unknown architecture MyUNet"),
        (lambda p: p["configurations"]["2d"].update(UNet_base_num_features=4), r"\('decoder.seg_layers.1.weight' has"),
        (lambda p: p["configurations"]["2d"].update(patch_size=[16, 16, 16]), "."),
        (lambda p: p.pop("configurations"), "no plans as nnU-Net writes them"),
        (lambda p: p["configurations"]["2d"].pop("spacing"), r"not as nnU-Net writes them \(KeyError\('spacing'\)\)"),
        (lambda p: p.update(plans_name="../up"), "'../up' cannot be a part of a folder's name"),
        (lambda p: p.update(image_reader_writer="Mine"), "names the reader 'Mine'"),
    ],
)
def test_plans_that_do_not_fit_are_refused(change, sentence, fork, folders):
    source = fork()
    content = json.loads((source / "plans.json").read_text())
    change(content)
    (source / "plans.json").write_text(json.dumps(content))
    refused(source, sentence, folders)


@pytest.mark.slow
@pytest.mark.parametrize("value", ["absent", None, 3, "x", [], {}], ids=repr)
def test_plans_with_anything_in_any_place_are_taken_or_refused_in_one_sentence(value, fork, folders):
    source = fork()
    whole = json.loads((source / "plans.json").read_text())
    for place in (whole, whole["configurations"]["2d"]):
        for key, before in list(place.items()):
            if value == "absent":
                del place[key]
            else:
                place[key] = value
            (source / "plans.json").write_text(json.dumps(whole))
            place[key] = before
            sentence = ""
            try:
                adopt(source, forks.NAME)
            except UserError as error:
                sentence = str(error)
            assert "\n" not in sentence
            assert bool(sentence) != (folders.results / forks.NAME).exists(), key
            shutil.rmtree(folders.results / forks.NAME, ignore_errors=True)


@pytest.mark.slow
@pytest.mark.parametrize("value", [None, 3, -1, 0.5, "x", [], [7], {}, (9,)], ids=repr)
def test_checkpoints_with_anything_in_any_place_are_taken_or_refused_in_one_sentence(value, fork, folders):
    path = fork() / "fold_0" / "checkpoint_final.pth"
    whole = torch.load(path, weights_only=False)
    for place in (whole, whole["init_args"], whole["logging"]):
        for key, before in list(place.items()):
            place[key] = value
            torch.save(whole, path)
            place[key] = before
            sentence = ""
            try:
                adopt(path, forks.NAME)
            except UserError as error:
                sentence = str(error)
            assert "\n" not in sentence
            assert bool(sentence) != (folders.results / forks.NAME).exists(), key
            shutil.rmtree(folders.results / forks.NAME, ignore_errors=True)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ({"configuration": "3d_fullres"}, "was trained with the configuration 2d, not 3d_fullres: leave -c out"),
        ({"fold": "4"}, "has no fold 4, it has 0"),
        ({"checkpoint": "checkpoint_best.pth"}, "does not exist: .* there is checkpoint_final.pth"),
        ({"dataset": "Balls"}, "'Balls' is neither the number of a data set nor a name"),
        ({"dataset": "12"}, "one data set Dataset012_\\* is needed, found none: name it in full"),
    ],
)
def test_words_that_do_not_fit_are_refused(words, sentence, fork, folders):
    refused(fork(), sentence, folders, **words)


@pytest.mark.parametrize("given", ["nowhere", "empty folder", "no training"])
def test_a_source_that_is_none_is_named(given, tmp_path, folders):
    source = tmp_path / "source"
    if given != "nowhere":
        source.mkdir()
    if given == "no training":
        (source / "plans.json").write_text("{}")
    refused(source, "source (is not there|has no folds): name", folders)


def test_a_data_set_with_other_labels_or_channels_is_refused(fork, folders):
    source = fork()
    prepare_dataset(folders, forks.old_configuration(PATCH, CHANNELS), CHANNELS, CLASSES + 1)
    refused(source, f"has the labels .* and {forks.NAME} has .*part 3", folders)
    file = folders.preprocessed / forks.NAME / "dataset.json"
    file.write_text(json.dumps(forks.dataset_json(CHANNELS + 1, CLASSES)))
    refused(source, f"has the channels 1 and {forks.NAME} has 2", folders)


def test_bare_weights_need_a_planned_data_set_with_that_configuration(folders, tmp_path, state):
    torch.save(state, tmp_path / "bare.pth")
    refused(tmp_path / "bare.pth", "one data set Dataset701_Golden is needed", folders)
    prepare_dataset(folders, forks.old_configuration([16] * 3, CHANNELS), CHANNELS, CLASSES)
    refused(tmp_path / "bare.pth", "has no configuration '2d', it has 3d_fullres: name one of these with -c", folders)
    sentence = "does not fit U-Mamba-Bot as configuration '3d_fullres' describes it"
    refused(tmp_path / "bare.pth", sentence, folders, configuration="3d_fullres")


def test_a_3d_network_is_refused_for_a_2d_plan(folders, tmp_path):
    small = {"features_per_stage": [4, 4, 4, 4], "n_blocks_per_stage": [1, 1, 1, 1], "hidden_size": 4}
    torch.save(catalogue.row("SegMamba").load()(CHANNELS, CLASSES, **small).state_dict(), tmp_path / "bare.pth")
    prepare_dataset(folders, forks.old_configuration(PATCH, CHANNELS), CHANNELS, CLASSES)
    sentence = "SegMamba is a 3D network and this configuration is 2D: take a 3D configuration"
    refused(tmp_path / "bare.pth", sentence, folders, configuration="2d")


@needs_golden
def test_a_2d_network_is_refused_for_a_3d_plan(folders, tmp_path):
    state = forks.weights(forks.golden("peers/swin_umamba")[1])
    configuration = forks.old_configuration([16] * 3, 2)
    source = forks.write_fork(tmp_path / "fork", "nnUNetTrainerSwinUMamba", state, configuration, 2, 2)
    refused(source, "SwinUMamba is a 2D network and this configuration is 3D: take the configuration 2d", folders)


# Stock commands


@pytest.mark.slow
def test_stock_commands_predict_go_on_and_start_from_an_adopted_model(folders, tmp_path, state):
    """A fork's training of one epoch, adopted, predicts, trains a second epoch, and is where another begins."""
    plans_file = small_dataset.copy_into(folders)
    content = json.loads(plans_file.read_text())
    source = tmp_path / "fork" / f"{BOT}__nnUNetPlans__tiny"
    network = content["configurations"]["2d"]["architecture"]["arch_kwargs"]
    stages = network["n_stages"]
    network["features_per_stage"] = [8, 16, 16, 16, 16, 16][:stages]
    content["configurations"]["tiny"] = {
        **content["configurations"]["2d"],
        "patch_size": [16, 16],
        "logvmamba": {
            "num_epochs": 2,
            "num_iterations_per_epoch": 1,
            "num_val_iterations_per_epoch": 1,
            "optimizer": "sgd",
            "initial_lr": 1e-12,
        },
    }
    plans_file.write_text(json.dumps(content))
    resolved = PlansManager(content).get_configuration("tiny")
    built = forks.scrambled(build_network(resolved, 1, 3, True, catalogue.row("UMambaBot").path))
    forks.write_fork(
        tmp_path / "fork",
        BOT,
        forks.with_duplicates(built.state_dict()),
        {"patch_size": [16, 16]},
        1,
        3,
        name="tiny",
        epochs=1,
    )
    for name in ("plans.json", "dataset.json"):
        (source / name).write_text(
            json.dumps(content) if name == "plans.json" else (plans_file.parent / name).read_text()
        )
    done = run_command(["logvmamba", "adopt", source, "-d", small_dataset.NUMBER], **folders.environment)
    target = folders.results / small_dataset.NAME / source.name / "fold_0" / "checkpoint_final.pth"
    assert str(target) in done.stdout

    small_dataset.write_raw(folders.raw)
    images = folders.raw / small_dataset.NAME / "imagesTr"
    for path in list(images.iterdir())[2:]:
        path.unlink()
    words = ["-d", small_dataset.NUMBER, "-c", "tiny", "-f", "0", "-tr", BOT, "-device", "cpu", "--disable_tta"]
    run_command(["nnUNetv2_predict", "-i", images, "-o", tmp_path / "out", *words], **folders.environment)
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 2

    command = ["nnUNetv2_train", small_dataset.NUMBER, "tiny"]
    begun = [*command, "1", "-tr", f"{BOT}_sgd", "-device", "cpu", "-pretrained_weights", target]
    run_command(begun, **folders.environment)
    fresh = folders.results / small_dataset.NAME / f"{BOT}_sgd__nnUNetPlans__tiny" / "fold_1" / "checkpoint_final.pth"
    for name, value in read_checkpoint(fresh)["network_weights"].items():
        if ".seg_layers." not in name:
            assert torch.allclose(value, built.state_dict()[name], atol=1e-6), name

    run_command([*command, "0", "-tr", BOT, "-device", "cpu", "--c"], **folders.environment)
    continued = read_checkpoint(target)
    assert continued["current_epoch"] == 2
    assert continued["logging"]["train_losses"][0] == 0.5
    assert len(continued["logging"]["train_losses"]) == 2
