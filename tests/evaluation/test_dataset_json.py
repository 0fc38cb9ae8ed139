"""``dataset.json`` is read as nnU-Net's own LabelManager reads it, in every spelling of a whole number."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nnunetv2.evaluation.evaluate_predictions import label_or_region_to_key
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunet_logvmamba.errors import UserError
from nnunet_logvmamba.evaluation.dataset_json import channels_of, fault_of_channels, labels_of, whole_number

SPELLINGS = (int, float, str, " {} ".format, "0{}".format, "+{}".format, "{}\n".format)


def spelled(numbers: st.SearchStrategy[int]) -> st.SearchStrategy[object]:
    return st.tuples(st.sampled_from(SPELLINGS), numbers).map(lambda both: both[0](both[1]))


@st.composite
def tables(draw) -> dict[str, object]:
    """Labels of a ``dataset.json`` as nnU-Net takes them: labels or regions, perhaps with an ignored one."""
    highest = draw(st.integers(1, 12))
    label = spelled(st.integers(1, highest))
    values = draw(st.lists(st.one_of(label, st.lists(label, min_size=1, max_size=4)), min_size=1, max_size=5))
    table = {"background": draw(spelled(st.just(0))), **{f"label {index}": value for index, value in enumerate(values)}}
    if draw(st.booleans()):
        flat = [int(one) for value in values for one in (value if isinstance(value, list) else [value])]
        table["ignore"] = draw(st.sampled_from([None, max(flat) + 1]))
    return table


@settings(max_examples=300)
@given(tables())
def test_labels_are_those_of_nnunet_in_every_spelling(table):
    table = json.loads(json.dumps(table))
    # Regions of text are refused by nnU-Net only for want of an order, which is none of ours.
    theirs = LabelManager(table, None, force_use_labels=True)
    ours = labels_of({"labels": table}, "dataset.json")
    assert {value for values in ours.values.values() for value in values} == set(theirs.all_labels) - {0}
    assert ours.ignored == theirs.ignore_label
    assert list(ours.values) == [name for name in table if name not in ("background", "ignore")]
    theirs_used = theirs.all_labels + ([theirs.ignore_label] if theirs.has_ignore_label else [])
    assert (ours.gap is None) == bool(np.all(np.ediff1d(theirs_used) == 1)), "as in nnU-Net's check of a data set"
    assert ours.are_regions == any(isinstance(value, list) and len(value) > 1 for value in table.values())
    # nnU-Net's summary.json has the key of a region as it was written, that of a label as a number.
    for name, value in table.items():
        if name not in ("background", "ignore") and list(ours.values.values()).count(ours.values[name]) == 1:
            key = tuple(value) if isinstance(value, list) and len(value) > 1 else ours.values[name][0]
            assert ours.name_of(label_or_region_to_key(key)) == name
            if not isinstance(value, list):
                assert ours.name_of(label_or_region_to_key(value)) == name


@pytest.mark.parametrize(
    ("value", "number"),
    [(1, 1), (1.0, 1), ("1", 1), (" 1 ", 1), ("01", 1), ("1_0", 10), (True, 1), (False, 0), (-0.0, 0), (1e3, 1000)],
)
def test_what_int_takes_without_loss_is_a_whole_number(value, number):
    assert whole_number(value) == int(value) == number


@pytest.mark.parametrize(
    "value", [1.5, "1.5", "1.0", "one", "", None, [[1]], {}, float("nan"), float("inf"), "1e0", 0.1 + 0.2]
)
def test_what_int_refuses_or_would_change_is_none(value):
    with pytest.raises(ValueError):  # noqa: PT011 - the words are Python's
        whole_number(value)
    for label in (value, [1, value]):
        with pytest.raises(UserError, match=r"mine.json: the label 'a' must be a whole number or a list of them, not"):
            labels_of({"labels": {"background": 0, "a": label}}, "mine.json")


@pytest.mark.parametrize("ignored", [3, 3.0, "3", " 3", "03"])
def test_the_ignored_label_has_every_spelling_too(ignored):
    labels = labels_of({"labels": {"background": "0", "a": "1", "b": [1.0, "2"], "ignore": ignored}}, "dataset.json")
    assert (labels.values, labels.ignored) == ({"a": (1,), "b": (1, 2)}, 3)


def test_names_that_are_numbers_stay_names_and_unknown_keys_are_kept():
    labels = labels_of({"labels": {"background": 0, "1": 2, "2": 1, "both": [1, 2]}}, "dataset.json")
    assert [labels.name_of(key) for key in ("1", "2", "(1, 2)", "('1', '2')", "(1.0, 2.0)")] == [
        *("2", "1"),
        *["both"] * 3,
    ]
    assert [labels.name_of(key) for key in ("7", "(1, 7)", "tumor", "()", "")] == ["7", "(1, 7)", "tumor", "()", ""]


def test_channels_are_those_that_nnunet_looks_at():
    assert channels_of({"channel_names": {"0": "T1", "1": 2}}, "dataset.json") == ("T1", "2")
    assert channels_of({"modality": {"0": "CT"}, "channel_names": {"0": "T1", "1": "T2"}}, "d.json") == ("CT",)
    assert channels_of({}, "dataset.json") == ()
    with pytest.raises(UserError, match="mine.json: 'channel_names' must be a table"):
        channels_of({"channel_names": ["T1"]}, "mine.json")


@pytest.mark.parametrize(
    ("table", "gap"),
    [
        ({"a": 1, "b": 2}, None),
        ({"b": 2, "a": 1, "c": 1}, None),
        ({"a": 1, "b": 4}, (2, 4)),
        ({"a": 2}, (1, 2)),
        ({"whole": [1, 2, 4], "core": [4]}, (3, 4)),
        ({"whole": [1, 3], "core": 2}, None),
        ({"a": 1, "ignore": 2}, None),
        ({"a": 1, "ignore": 5}, (2, 5)),
        ({"a": 10**12}, (1, 10**12)),
    ],
)
def test_the_first_number_that_no_label_has_is_the_gap(table, gap):
    assert labels_of({"labels": {"background": 0, **table}}, "dataset.json").gap == gap


@pytest.mark.parametrize("table", ["channel_names", "modality"])
def test_channels_are_numbered_in_order_as_nnunet_plans_them(table):
    for right in (
        {"0": "T1", "1": "CT"},
        {0: "T1"},
        {"00": "0", "01": "1"},
        {"1": "T1", "2": "CT"},
        {},
        {"T1": "T1w", "FLAIR": "x"},
        {"0": "MR", "10": "MR", "2": "MR"},
    ):
        assert fault_of_channels({table: right}, "mine.json") is None
    for wrong, fault in (({"CT": "0"}, "'CT' before '0'"), ({"1": "CT", "0": "T1"}, "1, 0")):
        said = f"mine.json: '{table}' must have the numbers of the channels before their names"
        assert fault_of_channels({table: wrong}, "mine.json").startswith(said)
        assert fault_of_channels({table: wrong}, "mine.json").endswith(f"and has {fault}")
        assert "in order" in fault_of_channels({table: wrong}, "mine.json")
