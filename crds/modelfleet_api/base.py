"""The two pydantic bases of the contract: strict for what users write, additive for what parts exchange.

Must not import anything but pydantic: every part of the product depends on this package.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic.alias_generators import to_camel


class ApiModel(BaseModel):
    """A piece of a manifest: camelCase on the wire, immutable, unknown fields refused, nothing converted.

    Strict, because the API server is: `replicas: "3"` is a mistake. A null member is an absent one, as there.
    """

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True, use_enum_values=False, strict=True
    )

    @model_validator(mode="before")
    @classmethod
    def _null_means_absent(cls, data: Any) -> Any:
        if isinstance(data, dict):
            return {key: value for key, value in data.items() if value is not None}
        return data


class WireModel(BaseModel):
    """A message between parts of possibly different versions: unknown fields ignored, so it may grow."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore", frozen=True)
