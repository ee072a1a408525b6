"""Records wait for a notebook, each once."""

from spectral_dist.outputs.unread import UnreadRecords
from spectral_dist.training.metrics import Record


def test_each_record_is_taken_once_also_after_the_close() -> None:
    unread, first, second = UnreadRecords(), Record(1, {}), Record(2, {"a": 1.0})
    unread.write(first)
    assert list(unread.take()) == [first]
    unread.write(second)
    unread.close()
    assert list(unread.take()) == [second]
    assert list(unread.take()) == []
