import argparse
import subprocess

import pytest

from benchmarks.measure import Summary, Table, interleaved, ratio, summaries, summary

ONCE = argparse.Namespace(rounds=1, patience=0.0, attempts=1)


def test_summary_is_the_median_and_the_quartiles() -> None:
    assert summary([4, 1, 3, 2, 100]) == Summary(median=3, low=2, high=4, runs=5)
    assert summary([7]) == Summary(7, 7, 7, 1)


def test_a_ratio_is_taken_within_each_round() -> None:
    # The second round was ten times slower for both: the ratio of medians would be 1.
    rounds = [{"ours": 1.0, "theirs": 2.0}, {"ours": 10.0, "theirs": 20.0}, {"ours": 2.0, "theirs": 4.0}]
    assert ratio(rounds, "ours", "theirs") == Summary(0.5, 0.5, 0.5, 3)
    assert ratio([*rounds, {"ours": 1.0}], "ours", "theirs") == Summary(0.5, 0.5, 0.5, 3)
    assert ratio(rounds, "ours", "nobody") is None


def test_everybody_takes_a_turn_in_each_round_and_nobody_is_always_first() -> None:
    order = []

    def subject(name: str) -> float:
        order.append(name)
        return float(len(order))

    arguments = argparse.Namespace(rounds=2, patience=0.0, attempts=1)
    rounds = interleaved({"a": lambda: subject("a"), "b": lambda: subject("b")}, arguments)
    assert order == ["a", "b", "b", "a"]
    assert rounds.values == [{"a": 1.0, "b": 2.0}, {"b": 3.0, "a": 4.0}]


def test_a_subject_that_fails_is_left_out_and_the_reason_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> float:
        raise subprocess.CalledProcessError(3, ["peer"])

    rounds = interleaved({"good": lambda: 1.0, "bad": fail}, ONCE)
    assert rounds.values == [{"good": 1.0}]
    assert "bad failed: Command '['peer']' returned non-zero exit status 3" in capsys.readouterr().out
    assert rounds.notes()[1] == "bad failed: Command '['peer']' returned non-zero exit status 3."


def test_the_least_disturbed_of_the_attempts_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    # A fake, since no test can have a neighbour that is busy at the second attempt only.
    shares = iter([0.8, 0.2, 0.5])

    class Load:
        def share(self) -> float:
            return next(shares)

    monkeypatch.setattr("benchmarks.measure.OtherLoad", Load)
    values = iter([1.0, 2.0, 3.0])
    rounds = interleaved({"a": lambda: next(values)}, argparse.Namespace(rounds=1, patience=0.0, attempts=3))
    assert rounds.values == [{"a": 2.0}]
    assert rounds.disturbed == [{"a": 0.2}]


def test_summaries_skip_rounds_without_a_value() -> None:
    assert summaries([{"a": 1.0}, {"a": 3.0, "b": 5.0}]) == {"a": Summary(2, 1.5, 2.5, 2), "b": Summary(5, 5, 5, 1)}


def test_a_table_shows_ratios_to_its_reference() -> None:
    table = Table("Title", "s", [{"ours": 0.5, "theirs": 1.0}], "theirs", ("a note",))
    assert table.markdown() == (
        "### Title\n\n"
        "| | s, median (quartiles) | runs | ratio to theirs |\n"
        "|---|---|---|---|\n"
        "| ours | 0.500 (0.500–0.500) | 1 | 0.500 (0.500–0.500) |\n"
        "| theirs | 1.00 (1.00–1.00) | 1 | 1.00 (1.00–1.00) |\n\n"
        "- a note\n"
    )
