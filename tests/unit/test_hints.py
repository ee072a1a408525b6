"""What an unknown setting is answered with: the words of other trainers are known."""

import pytest

from spectral_dist.flags import load_config
from spectral_dist.settings import LIST_FLAGS, SETTINGS, hints
from spectral_dist.settings.hints import hint

ANSWERS = hints._ANSWERS


def test_the_words_of_other_trainers_lead_to_settings_that_exist() -> None:
    assert len(ANSWERS) >= 40
    assert set(hints._SAME) <= {*SETTINGS, *LIST_FLAGS}
    for answer in hints._OTHERWISE.values():
        for word in answer.replace(":", " ").replace(",", " ").split():
            if word.startswith("--"):
                assert word[2:] in SETTINGS, answer


def test_no_word_of_ours_is_taken_for_another_s() -> None:
    ours = {name.replace("_", "") for name in (*SETTINGS, *LIST_FLAGS) if "." not in name}
    assert not ours & set(ANSWERS)


@pytest.mark.parametrize(
    ("flag", "answer"),
    [
        ("--learning_rate", "here it is --lr"),
        ("--learning-rate=3", "here it is --lr"),
        ("--resume", "the same command with the same --run_name resumes by itself"),
        ("--optimizer", "here it is --optimizer.name"),
        ("--tokenizer_name", "here it is --tokenizer"),
        ("--output_dir", "here it is --checkpoint_dir"),
        ("--epochs", "a run is --steps long"),
        ("--gradient_accumulation_steps", "here it is --accum_steps"),
        ("--nEmbd", "here it is --hidden_dim"),
        ("--hiden_dim", "did you mean --hidden_dim?"),
        ("--phase.1.steps", "unknown flag '--phase.1.steps'"),
        ("--mixers.spectral.poles", "did you mean --mixers.spectral.num_poles?"),
    ],
)
def test_an_unknown_flag_is_answered_in_our_words(flag: str, answer: str) -> None:
    with pytest.raises(ValueError, match=r"^unknown flag ") as caught:
        load_config([flag, "1"])
    assert answer in str(caught.value)
    assert "\n" not in str(caught.value)


def test_nonsense_is_answered_with_nothing() -> None:
    assert hint("qqqqqqqq", SETTINGS) == ""
