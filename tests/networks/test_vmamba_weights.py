"""Published ImageNet weights: both generations of names, other channel counts, and what is refused."""

import pathlib

import pytest
import torch

from nnunet_logvmamba.networks.blocks.vmamba_encoder import VMambaEncoder
from nnunet_logvmamba.networks.blocks.vmamba_weights import load_vmamba_encoder

IN_BLOCK = {  # published name inside a block's mixer: ours
    "in_proj.weight": "in_proj.weight",
    "conv2d.weight": "local_tokens.conv.weight",
    "conv2d.bias": "local_tokens.conv.bias",
    "x_proj_weight": "ssm.x_proj_weight",
    "dt_projs_weight": "ssm.dt_proj_weight",
    "dt_projs_bias": "ssm.dt_bias",
    "A_logs": "ssm.A_log",
    "Ds": "ssm.D",
    "out_norm.weight": "out_norm.weight",
    "out_norm.bias": "out_norm.bias",
    "out_proj.weight": "out_proj.weight",
}
NAMES = {  # first and later generation
    "embedding": ("patch_embed.proj", "patch_embed.0"),
    "embedding norm": ("patch_embed.norm", "patch_embed.2"),
    "merging norm": ("downsample.norm", "downsample.norm"),
    "merging": ("downsample.reduction", "downsample.reduction"),
    "norm": ("ln_1", "norm"),
    "mixer": ("self_attention", "op"),
    "head": ("head", "classifier.head"),
    "last norm": ("norm", "classifier.norm"),
}
WIDTHS, DEPTHS = (8, 16), (1, 2)
CLASSIFIER = 4


def encoder(input_channels=3, widths=WIDTHS, depths=DEPTHS, **options) -> VMambaEncoder:
    options = {"drop_path": 0.0, "checkpointing": False, "backend": "auto", **options}
    strides = [(4, 4) if options.get("reads_image", True) else (2, 2), (2, 2)]
    return VMambaEncoder(input_channels, widths, strides, depths, **options)


def published(network: VMambaEncoder, generation: int) -> dict[str, torch.Tensor]:
    """The weights of an encoder under published names, with a classifier on top."""
    names = {what: pair[generation] for what, pair in NAMES.items()}
    own = network.state_dict()
    tensors = {}
    for kind in ("weight", "bias"):
        tensors[f"{names['embedding']}.{kind}"] = own[f"patch_embed.proj.{kind}"]
        tensors[f"{names['embedding norm']}.{kind}"] = own[f"patch_embed.norm.{kind}"]
    for stage, depth in enumerate(DEPTHS):
        for block in range(depth):
            theirs, ours = f"layers.{stage}.blocks.{block}", f"stages.{stage}.{block}"
            for kind in ("weight", "bias"):
                tensors[f"{theirs}.{names['norm']}.{kind}"] = own[f"{ours}.norm.{kind}"]
            for name, key in IN_BLOCK.items():
                tensors[f"{theirs}.{names['mixer']}.{name}"] = own[f"{ours}.{key}"]
        if stage + 1 < len(DEPTHS):
            for kind in ("weight", "bias"):
                tensors[f"layers.{stage}.{names['merging norm']}.{kind}"] = own[f"mergers.{stage}.norm.{kind}"]
            tensors[f"layers.{stage}.{names['merging']}.weight"] = own[f"mergers.{stage}.reduction.weight"]
    for kind, value in (("weight", torch.zeros(5, WIDTHS[-1])), ("bias", torch.zeros(5))):
        tensors[f"{names['head']}.{kind}"] = value
        tensors[f"{names['last norm']}.{kind}"] = torch.zeros(WIDTHS[-1])
    return tensors


def different(seed: int) -> VMambaEncoder:
    """An encoder in which every tensor differs from that of any other seed."""
    network = encoder()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in network.state_dict().values():
            value.copy_(torch.randn(value.shape, generator=generator))
    return network


@pytest.mark.parametrize("wrapped", ["model", "state_dict", None], ids=str)
@pytest.mark.parametrize("generation", [0, 1], ids=["first", "later"])
def test_both_generations_of_names_are_loaded_tensor_by_tensor(generation, wrapped, tmp_path):
    source, target = different(1), different(2)
    tensors = published(source, generation)
    torch.save(tensors if wrapped is None else {wrapped: tensors, "epoch": 292}, tmp_path / "vmamba.pth")
    report = load_vmamba_encoder(target, tmp_path / "vmamba.pth")
    expected = source.state_dict()
    for key, value in target.state_dict().items():
        assert torch.equal(value, expected[key]), key
    assert set(report.loaded) == set(expected)
    assert (report.share, report.missing, report.adapted_channels) == (1.0, (), None)
    assert len(report.skipped) == CLASSIFIER
    assert all(key.startswith(("head", "norm", "classifier")) for key in report.skipped)


