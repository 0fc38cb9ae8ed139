"""Tables and sentences within the width of a terminal, with nothing lost."""

import pytest

from nnunet_logvmamba.evaluation.layout import in_columns, wrapped

CELLS = [
    ("label", "dice", "iou", "hd95 [mm]", "cases"),
    ("whole", "0.9123 ± 0.0456 (20)", "0.8123 ± 0.0456 (20)", "3.1234 ± 1.0456 (20)", "20"),
    ("enhancing part of the tumour", "0.7123 ± 0.0456 (18)", "-", "12.1234 ± 9.0456 (18)", "18"),
]


def words(text: str) -> list[str]:
    return sorted(set(text.replace("-" * 3, " ").split()) - {"-", "--"})


def widest(text: str) -> int:
    return max(map(len, text.split("\n")))


def test_a_table_that_fits_is_the_same_with_and_without_a_width():
    table = in_columns(CELLS, right=[4])
    assert in_columns(CELLS, right=[4], width=widest(table)) == table
    assert table.split("\n")[0].split() == ["label", "dice", "iou", "hd95", "[mm]", "cases"]


@pytest.mark.parametrize("width", [60, 80, 100])
@pytest.mark.parametrize("rule", [True, False])
def test_a_table_that_does_not_fit_becomes_blocks_with_the_first_column_in_each(width, rule):
    table = in_columns(CELLS, rule=rule, width=width)
    assert widest(table) <= width
    blocks = table.split("\n\n")
    assert len(blocks) > 1
    assert all(block.startswith("label ") for block in blocks)
    assert words(table) == words(in_columns(CELLS, rule=rule))


def test_columns_that_belong_together_stay_together():
    apart = in_columns(CELLS, width=78).split("\n\n")
    together = in_columns(CELLS, beside=[3], width=78).split("\n\n")
    assert "iou" in apart[0]
    assert "hd95" not in apart[0]
    assert "iou" not in together[0]
    assert "hd95" in together[1].split("\n")[0]
    assert "iou" in together[1].split("\n")[0]


def test_a_cell_that_is_wider_than_the_terminal_takes_several_lines():
    name = "nnUNetTrainerLoGVMamba_seed1__nnUNetResEncUNetLPlans__3d_fullres_head"
    table = in_columns([("pair", "verdict"), (name, "beyond " * 20)], width=50)
    assert widest(table) <= 50
    assert name in "".join(line[:25].strip() for line in table.split("\n"))
    assert table.count("beyond") == 20


def test_sentences_are_broken_below_their_text_and_words_never():
    text = "hd95: " + "border " * 20 + "\n  ok     cpu              " + "cores " * 20 + "\nfile: /" + "long" * 30
    folded = wrapped(text, 60).split("\n")
    assert folded[1].startswith("  border")
    assert [line.index("cores") for line in folded if "cores" in line] == [26] * 4
    assert folded[-1].endswith("/" + "long" * 30)
    assert " ".join(" ".join(folded).split()) == " ".join(text.split())
    assert wrapped(text, None) == text
