{{/* The settings of the program. */}}

{{/*
config, with what the chart decides: the migrations, and the paths of certificates. A YAML map of section to keys.
*/}}
{{- define "customerio-sync.settings" -}}
{{- $settings := deepCopy .Values.config }}
{{- $decided := dict "database" dict "broker" dict "tls" dict }}
{{- if ne .Values.migrations.mode "none" }}{{ $_ := set $decided.database "migrate" false }}{{ end }}
{{- with .Values.tls }}
  {{- if or .ca.existingSecret .ca.existingConfigMap }}{{ $_ := set $decided.tls "ca_file" "/etc/customerio-sync/ca/ca.crt" }}{{ end }}
  {{- range $section, $client := dict "database" .databaseClient "broker" .brokerClient }}
    {{- if $client.existingSecret }}
      {{- $_ := set (get $decided $section) "client_certificate" (printf "/etc/customerio-sync/%s-client/tls.crt" $section) }}
      {{- $_ := set (get $decided $section) "client_key" (printf "/etc/customerio-sync/%s-client/tls.key" $section) }}
    {{- end }}
  {{- end }}
{{- end }}
{{- mergeOverwrite $settings $decided | toYaml }}
{{- end }}

{{/* The value of a setting as text. Helm reads every number of a values file as a float, and the settings are integers. */}}
{{- define "customerio-sync.settingText" -}}
{{- if kindIs "float64" . }}{{ int64 . }}{{ else }}{{ . }}{{ end }}
{{- end }}

{{/* The settings as TOML. A basic string of TOML allows every escape that JSON writes. */}}
{{- define "customerio-sync.toml" -}}
{{- range $section, $keys := include "customerio-sync.settings" . | fromYaml }}
{{- if $keys }}
[{{ $section }}]
{{- range $key, $value := $keys }}
{{ $key }} = {{ if kindIs "string" $value }}{{ toJson $value }}{{ else }}{{ include "customerio-sync.settingText" $value }}{{ end }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/*
The settings of some sections as environment variables, for pods that must not depend on an object of the release.
Call with a dict of "root" and "sections".
*/}}
{{- define "customerio-sync.settingsEnv" -}}
{{- $settings := include "customerio-sync.settings" .root | fromYaml }}
{{- range $section := .sections }}
{{- range $key, $value := default dict (get $settings $section) }}
- name: CUSTOMERIO_SYNC__{{ upper $section }}__{{ upper $key }}
  value: {{ include "customerio-sync.settingText" $value | quote }}
{{- end }}
{{- end }}
{{- end }}

{{/* The environment variable of a credential. Call with a dict of "root", "name" and "credential". */}}
{{- define "customerio-sync.credentialEnv" -}}
- name: {{ .name }}
  valueFrom:
    secretKeyRef:
      name: {{ include "customerio-sync.secretName" . | quote }}
      key: {{ .credential.key | quote }}
{{- end }}

{{/* The credentials of the service: a YAML map of the environment variable to the value of the chart. */}}
{{- define "customerio-sync.credentials" -}}
{{- with .Values.credentials }}
{{- $credentials := dict "DATABASE_URL" .databaseUrl "AMQP_URL" .amqpUrl "ADMIN_TOKENS" .adminTokens }}
{{- if not $.Values.mockMode }}
  {{- $credentials = merge $credentials (dict "CUSTOMERIO_SITE_ID" .customerioSiteId "CUSTOMERIO_API_KEY" .customerioApiKey) }}
{{- end }}
{{- toYaml $credentials }}
{{- end }}
{{- end }}
