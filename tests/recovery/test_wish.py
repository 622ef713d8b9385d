"""What a user may ask of a training, and what is said of what cannot be meant."""

import pytest

import tersor
from tersor.cli.training import SETTINGS, settings
from tersor.errors import InputError


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        ({"length": "soon"}, "The training length 'soon' cannot be read; write 2epochs, 90s, 10m or 1.5h."),
        ({"length": "0epochs"}, "The training length '0epochs' cannot be read"),
        ({"length": "1epochs", "schedule": "saw"}, "There is no schedule 'saw'; choose one of constant, cosine"),
        (
            {"length": "1epochs", "optimiser": "luck"},
            "There is no optimizer 'luck'; choose one of auto, adamw, muon, sgd.",
        ),
        ({"length": "1epochs", "precision": "int3"}, "There is no precision 'int3'; choose one of fp32, bf16."),
        (
            {"length": "1epochs", "norms": "still"},
            "There is no kind of norms 'still'; choose one of auto, moving, frozen.",
        ),
        (
            {"length": "1epochs", "optimiser": "muon", "rank": 4},
            "muon does not work with rank, whose matrices start at 0",
        ),
        (
            {"length": "1epochs", "rate": -1.0},
            "rate (-1.0), batch (32), accumulate (1) and workers (1) must be above 0.",
        ),
        ({"length": "1epochs", "save_every": "now"}, "The time 'now' is no duration"),
        ({"length": "1epochs", "clip": -1.0}, "decay (0) and clip (-1) must not be negative."),
        ({"length": "1epochs", "keep": "all"}, "There is no state to keep 'all'; choose one of best, last."),
        ({"length": "1epochs", "enough": "soon"}, "The allowed drop 'soon' is no number; write 0.5% or 0.005."),
        (
            {"length": "1epochs", "augment": "blur"},
            "There is no augmentation 'blur'; choose one of crop, flip, or file.py:function.",
        ),
        ({"length": "1epochs", "loss": "warp"}, "There is no loss 'warp'"),
    ],
)
def test_what_training_cannot_mean_is_said(wish, said):
    with pytest.raises(InputError) as caught:
        tersor.Recovery.of(**wish)
    assert said in str(caught.value)


def test_no_training_is_no_recovery():
    assert tersor.Recovery.of(None) is None
    assert tersor.Recovery.of("none") is None


def test_every_setting_of_a_command_is_an_argument():
    words = {
        "batch": "8",
        "accumulate": "2",
        "clip": "0",
        "warm_up": "0.1",
        "workers": "2",
        "enough": "0.2%",
        "save_every": "5m",
        "keep": "last",
        "average": "0.99",
        "optimizer": "sgd",
        "schedule": "linear",
        "precision": "bf16",
        "rank": "4",
        "norms": "frozen",
        "decay": "0.01",
        "device": "cpu",
    }
    assert {*words, "sharded"} == set(SETTINGS)
    found = tersor.Recovery.of("2epochs", **settings([f"{name}={value}" for name, value in words.items()]))
    assert (found.batch, found.workers, found.enough, found.rank, found.device) == (8, 2, 0.002, 4, "cpu")
    how = found.how
    assert settings(["optimiser=sgd"]) == settings(["optimizer=sgd"])
    assert (how.accumulate, how.clip, how.warm_up, how.save_every, how.average) == (2, 0.0, 0.1, 300.0, 0.99)
    again = tersor.Recovery.of(**found.written)  # as a recipe has it
    assert again.written == found.written
