"""`model export --normalize`: every form, and what is none."""

from __future__ import annotations

import pytest

from unet_batch.contract import Divide, MeanStd, ModelInput, Percentile, Raw, Scale, ZScore
from unet_batch.errors import JobError
from unet_batch.workbench.export.arguments import IMAGENET, parse_normalize


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("unit", Divide()),
        ("none", Raw()),
        ("zscore", ZScore()),
        ("percentile", Percentile()),
        ("imagenet", IMAGENET),
        ("scale:0.5", Scale(scale=0.5)),
        ("scale:0.0078125,-1", Scale(scale=0.0078125, offset=-1.0)),
        ("mean_std:0.5,0.4,0.3/0.2,0.2,0.1", MeanStd(mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.1))),
    ],
)
def test_every_form_is_a_normalisation(text, expected):
    """Of the contract's own kinds."""
    assert parse_normalize(text, 3) == expected


@pytest.mark.parametrize(
    "text", ["", "units", "unit:3", "scale:", "scale:a", "mean_std:0.5", "mean_std:0.5/", "imagenet:1"]
)
def test_what_is_no_form_is_told_the_forms(text):
    """With all of them."""
    with pytest.raises(JobError, match=r"mean_std:M,M,M/S,S,S \| scale:FACTOR"):
        parse_normalize(text, 3)


def test_imagenet_has_three_channels():
    """Its statistics are of colours."""
    with pytest.raises(JobError, match="for 3 channels, not 1"):
        parse_normalize("imagenet", 1)


@pytest.mark.parametrize(("mean", "std"), [((123.7, 116.3, 103.5), (0.2,)), ((0.5,), (58.4, 57.1, 57.4))])
def test_statistics_of_bytes_are_refused(mean, std):
    """Pixels are divided by 255 first, so such a mean would make every picture black."""
    with pytest.raises(ValueError, match=r"divide it by 255, or write max: 1"):
        ModelInput(normalize=MeanStd(mean=mean, std=std))
    assert ModelInput(normalize=MeanStd(mean=mean, std=std, max=1.0)).normalize.mean == mean
