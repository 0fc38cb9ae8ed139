"""Draw receptive_fields_trained.png, and print its table: how far networks see before and after training.

``PYTHONPATH=benchmarks python docs/figures/draw_receptive_fields_trained.py MODEL... [--cases N]`` takes trained models
of one data set, planned alike (folders of stock nnU-Net's results, fold 0), and the middles of the first validation
cases. ``nnUNet_preprocessed`` names the data. Writes ``benchmarks/results/receptive_fields_trained.json``, too.
"""

import argparse
import json
from pathlib import Path

import torch
from draw_receptive_fields import far, middle_plane, row
from measure import save
from PIL import Image

from nnunet_logvmamba.cli.summary import middles, network_of_plans
from nnunet_logvmamba.networks.receptive_field import radii, receptive_field
from nnunet_logvmamba.plugin.checkpoints import read_checkpoint
from nnunet_logvmamba.results.fields import draw

WHEN = "before", "after"
TARGET = Path(__file__).with_name("receptive_fields_trained.png")


def main() -> None:
    """Send the cases through every network as it began and as it became; drawn is the middle slice."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL")
    parser.add_argument("--cases", type=int, default=8, metavar="N", help="default: %(default)s")
    args = parser.parse_args()
    planes, found = {}, {}
    for model in args.models:
        trainer, plans, configuration = model.name.split("__")
        fold = model / "fold_0"
        scored = json.loads((fold / "validation" / "summary.json").read_text())["metric_per_case"]
        cases = sorted(Path(case["prediction_file"]).name.removesuffix(".nii.gz") for case in scored)[: args.cases]
        asked = argparse.Namespace(
            dataset=model.parent.name, plans=plans, configuration=configuration, trainer=trainer, cases=cases
        )
        torch.manual_seed(0)
        network, channels, patch_size, *_ = network_of_plans(asked, "cpu")
        images = middles(asked, channels, patch_size)
        name = trainer.removeprefix("nnUNetTrainer").partition("_")[0]
        for when in WHEN:
            if when == "after":
                network.load_state_dict(read_checkpoint(fold / "checkpoint_final.pth")["network_weights"])
            field = receptive_field(network, images)
            half, most = radii(field)
            planes[f"{name}, {when}"] = middle_plane(field)
            found.setdefault(name, {})[when] = {"half": half, "most": most, "far": far(field)}
            print(row(f"{name}, {when}", found[name][when]), flush=True)
    draw({f"{name}, {when}": planes[f"{name}, {when}"] for when in WHEN for name in found}, TARGET)
    Image.open(TARGET).convert("RGB").quantize(96).save(TARGET, optimize=True)
    about = {"models": [model.name for model in args.models], "patch": list(patch_size), "cases": cases}
    save("receptive_fields_trained", about | {"fields": found}, None)


if __name__ == "__main__":
    main()
