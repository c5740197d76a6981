"""Training of GenDR networks: one YAML file in, weights that gendr_core loads out.

Flow: ``config`` (YAML -> frozen values) -> ``roles`` (the networks) and ``data`` (photos -> damaged pairs) -> ``steps``
(one function per update, losses per sample) -> ``loop`` (sequence, log, validate, save) -> ``export``.
Depends on gendr_core, never the reverse. The command is ``gendr-train``, or ``python -m gendr_train``.
"""
