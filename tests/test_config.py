"""Every shipped config builds, locks and describes a model that fits together; wrong fields are
named.
"""

import dataclasses
import functools
from pathlib import Path

import jax
import pytest
from flax import nnx
from ml_collections import ConfigDict

from mebt_jax import config as config_lib
from mebt_jax.backbones import BACKBONES
from mebt_jax.backbones.interface import MaskedTokens, TokenGrid
from mebt_jax.backbones.mebt.model import MeBT
from mebt_jax.config import default_config
from mebt_jax.config_fields import field, walk
from mebt_jax.errors import UserError
from mebt_jax.methods import METHODS
from mebt_jax.methods.masked import shape_buckets
from mebt_jax.metrics.evaluate_config import EvaluateConfig
from mebt_jax.stages import tokenizer as tokenizer_stage
from mebt_jax.tokenizer.autoencoder import Tokenizer
from mebt_jax.tokenizer.training.lpips import LPIPS

CONFIGS = sorted(path.stem for path in (Path(__file__).parents[1] / "configs").glob("*.py"))
# Learning rate, weight decay, dropout, batch per GPU (times eight), interval schedule, alpha, frame
# stride, forward passes.
OFFICIAL = {
    "sky16": (1.08e-5, 0.01, 0.1, 6, "longest", None, 1),
    "sky128": (1.8e-5, 0.01, 0.1, 5, "gaussian_clipped", 30_000, 1),
    "taichi16": (3e-5, 1e-4, 0.0, 32, "longest", None, 4),
    "taichi128": (3e-5, 1e-4, 0.0, 4, "gaussian_clipped", 100_000, 1),
    "ucf16": (3e-5, 1e-4, 0.0, 32, "longest", None, 1),
    "ucf128": (3e-5, 1e-4, 0.0, 6, "gaussian_clipped", 100_000, 1),
}


def load(name: str) -> ConfigDict:
    return __import__(f"configs.{name}", fromlist=["get_config"]).get_config()


# The tokenizer_* configs are those of other configs.
@pytest.mark.parametrize("name", [name for name in CONFIGS if not name.startswith("tokenizer_")])
def test_config_builds_and_its_full_size_model_has_consistent_shapes(name):
    locked = load(name).lock()
    config = config_lib.from_config_dict(locked)
    assert config.name == name
    shapes = shape_buckets.all_shapes(config.method, config.grid)
    largest = max(shapes, key=lambda shape: (shape.contexts, shape.targets))

    def forward(video):
        tokenizer = Tokenizer(config.tokenizer, rngs=nnx.Rngs(0))
        model = MeBT(
            config.backbone,
            TokenGrid(config.tokenizer.codebook_size, config.grid),
            rngs=nnx.Rngs(0),
        )
        features = tokenizer.encode(video)  # [1, T, H, W, E]
        contexts = jax.numpy.zeros((1, largest.contexts), int)
        targets = jax.numpy.zeros((1, largest.targets), int)
        tokens = MaskedTokens(contexts, contexts, contexts == 0, targets, targets == 0)
        hidden = model(tokens)
        return features, tokenizer.decode(features), hidden, model.logits(hidden)

    size = config.data.resolution
    video = jax.ShapeDtypeStruct((1, config.data.frames, size, size, 3), "float32")
    features, reconstruction, hidden, logits = jax.eval_shape(forward, video)
    assert features.shape == (1, *config.grid, config.tokenizer.code_width)
    assert reconstruction.shape == video.shape
    assert hidden.shape == (1, largest.targets, config.backbone.width)
    assert logits.shape == (1, largest.targets, config.tokenizer.codebook_size)
    assert __import__(f"configs.{name}").__dict__[name].__doc__


