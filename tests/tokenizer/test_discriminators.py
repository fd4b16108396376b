"""Shapes and receptive fields of the two discriminators; their numbers are tested against official
vectors in interop/.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mebt_jax.tokenizer.training.discriminators import CLIPS, FRAMES, Discriminator


def discriminator(kernel_size):
    return Discriminator(kernel_size, channels=2, layers=2, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    "kernel_size, logits, first", [(FRAMES, (4, 7, 7), (4, 9, 9)), (CLIPS, (4, 7, 7), (3, 9, 9))]
)
def test_sizes_follow_strides_and_padding(kernel_size, logits, first):
    output = jax.eval_shape(lambda x: discriminator(kernel_size)(x), jnp.zeros((1, 4, 16, 16, 3)))
    assert output.logits.shape == (1, *logits, 1)
    assert [feature.shape[-1] for feature in output.features] == [2, 4, 8]
    assert output.features[0].shape[1:4] == first


def test_that_of_frames_sees_every_frame_alone():
    network = discriminator(FRAMES)
    video = jax.random.normal(jax.random.key(0), (1, 3, 8, 8, 3))
    changed = network(video.at[:, 1].add(1.0)).logits != network(video).logits
    np.testing.assert_array_equal(np.asarray(changed.any(axis=(0, 2, 3, 4))), [False, True, False])
