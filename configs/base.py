"""Every field once, with its unit and reason. The other files in this folder start from here and
change what differs.

The values are the paper's 128-frame model (Table 2, Appendix A.1) with the official program's
optimizer; see docs/architecture.md for where the two differ. Any field can be changed on the
command line: `python -m mebt_jax.main --config=configs/demo.py --config.transformer.width=256`.
"""

from ml_collections import ConfigDict


def get_training() -> ConfigDict:
    """Fields of one training loop; both stages have their own copy."""
    training = ConfigDict()
    # Optimizer steps.
    training.steps = 100_000
    # Clips per optimizer step, over all devices and hosts together.
    training.batch_size = 32
    # The batch is worked off in this many pieces whose gradients are averaged: less memory, same
    # result.
    training.accumulation = 1
    # Peak learning rate of AdamW.
    training.learning_rate = 3e-5
    # Steps of linear warm-up from 0; the official program uses none.
    training.warmup_steps = 0
    # After the warm-up: "constant" (official) or "cosine" down to 0 at the last step.
    training.decay = "constant"
    # AdamW moments.
    training.beta1 = 0.9
    training.beta2 = 0.95
    # Decoupled weight decay on matrices; never on norms, biases and embeddings (official
    # configure_optimizers).
    training.weight_decay = 1e-4
    # Gradients are scaled down to this global L2 norm; 0 switches it off (official).
    training.clip_norm = 1.0
    # Per-step decay of the averaged weights that validation, sampling and evaluation use; 0
    # switches averaging off.
    training.ema_decay = 0.999
    # Steps between metric lines, validations and checkpoints. The last step always does all three.
    training.log_every = 100
    training.validate_every = 5_000
    training.checkpoint_every = 1_000
    # Batches per validation.
    training.validation_batches = 8
    # Checkpoints at multiples of this are kept for good, beside the best one and the two latest.
    training.keep_every = 50_000
    return training


