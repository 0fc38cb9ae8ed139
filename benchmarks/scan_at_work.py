"""What the scan of a trained network does: ``python benchmarks/scan_at_work.py MODEL... [--fold 0] [--cases N]``.

For trained models of ours (folders of stock nnU-Net's results), on preprocessed cases of the fold's validation split:
how large the scan's output is beside the skip term ``D * x`` in every block, the steps it has learned and over how many
tokens its states fade, and Dice as trained, with the scan's output dropped (the skip stays), and without global tokens.
Nothing is trained again, so a drop says what this network leans on, not what one without a scan could do.

``nnUNet_preprocessed`` names the data. Writes ``benchmarks/results/scan_at_work.json``, a row per model.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import torch
from measure import RESULTS, save
from torch import Tensor, nn
from torch.nn import functional as F

from nnunet_logvmamba.layers.log_vmamba import LoGVMambaBlock
from nnunet_logvmamba.layers.selective_ssm import SelectiveSSM

PERCENTS = (5, 50, 95)


def skip_of(ssm: SelectiveSSM, tokens: Tensor) -> Tensor:
    """The part of its output that passes the states by: (batch, length, channels), float32."""
    return tokens.float() * ssm.D.unflatten(0, (ssm.directions, -1)).sum(0)


def scanning(network: nn.Module) -> dict[str, LoGVMambaBlock]:
    """Find the blocks that have a scan, by their names."""
    blocks = {name: module for name, module in network.named_modules() if isinstance(module, LoGVMambaBlock)}
    return {name: block for name, block in blocks.items() if isinstance(block.ssm, SelectiveSSM)}


@contextmanager
def replaced(owner: object, name: str, value: object) -> Iterator[None]:
    """Set an attribute of an instance, and put the old one back."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextmanager
def watched(blocks: dict[str, LoGVMambaBlock], found: dict[str, list[dict]]) -> Iterator[None]:
    """Collect what every scan does while the network predicts."""

    def look(name: str):
        def hook(ssm: SelectiveSSM, inputs: tuple, output: Tensor) -> None:
            tokens, context, *_ = (*inputs, None)
            skip = skip_of(ssm, tokens)
            states = output.float() - skip
            rates = torch.exp(ssm.A_log.float()).unflatten(0, (ssm.directions, -1))
            steps, fades = [], []
            for (delta, _, _), bias, rate in zip(ssm.project(tokens, context), ssm.dt_bias, rates, strict=True):
                step = F.softplus(delta.float() + bias)
                steps.append(np.percentile(step, PERCENTS))
                # Tokens until a state is e times smaller, at the channel's mean step.
                fades.append(np.percentile(1 / (step.mean((0, 1))[:, None] * rate), PERCENTS))
            found[name].append(
                {
                    "tokens": tokens.shape[1],
                    "states_to_skip": float(states.norm() / skip.norm()),
                    "steps": np.mean(steps, 0).tolist(),
                    "fade_tokens": np.mean(fades, 0).tolist(),
                }
            )

        return hook

    handles = [block.ssm.register_forward_hook(look(name)) for name, block in blocks.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def without_states(blocks: dict[str, LoGVMambaBlock]) -> Iterator[None]:
    """Drop what the scans compute; their skip term stays."""
    with ExitStack() as stack:
        for block in blocks.values():

            def forward(tokens: Tensor, *_, ssm: SelectiveSSM = block.ssm) -> Tensor:
                return skip_of(ssm, tokens).to(tokens.dtype)

            stack.enter_context(replaced(block.ssm, "forward", forward))
        yield


@contextmanager
def without_global_tokens(blocks: dict[str, LoGVMambaBlock]) -> Iterator[None]:
    """Scan the local tokens alone."""
    with ExitStack() as stack:
        for block in blocks.values():
            stack.enter_context(replaced(block, "global_tokens", None))
        yield


def dice(predicted: np.ndarray, truth: np.ndarray, labels: list[int]) -> list[float]:
    """Of every label; NaN where it is in neither."""
    found = []
    for label in labels:
        one, other = predicted == label, truth == label
        size = one.sum() + other.sum()
        found.append(2 * float((one & other).sum()) / float(size) if size else np.nan)
    return found


def look_at(model: Path, fold: int, most: int | None, device: str) -> dict[str, object]:
    """Predict the cases of a model's validation split in all ways, and say what the scans did in the first."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.paths import nnUNet_preprocessed
    from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

    predictor = nnUNetPredictor(use_mirroring=False, device=torch.device(device), verbose=False, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(model), (fold,), "checkpoint_final.pth")
    predictor.network.load_state_dict(predictor.list_of_parameters[0])
    predictor.network.to(device).eval()
    blocks = scanning(predictor.network)
    if not blocks:
        raise SystemExit(f"scan_at_work: {model} has no block with a scan")
    home = Path(nnUNet_preprocessed) / predictor.plans_manager.dataset_name
    folder = str(home / predictor.configuration_manager.data_identifier)
    keys = json.loads((home / "splits_final.json").read_text())[fold]["val"][:most]
    cases = infer_dataset_class(folder)(folder, keys)
    ways = {"as trained": ExitStack, "scan dropped": lambda: without_states(blocks)}
    if any(block.global_tokens is not None for block in blocks.values()):
        ways["global tokens dropped"] = lambda: without_global_tokens(blocks)
    manager, rows = predictor.label_manager, defaultdict(list)
    did: dict[str, list[dict]] = {name: [] for name in blocks}
    for key in keys:
        data, segmentation, *_ = cases.load_case(key)
        image, truth = torch.from_numpy(np.array(data)), np.array(segmentation)[0]
        for way, change in ways.items():
            with change(), watched(blocks, did) if way == "as trained" else ExitStack():
                logits = predictor.predict_sliding_window_return_logits(image)
            predicted = np.asarray(manager.convert_logits_to_segmentation(logits))
            rows[way].append(dice(predicted, truth, manager.foreground_labels))
    return {
        "model": model.name,
        "fold": fold,
        "cases": len(keys),
        "dice": {way: float(np.nanmean(values)) for way, values in rows.items()},
        "blocks": {
            name: {what: np.mean([one[what] for one in seen], 0).tolist() for what in seen[0]}
            for name, seen in did.items()
        },
    }


def main() -> None:
    """Look at all models, print their rows, write them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL", help="folder with plans.json and fold_N")
    parser.add_argument("--fold", type=int, default=0)
    parser.add_argument("--cases", type=int, help="at most so many; default: all")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--folder", type=Path, default=RESULTS, help="for scan_at_work.json")
    args = parser.parse_args()
    rows = []
    for model in args.models:
        row = look_at(model, args.fold, args.cases, args.device)
        rows.append(row)
        print(f"\n{row['model']}, {row['cases']} cases")
        for way, value in row["dice"].items():
            print(f"  Dice {value:.3f} {way}")
        print("  block: tokens, states to skip, median step, tokens to fade (5, 50, 95 %)")
        for name, did in row["blocks"].items():
            fades = ", ".join(f"{value:.0f}" for value in did["fade_tokens"])
            size, step = did["states_to_skip"], did["steps"][1]
            print(f"  {name}: {did['tokens']:.0f}, {size:.2f}, {step:.3f}, {fades}", flush=True)
    save("scan_at_work", {"models": rows}, None, folder=args.folder)


if __name__ == "__main__":
    main()
