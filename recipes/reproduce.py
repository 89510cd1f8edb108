"""The paper's experiment on all cases, for `reproduce.sh`: read before the recipes and settings that it is given."""

FOLDS = 5  # every case is held out once
KEEP_EPOCHS = None  # the weights of every epoch stay: 31 GB in all
