"""A first recipe beyond the paper, for networks that must cope with scans unlike the training set's.

Each setting is measured by itself before it is recommended; docs/experiments.md says which have been.
"""

RUN_NAME = "strong"  # apart from the paper's experiment
PADDING = "same"  # every pixel that is computed carries a loss
PATCH_SIZE_W = 256  # more context beside the lesion
PATCHES_PER_SLICE = 3  # wider patches overlap more
PATCH_BORDER = 0  # the output reaches the patch's border
BATCH_SIZE = 8  # as many pixels with a loss as the paper's 16 patches, and more
OPTIMIZER = "adamw"
WEIGHT_DECAY = 0.02
REGULARIZER_WEIGHT = 0.0  # weight decay takes its place
ADAM_BETA_1 = 0.9
ADAM_LR = 1e-3
LR_SCHEDULE = "cosine"  # ends on small steps: no epoch differs wildly from the one before
WARM_UP_STEPS = 100
STEPS_PER_EPOCH = 200
EPOCH = 30
GRADIENT_CLIP = 1.0
EMA_MOMENTUM = 0.99
BATCH_NORM_MOMENTUM = 0.99  # batches differ much
MATCH_INTENSITIES = False  # the network learns to cope with any grey values
GREY_AUGMENTATION = 0.3
SCALE_AUGMENTATION = 0.5
ROTATION_DEGREES = 15.0
ROTATE_BOTH_WAYS = True
