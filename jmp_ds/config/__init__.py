"""The run configuration: what `pretrain.yaml` and `finetune.yaml` may say, checked before any work starts.

`load_pretrain` and `load_finetune` turn a file, an optional recipe under it and `key.sub=value` overrides over it into
one validated value; every mistake is a `UserError` with one message that names the key and where it stands.
"""

from jmp_ds.config.finetune import FinetuneConfig, FromConfig, LayerwiseLrConfig
from jmp_ds.config.loading import Resolved, load_finetune, load_pretrain
from jmp_ds.config.pretrain import PretrainConfig

__all__ = [
    "FinetuneConfig",
    "FromConfig",
    "LayerwiseLrConfig",
    "PretrainConfig",
    "Resolved",
    "load_finetune",
    "load_pretrain",
]
