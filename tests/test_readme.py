"""What README and docs tell a reader to type, click and believe exists: commands, options, trainers, files, numbers."""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import importlib.util
import inspect
import json
import re
import shlex
from functools import cache
from pathlib import Path

import pytest
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from nnunet_logvmamba.cli import SUB_COMMANDS, build_parser
from nnunet_logvmamba.evaluation.metrics import titles
from nnunet_logvmamba.evaluation.scoring import DEFAULT_INSTANCE_METRICS, DEFAULT_METRICS
from nnunet_logvmamba.networks.catalogue import NAMES, PRESETS
from nnunet_logvmamba.ops.backends import BACKEND_NAMES
from nnunet_logvmamba.plugin import plans, recipes, trainers

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in (ROOT / "README.md", ROOT / "dataset_conversion" / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
}
MAKEFILE = (ROOT / "Makefile").read_text()
UNREACHABLE = "nnUNetv2_train_pretrained"  # README says so; the day nnU-Net installs it, the sentence has to change
every_page = pytest.mark.parametrize("page", PAGES)


def without_fences(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)


def lines_to_type(page: str) -> list[str]:
    """Lines of the shell blocks, continued ones joined, without comments."""
    blocks = re.findall(r"^```bash\n(.*?)^```$", PAGES[page], re.M | re.S)
    blocks += re.findall(r"(?:^    \S.*\n)+", without_fences(PAGES[page]), re.M)
    text = "\n".join(blocks).replace("\\\n", " ")
    return [" ".join(line.split()) for line in text.splitlines() if line.strip()]


def words_to_type(page: str, program: str) -> list[list[str]]:
    """Arguments of every call of a program in the shell blocks of a page, and of ``NAME=value program``."""
    calls = (shlex.split(line, comments=True) for line in lines_to_type(page) if "<" not in line and ": " not in line)
    calls = ([*call] for call in calls if call)
    found = []
    for call in calls:
        while "=" in call[0]:
            call.pop(0)
        if call[0] == program:
            found.append(call[1 : call.index(">") if ">" in call else None])
    return found


def mentions(page: str) -> list[str]:
    """What stands in ``code`` in the running text and in tables."""
    return re.findall(r"`([^`\n]+)`", without_fences(PAGES[page]))


def sub_parsers() -> dict[str, argparse.ArgumentParser]:
    actions = build_parser()._actions
    return next(action.choices for action in actions if isinstance(action, argparse._SubParsersAction))


