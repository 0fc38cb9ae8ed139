"""Values of masks are counted and mapped alike, whatever their type."""

import numpy as np
import pytest

from dataset_conversion.formats import label_values


def test_remap_labels_swaps_without_overwriting():
    assert label_values.remap_labels(np.array([0.0, 1, 2, 4, 2]), {0: 0, 1: 2, 2: 1, 4: 3}).tolist() == [0, 2, 1, 3, 1]
    with pytest.raises(ValueError, match=r"\[3, 9\]"):
        label_values.remap_labels(np.array([[0, 3], [9, 3]]), {0: 0})
    with pytest.raises(ValueError, match=r"\[-1\]"):
        label_values.remap_labels(np.array([-1, 0]), {0: 0})


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.uint64, np.float32, np.float64])
def test_masks_of_every_type_are_counted_and_mapped_alike(dtype):
    mask = np.array([[0, 4, 2], [4, 4, 1]], dtype)
    assert [values.tolist() for values in label_values.value_counts(mask)] == [[0, 1, 2, 4], [1, 1, 1, 3]]
    mapped = label_values.remap_labels(mask, {0: 0, 1: 2, 2: 1, 4: 3})
    assert mapped.dtype == np.uint8
    assert mapped.tolist() == [[0, 3, 1], [3, 3, 2]]
    large = (mask * 50000).astype(dtype) if dtype not in (np.uint8, np.int16) else mask
    assert label_values.value_counts(large)[1].tolist() == [1, 1, 1, 3]
