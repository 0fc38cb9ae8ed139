"""``logvmamba summary``: a network stage by stage, with what it costs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from nnunet_logvmamba.cli import terminal
from nnunet_logvmamba.cli.options import at_least, examples
from nnunet_logvmamba.errors import UserError
from nnunet_logvmamba.networks.counting import count_multiply_adds, count_parameters

if TYPE_CHECKING:
    from torch import Tensor, nn

    from nnunet_logvmamba.networks.log_vmamba.policy import StageSettings

BYTES = 4  # of a float32
COPIES = {"adam": 4, "sgd": 3}  # of every weight while training: itself, its gradient, and one or two running means


@dataclass(frozen=True)
class Row:
    """One stage: sizes in voxels, multiply-adds for one patch forwards; the block's share is in the whole as well."""

    stage: str
    size: tuple[int, ...]
    tokens: str = "-"
    mixer: str = "-"
    local_tokens: str = "-"
    global_tokens: str = "-"
    parameters: int = 0
    multiply_adds: int = 0
    block_parameters: int = 0
    block_multiply_adds: int = 0


@dataclass(frozen=True)
class Summary:
    """A network on one patch.

    ``multiply_adds`` are those of convolutions and matrix products; interpolation, element-wise operations and the
    scan, whose ``state_updates`` are given apart, are not among them. ``activation_bytes`` is what the backward pass
    keeps of a whole batch in float32.
    """

    rows: list[Row]
    parameters: int
    multiply_adds: int
    state_updates: int
    activation_bytes: int
    batch_size: int


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add ``summary`` to the sub-commands of ``logvmamba``."""
    parser = subparsers.add_parser(
        "summary",
        help="show a network stage by stage: tokens, parameters, multiply-adds, memory",
        description="Show the network that a trainer builds from a plan, or a published one, stage by stage. Nothing "
        "is computed, so no memory is needed whatever the patch.",
        **examples(
            "reference/commands.md#logvmamba-summary",
            "logvmamba summary -d 4 -c 3d_fullres",
            "logvmamba summary --preset paper3d --patch-size 96 160 160",
        ),
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("-d", "--dataset", metavar="ID", help="number or name of a data set that has been planned")
    source.add_argument("--preset", metavar="NAME", help="a published network, paper3d or paper2d")
    parser.add_argument("-c", "--configuration", default="3d_fullres", help="default: %(default)s")
    parser.add_argument("-p", "--plans", default="nnUNetPlans", help="name of the plans (default: %(default)s)")
    parser.add_argument("-tr", "--trainer", default="nnUNetTrainerLoGVMamba", help="default: %(default)s")
    parser.add_argument(
        "--patch-size",
        type=at_least(1, int),
        nargs="+",
        metavar="N",
        help="voxels per axis, instead of those of the plans or the publication",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the table.

    Raises:
        UserError: If the preset, data set, configuration or trainer does not exist, the network cannot be built or
            takes no such patch.
    """
    if args.preset is not None:
        network, channels, patch_size, batch_size = _from_preset(args.preset)
        optimizer, title = "adam", f"preset {args.preset}"
    else:
        network, channels, patch_size, batch_size, optimizer = _from_plans(args)
        title = f"{args.trainer}, {args.configuration} of {args.plans}, data set {args.dataset}"
    if args.patch_size is not None:
        if len(args.patch_size) != len(patch_size):
            raise UserError(
                f"--patch-size has {len(args.patch_size)} number(s) and this network {len(patch_size)} axes: give one "
                f"for each, as in --patch-size {' '.join(map(str, patch_size))}"
            )
        patch_size = args.patch_size
    try:
        summary = summarize(network, channels, patch_size, batch_size)
    except (ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"a patch of {_times(patch_size)} does not pass through the network: {reason}") from error
    lines = [f"{title}: {type(network).__name__}, {channels} input channels, patch {_times(patch_size)}", ""]
    lines += [_table(summary, terminal.width()), "", *_legend(summary), ""]
    weights = COPIES[optimizer] * BYTES * summary.parameters
    lines += [
        f"parameters    {summary.parameters:,}",
        f"multiply-adds {summary.multiply_adds / 1e9:.2f} GMAC in convolutions and matrix products, one patch forwards",
    ]
    if summary.state_updates:
        lines.append(f"scan          {summary.state_updates / 1e9:.3f} G state updates, not among the multiply-adds")
    lines.append(
        f"training      {_gib(weights + summary.activation_bytes)} GiB estimated for batch {batch_size} in float32: "
        f"{_gib(summary.activation_bytes)} kept for the backward pass (counted on a dry run) and {_gib(weights)} for "
        f"weights, gradients and {optimizer}; workspaces come on top, and mixed precision about halves the first part"
    )
    terminal.show("\n".join(lines))
    return 0


