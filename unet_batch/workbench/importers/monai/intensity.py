"""MONAI's intensity transforms, one after the other, as one normalisation of a contract.

Formulas: MONAI 1.6, transforms/intensity/array.py. What a contract cannot express is refused by the transform's name.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from unet_batch.contract import CtWindow, MeanStd, Normalize, Percentile, Scale, ZScore
from unet_batch.errors import ModelRefused
from unet_batch.workbench.importers.monai.config import Component, is_float32


@dataclass(slots=True)
class Intensity:
    """The normalisation so far. A step that cannot follow the steps before it raises ModelRefused."""

    channels: int
    rule: Normalize = field(default_factory=Scale)
    """Values of the source at first."""
    source_max: float | None = None
    """Largest value that sources must declare, where clipping at it may be left out."""
    steps: list[str] = field(default_factory=list)
    """The transforms, as the file names them."""
    notes: list[str] = field(default_factory=list)

    @property
    def is_statistical(self) -> bool:
        """Whether the rule uses statistics of the image."""
        return isinstance(self.rule, Percentile | ZScore)

    def add(self, step: Component) -> None:
        """Take one transform: `TRANSFORMS` are known."""
        if not is_float32(step):
            raise ModelRefused(f"{step.where}: {step.target} returns {step.arguments['dtype']!r}, not float32")
        {
            "ScaleIntensityRange": self._range,
            "ScaleIntensity": self._min_max,
            "ScaleIntensityRangePercentiles": self._percentiles,
            "NormalizeIntensity": self._normalize,
        }[step.name](step)
        self.steps.append(step.target)

    def _range(self, step: Component) -> None:
        step.only(*_COMMON, "a_min", "a_max", "b_min", "b_max", "clip")
        low, high = step.number("a_min"), step.number("a_max")
        if high <= low:
            raise ModelRefused(f"{step.where}: a_max {high:g} is not above a_min {low:g}")
        to_low, to_high = _ends(step, "b_min", "b_max")
        clip = step.flag("clip")
        if clip and (step.take("b_min") is None or step.take("b_max") is None):
            raise ModelRefused(f"{step.where}: clip without b_min and b_max is not understood")
        if not clip:
            factor = (to_high - to_low) / (high - low)
            self._affine((factor,), (to_low - low * factor,), step)
        elif self._is_source():
            self.rule = CtWindow(center=(low + high) / 2, width=high - low, low=to_low, high=to_high)
        else:
            raise self._cannot(step, "clips values that were changed before")

    def _min_max(self, step: Component) -> None:
        step.only(*_COMMON, "minv", "maxv", "factor", "channel_wise")
        if step.take("factor") is not None or ("minv" in step.arguments and step.take("minv") is None):
            raise ModelRefused(f"{step.where}: {step.target} with a factor, or without minv, is not understood")
        low, high = step.number("minv", 0.0), step.number("maxv", 1.0)
        self._percentile(step, Percentile(lower=0, upper=100, low=low, high=high, per_channel=_by_channel(step)))
        if low:
            self.notes.append(f"an image of a single value becomes {low:g} here, and that value times {low:g} in MONAI")

    def _percentiles(self, step: Component) -> None:
        step.only(*_COMMON, "lower", "upper", "b_min", "b_max", "clip", "relative", "channel_wise")
        lower, upper = step.number("lower"), step.number("upper")
        if not 0 <= lower < upper <= 100:
            raise ModelRefused(f"{step.where}: lower {lower:g} and upper {upper:g} are no percentiles in this order")
        if not step.flag("clip") and (lower, upper) != (0, 100):
            raise ModelRefused(f"{step.where}: {step.target} without clip is not understood: values may be any")
        low, high = _ends(step, "b_min", "b_max")
        if step.flag("relative"):
            low, high = (low + (high - low) * share / 100 for share in (lower, upper))
        self._percentile(step, Percentile(lower=lower, upper=upper, low=low, high=high, per_channel=_by_channel(step)))
        self.notes.append("an image whose two percentiles are equal is clipped here and not in MONAI")

    def _percentile(self, step: Component, rule: Percentile) -> None:
        if not self._grows():
            raise self._cannot(step, "takes percentiles of values that were not only scaled before")
        self.rule = rule

    def _normalize(self, step: Component) -> None:
        step.only(*_COMMON, "subtrahend", "divisor", "nonzero", "channel_wise")
        given = [step.take(key) is not None for key in ("subtrahend", "divisor")]
        nonzero = step.flag("nonzero")
        if all(given):
            if nonzero:
                raise ModelRefused(f"{step.where}: nonzero with subtrahend and divisor is not understood")
            shift, over = (_numbers(step, key, self.channels) for key in ("subtrahend", "divisor"))
            over = tuple(value or 1.0 for value in over)
            factors = tuple(1 / value for value in over)
            self._affine(factors, tuple(-s / o for s, o in zip(shift, over, strict=True)), step)
        elif any(given):
            raise ModelRefused(f"{step.where}: only one of subtrahend and divisor is given, which is not understood")
        elif self._is_source() or (not nonzero and self._grows(min_max=True)):
            # z-scores do not change where values were only shifted and scaled before.
            self.rule = ZScore(per_channel=_by_channel(step), nonzero=nonzero)
        else:
            raise self._cannot(step, "takes mean and deviation of values that were not only scaled before")

    def _affine(self, factors: tuple[float, ...], offsets: tuple[float, ...], step: Component) -> None:
        """x · factor + offset after the rule; one of each, or one per channel."""
        rule = self.rule
        same = len(set(factors)) == len(set(offsets)) == 1
        factor, offset = factors[0], offsets[0]
        if isinstance(rule, Scale) and same:
            self.rule = Scale(scale=rule.scale * factor, offset=rule.offset * factor + offset)
        elif isinstance(rule, CtWindow | Percentile) and same:
            self.rule = rule.model_copy(update={"low": rule.low * factor + offset, "high": rule.high * factor + offset})
        elif isinstance(rule, Scale) and rule.scale:
            self.rule = _mean_std(1.0, rule.scale, rule.offset, factors, offsets)
        elif isinstance(rule, CtWindow) and rule.center == rule.width / 2:
            # A window from 0 to the largest value that a source can hold clips nothing.
            self.rule = _mean_std(rule.width, rule.high - rule.low, rule.low, factors, offsets)
            self.source_max = rule.width
        else:
            raise self._cannot(step, "changes values that were already normalised by each image")

    def _is_source(self) -> bool:
        return isinstance(self.rule, Scale) and self.rule == Scale()

    def _grows(self, *, min_max: bool = False) -> bool:
        """Whether values are an increasing affine function of the source; min_max: also one for each image."""
        rule = self.rule
        if isinstance(rule, Percentile):
            whole = (rule.lower, rule.upper, rule.per_channel) == (0, 100, False)
            return min_max and whole and rule.high > rule.low
        return isinstance(rule, Scale) and rule.scale > 0

    def _cannot(self, step: Component, why: str) -> ModelRefused:
        before = " and ".join(self.steps) or "the source"
        return ModelRefused(f"{step.where}: {step.target} after {before} {why}, which no contract expresses")


TRANSFORMS = ("ScaleIntensityRange", "ScaleIntensity", "ScaleIntensityRangePercentiles", "NormalizeIntensity")
_COMMON = ("keys", "allow_missing_keys", "dtype")


def _mean_std(
    largest: float, gain: float, shift: float, factors: tuple[float, ...], offsets: tuple[float, ...]
) -> MeanStd:
    """(x / largest · gain + shift) · factor + offset as (x / largest − mean) / std."""
    pairs = [(gain * f, shift * f + o) for f, o in zip(factors, offsets, strict=True)]
    return MeanStd(max=largest, mean=tuple(-o / f for f, o in pairs), std=tuple(1 / f for f, _ in pairs))


def _ends(step: Component, low: str, high: str) -> tuple[float, float]:
    if step.take(low) is None or step.take(high) is None:
        return 0.0, 1.0  # MONAI leaves the second scaling out
    return step.number(low), step.number(high)


def _by_channel(step: Component) -> bool:
    return step.flag("channel_wise")


def _numbers(step: Component, key: str, channels: int) -> tuple[float, ...]:
    value: Any = step.take(key)
    by_channel = _by_channel(step)
    values = value if isinstance(value, list) else [value]
    if isinstance(value, list) != by_channel or (by_channel and len(values) != channels):
        raise ModelRefused(f"{step.where}: {key} must be {'one number for each channel' if by_channel else 'a number'}")
    if any(isinstance(v, bool) or not isinstance(v, int | float) or not math.isfinite(v) for v in values):
        raise ModelRefused(f"{step.where}: {key} holds something other than numbers: {values!r}")
    return tuple(float(v) for v in values)
