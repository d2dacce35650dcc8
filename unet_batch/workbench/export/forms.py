"""How a normalisation is written on the command line. Imports nothing: help texts quote it."""

from __future__ import annotations

NORMALIZE_FORMS = "unit | imagenet | mean_std:M,M,M/S,S,S | scale:FACTOR[,OFFSET] | zscore | percentile | none"
