"""Time what it costs that numbers that are not finite never become a mask.

``python benchmarks/bench_guards.py [--device cpu|cuda] [--rounds N]`` predicts one case of several tiles with nnU-Net's
predictor, with the checks and without them, by turns in one run, and prints medians, quartiles and their ratio. With
the checks means: weights and preprocessed image are looked at when the case begins, and the logits after every patch.
"""

import argparse
from collections.abc import Callable
from contextlib import ExitStack
from unittest.mock import patch

import torch
from measure import circumstances, side_by_side
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from workloads import HIPPOCAMPUS, PICTURES, NetworkPlan

from nnunet_logvmamba.networks import catalogue

UNGUARDED = {
    "nnunet_logvmamba.networks.finite.finite": lambda logits, image: logits,
    "nnunet_logvmamba.networks.contract.refuse_weights": lambda weights: None,
}


def predictor_of(case: NetworkPlan, device: str) -> nnUNetPredictor:
    """nnU-Net's predictor with LoG-VMamba's network of a case, weights as they are drawn."""
    torch.manual_seed(0)
    network = catalogue.row("LoGVMambaUNet").load()(**case.plan, deep_supervision=False)
    dims, channels = len(case.patch_size), {str(channel): "MR" for channel in range(case.input_channels)}
    configuration = {
        "architecture": {},
        "patch_size": list(case.patch_size),
        "spacing": [1.0] * dims,
        "normalization_schemes": ["ZScoreNormalization"] * case.input_channels,
    }
    plans = {
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {},
        "configurations": {"measured": configuration},
    }
    labels = {"background": 0} | {str(label): label for label in range(1, case.num_classes)}
    manager = PlansManager(plans)
    predictor = nnUNetPredictor(use_mirroring=False, device=torch.device(device), allow_tqdm=False)
    predictor.manual_initialization(
        network,
        manager,
        manager.get_configuration("measured"),
        [{name: tensor.clone() for name, tensor in network.state_dict().items()}],
        {"channel_names": channels, "labels": labels},
        "nnUNetTrainerLoGVMamba",
        tuple(range(dims)),
    )
    return predictor


def candidates(case: NetworkPlan, device: str) -> dict[str, Callable[[], object]]:
    """One prediction of an image of two tiles, with the checks and without."""
    predictor = predictor_of(case, device)
    size = list(case.patch_size)
    size[-1] = size[-1] * 3 // 2
    image = torch.randn(case.input_channels, *([1] * (3 - len(size))), *size)

    def unguarded() -> None:
        with ExitStack() as stack:
            for name, stub in UNGUARDED.items():
                stack.enter_context(patch(name, stub))
            predictor.predict_logits_from_preprocessed_data(image)

    return {"with checks": lambda: predictor.predict_logits_from_preprocessed_data(image), "without": unguarded}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    print(circumstances(None))
    for case in (HIPPOCAMPUS, PICTURES):
        found = side_by_side(
            candidates(case, args.device), rounds=args.rounds, slow_rounds=args.rounds, device=args.device
        )
        for name, row in found.items():
            first, third = row["quartiles"]
            print(f"{case.name}, {name}: {row['seconds']:.3f} s (quartiles {first:.3f} to {third:.3f})")
        ratio = found["with checks"]["seconds"] / found["without"]["seconds"]
        print(f"{case.name}: the checks cost {100 * (ratio - 1):+.2f} %")


if __name__ == "__main__":
    main()
