"""Write docs/reference/api.md from signatures and docstrings: python docs/make_api.py"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from dataclasses import is_dataclass
from pathlib import Path

from nnunet_logvmamba import evaluation, layers, networks, ops
from nnunet_logvmamba.networks import catalogue
from nnunet_logvmamba.networks.log_vmamba import policy

PAGE = Path(__file__).parent / "reference" / "api.md"
HEAD = """# Python

Written by `python docs/make_api.py` from the docstrings; a test compares. For a start, see
[how to use the network in Python](../how-to/python.md).
"""
PARTS = (
    ("Networks", networks, tuple(networks.__all__)),
    (
        "Tokens of the stages",
        policy,
        ("stage_settings", "unet_tokens", "swin_decoder_tokens", "UsualTokens", "StageSettings"),
    ),
    (
        "Layers",
        layers,
        ("LoGVMambaBlock", "LocalTokens", "GlobalTokens", "SelectiveSSM", "MambaLayer", "Mamba"),
    ),
    (
        "The scan and the convolution",
        ops,
        ("selective_scan", "selective_scan_with_state", "selective_scan_fn", "available_backends", "causal_conv1d"),
    ),
    ("Scores", evaluation, tuple(evaluation.__all__)),
)
PRESETS = {network.name: word for word, network in catalogue.PRESETS.items()}


def page() -> str:
    """Give the text of the page."""
    lines = [HEAD]
    for title, module, names in PARTS:
        lines.append(f"## {title}\n\n{sentences(module)}\n")
        for name in names:
            item = getattr(module, name)
            lines.append(entry(module.__name__, name, item))
            makers = [key for key in ("from_preset", "from_channels") if hasattr(item, key)]
            lines += [entry(module.__name__, f"{name}.{key}", getattr(item, key)) for key in makers]
    return "\n".join(lines)


def sentences(module: object) -> str:
    """Docstring of a module as running text."""
    return re.sub(r"``([^`]+)``", r"`\1`", inspect.getdoc(module))


def entry(module: str, name: str, item: object) -> str:
    """One class or function: how it is called, and what its docstring says."""
    table = is_dataclass(item)
    function = item.__init__ if inspect.isclass(item) and not table else item
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body  # as written, whatever the Python
    if table:
        arguments, result = [ast.unparse(line) for line in node.body if isinstance(line, ast.AnnAssign)], ""
    else:
        arguments = [part for part in split(ast.unparse(node.args)) if part not in ("self", "cls")]
        result = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    call = f"{name}({', '.join(arguments)}){result}"
    if len(call) > 100:
        call = f"{name}(\n" + "".join(f"    {argument},\n" for argument in arguments) + f"){result}"
    text = inspect.getdoc(item)
    owner, _, maker = name.partition(".")
    if maker == "from_preset":  # its example is inherited, too
        text = text.replace('LoGVMambaUNet.from_preset("paper3d"', f'{name}("{PRESETS[owner]}"')
    return f"### {name}\n\nIn `{module}`.\n\n```python\n{call}\n```\n\n```text\n{text}\n```\n"


def split(arguments: str) -> list[str]:
    """Arguments of a signature, apart."""
    parts, depth = [""], 0
    for letter in arguments:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts if part.strip()]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
