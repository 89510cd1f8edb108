"""Whether discriminator and U-Net are in balance, judged from the log of adversarial fine-tuning."""

import numpy as np

BLIND = 0.55  # accuracy; up to here the discriminator is hardly better than chance
SURE = 0.95  # accuracy; from here on it is hardly ever wrong
REJECTED = 3.0  # adversarial loss, -log of 5 %; from here on it gives generated masks less than 5 %


def out_of_balance(history, warm_up_steps=0):
    """A warning about the last epoch of `history`, or None.

    `history` is a list of one dictionary an epoch. Nothing is said of epochs that lie within the first `warm_up_steps`:
    the discriminator then begins to learn.

    - Collapsed: the discriminator is no better than chance, or says the same of every mask.
    - Won: it is right on almost every mask and gives generated masks so low a probability that the U-Net can hardly
      raise it.
    """
    if not history or "d_accuracy_real" not in history[-1]:
        return None
    row = history[-1]
    if warm_up_steps and sum(row.get("steps", 0) for row in history) <= warm_up_steps:
        return None
    on_real, on_generated = row["d_accuracy_real"], row["d_accuracy_generated"]
    found = f"right on {on_real:.0%} of the readers' masks and {on_generated:.0%} of the generated ones"
    if min(on_real, on_generated) < 1 - SURE and max(on_real, on_generated) > SURE:
        says = "real" if on_real > on_generated else "generated"
        return (
            f"the discriminator has collapsed: it calls every mask {says} ({found}); raise D_ADAM_LR or D_WARM_UP_STEPS"
        )
    if (on_real + on_generated) / 2 <= BLIND:
        return f"the discriminator has collapsed: {found}; raise D_ADAM_LR or D_WARM_UP_STEPS"
    if min(on_real, on_generated) >= SURE and row["adversarial_loss"] >= REJECTED:
        return f"the discriminator has won: {found}; lower D_ADAM_LR"
    return None


def converged(history, patience):
    """Whether the discriminator's held-out accuracy has stayed near one half for `patience` epochs, after being better.

    `history` is a list of one dictionary an epoch. The accuracy is the mean of ``d_held_out_real`` and
    ``d_held_out_generated``; epochs without them are skipped. A discriminator that was never better has not begun to
    learn, so it has not converged. With `patience` None the result is False.
    """
    accuracies = [
        np.mean([row["d_held_out_real"], row["d_held_out_generated"]]) for row in history if "d_held_out_real" in row
    ]
    if patience is None or len(accuracies) <= patience:
        return False
    return max(accuracies[:-patience]) > BLIND >= max(accuracies[-patience:])
