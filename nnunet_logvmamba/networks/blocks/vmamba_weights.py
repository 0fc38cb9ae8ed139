"""Published ImageNet weights for the encoder of the Swin lineage: key maps, checks and a report of what was taken.

Two generations of names are read, told apart tensor by tensor:

====================== =============================== ===============================
ours                   first generation                later generation
====================== =============================== ===============================
``patch_embed.proj``   ``patch_embed.proj``            ``patch_embed.0``
``patch_embed.norm``   ``patch_embed.norm``            ``patch_embed.2``
``mergers.I``          ``layers.I.downsample``         ``layers.I.downsample``
``stages.I.J.norm``    ``layers.I.blocks.J.ln_1``      ``layers.I.blocks.J.norm``
``stages.I.J``         ``….J.self_attention``          ``….J.op``
====================== =============================== ===============================

References: VMamba (arXiv 2401.10166), checkpoints ``vssmtiny_dp01_ckpt_epoch_292``, ``vmamba_tiny_e292`` and later.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from nnunet_logvmamba.networks.blocks.vmamba_encoder import VMambaEncoder
from nnunet_logvmamba.networks.published_names import mixer_name

LEAST_SHARE = 0.95
"""Share of the encoder's parameters that a checkpoint must provide; below it the checkpoint is refused."""

_RENAMED = (
    (r"patch_embed\.(?:proj|0)\.(weight|bias)", r"patch_embed.proj.\1"),
    (r"patch_embed\.(?:norm|2)\.(weight|bias)", r"patch_embed.norm.\1"),
    (r"layers\.(\d+)\.downsample\.norm\.(weight|bias)", r"mergers.\1.norm.\2"),
    (r"layers\.(\d+)\.downsample\.reduction\.weight", r"mergers.\1.reduction.weight"),
    (r"layers\.(\d+)\.blocks\.(\d+)\.(?:ln_1|norm)\.(weight|bias)", r"stages.\1.\2.norm.\3"),
)
_BLOCK = re.compile(r"layers\.(\d+)\.blocks\.(\d+)\.(?:self_attention|op)\.(.+)")
_PATCHES = "patch_embed."
_PATCH_KERNEL = f"{_PATCHES}proj.weight"
_RGB = 3


@dataclass(frozen=True)
class LoadReport:
    """What became of the tensors of a checkpoint and of an encoder.

    Attributes:
        loaded: Key in the encoder to key in the file.
        skipped: Key in the file that was not used, to the reason.
        missing: Keys of the encoder that kept their own values.
        share: Loaded parameters over all parameters of the encoder.
        adapted_channels: Input channels that the kernels for red, green and blue were turned into; None if not needed.
    """

    loaded: dict[str, str]
    skipped: dict[str, str]
    missing: tuple[str, ...]
    share: float
    adapted_channels: int | None = None


