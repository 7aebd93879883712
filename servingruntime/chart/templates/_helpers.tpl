{{- /* The image for a device: dict "root" $ "device" "gpu". */ -}}
{{- define "kserve-lmcache.image" -}}
{{- $image := .root.Values.image -}}
{{- with index $image.digests .device -}}
{{ $image.repository }}@{{ . }}
{{- else -}}
{{ $image.repository }}:{{ $image.version | default .root.Chart.AppVersion }}-{{ .device }}
{{- end -}}
{{- end -}}

{{- define "kserve-lmcache.storeLabels" -}}
app.kubernetes.io/name: lmcache-remote
app.kubernetes.io/component: remote-store
app.kubernetes.io/part-of: kserve-lmcache
{{- end -}}

{{- /* What the restricted pod security standard wants of a container, but for its user. */ -}}
{{- define "kserve-lmcache.closed" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop:
    - ALL
{{- end -}}

{{- define "kserve-lmcache.storePorts" -}}
{{- if eq .Values.store.type "lmcache-server" -}}
- name: remote
  port: 65432
{{- else if eq .Values.store.type "mooncake" -}}
- name: remote
  port: 50051
- name: metadata
  port: 8080
{{- else -}}
{{- if eq .Values.store.type "redis-sentinel" -}}
- name: sentinel
  port: 26379
{{ end -}}
- name: remote
  port: 6379
{{- end -}}
{{- end -}}

{{- /* A quantity as a string: YAML's numbers are floats, and large ones print as 2e+09. */ -}}
{{- define "kserve-lmcache.quantity" -}}
{{- if and (kindIs "float64" .) (eq (floor .) .) -}}
{{ printf "%.0f" . | quote }}
{{- else -}}
{{ toString . | quote }}
{{- end -}}
{{- end -}}
