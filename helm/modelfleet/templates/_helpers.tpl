{{/* The release's name, with the product's in it: what the names of everything the chart creates begin with. */}}
{{- define "modelfleet.base" -}}
{{- $base := ternary .Release.Name (printf "%s-%s" .Release.Name .Chart.Name) (contains .Chart.Name .Release.Name) -}}
{{- $base | trunc 50 | trimSuffix "-" -}}
{{- end }}

{{/* Name of what belongs to the operator. */}}
{{- define "modelfleet.fullname" -}}
{{- printf "%s-operator" (include "modelfleet.base" .) -}}
{{- end }}

{{/* Name of what belongs to the gateway. */}}
{{- define "modelfleet.gatewayName" -}}
{{- printf "%s-gateway" (include "modelfleet.base" .) -}}
{{- end }}

{{/* Labels that select the operator's pods; immutable. */}}
{{- define "modelfleet.selectorLabels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end }}

{{/* Labels that select the gateway's pods; immutable. */}}
{{- define "modelfleet.gatewaySelectorLabels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: gateway
{{- end }}

{{/* Which version of the chart an object is from. */}}
{{- define "modelfleet.versionLabels" -}}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{/* Labels of the operator's objects. */}}
{{- define "modelfleet.labels" -}}
{{ include "modelfleet.selectorLabels" . }}
{{ include "modelfleet.versionLabels" . }}
{{- end }}

{{/* Labels of the gateway's objects. */}}
{{- define "modelfleet.gatewayLabels" -}}
{{ include "modelfleet.gatewaySelectorLabels" . }}
{{ include "modelfleet.versionLabels" . }}
{{- end }}

{{/* The control image: operator and gateway. */}}
{{- define "modelfleet.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{/* The engine images, with the chart's own version where nothing else is asked for. */}}
{{- define "modelfleet.engineImage" -}}
{{- .Values.engine.image | default (printf "modelfleet/engine-cpu:%s" .Chart.AppVersion) -}}
{{- end }}
