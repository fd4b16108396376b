"""How the frames of a video are cut into records."""

import pytest

from mebt_jax.data import builder


@pytest.mark.parametrize(("span", "record_frames"), [(1, 4), (5, 12), (8, 8), (16, 3), (6, 11)])
def test_every_window_starts_in_exactly_one_record_and_lies_whole_in_it(span, record_frames):
    for num_frames in range(span, 70):
        bounds = builder.record_bounds(num_frames, span, record_frames)
        starts = [start for first, end in bounds for start in range(first, end - span + 1)]
        assert starts == list(range(num_frames - span + 1))
        assert all(
            end <= num_frames and end - first <= max(record_frames, 2 * span - 1)
            for first, end in bounds
        )
        windows = [end - first - span + 1 for first, end in bounds]
        assert max(windows) - min(windows) <= 1


def test_cut_records_hands_out_the_frames_of_each_record():
    frames = [bytes([i]) for i in range(30)]
    for bounds in ([(0, 10), (6, 18), (14, 30)], [(0, 4), (4, 8)], [(0, 30)]):
        records = list(builder.cut_records(iter(frames), bounds))
        assert records == [(first, frames[first:end]) for first, end in bounds]
