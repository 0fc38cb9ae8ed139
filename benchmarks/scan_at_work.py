"""What the blocks of a trained network do: ``tables.sh scan_at_work MODEL... [--fold 0] [--cases N]`` calls it.

For trained models of ours (folders of stock nnU-Net's results), on preprocessed cases of the fold's validation split:
how large the branch of every block is beside its input, and the scan's output beside the skip term ``D * x``, the steps
it has learned and over how many tokens its states fade; and Dice as trained, with the scan's output dropped (the skip
stays), without global tokens, and without the blocks. Nothing is trained again, so a drop says what this network leans
on, not what one without a scan could do.

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


def mixers(network: nn.Module) -> dict[str, LoGVMambaBlock]:
    """Find the blocks, by their names."""
    return {name: module for name, module in network.named_modules() if isinstance(module, LoGVMambaBlock)}


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
    """Collect what every block, and its scan if it has one, does while the network predicts."""

    def begin(name: str):
        def hook(_: LoGVMambaBlock, inputs: tuple) -> None:
            found[name].append({"tokens": inputs[0][0, 0].numel()})

        return hook

    def end(name: str):
        def hook(_: LoGVMambaBlock, inputs: tuple, output: Tensor) -> None:
            found[name][-1]["branch_to_input"] = float(
                (output.float() - inputs[0].float()).norm() / inputs[0].float().norm()
            )

        return hook

    def look(name: str):
        def hook(ssm: SelectiveSSM, inputs: tuple, output: Tensor) -> None:
            tokens, context, *_ = (*inputs, None)
            skip = skip_of(ssm, tokens)
            states = output.float() - skip
            rates = torch.exp(ssm.A_log.float()).unflatten(0, (ssm.directions, -1))
            steps, fades = [], []
            for (delta, _, _), bias, rate in zip(ssm.project(tokens, context), ssm.dt_bias, rates, strict=True):
                step = F.softplus(delta.float() + bias)
                steps.append(np.percentile(step.cpu(), PERCENTS))
                # Tokens until a state is e times smaller, at the channel's mean step.
                fades.append(np.percentile(1 / (step.mean((0, 1))[:, None] * rate).cpu(), PERCENTS))
            found[name][-1] |= {
                "states_to_skip": float(states.norm() / skip.norm()),
                "steps": np.mean(steps, 0).tolist(),
                "fade_tokens": np.mean(fades, 0).tolist(),
            }

        return hook

    handles = []
    for name, block in blocks.items():
        handles += [block.register_forward_pre_hook(begin(name)), block.register_forward_hook(end(name))]
        if isinstance(block.ssm, SelectiveSSM):
            handles.append(block.ssm.register_forward_hook(look(name)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def ways(blocks: dict[str, LoGVMambaBlock]) -> dict[str, list[tuple[object, str, object]]]:
    """What can be dropped, and the attributes of which objects to replace for it by what."""

    def skip_alone(ssm: SelectiveSSM):
        return lambda tokens, *_: skip_of(ssm, tokens).to(tokens.dtype)

    scans = [block.ssm for block in blocks.values() if isinstance(block.ssm, SelectiveSSM)]
    readers = [block for block in blocks.values() if block.global_tokens is not None]
    found = {
        "scan": [(ssm, "forward", skip_alone(ssm)) for ssm in scans],
        "global tokens": [(block, "global_tokens", None) for block in readers],
        "blocks": [(block, "forward", lambda x: x) for block in blocks.values()],
    }
    return {way: changes for way, changes in found.items() if changes}


@contextmanager
def without(way: str, blocks: dict[str, LoGVMambaBlock]) -> Iterator[None]:
    """Predict without the scans' outputs (their skip stays), the global tokens or the blocks."""
    with ExitStack() as stack:
        for change in ways(blocks)[way]:
            stack.enter_context(replaced(*change))
        yield


def means(found: dict[str, list[dict]]) -> dict[str, dict[str, object]]:
    """What was collected, averaged over the calls."""
    return {
        name: {what: np.mean([one[what] for one in seen], 0).tolist() for what in seen[0]}
        for name, seen in found.items()
    }


def dice(predicted: np.ndarray, truth: np.ndarray, labels: list[int]) -> list[float]:
    """Of every label; NaN where it is in neither."""
    found = []
    for label in labels:
        one, other = predicted == label, truth == label
        size = one.sum() + other.sum()
        found.append(2 * float((one & other).sum()) / float(size) if size else np.nan)
    return found


def look_at(model: Path, fold: int, most: int | None, device: str) -> dict[str, object]:
    """Predict the cases of a model's validation split in all ways, and say what the blocks did in the first."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.paths import nnUNet_preprocessed
    from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

    predictor = nnUNetPredictor(use_mirroring=False, device=torch.device(device), verbose=False, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(model), (fold,), "checkpoint_final.pth")
    predictor.network.load_state_dict(predictor.list_of_parameters[0])
    predictor.network.to(device).eval()
    blocks = mixers(predictor.network)
    if not blocks:
        raise SystemExit(f"scan_at_work: {model} has no block of LoG-VMamba's family")
    home = Path(nnUNet_preprocessed) / predictor.plans_manager.dataset_name
    folder = str(home / predictor.configuration_manager.data_identifier)
    keys = json.loads((home / "splits_final.json").read_text())[fold]["val"][:most]
    cases = infer_dataset_class(folder)(folder, keys)
    manager, rows = predictor.label_manager, defaultdict(list)
    did: dict[str, list[dict]] = {name: [] for name in blocks}
    for key in keys:
        data, segmentation, *_ = cases.load_case(key)
        image, truth = torch.from_numpy(np.array(data)), np.array(segmentation)[0]
        for way in (None, *ways(blocks)):
            with without(way, blocks) if way else watched(blocks, did):
                logits = predictor.predict_sliding_window_return_logits(image).cpu()
            predicted = np.asarray(manager.convert_logits_to_segmentation(logits))
            rows[f"without {way}" if way else "as trained"].append(dice(predicted, truth, manager.foreground_labels))
    return {
        "model": model.name,
        "fold": fold,
        "cases": len(keys),
        "dice": {way: float(np.nanmean(values)) for way, values in rows.items()},
        "blocks": means(did),
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
            print(f"  Dice {value:.4f} {way}")
        print("  block: tokens, branch to input, states to skip, median step, tokens to fade (5, 50, 95 %)")
        for name, did in row["blocks"].items():
            words = [f"{did['tokens']:.0f}", f"{did['branch_to_input']:.3f}"]
            if "steps" in did:
                words += [f"{did['states_to_skip']:.3f}", f"{did['steps'][1]:.3f}"]
                words += [f"{value:.0f}" for value in did["fade_tokens"]]
            print(f"  {name}: {', '.join(words)}", flush=True)
    save("scan_at_work", {"models": rows}, None, folder=args.folder)


if __name__ == "__main__":
    main()