def summarize(network: nn.Module, channels: int, patch_size: Sequence[int], batch_size: int) -> Summary:
    """Measure a network that lives on the meta device.

    Args:
        network: With an ``encoder`` and a ``decoder``; of ours, or one that nnU-Net plans. It is left in evaluation
            mode. Work is counted with the heads that it runs as it comes, memory with all of them.
        channels: Input channels.
        patch_size: Voxels per axis.
        batch_size: For ``activation_bytes`` only.
    """
    import torch

    built_with = getattr(network.decoder, "deep_supervision", False)
    network.train()
    network.decoder.deep_supervision = len(network.decoder.seg_layers) > 1
    activation_bytes = _activation_bytes(network, torch.empty(batch_size, channels, *patch_size, device="meta"))

    network.eval()
    network.decoder.deep_supervision = built_with
    sizes: dict[str, tuple[int, ...]] = {}

    def note_size(name: str):
        def hook(module: nn.Module, inputs: tuple, output: Tensor) -> None:
            if isinstance(output, torch.Tensor):
                sizes[name] = tuple(output.shape[2:])

        return hook

    hooks = [module.register_forward_hook(note_size(name)) for name, module in network.named_modules() if name]
    counts = count_multiply_adds(network, channels, patch_size)
    for hook in hooks:
        hook.remove()
    costs = _Costs(network, counts, sizes)
    ours = hasattr(network, "settings")
    if not ours:
        rows = _stock_rows(costs)
    else:
        rows = _unet_rows(costs) if hasattr(network.encoder, "mixers") else _swin_rows(costs)
    return Summary(
        rows=rows,
        parameters=count_parameters(network),
        multiply_adds=counts[""],
        state_updates=_state_updates(network, sizes) if ours else 0,
        activation_bytes=activation_bytes,
        batch_size=batch_size,
    )


@dataclass(frozen=True)
class _Costs:
    network: nn.Module
    multiply_adds: dict[str, int]
    sizes: dict[str, tuple[int, ...]]

    def of(self, *names: str) -> tuple[int, int]:
        modules = [self.network.get_submodule(name) for name in names]
        return sum(map(count_parameters, modules)), sum(self.multiply_adds.get(name, 0) for name in names)


def _unet_rows(costs: _Costs) -> list[Row]:
    network, sizes = costs.network, costs.sizes
    rows = [_row_without_blocks(costs, "stem", "encoder.stem")]
    for index, setting in enumerate(network.settings):
        block = f"encoder.mixers.{index}"
        words = _block_words(costs, block, setting) if setting.mixes else ("-", "-", "-", "-")
        rows.append(
            Row(
                f"mixing {index}",
                sizes[block],
                *words,
                *costs.of(f"encoder.stages.{index}", block),
                *costs.of(block),
            )
        )
    for step in range(len(network.decoder.stages)):
        stage = f"decoder.stages.{step}"
        rows.append(_row_without_blocks(costs, f"decoder {step}", stage, ahead=f"decoder.upsamplers.{step}"))
    return [*rows, _heads_row(costs, rows[0].size)]


def _swin_rows(costs: _Costs) -> list[Row]:
    encoder, decoder = costs.network.encoder, costs.network.decoder
    rows = [_row_without_blocks(costs, "patches", "encoder.patch_embed")]
    for index in range(len(encoder.stages)):
        ahead = [f"encoder.mergers.{index - 1}"] if index else []
        rows.append(_row_of_blocks(costs, f"encoder {index}", f"encoder.stages.{index}", ahead))
    last = len(decoder.stages)
    for step, setting in enumerate(reversed(costs.network.settings)):
        ahead = [f"decoder.expansions.{step}", f"decoder.fusions.{step}"]
        rows.append(_row_of_blocks(costs, f"decoder {step}", f"decoder.stages.{step}", ahead, setting))
    rows.append(_row_without_blocks(costs, f"decoder {last}", f"decoder.expansions.{last}"))
    return [*rows, _heads_row(costs, rows[-1].size)]


