"""Help texts end with examples that work and a page that exists, and shells complete what the parsers know."""

import argparse
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import shtab

from nnunet_logvmamba.cli import SUB_COMMANDS, build_parser, completion, main, options

ROOT = Path(__file__).resolve().parents[2]


def parsers() -> dict[str, argparse.ArgumentParser]:
    """The parser of every command by its name; ``logvmamba`` itself has none."""
    whole = build_parser()
    commands = next(action.choices for action in whole._actions if isinstance(action, argparse._SubParsersAction))
    return {"": whole, **commands}


def examples(text: str) -> list[list[str]]:
    lines = [line.strip() for line in text.splitlines() if line.startswith("  logvmamba ")]
    return [shlex.split(line.partition(" > ")[0]) for line in lines]


@pytest.mark.parametrize("name", ["", *SUB_COMMANDS])
def test_every_help_ends_with_examples_that_parse_and_a_page_that_exists(name, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = parsers()[name].format_help()
    *_, end = text.split("\nexample")
    assert max(map(len, text.splitlines())) <= 80
    assert examples(end), text
    for program, *words in examples(end):
        assert program == "logvmamba"
        assert name in ("", words[0])
        if words[-1] != "--help":
            build_parser().parse_args(words)  # ends the test with what argparse says
    last = text.rstrip().splitlines()[-1]
    assert last.startswith(f"more: {options.DOCS}/")
    page, _, anchor = last.removeprefix(f"more: {options.DOCS}/").partition("#")
    content = (ROOT / "docs" / page).read_text()
    assert not anchor or f"### {anchor.replace('-', ' ')}\n" in content


def test_the_pages_are_where_the_package_says_its_documentation_is():
    published = re.search(r'^Documentation = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.M)
    assert (published[1] if published else "docs") == options.DOCS


def test_the_bare_command_prints_its_help(run_command):
    assert run_command(["logvmamba"]).stdout == run_command(["logvmamba", "--help"]).stdout
    assert main([]) == 0


@pytest.mark.parametrize(
    ("words", "usage", "near"),
    [
        (["instnaces", "a", "b"], "usage: logvmamba ", "did you mean instances?"),
        (["instances", "a", "b", "--referecnes", "c"], "usage: logvmamba instances ", "did you mean --references?"),
        (["evaluate", "a", "b", "--metric=dice", "--polcy=paper"], "usage: logvmamba evaluate ", "--policy?"),
    ],
)
def test_a_misspelt_word_is_answered_with_the_nearest_and_the_usage_of_its_command(words, usage, near, capsys):
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(usage)
    assert near in said


def test_every_shell_that_is_offered_gets_a_script_and_the_page_has_its_places(capsys):
    assert set(completion.SHELLS) <= set(shtab.SUPPORTED_SHELLS)
    page = (ROOT / "docs/reference/commands.md").read_text(encoding="utf-8")
    for shell in completion.SHELLS:
        assert main(["completion", shell]) == 0
        script = capsys.readouterr().out
        assert all(name in script for name in ("logvmamba", *SUB_COMMANDS)), shell
        (row,) = re.findall(rf"^\| {shell} \|(.*)\|$", page, re.MULTILINE)
        for place in re.findall("`(.*?)`", row):
            assert place in "".join(script.splitlines(keepends=True)[:8]) or place.endswith(("rc", "compinit"))


COMPLETE = """
source script.bash
complete -p logvmamba > /dev/null || exit 1
while read -r line; do
    read -ra COMP_WORDS <<< "$line"
    [[ $line == *" ." ]] && COMP_WORDS[-1]=""
    COMP_CWORD=$(( ${#COMP_WORDS[@]} - 1 )) COMPREPLY=()
    _shtab_logvmamba
    echo "${COMPREPLY[*]}"
done
"""


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_commands_options_choices_and_files(tmp_path, capsys):
    assert main(["completion", "bash"]) == 0
    (tmp_path / "script.bash").write_text(capsys.readouterr().out)
    for name in ("predictions", "labelsTr"):
        (tmp_path / name).mkdir()
    (tmp_path / "dataset.json").touch()
    expected = {  # a dot stands for the empty word at the end
        "logvmamba .": " ".join(SUB_COMMANDS),
        "logvmamba ev": "evaluate",
        "logvmamba evaluate --pol": "--policy",
        "logvmamba evaluate --policy .": "brats nnunet umamba paper segmamba",
        "logvmamba evaluate pre": "predictions",
        "logvmamba evaluate predictions lab": "labelsTr",
        "logvmamba evaluate predictions labelsTr --dataset-json da": "dataset.json",
        "logvmamba evaluate predictions labelsTr --metrics dice h": "hd95",
        "logvmamba compare predictions lab": "labelsTr",
        "logvmamba completion z": "zsh",
    }
    done = subprocess.run(
        ["bash", "--norc", "-c", COMPLETE],
        input="\n".join(expected) + "\n",
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert dict(zip(expected, done.stdout.splitlines())) == expected, done.stderr
