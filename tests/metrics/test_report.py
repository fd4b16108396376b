"""The page of an evaluation by itself; with all its parts in stages/test_compare_folders.py."""

import numpy as np
import pytest

from mebt_jax.metrics import report
from mebt_jax.metrics.results import Result
from mebt_jax.metrics.uncertainty import Estimate

VIDEO = np.zeros((2, 4, 4, 3), np.uint8)


@pytest.mark.parametrize(
    ("scores", "chosen"),
    [
        ([3.0, 9.0, 1.0, 5.0, 7.0], [("best", 1), ("median", 3), ("worst", 2)]),
        ([3.0, 9.0, 1.0, 5.0], [("best", 1), ("median", 3), ("worst", 2)]),
        ([1.0, 2.0], [("best", 1), ("worst", 0)]),
        ([1.0], [("best", 0)]),
        ([], []),
    ],
)
def test_best_median_and_worst_are_different_clips(scores, chosen):
    scores = np.array(scores)
    assert report.best_median_worst(scores, higher_is_better=True) == chosen
    assert report.best_median_worst(-scores, higher_is_better=False) == chosen


def test_page_has_every_number_in_its_group_and_every_protocol_once(tmp_path):
    results = {
        "a/frechet": Result(Estimate(1.25, 8, 1, 0.5, 1.0, 0.125, 8), "distance <A>", "protocol P"),
        "a/kernel": Result(Estimate(2.5, 8, 1), "kernel", "protocol Q"),
        "b/frechet": Result(Estimate(3.75, 8, 1), "distance B", "protocol P"),
    }
    rows = [report.Clips("Some clips", "In words.", [("first & only", VIDEO)])]
    missing = {"Nothing": tmp_path / "missing.png"}
    report.write_page(tmp_path / "x" / "page.html", "A run", results, rows, missing, ["A note."])
    page = (tmp_path / "x" / "page.html").read_text()
    assert page.count("<code>protocol P</code>") == 1 and "<code>protocol Q</code>" not in page
    assert page.count("<tr class=group>") == 2 and "distance &lt;A&gt;" in page
    for text in ("1.25", "0.5", "0.125", "2.5", "3.75", "A note.", "first &amp; only", "In words."):
        assert text in page
    assert page.count("data:image/gif") == 1 and "Nothing" not in page