def _row_without_blocks(costs: _Costs, stage: str, name: str, ahead: str | None = None) -> Row:
    names = [name] if ahead is None else [ahead, name]
    parameters, multiply_adds = costs.of(*names)
    return Row(stage, costs.sizes[name], parameters=parameters, multiply_adds=multiply_adds)


def _row_of_blocks(
    costs: _Costs, stage: str, name: str, ahead: Sequence[str], setting: StageSettings | None = None
) -> Row:
    """Row of a stage that is a chain of like blocks, with the modules ahead of it; without a setting they are VSS."""
    chain = costs.network.get_submodule(name)
    blocks = [f"{name}.{index}" for index in range(len(chain))]
    size = costs.sizes[blocks[0]]
    tokens, label, local, glob = (
        (f"{prod(size):,}", "VSS", "-", "-") if setting is None else _block_words(costs, blocks[0], setting)
    )
    label = f"{len(chain)} {label}" + (f", {chain[0].directions} directions" if chain[0].directions > 1 else "")
    return Row(stage, size, tokens, label, local, glob, *costs.of(*ahead, *blocks), *costs.of(*blocks))


def _heads_row(costs: _Costs, size: tuple[int, ...]) -> Row:
    heads = [f"decoder.seg_layers.{index}" for index in range(len(costs.network.decoder.seg_layers))]
    parameters, multiply_adds = costs.of(*heads)
    return Row(f"heads ({len(heads)})", size, parameters=parameters, multiply_adds=multiply_adds)


def _block_words(costs: _Costs, name: str, setting: StageSettings) -> tuple[str, str, str, str]:
    """Number of tokens, kind, local tokens and global tokens of a block."""
    block = costs.network.get_submodule(name)
    tokens, local, glob = f"{prod(costs.sizes[name]):,}", "-", "-"
    if setting.local_tokens:
        squeeze = block.local_tokens.conv.in_channels // block.local_tokens.conv.groups
        local = f"R {block.local_tokens.window}, S {squeeze}, width {setting.token_width}"
    if block.global_tokens is not None:
        here = costs.sizes[f"{name}.global_tokens.conv"]
        tokens += f" + {block.global_tokens.num_tokens}"
        glob = f"stride {_times(setting.global_stride)}, q {setting.channels_per_token}, "
        glob += f"G {block.global_tokens.num_tokens}, grid {_times(setting.canonical_grid)}"
        glob += "" if here == setting.canonical_grid else f" used at {_times(here)}"
    return tokens, setting.label, local, glob


def _stock_rows(costs: _Costs) -> list[Row]:
    rows = []
    encoder = costs.network.encoder
    if getattr(encoder, "stem", None) is not None:
        parameters, multiply_adds = costs.of("encoder.stem")
        rows.append(Row("stem", costs.sizes["encoder.stem"], parameters=parameters, multiply_adds=multiply_adds))
    for index in range(len(encoder.stages)):
        name = f"encoder.stages.{index}"
        parameters, multiply_adds = costs.of(name)
        rows.append(Row(f"encoder {index}", costs.sizes[name], parameters=parameters, multiply_adds=multiply_adds))
    for step in range(len(costs.network.decoder.stages)):
        names = (f"decoder.transpconvs.{step}", f"decoder.stages.{step}", f"decoder.seg_layers.{step}")
        parameters, multiply_adds = costs.of(*names)
        rows.append(Row(f"decoder {step}", costs.sizes[names[1]], parameters=parameters, multiply_adds=multiply_adds))
    return rows


def _activation_bytes(network: nn.Module, patches: Tensor) -> int:
    """Bytes that a backward pass would keep; every piece of memory counts once, weights do not count."""
    import torch

    own = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if tensor.device.type == "meta" and storage._cdata not in own:
            kept[storage._cdata] = storage  # held, so that no other piece gets its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = network(patches)
    del output
    return sum(storage.nbytes() for storage in kept.values())


def _state_updates(network: nn.Module, sizes: dict[str, tuple[int, ...]]) -> int:
    total = 0
    for name, block in network.named_modules():
        ssm = getattr(block, "ssm", None)
        if hasattr(ssm, "state_size"):  # not what stands in its place in the control without states
            length = prod(sizes[name]) + (0 if block.global_tokens is None else block.global_tokens.num_tokens)
            total += length * ssm.A_log.numel()  # channels of all directions times states
    return total


