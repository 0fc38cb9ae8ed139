"""Which scales of a network have a segmentation head."""

SEG_HEADS = ("all", "last")


def every_scale_has_a_head(seg_heads: str, deep_supervision: bool) -> bool:
    """True for ``all``, False for ``last``: the finest scale alone.

    Raises:
        ValueError: If the word is unknown, or deep supervision is asked for with the finest head alone.
    """
    if seg_heads not in SEG_HEADS:
        raise ValueError(f"unknown seg_heads {seg_heads!r}; valid are {', '.join(map(repr, SEG_HEADS))}")
    if deep_supervision and seg_heads != "all":
        raise ValueError("deep_supervision needs a head on every scale: set seg_heads='all'")
    return seg_heads == "all"


def one_output(deep_supervision: bool) -> None:
    """Raise ValueError if deep supervision is asked of a network that has one output."""
    if deep_supervision:
        raise ValueError("deep_supervision needs several outputs and this network has one: leave it False")
