"""The model in the box, trained on for a few minutes with cases of your own: read on top of recipes/strong.py.

`python -m utils.tasks adapt --recipe FILE` does all of it. Measured: docs/correct.md.
"""

RUN_NAME = "adapted"  # apart from other trainings on the same cases
INIT_WEIGHTS = "box"  # weights/oct_fluid.keras
ENCODER_WEIGHTS = None  # the box has its own
ADAM_LR = 3e-4  # a third of the rate that it was trained with: it need not find everything anew
STEPS_PER_EPOCH = 60  # few cases are seen often enough in so many
EPOCH = 3  # 180 steps in all
