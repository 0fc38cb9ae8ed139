"""``logvmamba plans``: write a configuration that carries our network and its knobs into a plans file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from nnunet_logvmamba.cli import terminal
from nnunet_logvmamba.cli.options import add_assignments, assignments, examples
from nnunet_logvmamba.errors import UserError
from nnunet_logvmamba.networks import catalogue
from nnunet_logvmamba.plugin.environment import device_option


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add ``plans`` to the sub-commands of ``logvmamba``."""
    parser = subparsers.add_parser(
        "plans",
        help="write a configuration with our network and chosen knobs into the plans of a data set",
        description="Derive a configuration from one of nnU-Net's. It shares the preprocessed data, and any trainer, "
        "the stock nnUNetTrainer included, can train it. A configuration of a cascade brings its partner along.",
        **examples(
            "how-to/knobs.md",
            "logvmamba plans -d 4 -c 3d_fullres --name 3d_head --set placement=head",
            "logvmamba plans -d 4 -c 3d_fullres --name 3d_short --train num_epochs=100",
        ),
    )
    parser.add_argument("-d", "--dataset", required=True, metavar="ID", help="number or name of the data set")
    parser.add_argument("-c", "--configuration", required=True, help="configuration to derive from, e.g. 3d_fullres")
    parser.add_argument("-p", "--plans", default="nnUNetPlans", help="name of the plans (default: %(default)s)")
    parser.add_argument("--name", required=True, help="name of the new configuration, e.g. 3d_fullres_head")
    add_assignments(
        parser,
        "--set",
        "knobs",
        "KNOB",
        "argument of the network, e.g. placement=head state_size=8 local_token_stages=[0,1]",
    )
    add_assignments(
        parser,
        "--train",
        "training",
        "SETTING",
        "setting that only our trainers read, e.g. num_epochs=3 initial_lr=0.001 optimizer=adam seed=1",
    )
    parser.add_argument("--batch-size", type=int, metavar="N", help="patches per step")
    parser.add_argument("--patch-size", type=int, nargs="+", metavar="N", help="voxels per axis, in nnU-Net's order")
    parser.add_argument(
        "--network",
        choices=tuple(catalogue.NAMES),
        metavar="NETWORK",
        help="network of ours to write (default: the one of the configuration if it is ours, else "
        f"{catalogue.DEFAULT.name}); "
        + "; ".join(f"{name} is {row.line}" for name, row in catalogue.NAMES.items() if row is not catalogue.DEFAULT),
    )
    parser.add_argument(
        "--keep-network",
        action="store_true",
        help="leave nnU-Net's network in the configuration and write only the settings, for comparisons; our trainers "
        "translate it",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a configuration that has this name")


def run(args: argparse.Namespace) -> int:
    """Write the configuration and say how to train it.

    Raises:
        UserError: If anything does not fit; the plans file is then as it was.
    """
    from nnunet_logvmamba.plugin import plans as library

    knobs, training = assignments("--set", args.knobs), assignments("--train", args.training)
    if "pretrained" in training:
        training["pretrained"] = _checkpoint(training["pretrained"])
    path, plans, dataset_json = library.read_plans(args.dataset, args.plans)
    wanted: dict[str, Any] = {
        "arguments": knobs,
        "training": training,
        "network": args.network and catalogue.row(args.network).path,
        "keep_network": args.keep_network,
        "overwrite": args.overwrite,
    }
    library.check_new_configuration(plans, args.configuration, args.name, **wanted)
    # Late, for torch comes with them.
    from nnunetv2.utilities.dataset_name_id_conversion import find_candidate_datasets
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from nnunet_logvmamba.plugin.preprocessed_cases import has_cases, preprocessing

    library.check_to_train(dataset_json, path.with_name("dataset.json"))
    plans, names = library.add_configuration(
        plans,
        dataset_json,
        args.configuration,
        args.name,
        batch_size=args.batch_size,
        patch_size=args.patch_size,
        **wanted,
    )
    library.write_configurations(path, plans, names, overwrite=args.overwrite)
    terminal.show(f"{path}: wrote {' and '.join(names)}")
    dataset = args.dataset
    if dataset.isdecimal() and len(find_candidate_datasets(int(dataset))) > 1:
        dataset = path.parent.name  # nnU-Net takes 1001 for 100, too, and refuses both by their numbers
    options = ("" if args.plans == library.NNUNETS_PLANS else f" -p {args.plans}") + device_option()
    managers = {name: PlansManager(plans).get_configuration(name) for name in names}
    missing = [name for name, manager in managers.items() if not has_cases(path.parent / manager.data_identifier)]
    if missing:
        terminal.show("their data are not preprocessed yet:")
        terminal.show_command(preprocessing(path.parent.name, args.plans, missing))
    for name in sorted(names, key=lambda name: "previous_stage" in plans["configurations"][name]):
        manager = managers[name]
        family = catalogue.PATHS.get(manager.network_arch_class_name, catalogue.DEFAULT).trainer
        fold = library.first_fold(manager, dataset_json, path.parent)
        terminal.show_command(f"nnUNetv2_train {dataset} {name} {fold} -tr nnUNetTrainer{family}{options}")
        settings = manager.configuration.get(library.TRAINING_KEY, {})
        words, lacking = library.foreground_in_words(manager.batch_size, settings)
        if lacking or args.batch_size is not None:
            terminal.show(f"{'ATTENTION' if lacking else 'note'}: {name}: {words}")
    if knobs.get("seg_heads") == "last":
        terminal.show(
            "seg_heads=last has no deep supervision: the stock trainer for it is nnUNetTrainerNoDeepSupervision"
        )
    return 0


def _checkpoint(value: object) -> str:
    """The path that goes into the plans: absolute, so that it holds wherever a training is started from."""
    if value is None or value == "none":
        return "none"
    path = Path(str(value)).expanduser().absolute()
    if not path.is_file():
        raise UserError(f"there is no checkpoint {path}: name a file, or pretrained=none for no weights")
    return str(path)
