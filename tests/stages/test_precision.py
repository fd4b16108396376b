"""Training in bfloat16 ends where training in float32 does: the demo, smaller and shorter."""

import pytest

from configs import demo
from mebt_jax.config import from_config_dict
from mebt_jax.runtime import telemetry
from mebt_jax.stages import data, tokenizer, transformer


def small_demo(dtype="float32", checkpoint=""):
    config = demo.get_config()
    config.data.resolution = 32
    config.tokenizer.compression = config.tokenizer.patch = (4, 8, 8)
    config.tokenizer.codes, config.tokenizer.checkpoint = 64, str(checkpoint)
    config.tokenizer.training.steps = config.tokenizer.training.warmup_steps = 20
    config.transformer.dtype, config.transformer.width = dtype, 64
    config.transformer.training.steps, config.transformer.training.batch_size = 300, 16
    for training in (config.tokenizer.training, config.transformer.training):
        training.validate_every = training.checkpoint_every = 1000  # but for the end
    return from_config_dict(config)


@pytest.mark.slow
def test_bfloat16_reaches_the_loss_of_float32(tmp_path):
    config = small_demo()
    data.run(config, tmp_path)
    tokenizer.run(config, tmp_path)
    nll = {}
    for dtype in ("float32", "bfloat16"):
        data.run(small_demo(dtype), tmp_path / dtype)
        transformer.run(small_demo(dtype, checkpoint=tmp_path), tmp_path / dtype)
        (nll[dtype],) = (record["validation/nll"] for record in telemetry.read_metrics(tmp_path / dtype / "transformer" / "metrics.jsonl")
                         if "validation/nll" in record)
    print(nll)
    assert nll["bfloat16"] == pytest.approx(nll["float32"], rel=0.01)
    assert nll["float32"] < 1.5  # it has learned something: the codes alone have more
