{{/* Names and labels. */}}

{{- define "customerio-sync.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" }}
{{- end }}

{{/* The name of most objects. 40 characters leave room for suffixes: some names may have 63. */}}
{{- define "customerio-sync.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride }}
{{- if contains $name .Release.Name }}{{ $name = .Release.Name }}{{ else }}{{ $name = printf "%s-%s" .Release.Name $name }}{{ end }}
{{- default $name .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- end }}

{{- define "customerio-sync.selectorLabels" -}}
app.kubernetes.io/name: {{ include "customerio-sync.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{/*
Labels of pods. Call with a dict of "root" and "component". They have no version of the chart or the program, so that a
new chart alone changes no pod.
*/}}
{{- define "customerio-sync.podLabels" -}}
{{- $own := include "customerio-sync.selectorLabels" .root | fromYaml }}
{{- $own = set $own "app.kubernetes.io/component" .component }}
{{- merge $own .root.Values.podLabels .root.Values.commonLabels | toYaml }}
{{- end }}

{{- define "customerio-sync.labels" -}}
{{- $own := include "customerio-sync.selectorLabels" . | fromYaml }}
{{- $own = set $own "app.kubernetes.io/version" (.Chart.AppVersion | replace "+" "_") }}
{{- $own = set $own "app.kubernetes.io/managed-by" .Release.Service }}
{{- $own = set $own "helm.sh/chart" (printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-") }}
{{- merge $own .Values.commonLabels | toYaml }}
{{- end }}

{{- define "customerio-sync.image" -}}
{{- if .Values.image.digest }}{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else }}{{ .Values.image.repository }}:{{ default .Chart.AppVersion .Values.image.tag }}
{{- end }}
{{- end }}

{{/* The name of the Secret with a credential. Call with a dict of "root" and "credential", a value with existingSecret. */}}
{{- define "customerio-sync.secretName" -}}
{{- default .root.Values.existingSecret .credential.existingSecret }}
{{- end }}

{{/* The port of config.http.addr. */}}
{{- define "customerio-sync.port" -}}
{{- .Values.config.http.addr | splitList ":" | last }}
{{- end }}

{{/* The maximum number of replicas that can run, without those of a rollout. */}}
{{- define "customerio-sync.maxReplicas" -}}
{{- ternary .Values.replicaCount .Values.autoscaling.maxReplicas (eq .Values.autoscaling.mode "none") | int64 }}
{{- end }}

{{/* A duration such as "1m 30s", rounded up to whole seconds. */}}
{{- define "customerio-sync.seconds" -}}
{{- $units := dict "ms" 1 "s" 1000 "m" 60000 "h" 3600000 }}
{{- $total := 0 }}
{{- range regexFindAll "[0-9]+ *[a-z]+" . -1 }}
  {{- $unit := regexFind "[a-z]+" . }}
  {{- if not (hasKey $units $unit) }}{{ fail (printf "a duration has the unit %q; expected ms, s, m or h" $unit) }}{{ end }}
  {{- $total = add $total (mul (regexFind "[0-9]+" . | int64) (get $units $unit)) }}
{{- end }}
{{- div (add $total 999) 1000 }}
{{- end }}