def _from_preset(name: str) -> tuple[nn.Module, int, Sequence[int], int]:
    import torch

    from nnunet_logvmamba import networks
    from nnunet_logvmamba.networks.log_vmamba.presets import PRESETS

    if name not in PRESETS:
        raise UserError(f"there is no preset '{name}'; there are {', '.join(PRESETS)}")
    preset = PRESETS[name]
    with torch.device("meta"):
        network = getattr(networks, preset["network"])(**preset["arguments"])
    return network, preset["arguments"]["input_channels"], preset["patch_size"], 1


def _from_plans(args: argparse.Namespace) -> tuple[nn.Module, int, Sequence[int], int, str]:
    import torch
    from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from nnunet_logvmamba.plugin import trainers
    from nnunet_logvmamba.plugin.plans import find_plans, why_not_planned
    from nnunet_logvmamba.plugin.trainer_names import find_trainer

    try:
        _, plans, dataset_json = find_plans(args.dataset, args.plans)
    except ValueError as error:
        raise UserError(str(error)) from error
    if args.configuration not in plans["configurations"]:
        there = ", ".join(plans["configurations"]) + why_not_planned(plans, args.configuration)
        raise UserError(f"there is no configuration '{args.configuration}' in {args.plans}; there are {there}")
    trainer = getattr(trainers, args.trainer, None) if args.trainer.startswith("nnUNetTrainer") else None
    trainer = trainer or find_trainer(args.trainer)
    try:
        plans_manager = PlansManager(plans)
        manager = plans_manager.get_configuration(args.configuration)
        channels = determine_num_input_channels(plans_manager, manager, dataset_json)
        classes = plans_manager.get_label_manager(dataset_json).num_segmentation_heads
        with torch.device("meta"):
            network = trainer.build_network_architecture(plans_manager, manager, channels, classes, False)
    except (RuntimeError, ValueError) as error:  # our sentence about the plan
        raise UserError(str(error)) from error
    optimizer = "sgd"
    if issubclass(trainer, trainers.RecipeTrainer):
        optimizer = trainer.choose_recipe(manager).optimizer
    return network, channels, manager.patch_size, manager.batch_size, optimizer


def _table(summary: Summary, width: int | None) -> str:
    from nnunet_logvmamba.evaluation.layout import in_columns

    head = ("stage", "size", "tokens", "mixer", "LTX", "GTX", "parameters", "of block", "GMAC", "of block")
    cells = [head]
    digits = 2 if summary.multiply_adds >= 1e10 else 4
    for row in summary.rows:
        block = (
            ("-", "-")
            if row.mixer == "-"
            else (f"{row.block_parameters:,}", f"{row.block_multiply_adds / 1e9:.{digits}f}")
        )
        words = (row.stage, _times(row.size), row.tokens, row.mixer, row.local_tokens, row.global_tokens)
        cells.append((*words, f"{row.parameters:,}", block[0], f"{row.multiply_adds / 1e9:.{digits}f}", block[1]))
    blocks = sum(row.block_parameters for row in summary.rows)
    block_multiply_adds = sum(row.block_multiply_adds for row in summary.rows)
    totals = (f"{summary.parameters:,}", f"{blocks:,}", f"{summary.multiply_adds / 1e9:.{digits}f}")
    cells.append(("total", "", "", "", "", "", *totals, f"{block_multiply_adds / 1e9:.{digits}f}"))
    return in_columns(cells, right=range(6, len(head)), beside=(7, 9), rule=False, width=width)


def _legend(summary: Summary) -> list[str]:
    """What the columns of the table mean, those of the network's blocks only where it has some."""
    rows = [("size", "voxels per axis of the stage's map")]
    if any(row.mixer != "-" for row in summary.rows):
        rows += [
            ("tokens", "sequence of a block: one token per voxel, + global tokens"),
            ("mixer", "kind of the block"),
            ("LTX", "local tokens: window R, S channels squeezed into one, width"),
            ("GTX", "global tokens: stride, q channels for each, their number G"),
        ]
    rows += [("GMAC", "billions of multiply-adds; 'of block': the block's share of them")]
    return [f"{name:<8}{text}" for name, text in rows]


def _times(sizes: Sequence[int]) -> str:
    return "x".join(map(str, sizes))


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f}"
