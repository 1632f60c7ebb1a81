"""What of a spec cannot be rendered: the user's errors of the pure core. PURE.

They become conditions. The API server's refusals have their own types in `modelfleet_kube.errors`.
"""

from __future__ import annotations


class SpecError(ValueError):
    """The spec is valid by itself but asks for what this operator cannot render; the message says what to change."""


class TemplateError(SpecError):
    """The user's podTemplate cannot be merged; the message says which part and why."""
