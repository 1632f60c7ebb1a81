"""The two pydantic bases of the contract: strict for what users write, additive for what parts exchange.

Must not import anything but pydantic: every part of the product depends on this package.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel


class ApiModel(BaseModel):
    """A piece of a manifest: camelCase on the wire, immutable, unknown fields refused."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True, use_enum_values=False
    )


class WireModel(BaseModel):
    """A message between parts of possibly different versions: unknown fields ignored, so it may grow."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore", frozen=True)