def value_of(text: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


@cache
def trainer_exists(name: str) -> bool:
    try:
        return recursive_find_trainer_class_by_name(name).__name__ == name
    except RuntimeError:
        return False


def anchors(text: str) -> set[str]:
    """Addresses of the headings of a page, made as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", without_fences(text), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


# Commands


def test_the_pages_are_found_and_hold_commands():
    """Guards the tests below against looking at nothing."""
    assert len(PAGES) >= 13
    assert sum(len(words_to_type(page, "logvmamba")) for page in PAGES) >= 10
    assert sum(len(words_to_type(page, "nnUNetv2_train")) for page in PAGES) >= 10
    assert ["doctor"] in words_to_type("README.md", "logvmamba")
    assert ["install"] in words_to_type("README.md", "make")


@every_page
def test_every_line_with_logvmamba_is_understood_by_its_parser(page):
    for words in words_to_type(page, "logvmamba"):
        args = build_parser().parse_args(words)  # ends the test with what argparse says
        network = getattr(args, "network", None)
        check_knobs = plans.check_knobs
        if network:
            check_knobs = functools.partial(plans.check_knobs, network=f"nnunet_logvmamba.networks.{network}")
        for option, check in (("knobs", check_knobs), ("training", plans.check_training_settings)):
            assignments = (word.partition("=") for word in getattr(args, option, []))
            check({name: value_of(text) for name, _, text in assignments})


@every_page
def test_every_sub_command_and_option_that_is_mentioned_exists(page):
    parsers = sub_parsers()
    for mention in mentions(page):
        program, *words = mention.split()
        if program != "logvmamba" or not words or words[0].isupper() or words[0].startswith("--"):
            continue
        assert words[0] in parsers, f"`{mention}`: the commands are {', '.join(parsers)}"
        known = parsers[words[0]]._option_string_actions
        strangers = [word for word in words[1:] if word.startswith("-") and word not in known]
        assert not strangers, f"`{mention}`: logvmamba {words[0]} has no {strangers[0]}"


@every_page
def test_every_program_of_nnunet_exists(page):
    installed = {entry.name for entry in importlib.metadata.entry_points(group="console_scripts")}
    assert UNREACHABLE not in installed
    missing = set(re.findall(r"nnUNetv2_\w+", PAGES[page])) - installed - {UNREACHABLE}
    assert not missing, f"nnU-Net installs no {', '.join(sorted(missing))}"


@pytest.mark.slow
def test_every_option_of_nnunets_programs_exists(run_command):
    programs = sorted({program for text in PAGES.values() for program in re.findall(r"nnUNetv2_\w+", text)})
    for program in programs:
        if program == UNREACHABLE:
            continue
        calls = [(page, words) for page in PAGES for words in words_to_type(page, program)]
        known = set(re.findall(r"(?<![\w-])--?[a-z]\w*", run_command([program, "-h"]).stdout)) if calls else set()
        for page, words in calls:
            strangers = [word for word in words if re.match(r"--?[a-z]", word) and word not in known]
            assert not strangers, f"{page}: {program} has no {strangers[0]}"


@every_page
def test_every_make_target_and_variable_exists(page):
    targets = {name for names in re.findall(r"^([\w -]+):(?!=)", MAKEFILE, re.M) for name in names.split()}
    variables = set(re.findall(r"^(\w+) \?=", MAKEFILE, re.M))
    calls = words_to_type(page, "make")
    calls += [words for program, *words in map(str.split, mentions(page)) if program == "make" and words]
    for words in calls:
        for word in words:
            name, sign, _ = word.partition("=")
            assert name in (variables if sign else targets), f"make {' '.join(words)}: '{name}' is not in the Makefile"


@every_page
def test_every_module_that_is_run_exists_and_reads_a_command_line(page):
    text = PAGES[page]
    for module in set(re.findall(r"python -m (dataset_conversion[\w.]+)", text)):
        specification = importlib.util.find_spec(module)
        if specification is not None and specification.submodule_search_locations:  # of a folder, its __main__ is run
            specification = importlib.util.find_spec(f"{module}.__main__")
        assert specification is not None, f"there is no {module}"
        assert '__name__ == "__main__"' in Path(specification.origin).read_text()
    for script in set(re.findall(r"python ([\w/]+\.py)", text)):
        assert (ROOT / script).is_file(), script


# Names


@every_page
def test_every_trainer_that_is_mentioned_is_found_by_nnunet(page):
    found = re.findall(r"\bnnUNetTrainer\w*", PAGES[page])
    names = {name.partition("__")[0] for name in found}  # of a model's folder, TRAINER__PLANS__CONFIGURATION
    names -= {"nnUNetTrainerLoGVMambaHeadState8"}  # says it is not
    missing = {name for name in names if not trainer_exists(name)}
    assert not missing, f"nnU-Net finds no {', '.join(sorted(missing))}"


@every_page
def test_every_link_leads_to_a_file_and_to_a_heading_that_exist(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", without_fences(PAGES[page])):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), f"{page} links to {link}, but there is no {target}"
        if anchor:
            assert anchor in anchors(target.read_text()), f"{page} links to {link}, but no heading is called so"


def test_every_page_can_be_reached_from_the_readme():
    reached, todo = set(), [ROOT / "README.md"]
    while todo:
        page = todo.pop().resolve()
        if page in reached or page.suffix != ".md":
            continue
        reached.add(page)
        links = re.findall(r"\]\(([^)\s#:]+)(?:#[^)\s]*)?\)", without_fences(page.read_text()))
        todo += [page.parent / link for link in links]
    assert {(ROOT / page).resolve() for page in PAGES} <= reached


# What is listed


def first_column(page: str) -> set[str]:
    return {word for row in re.findall(r"^\| ([^|]+) \|", PAGES[page], re.M) for word in re.findall(r"`([^`]+)`", row)}


def test_every_knob_and_every_setting_is_listed_with_its_default():
    page = "docs/how-to/knobs.md"
    for name, default in plans.knobs().items():
        written = default if isinstance(default, str) else json.dumps(default)
        assert f"| `{name}` | `{written}` |" in PAGES[page], f"{name} = {written}"
    for name, default in plans.knobs(plans.SWIN_CLASS_NAME).items():
        plain = not isinstance(default, tuple) and default is not inspect.Parameter.empty
        if plain and default != plans.knobs().get(name, ""):
            assert f"| `{name}` | `{json.dumps(default)}` |" in PAGES[page], f"{name} = {default}"
    assert set(plans.knobs(plans.SWIN_CLASS_NAME)) <= first_column(page)


def in_words(names: list[str]) -> str:
    quoted = [f"`{name}`" for name in names]
    return f"{', '.join(quoted[:-1])} and {quoted[-1]}"


def test_the_knobs_of_the_networks_of_others_are_listed_as_they_are():
    page = PAGES["docs/how-to/knobs.md"]
    knobs = {n.name: plans.knobs(n.path) for n in NAMES.values() if n.home.startswith("peers.")}
    for network, defaults in knobs.items():
        values = {
            name: value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
            for name, value in defaults.items()
        }
        cells = ", ".join(f"`{name}={value}`" for name, value in values.items())
        assert f"| `{network}` | {cells} |" in page.splitlines()
    without = in_words([name for name, defaults in knobs.items() if "checkpointing" not in defaults])
    for name in ("docs/how-to/knobs.md", "docs/how-to/gpu-memory.md"):
        assert f"{without} have no `checkpointing`" in " ".join(PAGES[name].split())


def test_every_backend_of_the_scan_is_listed():
    words = ", ".join(f"`{name}`" for name in BACKEND_NAMES)
    assert f"| `backend` | `auto` | {words} |" in PAGES["docs/how-to/knobs.md"]


def test_the_default_metrics_are_listed():
    for metrics in (DEFAULT_METRICS, DEFAULT_INSTANCE_METRICS):
        words = titles(metrics).replace(",", "")
        assert f"`{words}`" in PAGES["docs/how-to/evaluate.md"]
        assert words in " ".join(sub_parsers()["evaluate"].format_help().split())


def in_a_table(words: str) -> str:
    """What a kind of value is called where there is little room."""
    if " or " in words:
        return ", ".join(f"`{word}`" for word in words.split(" or "))
    return re.sub("^(a|the) ", "", words).replace(" of at least ", " ≥ ").replace(" above ", " > ")


@pytest.mark.parametrize("page", ["docs/how-to/knobs.md", "docs/reference/plans.md"])
def test_every_setting_is_written_as_it_is(page):
    for name, (kind, default) in plans.SETTINGS.items():
        row, *_ = re.findall(rf"^\| [^|]*`{name}`[^|]* \| ([^|]+) \|(?: ([^|]+) \|)?$", PAGES[page], re.M)
        assert row[0].startswith(in_a_table(kind.words)), name
        if row[1] and default is not None:
            assert re.match(rf"`?{re.escape(json.dumps(default).removesuffix('.0'))}\b", row[1]), name


def test_every_feature_of_nnunet_names_a_test_that_there_is():
    tests = re.findall(r"`(\w+\.py)::(\w+)` \|$", PAGES["docs/reference/features.md"], re.M)
    assert len(tests) == len(re.findall(r"^\| ", PAGES["docs/reference/features.md"], re.M)) - 2
    for file, name in tests:
        assert f"\ndef {name}(" in (ROOT / "tests" / "plugin" / file).read_text(), name


def test_every_sub_command_is_listed():
    assert {f"logvmamba {name}" for name in SUB_COMMANDS} <= first_column("docs/reference/commands.md")


def test_every_option_of_logvmamba_plans_is_listed():
    options = set(sub_parsers()["plans"]._option_string_actions) - {"-h", "--help"}
    long_forms_of_listed = {"--dataset", "--configuration", "--plans"}
    assert options - long_forms_of_listed <= first_column("docs/reference/commands.md")


def test_every_trainer_is_listed():
    assert {f"nnUNetTrainer{family}" for family in trainers.TRAINER_OF_FAMILY} <= set(
        mentions("docs/reference/trainers.md")
    )


def test_the_networks_are_listed_as_the_catalogue_has_them():
    for network in NAMES.values():
        dims = ", ".join(f"{number}D" for number in network.dims)
        size = "" if network.preset is None else f"`{network.preset}`, {network.parameters:,} parameters"
        cells = [f"`{network.name}`", dims, f"`{network.trainer}`", f"`{network.recipe}`", size, network.paper]
        row = " | ".join(["", *cells, network.licence, network.line, ""]).strip()
        assert row in PAGES["docs/reference/trainers.md"].splitlines()
        assert network.trainer in trainers.TRAINER_OF_FAMILY
        assert network.recipe in recipes.PUBLISHED_RECIPES


def test_the_recipes_are_written_as_they_are():
    page = PAGES["docs/reference/trainers.md"]
    default = trainers.DEFAULT_RECIPE
    for name, recipe in trainers.RECIPES.items():
        (row,) = re.findall(rf"^\| `{name}`(, the default)? \| .+ \| (\S+) \| (\S+) \|$", page, re.M)
        assert (float(row[1]), float(row[2])) == (recipe.initial_lr, recipe.weight_decay)
        assert bool(row[0]) == (recipe == default)


def test_the_published_recipes_are_written_as_they_are():
    page = PAGES["docs/reference/trainers.md"]
    losses = {"dice_ce": "nnU-Net's", "ce": "cross-entropy alone", "dice": "Dice alone"}
    for name in recipes.PUBLISHED_RECIPES.keys() - recipes.RECIPES.keys():
        recipe = recipes.PUBLISHED_RECIPES[name]
        schedule = f"cosine to {recipe.final_lr:g}" if recipe.schedule == "cosine" else "polynomial"
        schedule = f"warm-up, {schedule}" if recipe.warm_up else schedule
        (row,) = re.findall(rf"^\| `{name}` \| (.+) \|$", page, re.M)
        optimizer, rate, decay, decayed, *others = row.split(" | ")
        assert optimizer.lower().startswith(recipe.optimizer)
        assert (float(rate), float(decay)) == (recipe.initial_lr, recipe.weight_decay)
        assert decayed == ("all" if recipe.decays_all else "matrices and kernels")
        assert others == [schedule.replace("1e-06", "1e-6"), losses[recipe.loss]]


OWN_PRESETS = [name for name, network in PRESETS.items() if not network.home.startswith("peers.")]


@pytest.mark.parametrize(
    ("page", "name"),
    [
        ("docs/explanation/block.md", "paper3d"),
        *((page, name) for page in ("README.md", "docs/results.md") for name in OWN_PRESETS),
    ],
)
def test_the_published_networks_size_is_written_right(page, name):
    assert f"{PRESETS[name].parameters:,}" in PAGES[page]


# LAST: measured numbers. Fails until every @@PLACEHOLDER@@ has been replaced by what was measured.


@every_page
def test_no_number_is_still_to_be_filled_in(page):
    assert re.findall(r"@@\w*@*", PAGES[page]) == [], "replace each by the measured value"


@pytest.mark.parametrize("command", ["evaluate", "instances"])
def test_every_option_of_the_commands_that_score_is_listed(command):
    options = set(sub_parsers()[command]._option_string_actions) - {"-h", "--help"}
    assert options <= first_column("docs/reference/commands.md")


@every_page
def test_tests_that_are_named_exist(page):
    written = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("*.py"))
    named = {name for name in mentions(page) if re.fullmatch(r"test_\w+", name)}
    assert not [name for name in named if f"def {name}(" not in written]
