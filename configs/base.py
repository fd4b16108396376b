"""Every field at its default: the paper's 128-frame model (Table 2, Appendix A.1) with the official
program's optimizer.

The fields, with their docs and allowed values, are the dataclasses that `mebt_jax/config.py`
composes; `python -m mebt_jax.main --config=configs/base.py --help_fields` prints them. The other
files in this folder start from here and change what differs. Any field can be changed on the
command line: `python -m mebt_jax.main --config=configs/demo.py --config.backbone.width=256`.
"""

from ml_collections import ConfigDict

from mebt_jax.config import default_config


def get_config() -> ConfigDict:
    return default_config()
