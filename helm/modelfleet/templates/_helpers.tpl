{{/* Name of everything the chart creates: the release's name, with the product's in it. */}}
{{- define "modelfleet.fullname" -}}
{{- $base := ternary .Release.Name (printf "%s-%s" .Release.Name .Chart.Name) (contains .Chart.Name .Release.Name) -}}
{{- printf "%s-operator" ($base | trunc 50 | trimSuffix "-") -}}
{{- end }}

{{/* Labels that select the operator's pods; immutable. */}}
{{- define "modelfleet.selectorLabels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end }}

{{/* Labels of every object of the chart. */}}
{{- define "modelfleet.labels" -}}
{{ include "modelfleet.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{/* The engine images, with the chart's own version where nothing else is asked for. */}}
{{- define "modelfleet.engineImage" -}}
{{- .Values.engine.image | default (printf "modelfleet/engine-cpu:%s" .Chart.AppVersion) -}}
{{- end }}
