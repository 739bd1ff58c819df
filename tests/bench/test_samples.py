"""Statistics against Python's own, and the warnings that keep a benchmark honest."""

from __future__ import annotations

import statistics

import numpy as np
import pytest

from edgemm.report.samples import drift, summarise, warnings_about

VALUES = [float(value) for value in np.random.default_rng(0).gamma(9.0, 2.0, 150)]


def test_summary_agrees_with_the_standard_library():
    summary = summarise(VALUES)
    assert summary is not None
    cuts = statistics.quantiles(VALUES, n=100, method="inclusive")
    assert (summary.p50, summary.p90, summary.p99) == pytest.approx((cuts[49], cuts[89], cuts[98]))
    assert summary.mean == pytest.approx(statistics.mean(VALUES))
    assert summary.sd == pytest.approx(statistics.stdev(VALUES))
    assert (summary.minimum, summary.maximum, summary.count) == (min(VALUES), max(VALUES), 150)


def test_no_p99_from_fewer_than_a_hundred_samples():
    below, enough = summarise(VALUES[:99]), summarise(VALUES[:100])
    assert below is not None and below.p99 is None
    assert enough is not None and enough.p99 is not None


def test_the_bad_end_of_a_rate_is_the_low_one():
    rates = summarise(VALUES, more_is_better=True)
    cuts = statistics.quantiles(VALUES, n=100, method="inclusive")
    assert rates is not None and (rates.p90, rates.p99) == pytest.approx((cuts[9], cuts[0]))


def test_one_sample_has_no_spread_and_none_has_no_summary():
    one = summarise([3.0])
    assert one is not None and (one.p50, one.sd, one.coefficient_of_variance) == (3.0, None, None)
    assert summarise([]) is None


def test_steady_samples_bring_no_warning():
    assert warnings_about({"decode": [10.0, 10.1, 9.9, 10.0, 10.1, 9.9, 10.0]}) == []


def test_spread_above_the_limit_is_called_unstable():
    (warning,) = warnings_about({"decode": [10.0, 11.0, 9.0, 10.0], "prefill": [5.0, 5.0, 5.0, 5.0]})
    assert warning.startswith("unstable, coefficient of variance above 2.5%: decode 8.2%;")


def test_a_run_that_slows_down_is_called_drifting():
    slowing = [10.0, 10.0, 10.1, 10.2, 10.6, 10.7, 10.7, 10.7, 10.7]
    assert drift(slowing) == pytest.approx(1.07)
    assert any(
        warning.startswith("drift") and "decode 1.07" in warning for warning in warnings_about({"decode": slowing})
    )


def test_few_samples_cannot_drift():
    assert drift([1.0, 2.0, 3.0, 4.0, 5.0]) is None
