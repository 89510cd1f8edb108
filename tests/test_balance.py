import pytest

from utils.training.balance import converged, out_of_balance


def epoch(on_real, on_generated, adversarial_loss=0.7):
    return {"d_accuracy_real": on_real, "d_accuracy_generated": on_generated, "adversarial_loss": adversarial_loss}


def held_out(*accuracies):
    """A history with these held-out accuracies, of readers' and generated masks 0.1 more and less."""
    return [{"d_held_out_real": value + 0.1, "d_held_out_generated": value - 0.1} for value in accuracies]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (epoch(0.8, 0.7), None),
        (epoch(0.52, 0.5), "collapsed: right on 52% of the readers' masks and 50% of the generated ones"),
        (epoch(0.99, 0.02), "collapsed: it calls every mask real"),
        (epoch(0.01, 0.98), "collapsed: it calls every mask generated"),
        (epoch(0.99, 0.99, adversarial_loss=5.0), "has won: right on 99%"),
        (epoch(0.99, 0.99, adversarial_loss=1.0), None),
        (epoch(0.99, 0.7, adversarial_loss=5.0), None),
        ({"val_dice": 0.5}, None),  # the starting model's row
    ],
)
def test_a_discriminator_that_collapsed_or_won_is_named(row, expected):
    state = out_of_balance([epoch(0.5, 0.5), row])  # the last epoch alone counts
    assert state is None if expected is None else expected in state


def test_a_discriminator_that_begins_to_learn_is_not_named():
    blind = epoch(0.03, 0.97) | {"steps": 40}
    assert out_of_balance([blind], warm_up_steps=60) is None
    assert "collapsed" in out_of_balance([blind, blind], warm_up_steps=60)


def test_no_epoch_no_warning():
    assert out_of_balance([]) is None


def test_training_has_converged_once_the_discriminator_stays_at_one_half():
    better = held_out(0.5, 0.8, 0.7)
    assert not converged(better, 2)
    assert not converged(better + held_out(0.55), 2)
    assert converged(better + held_out(0.55, 0.48), 2)
    assert not converged(better + held_out(0.5, 0.6, 0.5), 2)
    assert not converged(better + held_out(0.5, 0.5), None)


def test_a_discriminator_that_has_not_begun_to_learn_has_not_converged():
    assert not converged([{"val_dice": 0.5}, *held_out(0.5, 0.5, 0.5, 0.5)], 2)
