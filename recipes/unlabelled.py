"""A recipe for adversarial_training.py where scans without outlines are at hand: the averaged network teaches of them.

On top of the recipe that trained the model: `--recipe strong --recipe unlabelled`. Measured: docs/experiments.md.
"""

UNLABELLED_SHARE = 0.5  # as many patches without outlines as with
SELF_TRAINING_WEIGHT = 5.0  # makes the teacher's loss about as large as the segmentation loss
EMA_MOMENTUM = 0.97  # the teacher is the average of about the last 30 steps
ADVERSARIAL_RAMP_STEPS = 30  # until its weight is reached: its first averages are worth little
ADAM_LR = 2e-4  # a trained network needs smaller steps
LR_SCHEDULE = "constant"  # for these few steps
WARM_UP_STEPS = 0  # of a schedule
STEPS_PER_EPOCH = 60  # epochs differ, and validation is to choose among several
ADVERSARIAL_EPOCH = 3  # more was not tried