def get_config() -> ConfigDict:
    config = ConfigDict()
    # Names the default work directory, runs/<name>.
    config.name = "base"

    config.data = data = ConfigDict()
    # "moving_shapes" (built in), "folder" (any videos or frames), "ucf101", "sky_timelapse",
    # "taichi_hd", or "images", each of them a clip of one frame.
    data.source = "moving_shapes"
    # Folder of your own videos, frame folders, frame lists ("folder") or images ("images").
    data.path = ""
    # Folder where the files of a published set ("ucf101", "sky_timelapse", "taichi_hd") are, packed
    # or not.
    data.source_dir = ""
    # Several sources instead of that one: ({"source": "ucf101", "path": "DIR", "weight": 3.0},
    # {...}, ...). Clips come from each in proportion to the weights; images, beside videos, train
    # the tokenizer alone, in batches of their own (docs/data.md).
    data.mixture = ()
    # Where the prepared records go; "" is <workdir>/data. Point several runs at one folder to
    # prepare once.
    data.prepared_dir = ""
    # Pixels of the square frame: shorter side resized, centre cropped (paper: 128).
    data.resolution = 128
    # Frames per training clip (paper: 16 or 128).
    data.frames = 128
    # Every n-th frame of the video is used (paper: 1; Taichi at 16 frames: 4).
    data.frame_stride = 1
    # Share of the videos held out where the data set has no split of its own; a video is never in
    # both.
    data.validation_fraction = 0.1
    # Number of generated clips for moving_shapes.
    data.train_clips = 4096
    data.validation_clips = 256
    # JPEG quality of prepared frames, 1 to 100; 95 costs 0.4 dB against lossless. 0 keeps the
    # pixels as they are, at about ten times the size.
    data.jpeg_quality = 95
    # Longest run of frames in one prepared record; longer videos become overlapping records.
    data.record_frames = 256
    # Worker processes that decode; 0 decodes in threads of the main process.
    data.workers = 0
    # Encode the set once with the tokenizer, and train the transformer from the stored tokens
    # (docs/data.md).
    data.tokens = False
    # Order of the clips, position of the crops, and the generated shapes all follow from this.
    data.seed = 0

    config.tokenizer = tokenizer = ConfigDict()
    # Input size over latent size on (time, height, width) (paper and TATS: 4, 8, 8).
    tokenizer.compression = (4, 8, 8)
    # The part of the compression done by folding pixels into channels before the first convolution,
    # which lets all convolutions run at low resolution; (1, 1, 1) is the paper's network. The
    # compression itself makes the encoder pointwise.
    tokenizer.patch = (1, 1, 1)
    # No token sees a later frame (MAGVIT-v2): clips have 1 + n * compression[0] frames, the first
    # token stands for the first frame, an image is a clip of one frame, and long videos pass in
    # pieces. False is the paper's symmetric padding.
    tokenizer.causal = False
    # Channels of the first level; each level of striding doubles them (TATS: 16 to 32 by
    # checkpoint).
    tokenizer.hidden = 32
    # How features become codes: "ema" (official: the nearest of a codebook of running averages),
    # "gradient" (of a codebook that is trained), "fsq" (each feature rounded to one of its levels),
    # "lfq" (signs). benchmarks/RESULTS.md compares them.
    tokenizer.quantizer = "ema"
    # V, number of codes, and their width (TATS: 16384 of 256); for fsq the product and the number
    # of the levels, for lfq 2^code_width.
    tokenizer.codes = 16_384
    tokenizer.code_width = 256
    # Values that each feature can take, for fsq alone, such as (8, 8, 8, 8, 4) for 16384 codes; few
    # below 5 (FSQ, section 4.1).
    tokenizer.levels = ()
    # "group" is the official program's default and "batch" what TATS's training command asks for,
    # over the clips of all devices; "token" takes its mean and variance over the channels of one
    # place alone, so that with a patch of the whole compression no code depends on its neighbours.
    tokenizer.norm = "group"
    # Weights of the loss terms (TATS: L1 4, commitment 0.25; the paper's equation 1 has L2).
    tokenizer.l1_weight = 4.0
    tokenizer.l2_weight = 0.0
    tokenizer.commitment_weight = 0.25
    # Of the entropy of one feature's code less that of all codes together, for lfq alone
    # (MAGVIT-v2, equation 5).
    tokenizer.entropy_weight = 0.1
    # LPIPS between one random frame of each clip and its reconstruction (TATS: 4); 0 goes without.
    # It needs weights.
    tokenizer.perceptual_weight = 0.0
    # Folder of converted LPIPS weights, see docs/interop.md; only for a perceptual_weight above 0.
    tokenizer.lpips = ""
    # Discriminators of single frames and of clips, whose judgement the decoder learns from.
    tokenizer.adversarial = adversarial = ConfigDict()
    # Weights of their judgements in the generator's and in their own loss (TATS: 1 and 1); 0 and 0
    # go without.
    adversarial.frame_weight = 0.0
    adversarial.clip_weight = 0.0
    # Weight of the mean distance between their features of real and of reconstructed video (TATS:
    # 4).
    adversarial.feature_weight = 4.0
    # Loss of the discriminators: "hinge" (TATS) or "vanilla".
    adversarial.loss = "hinge"
    # Channels of their first layer and number of strided layers (TATS: 64 and 3).
    adversarial.channels = 64
    adversarial.layers = 3
    # Constant rate of Adam with betas 0.5 and 0.9, TATS's (there the rate of the tokenizer).
    adversarial.learning_rate = 1e-4
    # Finished steps after which the tokenizer sees the discriminators (TATS's README: 10 000). The
    # checkpoint of this step is kept for good.
    adversarial.start = 10_000
    # Steps before `start` in which the discriminators learn alone (TATS: 0), so that their first
    # advice is not noise; and steps after it in which their weight rises from 0 in a line (TATS: 0,
    # at once).
    adversarial.warmup = 500
    adversarial.ramp = 5_000
    # The adversarial gradient is scaled to this share of the reconstruction's, both measured at the
    # decoder's last layer (as VQGAN, Esser et al. 2021, does), but by no more than the limit; share
    # 0 leaves it as it is (TATS).
    adversarial.share = 0.5
    adversarial.scale_limit = 100.0
    # Weight of LeCAM (Tseng et al. 2021), which holds the logits near their running means and so
    # keeps a discriminator from winning on few data; 0 switches it off (TATS).
    adversarial.lecam_weight = 0.001
    # Decay of the codebook's running counts and sums (TATS: 0.99).
    tokenizer.codebook_decay = 0.99
    # A code whose running count falls below this is restarted from a random feature of the batch
    # (TATS: 1).
    tokenizer.restart_threshold = 1.0
    # Compute precision: "float32" or "bfloat16"; parameters, norms, distances and losses stay
    # float32.
    tokenizer.dtype = "float32"
    # Workdir, folder of checkpoints, one checkpoint in it, or folder of the converter with a
    # trained tokenizer to use instead of training one.
    tokenizer.checkpoint = ""
    tokenizer.training = get_training()
    tokenizer.training.learning_rate = 3e-4
    tokenizer.training.beta1 = 0.5
    tokenizer.training.beta2 = 0.9
    tokenizer.training.weight_decay = 0.0

    config.transformer = transformer = ConfigDict()
    # Kinds of block from input to output: encode, latent, update, decode, full, maskgit (24 layers
    # in the paper).
    transformer.layers = (
        ("encode", "latent") * 6 + ("encode",) + ("decode", "update") * 5 + ("decode",)
    )
    # D, width; K, heads; L, number of latents (paper: 1024, 16, 256).
    transformer.width = 1024
    transformer.heads = 16
    transformer.latents = 256
    # "paper" computes what the official code computes, quirks included, and starts as noise;
    # "modern" has a plain pre-norm residual and rotary positions, and starts with heads that look
    # nearby, which learns in hundreds of steps what lies where.
    transformer.flavour = "paper"
    # Dropout rates on embeddings, block outputs and attention weights.
    transformer.embedding_dropout = 0.0
    transformer.residual_dropout = 0.0
    transformer.attention_dropout = 0.0
    # Share of the target probability spread over all codes.
    transformer.label_smoothing = 0.0
    # Targets whose logits exist at one time in training, per clip; the [M, V] array is never made.
    transformer.loss_block = 1024
    # What the backward pass recomputes, from most memory to least: "none", "dots" (all but the
    # linear layers), "asking" (also keys and values), "block" (all inside a block).
    transformer.remat = "asking"
    # "kernel" for the platform's attention kernel where it applies (TPU: splash, GPU: cuDNN in
    # bfloat16), "sums" to go without.
    transformer.attention = "kernel"
    # Compute precision: "float32" or "bfloat16"; parameters, softmax, norms and loss stay float32.
    transformer.dtype = "bfloat16"
    # Workdir, checkpoint folder, or folder of the converter with a trained transformer to start
    # from; with training.steps = 0 it is used as it is.
    transformer.checkpoint = ""
    transformer.training = get_training()
    transformer.training.steps = 2_000_000

    config.masking = masking = ConfigDict()
    # Mask ratio r = schedule(u), u uniform in [ratio_min, ratio_max] (official: linear, r = 1 - u,
    # on [0, 1]).
    masking.ratio_schedule = "linear"
    masking.ratio_min = 0.0
    masking.ratio_max = 1.0
    # One ratio for the whole batch (official) or one per clip.
    masking.ratio_per_sample = False
    # Most targets predicted per clip and step; 0 is all masked tokens.
    masking.target_budget = 0
    # Lengths v of training intervals: "clip" (paper, equation 4), "renormalized" (official code),
    # "uniform", "longest".
    masking.interval_schedule = "clip"
    # Equation 4: steps per latent frame of growth, and the standard deviation in latent frames.
    masking.interval_alpha = 100_000.0
    masking.interval_beta = 2.0
    # Context and target counts are rounded up to this many steps of the whole clip, and fewer of
    # shorter intervals: compilations against padding, of which 16 leave 6 % of the tokens. With
    # ratio_per_sample rather 4: programs are as the square.
    masking.splits = 16

    config.sample = sample = ConfigDict()
    # "generate"; or with the videos of `input`: "predict" (after given_frames), "interpolate"
    # (between given_frames and given_last_frames), "fill" (where `mask` is white), "edit" (draw
    # `region` anew), "extend" (to `frames`, with input or without).
    sample.task = "generate"
    # Clips to make, the number of the first, and how many at a time over all devices. A clip
    # follows from its number and the seed, so any one can be made again alone; clip i takes the
    # i-th video of `input`, and after the last the first again.
    sample.clips = 16
    sample.first_clip = 0
    sample.batch_size = 4
    sample.seed = 0
    # A video file, a folder of frames, or a folder of videos.
    sample.input = ""
    # Frames that are given at the start and at the end of a clip; whole tokens, so multiples of
    # tokenizer.compression[0].
    sample.given_frames = 0
    sample.given_last_frames = 0
    # For fill: an image, white where to fill in all frames, or a .npy of [F, H, W] or [H, W], not 0
    # where to fill.
    sample.mask = ""
    # For edit: (first frame, end, top, bottom, left, right), the ends not included.
    sample.region = (0, 0, 0, 0, 0, 0)
    # For extend: length of the video, and how many of its frames the next window sees (0: half of
    # the window).
    sample.frames = 1024
    sample.overlap_frames = 0
    # Settings of the official scripts by name, in place of those below: "sky16", ...
    # (mebt_jax/sampling/presets.py).
    sample.preset = ""
    # Which tokens a draft step commits: "confidence" (MaskGIT, official), "random", or "halton"
    # (evenly over space and time). The last two know the tokens before the pass and compute less.
    sample.order = "confidence"
    # Share of tokens still masked after step s of S is schedule(s / S) (MaskGIT's cosine).
    sample.mask_schedule = "cosine"
    # S, draft steps; choice temperature of the Gumbel noise on the confidence; temperature of the
    # token distribution. This temperature and the two filters below are the draft's; as in the
    # official scripts the other passes use no filter.
    sample.draft_steps = 32
    sample.choice_temperature = 2.0
    sample.temperature = 1.0
    # Keep the k most probable codes (0: all); keep the smallest set with probability p (1: all).
    sample.top_k = 32
    sample.top_p = 1.0
    # Steps before the draft that each commit one token at a random place.
    sample.bootstrap_steps = 64
    # Steps, in the middle of the draft, that each commit some tokens and hide as many others again,
    # chosen at random (ReMDM), so that a code can still change; they run when at most this share of
    # the tokens is masked, each with this share of the tokens.
    sample.remask_steps = 0
    sample.remask_at = 0.2
    sample.remask_share = 0.05
    # M rounds, each re-predicting R random parts of the clip in turn from the rest, at its own
    # temperature. Where fewer tokens than R are drawn, each is a part.
    sample.revise_rounds = 2
    sample.revise_partitions = 32
    sample.revise_temperature = 0.1
    # What is written of every clip: "mp4", "gif" (not by extend), "npz" (uint8 frames), "frames"
    # (PNG files); codes always.
    sample.formats = ("mp4", "gif")
    # Of the written mp4 and GIF files.
    sample.frames_per_second = 20.0

    config.evaluate = evaluate = ConfigDict()
    # Held-out clips to evaluate on (fewer if the data has fewer), and how many at a time.
    evaluate.clips = 256
    evaluate.batch_size = 16
    # How distances are measured, see docs/evaluation.md: "weight-free" (no download, not FVD),
    # "i3d" (FVD of all clips there are), or a published one with its own number of clips:
    # "mebt-paper", "tats", "styleganv", "magvit10k", ...
    evaluate.protocol = "weight-free"
    # Folders of converted weights (mebt_jax/interop/convert.py): I3D for all protocols but
    # "weight-free"; C3D for the Inception Score and LPIPS, each measured where it is given.
    evaluate.i3d = ""
    evaluate.c3d = ""
    evaluate.lpips = ""
    # Distance over time: windows of so many frames, each so many after the last (paper, Figure 7:
    # 16 every 8).
    evaluate.window = 16
    evaluate.window_every = 8
    # Folders of real and of generated videos: with both, --stage=evaluate compares them and needs
    # no model.
    evaluate.real = ""
    evaluate.fake = ""
    # Pixels to bring the squares of both folders to; 0 keeps their size, which must then be the
    # same.
    evaluate.resolution = 0
    # Compare folders even if their files tell different frame rates.
    evaluate.any_frame_rate = False

    config.mesh = mesh = ConfigDict()
    # Devices along each axis; -1 on one axis means all that are left. Data and fsdp split the clips
    # of a batch; fsdp splits parameters and optimizer state too, which are gathered layer by layer.
    mesh.data = -1
    mesh.fsdp = 1
    # Splits the tokens of a clip (in the tokenizer the rows of its frames), and the state as fsdp
    # does: for clips that are too long for a device, or batches of fewer clips than devices.
    mesh.sequence = 1
    # Splits heads, hidden channels and codes (in the tokenizer the columns of frames); must divide
    # transformer.heads.
    mesh.tensor = 1

    config.runtime = runtime = ConfigDict()
    # Root of every random draw that is not data: initialisation, masks, dropout.
    runtime.seed = 0
    # Folder of compiled programs, shared by all runs; "" is ~/.cache/mebt_jax, "off" switches it
    # off.
    runtime.compilation_cache = ""
    # Arrays below this many elements are not split over the fsdp and sequence axes.
    runtime.fsdp_min_elements = 1_048_576
    # Write a profile of some steps of each training below its folder; `--profile` sets it.
    runtime.profile = False
    return config