@pytest.mark.slow
def test_the_whole_tokenizer_recipe_takes_a_step_at_full_size():
    config = config_lib.from_config_dict(load("tokenizer_ucf").lock())
    parts = tokenizer_stage.training_parts(config)
    key = jax.random.key(0)
    state = jax.eval_shape(lambda: tokenizer_stage.create_state(config, parts, key, key))
    perceptual = jax.eval_shape(lambda: nnx.state(LPIPS(rngs=nnx.Rngs(0))))
    video = jax.ShapeDtypeStruct((config.tokenizer.training.batch_size, 16, 128, 128, 3), "uint8")
    step = functools.partial(
        tokenizer_stage.train_step, parts=parts, config=config.tokenizer, with_discriminators=True
    )
    after, metrics = jax.eval_shape(step, state, video, key, perceptual)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(
        lambda x: (x.shape, x.dtype), state
    )
    assert {
        "l1",
        "commitment",
        "perceptual",
        "adversarial",
        "feature_matching",
        "frame_logits/real",
        "clip_logits/fake",
    } <= set(metrics)
    assert all(value.shape == () for value in metrics.values())


@pytest.mark.parametrize("name", OFFICIAL)
def test_paper_configs_carry_the_official_settings(name):
    config = config_lib.from_config_dict(load(name))
    rate, decay, dropout, per_gpu, schedule, alpha, stride = OFFICIAL[name]
    training, model = config.prior.training, config.backbone
    assert (training.learning_rate, training.weight_decay, training.batch_size) == (
        rate,
        decay,
        8 * per_gpu,
    )
    assert {model.embedding_dropout, model.residual_dropout, model.attention_dropout} == {dropout}
    assert config.method.interval_schedule == schedule and config.method.interval_beta == 2.0
    assert alpha is None or config.method.interval_alpha == alpha
    assert config.data.frame_stride == stride and config.data.resolution == 128
    assert config.grid == (config.data.frames // 4, 16, 16)
    assert (
        model.width,
        model.heads,
        model.num_latents,
        len(model.layers),
        config.tokenizer.codebook_size,
    ) == (
        1024,
        16,
        256,
        24,
        16_384,
    )
    assert (training.beta1, training.beta2, training.warmup_steps, training.decay) == (
        0.9,
        0.95,
        0,
        "constant",
    )


@pytest.mark.parametrize("name", ["ucf", "sky", "taichi"])
def test_tokenizer_configs_carry_the_recipe_of_tats_and_the_other_configs_share_it(name):
    config = config_lib.from_config_dict(load(f"tokenizer_{name}").lock())
    tokenizer, training, opponents = (
        config.tokenizer,
        config.tokenizer.training,
        config.tokenizer.adversarial,
    )
    assert (config.data.frames, config.data.resolution, config.data.frame_stride) == (
        16,
        128,
        4 if name == "taichi" else 1,
    )
    assert (
        tokenizer.compression,
        tokenizer.patch,
        tokenizer.hidden,
        tokenizer.codebook_size,
        tokenizer.code_width,
    ) == ((4, 8, 8), (1, 1, 1), 32, 16_384, 256)
    assert tokenizer.norm == "batch"
    assert (
        tokenizer.l1_weight,
        tokenizer.l2_weight,
        tokenizer.commitment_weight,
        tokenizer.perceptual_weight,
    ) == (4, 0, 0.25, 4)
    assert (
        opponents.frame_weight,
        opponents.video_weight,
        opponents.feature_weight,
        opponents.loss,
    ) == (1, 1, 4, "hinge")
    assert (opponents.channels, opponents.layers, opponents.start) == (64, 3, 10_000)
    assert (opponents.warmup, opponents.ramp, opponents.share, opponents.lecam_weight) == (
        0,
        0,
        0,
        0,
    )
    assert (
        training.learning_rate == opponents.learning_rate == pytest.approx(3e-5 * 6 * 8 / 8 * 2 / 4)
    )
    assert (training.batch_size, training.microbatches, training.grad_clip_norm) == (
        2 * 8 * 6,
        6,
        1.0,
    )
    for frames in (16, 128):
        assert config_lib.from_config_dict(load(f"{name}{frames}")).tokenizer == tokenizer


def test_unknown_field_names_the_nearest_valid_one():
    config = default_config()
    config.backbone.widht = 3
    with pytest.raises(
        UserError, match=r"config\.backbone\.widht; did you mean config\.backbone\.width\?"
    ):
        config_lib.from_config_dict(config)


@pytest.mark.parametrize(
    "group, field, value, words",
    [
        ("backbone", "width", 64.5, "config.backbone.width must be of type int, but is 64.5"),
        ("backbone", "heads", True, "config.backbone.heads must be of type int"),
        ("backbone", "heads", 7, "does not divide"),
        ("tokenizer", "norm", "instance", "must be one of group, layer, batch"),
        ("tokenizer", "causal", True, "takes one frame more than a multiple of 4; use 129"),
        ("tokenizer", "quantizer", "vq", "must be one of ema, gradient, fsq, lfq"),
        (
            "tokenizer",
            "quantizer",
            "fsq",
            "levels of at least 2 whose product is config.tokenizer.codebook_size, 16384",
        ),
        ("tokenizer", "quantizer", "lfq", "has 2 to the power of config.tokenizer.code_width"),
        (
            "backbone",
            "layers",
            ("encode", "decoder"),
            r"layers\[1\] is 'decoder', but must be one of encode",
        ),
        ("backbone", "residual", "querry", "must be one of normed_query, query"),
        ("backbone", "remat", "block", "must be one of none, full, save_query_projections"),
        ("backbone", "attention_implementation", "kernel", "must be one of auto, xla"),
        ("backbone", "attention_dropout", 1.0, "must be at least 0 and below 1"),
        ("backbone", "kind", "mebtt", "is no backbone; did you mean 'mebt'"),
        ("method", "kind", "flow", "is no method; the kinds are masked"),
        ("prior", "training", {"decay": "cosin"}, "must be one of constant, cosine"),
        ("prior", "training", {"steps": 0}, "must be at least 1"),
        ("prior", "training", {"microbatches": 3}, "positive multiple of config.prior.training.m"),
        ("decoding", "preset", "ucf", "must be one of sky16, "),
        ("decoding", "remask_at", 1.0, "must be between 0 and 1"),
        ("tokenizer", "compression", (4, 8), "must have 3 entries"),
        ("tokenizer", "patch", (4, 3, 8), "patch times a power of two"),
        ("data", "resolution", 100, "compression of 8 does not divide"),
        ("data", "frames", 30, "use a multiple of 4"),
        ("method", "bucket_steps", 0, "must be at least 1"),
        (
            "tokenizer",
            "adversarial",
            {"loss": "wgan"},
            "adversarial.loss is 'wgan', but must be one of hinge, vanilla",
        ),
        (
            "tokenizer",
            "adversarial",
            {"share": -1.0},
            "adversarial.share is -1.0, but must not be negative",
        ),
        (
            "tokenizer",
            "adversarial",
            {"warmup": 20_000},
            "learn alone in the 0 to 10000 steps before",
        ),
        ("data", "train_clips", 0, "must be at least 1"),
        ("decoding", "top_k", 100_000, "between 0 and the 16384 codes"),
    ],
)
def test_ill_typed_or_impossible_values_are_named(group, field, value, words):
    config = ConfigDict(default_config().to_dict(), type_safe=False)
    config[group].update({field: value})  # a dict changes some fields of its group
    with pytest.raises(UserError, match=words):
        config_lib.from_config_dict(config)


@pytest.mark.parametrize("frames, latents", [(1, 1), (5, 2), (17, 5)])
def test_the_first_token_of_a_causal_clip_stands_for_one_frame(frames, latents):
    config = default_config()
    config.data.frames, config.tokenizer.causal, config.tokenizer.norm = frames, True, "layer"
    built = config_lib.from_config_dict(config)
    assert built.grid == (latents, 16, 16) and built.tokenizer.frames(latents) == frames
    for name, value, words in (
        ("norm", "group", "needs one that sees no later frame; set it to 'layer'"),
    ):
        config.tokenizer[name] = value
        with pytest.raises(UserError, match=words):
            config_lib.from_config_dict(config)


def test_rotary_positions_need_room_in_every_head():
    config = default_config()
    config.backbone.update({"positions": "rotary", "width": 16, "heads": 4})
    with pytest.raises(UserError, match="'rotary' need 6 channels a head"):
        config_lib.from_config_dict(config)


def test_a_field_that_is_not_there_has_its_default_in_its_group():
    config = default_config()
    config.backbone.width = 64
    del config.tokenizer.training.learning_rate, config.prior.training.learning_rate
    del config.backbone.heads, config.evaluate
    built = config_lib.from_config_dict(config)
    assert (built.tokenizer.training.learning_rate, built.prior.training.learning_rate) == (
        3e-4,
        3e-5,
    )
    assert (built.backbone.width, built.backbone.heads) == (64, 16)
    assert built.evaluate == EvaluateConfig()


def test_an_entry_of_a_mixture_has_every_field():
    config = default_config().to_dict()
    config["data"]["mixture"] = ({"source": "folder", "path": "x"},)
    with pytest.raises(UserError, match=r"config\.data\.mixture\[0\]\.weight is missing"):
        config_lib.from_config_dict(config)


def test_content_hash_follows_every_field():
    config = config_lib.from_config_dict(default_config())
    changed = default_config()
    changed.tokenizer.training.beta1 = 0.6
    other = config_lib.from_config_dict(changed)
    assert config_lib.content_hash(config) == config_lib.content_hash(config)
    assert config_lib.content_hash(config.tokenizer) != config_lib.content_hash(other.tokenizer)
    assert config_lib.content_hash(config.backbone) == config_lib.content_hash(other.backbone)


def test_the_fields_of_a_group_with_a_kind_are_those_of_the_kind(monkeypatch):
    @dataclasses.dataclass(frozen=True)
    class ToyConfig:
        kind: str = "toy"
        width: int = field(4, "Channels.", least=2)
        depth: int = 3

    class Toy:
        Config = Decoding = ToyConfig

    monkeypatch.setitem(BACKBONES, "toy", Toy)
    monkeypatch.setitem(METHODS, "toy", Toy)
    config = default_config()
    config.backbone = config.decoding = ConfigDict({"kind": "toy", "width": 8})
    config.method = ConfigDict({"kind": "toy"})
    built = config_lib.from_config_dict(config.lock())
    assert built.backbone == built.decoding == ToyConfig(width=8) and built.method == ToyConfig()
    assert config_lib.from_saved(config_lib.to_dict(built), "here") == built
    config.backbone.width = 1
    with pytest.raises(UserError, match=r"config\.backbone\.width is 1, but must be at least 2"):
        config_lib.from_config_dict(config)
    config.method.kind = "masked"
    with pytest.raises(UserError, match=r"config\.decoding\.kind; the fields of config\.decoding"):
        config_lib.from_config_dict(config)


def test_a_config_file_takes_another_of_its_folder_wherever_it_runs(tmp_path, monkeypatch):
    (tmp_path / "small.py").write_text(
        "from mebt_jax.config import default_config\n"
        "def get_config():\n"
        "    config = default_config()\n"
        "    config.backbone.width = 64\n"
        "    return config\n"
    )
    (tmp_path / "smaller.py").write_text(
        "from mebt_jax.config import config_beside\n"
        "def get_config():\n"
        '    config = config_beside(__file__, "small.py")\n'
        "    config.backbone.heads = 2\n"
        "    return config\n"
    )
    monkeypatch.chdir("/")
    config = config_lib.config_beside(str(tmp_path / "any.py"), "smaller.py")
    assert (config.backbone.width, config.backbone.heads) == (64, 2)


def test_every_field_has_a_doc_and_every_table_of_allowed_values_is_there():
    rules = {name: rule for name, rule, _ in walk(config_lib.Config(), "config")}
    assert [name for name, rule in rules.items() if not rule.doc] == []
    chosen = {name: rule.choices() for name, rule in rules.items() if rule.one_of is not None}
    assert chosen["config.prior.training.decay"] == ("constant", "cosine")
    assert [name for name, names in chosen.items() if len(names) < 2] == []
