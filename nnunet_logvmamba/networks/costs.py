"""What a network costs, stage by stage: parameters, multiply-adds, state updates, memory; nothing is computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from nnunet_logvmamba.networks.counting import count_multiply_adds, count_parameters

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Stage:
    """One stage by the dotted names of its modules, in the order they run; the last has the size of the stage.

    ``mixer`` names the token-mixing block at the end, or the chain (``nn.Sequential``) of like ones, and ``label`` says
    what it is; its costs are those of the stage as well.
    """

    name: str
    modules: Sequence[str]
    mixer: str | None = None
    label: str = "-"


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


def summarize(network: nn.Module, channels: int, patch_size: Sequence[int], batch_size: int) -> Summary:
    """Measure a network that lives on the meta device.

    Args:
        network: Any. It is left in evaluation mode. Work is counted with the heads that it runs as it comes, memory
            with all of them where it has a ``decoder`` as nnU-Net expects.
        channels: Input channels.
        patch_size: Voxels per axis.
        batch_size: For ``activation_bytes`` only.
    """
    import torch

    decoder: Any = getattr(network, "decoder", None)
    built_with, switched = getattr(decoder, "deep_supervision", False), hasattr(decoder, "seg_layers")
    network.train()
    if switched:
        decoder.deep_supervision = len(decoder.seg_layers) > 1
    activation_bytes = _activation_bytes(network, torch.empty(batch_size, channels, *patch_size, device="meta"))

    network.eval()
    if switched:
        decoder.deep_supervision = built_with
    sizes: dict[str, tuple[int, ...]] = {}
    widths: dict[str, int] = {}

    def note_size(name: str):
        def hook(module: nn.Module, inputs: tuple, output: Any) -> None:
            image = isinstance(output, torch.Tensor) and output.ndim == len(patch_size) + 2
            sizes[name], widths[name] = (tuple(output.shape[2:]), output.shape[1]) if image else ((), 0)

        return hook

    hooks = [module.register_forward_hook(note_size(name)) for name, module in network.named_modules() if name]
    counts = count_multiply_adds(network, channels, patch_size)
    for hook in hooks:
        hook.remove()
    costs = _Costs(network, counts, sizes, widths)
    return Summary(
        rows=[costs.row(stage) for stage in _stages(network, sizes)],
        parameters=count_parameters(network),
        multiply_adds=counts[""],
        state_updates=costs.state_updates(),
        activation_bytes=activation_bytes,
        batch_size=batch_size,
    )


def names_in(parent: str, modules: Any) -> tuple[str, ...]:
    """Dotted names of what a list of modules holds."""
    return tuple(f"{parent}.{index}" for index in range(len(modules)))


def heads(network: Any) -> Stage:
    """The stage of the heads of all scales."""
    names = names_in("decoder.seg_layers", network.decoder.seg_layers)
    return Stage(f"heads ({len(names)})", names)


def _stages(network: Any, sizes: dict[str, tuple[int, ...]]) -> list[Stage]:
    """What a network of ours says, the stages of one of nnU-Net's, and of any other the modules that it is made of."""
    stages = network.costs_by_stage() if hasattr(network, "costs_by_stage") else []
    if stages:
        return stages
    encoder: Any = getattr(network, "encoder", None)
    decoder: Any = getattr(network, "decoder", None)
    if hasattr(encoder, "stages") and hasattr(decoder, "transpconvs"):
        stages = [] if getattr(encoder, "stem", None) is None else [Stage("stem", ("encoder.stem",))]
        for index, name in enumerate(names_in("encoder.stages", encoder.stages)):
            stages.append(Stage(f"encoder {index}", (name,)))
        for step in range(len(decoder.stages)):
            parts = (f"decoder.{part}.{step}" for part in ("transpconvs", "seg_layers", "stages"))
            stages.append(Stage(f"decoder {step}", tuple(parts)))
        return stages
    names = _outermost(network, "", sizes)
    while len(names) == 1 and (inside := _outermost(network.get_submodule(names[0]), f"{names[0]}.", sizes)):
        names = inside
    return [Stage(name, (name,)) for name in names]


