"""The one error that training adds to gendr_core's tree.

Role: raised by ``loop`` and ``checkpoint``; wrong configs are gendr_core's ``OptionError``.
"""

from gendr_core.errors import GenDRError


class TrainingError(GenDRError):
    """A run cannot go on: a loss is not finite, or saved state does not belong to the config."""