def load_vmamba_encoder(encoder: VMambaEncoder, path: Path) -> LoadReport:
    """Copy the weights of a published VMamba checkpoint into an encoder, all of them or none.

    The classifier's tensors are skipped. If the encoder does not take three channels, each of its C patch kernels
    becomes the mean of the kernels for red, green and blue, times 3 / C: a grey image repeated C times then gives what
    it gave as RGB. An encoder that reads a map in place of an image keeps its own patch embedding.

    Args:
        encoder: On any device; changed only if everything is in order. On the meta device this is a check alone.
        path: File with a state dict, or with one under the key ``model`` or ``state_dict``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no such checkpoint, has layers that the encoder lacks, or provides less than
            ``LEAST_SHARE`` of the encoder's parameters or not the whole patch embedding; the message names the file and
            what does not fit.
    """
    tensors = _read(Path(path))
    own = encoder.state_dict()
    taken: dict[str, Tensor] = {}
    loaded: dict[str, str] = {}
    skipped: dict[str, str] = {}
    adapted = None
    for key, tensor in tensors.items():
        target = _translated(key)
        if target is None or target not in own:
            skipped[key] = "the encoder has no such layer"
            continue
        if target.startswith(_PATCHES) and not encoder.reads_image:
            skipped[key] = "the encoder reads a map in place of an image"
            continue
        if target == _PATCH_KERNEL and _other_channels(tensor, own[target]):
            adapted = own[target].shape[1]
            tensor = tensor.mean(1, keepdim=True).mul(_RGB / adapted).expand(-1, adapted, -1, -1)
        if tensor.shape != own[target].shape:
            skipped[key] = f"its shape is {tuple(tensor.shape)}, that of the encoder {tuple(own[target].shape)}"
        elif not tensor.isfinite().all():
            raise ValueError(f"{path} holds NaN or infinite values in '{key}': fetch the file again")
        else:
            taken[target], loaded[target] = tensor, key
    total = sum(value.numel() for value in own.values())
    missing = tuple(key for key in own if key not in taken)
    share = sum(value.numel() for value in taken.values()) / total
    strangers = [key for key in skipped if key.startswith("layers.")]
    headless = encoder.reads_image and any(key.startswith(_PATCHES) for key in missing)
    if share < LEAST_SHARE or strangers or headless:
        raise ValueError(
            f"{path} does not fit this encoder ({_why(tensors, skipped, missing)}; it provides {share:.1%} of the "
            f"parameters, and at least {LEAST_SHARE:.0%} are needed): give a VMamba-Tiny checkpoint of the first "
            "generation, vssmtiny_dp01_ckpt_epoch_292, which is also passed on as vmamba_tiny_e292"
        )
    with torch.no_grad():
        for key, value in own.items():  # the tensors of a state dict are those of the module
            if key in taken:
                value.copy_(taken[key])
    return LoadReport(loaded, skipped, missing, share, adapted)


def _read(path: Path) -> Mapping[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen kinds, among them IndexError and struct.error
        reason = " ".join(str(error).split(". ")[0].split())[:200]
        raise ValueError(
            f"{path} cannot be read as a file of tensors ({reason}): give the checkpoint as published, or save its "
            "weights alone with torch.save({'model': state_dict}, path)"
        ) from error
    if isinstance(content, Mapping):
        content = next((content[key] for key in ("model", "state_dict") if key in content), content)
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise ValueError(f"{path} holds no weights: a dictionary of tensors, or one under 'model', is needed")
    return {str(key).removeprefix("module."): tensor for key, tensor in content.items()}


def _translated(key: str) -> str | None:
    """Name in the encoder of a tensor in a published checkpoint, None if it has no counterpart."""
    block = _BLOCK.fullmatch(key)
    if block is not None:
        inside = mixer_name(block[3])
        return None if inside is None else f"stages.{block[1]}.{block[2]}.{inside}"
    for pattern, replacement in _RENAMED:
        if re.fullmatch(pattern, key):
            return re.sub(pattern, replacement, key)
    return None


def _other_channels(tensor: Tensor, own: Tensor) -> bool:
    return tensor.ndim == own.ndim and tensor.shape[1] == _RGB != own.shape[1]


def _why(tensors: Mapping[str, Tensor], skipped: Mapping[str, str], missing: tuple[str, ...]) -> str:
    """The plainest reason why a checkpoint does not fit: what its names and shapes say about its layers."""
    if not any(key.startswith(("layers.", "patch_embed.")) for key in tensors):
        return "its names are not those of VMamba"
    if any(".mlp." in key for key in tensors):
        return "its blocks have an MLP and no gate, which is the later layout; this encoder has the first one"
    reasons = {key: why for key, why in skipped.items() if key.startswith(("layers.", "patch_embed."))}
    if reasons:
        key = min(reasons, key=lambda key: "shape" not in reasons[key])
        return f"'{key}': {reasons[key]}"
    return f"'{missing[0]}' is not in it"
