"""Feature networks by protocol: read from converted folders, and asked for in one sentence where
they are missing.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mebt_jax.config import from_config_dict
from mebt_jax.errors import UserError
from mebt_jax.interop import weight_folders
from mebt_jax.metrics import protocols
from mebt_jax.metrics.networks.c3d import C3D
from mebt_jax.metrics.networks.i3d import I3D
from mebt_jax.stages.evaluation import feature_networks
from mebt_jax.tokenizer.training import lpips
from tests.tiny_config import tiny_config

VIDEO = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 16, 3), dtype=np.uint8)


def config_of(**overrides):
    return from_config_dict(tiny_config(data__frames=16, **overrides))


def arbitrary(make, scale, **sizes):
    """(structure, state) of a network, made without the cost of a proper initialisation."""
    graphdef, state = nnx.split(nnx.eval_shape(lambda: make(**sizes, rngs=nnx.Rngs(0))))
    draws = np.random.default_rng(0)
    fill = (
        (lambda x: scale * draws.standard_normal(x.shape, np.float32))
        if scale
        else lambda x: np.zeros(x.shape, np.float32)
    )
    return graphdef, jax.tree.map(fill, state)


@pytest.fixture
def i3d_weights(monkeypatch):
    """A folder of I3D weights, all zero, that is never written."""
    monkeypatch.setattr(
        weight_folders,
        "load_network",
        lambda path, name, epsilon: arbitrary(I3D, 0, epsilon=epsilon),
    )
    return "DIR"


@pytest.fixture(scope="module")
def c3d_weights(tmp_path_factory):
    path, sizes = tmp_path_factory.mktemp("weights"), {"width": 1, "hidden": 4, "classes": 5}
    weight_folders.save_network(path, "c3d", arbitrary(C3D, 0.2, **sizes)[1], sizes)
    return path


def test_i3d_follows_the_protocol(i3d_weights):
    config = config_of(evaluate__i3d=i3d_weights)
    networks = {
        name: feature_networks.load(protocols.PROTOCOLS[name], config).generated["frechet"]
        for name in ("tats", "tf-reference")
    }
    assert (
        "eps 1e-05, half_pixel" in networks["tats"].name
        and "eps 0.001, corner" in networks["tf-reference"].name
    )
    programs = {
        name: jax.make_jaxpr(network.function)(network.weights, VIDEO)
        for name, network in networks.items()
    }
    for name, epsilon in (("tats", "1e-05"), ("tf-reference", "0.001")):
        assert programs[name].out_avals[0].shape == (2, 400)
        assert epsilon in str(programs[name]) or f"{float(np.float32(float(epsilon)))}" in str(
            programs[name]
        )
    short = {"evaluate__window": 12, "evaluate__window_every": 2}
    measures = feature_networks.load(
        protocols.PROTOCOLS["styleganv"], config_of(evaluate__i3d=i3d_weights, **short)
    )
    for clips, windows in (("generated", 3), ("real", 1)):
        measure = getattr(measures, clips)["windows"]
        found = jax.eval_shape(measure.function, measure.weights, jnp.asarray(VIDEO))
        assert found.shape == (2, windows, 400)
        assert ("mirrored" in measure.name) == (clips == "real")
    assert measures.reconstructed["frechet"] is measures.real["frechet"]


def test_c3d_looks_at_the_first_16_frames(c3d_weights):
    config = config_of(evaluate__c3d=str(c3d_weights))
    inception = feature_networks.load(protocols.PROTOCOLS["weight-free"], config).generated[
        "inception"
    ]
    _, state = weight_folders.load_network(c3d_weights, "c3d")
    longer = np.concatenate([VIDEO, VIDEO], axis=1)
    np.testing.assert_allclose(
        jax.jit(inception.function)(inception.weights, longer),
        jax.jit(inception.function)(state, VIDEO),
        rtol=1e-4,
        atol=1e-5,
    )


def test_lpips_compares_pairs_of_frames_in_its_own_range(monkeypatch):
    monkeypatch.setattr(lpips, "WIDTHS", (4,) * 5)
    graphdef, state = arbitrary(lpips.LPIPS, 0.3)
    monkeypatch.setattr(weight_folders, "load_network", lambda path, name: (graphdef, state))
    loaded = feature_networks.load_pairs(config_of(evaluate__lpips="DIR"))["lpips"]
    network, other = jax.jit(lambda x, y: nnx.merge(graphdef, state)(x, y)), VIDEO[::-1]
    frames = [
        network(VIDEO[:, f] / np.float32(127.5) - 1, other[:, f] / np.float32(127.5) - 1)
        for f in (0, 1)
    ]
    values = jax.jit(loaded.function)(loaded.weights, VIDEO[:, :2], other[:, :2])
    np.testing.assert_allclose(values, np.mean(frames, axis=0), rtol=1e-3)
    assert list(feature_networks.load_pairs(config_of())) == ["psnr", "ssim", "l1"]
    assert "ssim" not in feature_networks.load_pairs(config_of(data__resolution=8))


def test_missing_weights_and_short_clips_are_told_with_the_way_out(c3d_weights, tmp_path):
    tats = protocols.PROTOCOLS["tats"]
    with pytest.raises(
        UserError,
        match="weights are not here.*interop.convert i3d_pretrained_400.pt.*weight-free runs",
    ):
        feature_networks.load(tats, config_of())
    with pytest.raises(UserError, match="at least 9 frames"):
        feature_networks.load(tats, from_config_dict(tiny_config(evaluate__i3d="DIR")))
    with pytest.raises(UserError, match="at least 9 frames.*not 4"):
        feature_networks.load(tats, config_of(evaluate__i3d="DIR", evaluate__window=4))
    with pytest.raises(UserError, match="16 frames, not config.data.frames 8"):
        feature_networks.load(
            protocols.PROTOCOLS["weight-free"],
            from_config_dict(tiny_config(evaluate__c3d=str(c3d_weights))),
        )
    with pytest.raises(UserError):
        feature_networks.load(tats, config_of(evaluate__i3d=str(tmp_path)))


def test_an_i3d_of_kinetics_600_is_refused(monkeypatch):
    monkeypatch.setattr(
        weight_folders, "load_network", lambda path, name, epsilon: arbitrary(I3D, 0, classes=600)
    )
    with pytest.raises(UserError, match="logits of 600 classes.*i3d_pretrained_400.pt"):
        feature_networks.load(protocols.PROTOCOLS["tats"], config_of(evaluate__i3d="DIR"))