def _outermost(module: nn.Module, prefix: str, called: dict[str, tuple[int, ...]]) -> list[str]:
    """The modules with weights that were called inside a module and are in no other such module."""
    names = []
    for name, child in module.named_children():
        if prefix + name not in called:  # a list, or a module whose parts are called one by one
            names += _outermost(child, f"{prefix}{name}.", called)
        elif count_parameters(child):
            names.append(prefix + name)
    return names


@dataclass(frozen=True)
class _Costs:
    network: nn.Module
    multiply_adds: dict[str, int]
    sizes: dict[str, tuple[int, ...]]
    widths: dict[str, int]

    def of(self, *names: str) -> tuple[int, int]:
        modules = [self.network.get_submodule(name) for name in names]
        return sum(map(count_parameters, modules)), sum(self.multiply_adds.get(name, 0) for name in names)

    def row(self, stage: Stage) -> Row:
        if stage.mixer is None:
            parameters, multiply_adds = self.of(*stage.modules)
            size = self.sizes[stage.modules[-1]]
            return Row(stage.name, size, parameters=parameters, multiply_adds=multiply_adds)
        mixer: Any = self.network.get_submodule(stage.mixer)
        blocks: tuple[str, ...] = (stage.mixer,)
        label = stage.label
        if hasattr(mixer, "__len__"):  # a chain of like ones
            blocks, mixer = names_in(stage.mixer, mixer), mixer[0]
            label = f"{len(blocks)} {label}" + (f", {mixer.directions} directions" if mixer.directions > 1 else "")
        tokens, local, glob = self._tokens_in_words(blocks[0], mixer)
        costs = (*self.of(*stage.modules, *blocks), *self.of(*blocks))
        return Row(stage.name, self.sizes[blocks[0]], tokens, label, local, glob, *costs)

    def _tokens_in_words(self, name: str, block: Any) -> tuple[str, str, str]:
        """Number of tokens, local tokens and global tokens of a block."""
        if hasattr(block, "length"):
            return f"{block.length(self.widths[name], self.sizes[name]):,}", "-", "-"
        tokens, local, glob = f"{prod(self.sizes[name]):,}", "-", "-"
        extractor, context = block.local_tokens, block.global_tokens
        if hasattr(extractor, "window"):
            squeeze = extractor.conv.in_channels // extractor.conv.groups
            local = f"R {extractor.window}, S {squeeze}, width {extractor.width}"
        if context is not None:
            here, grid = self.sizes[f"{name}.global_tokens.conv"], context.canonical_grid
            tokens += f" + {context.num_tokens}"
            glob = f"stride {times(context.conv.stride)}, q {extractor.width // context.num_tokens}, "
            glob += f"G {context.num_tokens}, grid {times(grid)}" + ("" if here == grid else f" used at {times(here)}")
        return tokens, local, glob

    def state_updates(self) -> int:
        total = 0
        for name, block in self.network.named_modules():
            ssm: Any = getattr(block, "ssm", None)
            if hasattr(ssm, "state_size"):  # not what stands in its place in the control without states
                context: Any = getattr(block, "global_tokens", None)
                length = prod(self.sizes.get(name, (0,))) + (0 if context is None else context.num_tokens)
                total += length * ssm.A_log.numel()  # channels of all directions times states
            elif hasattr(block, "states"):
                total += block.length(self.widths.get(name, 0), self.sizes.get(name, (0,))) * block.states
        return total


def gib(size: float) -> str:
    """Give bytes in GiB."""
    return f"{size / 2**30:.2f}"


def times(sizes: Sequence[int]) -> str:
    """Sizes as they are shown, ``8x8x8``; ``-`` where there is no image."""
    return "x".join(map(str, sizes)) or "-"


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
