{{/* What the pods of service, migration and test have in common. */}}

{{/*
Without a user or a group: the image runs as 65532, and OpenShift assigns a user of the namespace's range. The pod uses
neither the API of Kubernetes nor the variables of services.
*/}}
{{- define "customerio-sync.podSpec" -}}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
securityContext:
  {{- mergeOverwrite (dict "runAsNonRoot" true "seccompProfile" (dict "type" "RuntimeDefault")) .Values.podSecurityContext | toYaml | nindent 2 }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "customerio-sync.containerSpec" -}}
image: {{ include "customerio-sync.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
{{- end }}

{{/* Certificates: a YAML map of the volume to its source. Only those for PostgreSQL if "databaseOnly" is set. Call with a dict. */}}
{{- define "customerio-sync.certificates" -}}
{{- with .root.Values.tls }}
{{- if .ca.existingSecret }}
ca: {secret: {secretName: {{ .ca.existingSecret | quote }}, items: [{key: {{ .ca.key | quote }}, path: ca.crt}]}}
{{- else if .ca.existingConfigMap }}
ca: {configMap: {name: {{ .ca.existingConfigMap | quote }}, items: [{key: {{ .ca.key | quote }}, path: ca.crt}]}}
{{- end }}
{{- with .databaseClient.existingSecret }}
database-client: {secret: {secretName: {{ . | quote }}}}
{{- end }}
{{- if and .brokerClient.existingSecret (not $.databaseOnly) }}
broker-client: {secret: {secretName: {{ .brokerClient.existingSecret | quote }}}}
{{- end }}
{{- end }}
{{- end }}

{{- define "customerio-sync.certificateMounts" -}}
{{- range $name, $source := include "customerio-sync.certificates" . | fromYaml }}
- name: {{ $name }}
  mountPath: /etc/customerio-sync/{{ $name }}
  readOnly: true
{{- end }}
{{- end }}

{{- define "customerio-sync.certificateVolumes" -}}
{{- range $name, $source := include "customerio-sync.certificates" . | fromYaml }}
- name: {{ $name }}
  {{- toYaml $source | nindent 2 }}
{{- end }}
{{- end }}
