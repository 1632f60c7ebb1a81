"""The kinds of `modelfleet.dev` and what a CustomResourceDefinition says of each beside its schema. PURE."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from modelfleet_api import names, rules
from modelfleet_api.llmdeployment import LLMDeploymentSpec
from modelfleet_api.modelroute import ModelRouteSpec
from modelfleet_api.status import LLMDeploymentStatus
from modelfleet_api.tenant import TenantSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column of `kubectl get`."""

    name: str
    type: str
    json_path: str


_AGE = Column(name="Age", type="date", json_path=".metadata.creationTimestamp")


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind; `plural` is in its URL, in RBAC and in the name of its definition."""

    name: str
    plural: str
    singular: str
    short_names: tuple[str, ...]
    is_namespaced: bool
    description: str
    spec: type[BaseModel]
    status: type[BaseModel] | None = None
    spec_rules: tuple[rules.Rule, ...] = ()
    # CEL and message of the rule on metadata.name, if it has one beyond Kubernetes'.
    name_rule: tuple[str, str] | None = None
    columns: tuple[Column, ...]
    subresources: tuple[tuple[str, dict[str, Any]], ...] = ()

    @property
    def definition_name(self) -> str:
        """`metadata.name` of its CustomResourceDefinition."""
        return f"{self.plural}.{names.GROUP}"


LLM_DEPLOYMENT = Kind(
    name=names.KIND,
    plural=names.PLURAL,
    singular=names.SINGULAR,
    short_names=(names.SHORT_NAME,),
    is_namespaced=True,
    description="A fleet of inference engines that serve one model behind one URL.",
    spec=LLMDeploymentSpec,
    status=LLMDeploymentStatus,
    spec_rules=rules.SPEC_RULES,
    name_rule=(rules.NAME_CEL, rules.NAME_MESSAGE),
    columns=(
        Column(name="Model", type="string", json_path=".spec.model.source"),
        Column(name="Desired", type="integer", json_path=".status.desiredReplicas"),
        Column(name="Ready", type="integer", json_path=".status.readyReplicas"),
        Column(name="Reason", type="string", json_path='.status.conditions[?(@.type=="Ready")].reason'),
        Column(name="URL", type="string", json_path=".status.url"),
        _AGE,
    ),
    subresources=(
        ("status", {}),
        (
            "scale",
            {
                "specReplicasPath": ".spec.replicas",
                "statusReplicasPath": ".status.replicas",
                "labelSelectorPath": ".status.selector",
            },
        ),
    ),
)

MODEL_ROUTE = Kind(
    name=names.ROUTE_KIND,
    plural=names.ROUTE_PLURAL,
    singular="modelroute",
    short_names=("llmroute",),
    is_namespaced=True,
    description="Other names for models, weighted splits, and whose a short name is that two models serve.",
    spec=ModelRouteSpec,
    spec_rules=rules.ROUTE_RULES,
    columns=(
        Column(name="Aliases", type="string", json_path=".spec.aliases"),
        _AGE,
    ),
)

TENANT = Kind(
    name=names.TENANT_KIND,
    plural=names.TENANT_PLURAL,
    singular="tenant",
    short_names=("llmtenant",),
    is_namespaced=False,
    description="Who may ask for which models, and how much.",
    spec=TenantSpec,
    name_rule=(rules.TENANT_NAME_CEL, rules.TENANT_NAME_MESSAGE),
    columns=(
        Column(name="Requests", type="integer", json_path=".spec.requestsPerMinute"),
        Column(name="Tokens", type="integer", json_path=".spec.tokensPerMinute"),
        Column(name="Priority", type="integer", json_path=".spec.priority"),
        Column(name="Weight", type="integer", json_path=".spec.weight"),
        _AGE,
    ),
)

KINDS = (LLM_DEPLOYMENT, MODEL_ROUTE, TENANT)
# Not Tenant until the gateway reads it: a limit that is accepted and does nothing is worse than none.
INSTALLED_KINDS = (LLM_DEPLOYMENT, MODEL_ROUTE)