def save(tensors: dict, folder: pathlib.Path) -> pathlib.Path:
    torch.save({"model": tensors}, folder / "vmamba.pth")
    return folder / "vmamba.pth"


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_a_grey_image_repeated_in_every_channel_gives_what_it_gave_in_colour(channels, tmp_path):
    source, target = encoder(), encoder(channels)
    report = load_vmamba_encoder(target, save(published(source, 0), tmp_path))
    assert report.adapted_channels == channels
    grey = torch.randn(1, 1, 16, 16)
    with torch.no_grad():
        for theirs, ours in zip(source(grey.expand(-1, 3, -1, -1)), target(grey.expand(-1, channels, -1, -1))):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_an_encoder_that_reads_a_map_keeps_its_patch_embedding_whole(tmp_path):
    source, target = different(1), encoder(6, reads_image=False)
    before = {key: value.clone() for key, value in target.state_dict().items()}
    report = load_vmamba_encoder(target, save(published(source, 0), tmp_path))
    own = {key for key in before if key.startswith("patch_embed.")}
    assert len(own) == 4
    assert set(report.missing) == own
    assert {report.skipped[key] for key in own} == {"the encoder reads a map in place of an image"}
    for key, value in target.state_dict().items():
        assert torch.equal(value, before[key] if key in own else source.state_dict()[key]), key


def test_a_few_missing_tensors_keep_their_values_and_are_reported(tmp_path):
    source, target = different(1), different(2)
    tensors = published(source, 0)
    del tensors["layers.0.blocks.0.ln_1.bias"]
    kept = target.stages[0][0].norm.bias.clone()
    report = load_vmamba_encoder(target, save(tensors, tmp_path))
    assert report.missing == ("stages.0.0.norm.bias",)
    assert 0.95 < report.share < 1
    assert torch.equal(target.stages[0][0].norm.bias, kept)


def later_layout(network: VMambaEncoder) -> dict[str, torch.Tensor]:
    """Blocks without a gate and with an MLP, one state, two convolutions ahead: what was published later."""
    tensors = published(network, 1)
    for key in list(tensors):
        if key.endswith("op.in_proj.weight"):
            tensors[key] = tensors[key][: len(tensors[key]) // 2]
            tensors[key.replace("op.in_proj", "mlp.fc1")] = torch.zeros(4, 4)
        if key.endswith("A_logs"):
            tensors[key] = tensors[key][:, :1]
    tensors["patch_embed.0.weight"] = torch.zeros(4, 3, 3, 3)
    return tensors


def deeper(network: VMambaEncoder) -> dict[str, torch.Tensor]:
    """One block more than the encoder has: what a larger model of the same widths would bring."""
    tensors = published(network, 0)
    block = "layers.1.blocks."
    return tensors | {key.replace(f"{block}1.", f"{block}2."): value for key, value in tensors.items() if block in key}


def without_stem(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return tensors | {"patch_embed.proj.weight": tensors["patch_embed.proj.weight"][:, :1]}


def poisoned(network: VMambaEncoder) -> dict[str, torch.Tensor]:
    tensors = {key: value.clone() for key, value in published(network, 0).items()}
    tensors["layers.1.blocks.1.self_attention.Ds"][3] = float("nan")
    return tensors


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (later_layout, r"have an MLP and no gate, which is the later layout.*provides .*% of the parameters"),
        (lambda _: published(encoder(widths=(16, 32)), 0), "its shape is .*, that of the encoder"),
        (deeper, r"'layers.1.blocks.2.ln_1.weight': the encoder has no such layer; it provides 100.0%"),
        (
            lambda network: without_stem(published(network, 0)),
            r"'patch_embed.proj.weight': its shape is \(8, 1, 4, 4\)",
        ),
        (lambda _: {"conv1.weight": torch.zeros(64, 3, 7, 7)}, "its names are not those of VMamba"),
        (
            lambda network: {k: v for k, v in published(network, 0).items() if not k.startswith("layers.1")},
            r"\('stages.1.0.norm.weight' is not in it; it provides .*%",
        ),
        (poisoned, r"holds NaN or infinite values in 'layers.1.blocks.1.self_attention.Ds'"),
        (lambda _: {}, "holds no weights"),
        (lambda _: {"epoch": 3}, "holds no weights"),
        (
            lambda _: {"config": pathlib.PurePosixPath("a")},
            r"cannot be read as a file of tensors .*torch.save\({'model'",
        ),
    ],
    ids=[
        "later layout",
        "other widths",
        "more blocks",
        "other stem",
        "another network",
        "half of it",
        "NaN",
        "empty",
        "no tensor",
        "no plain file",
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence_and_changes_nothing(content, sentence, tmp_path):
    target = different(2)
    before = {key: value.clone() for key, value in target.state_dict().items()}
    path = save(content(encoder()), tmp_path)
    with pytest.raises(ValueError, match=sentence) as error:
        load_vmamba_encoder(target, path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert all(torch.equal(value, before[key]) for key, value in target.state_dict().items())


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_download_that_broke_off_is_refused(share, tmp_path):
    path = save(published(encoder(), 0), tmp_path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match="vmamba.pth cannot be read as a file of tensors") as error:
        load_vmamba_encoder(encoder(), path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 half", b"<html>not found</html>", b"Gone", b"Just text", b"."])
def test_a_file_that_is_no_checkpoint_is_refused(content, tmp_path):
    (tmp_path / "vmamba.pth").write_bytes(content)
    with pytest.raises(ValueError, match="vmamba.pth cannot be read as a file of tensors") as error:
        load_vmamba_encoder(encoder(), tmp_path / "vmamba.pth")
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.pth is not a file"):
        load_vmamba_encoder(encoder(), tmp_path / "nowhere.pth")
