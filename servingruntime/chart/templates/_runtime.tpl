{{- /* Parts that the head of a runtime and its workers have in common. */ -}}
{{- define "kserve-lmcache.container" -}}
resources:
  limits:
    cpu: {{ include "kserve-lmcache.quantity" .sizes.cpu }}
    memory: {{ include "kserve-lmcache.quantity" .sizes.memory }}
    {{- with .sizes.gpus }}
    nvidia.com/gpu: {{ include "kserve-lmcache.quantity" . }}
    {{- end }}
securityContext:
  runAsNonRoot: true
  {{- include "kserve-lmcache.closed" . | nindent 2 }}
  seccompProfile:
    type: RuntimeDefault
volumeMounts:
  - name: devshm
    mountPath: /dev/shm
  - name: tmp
    mountPath: /tmp
  - name: compiled
    mountPath: /var/cache/kserve-lmcache
  - name: lmcache-config
    mountPath: /lmcache
    readOnly: true
  - name: lmcache-remote
    mountPath: /var/run/secrets/lmcache-remote
    readOnly: true
{{- end -}}

{{- define "kserve-lmcache.pod" -}}
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
volumes:
  - name: devshm
    emptyDir:
      medium: Memory
  - name: tmp
    emptyDir: {}
  - name: compiled
    emptyDir: {}
  - name: lmcache-config
    configMap:
      name: lmcache-config
      optional: true
  - name: lmcache-remote
    projected:
      sources:
        - secret:
            name: lmcache-remote
            optional: true
            items:
              - key: password
                path: password
        - secret:
            name: lmcache-remote-tls
            optional: true
            items:
              - key: ca.crt
                path: ca.crt
{{- end -}}

{{- define "kserve-lmcache.environment" -}}
- name: HOME
  value: /tmp
- name: HF_HOME
  value: /tmp/hf
{{- end -}}

{{- /* A whole runtime: dict "root" $ "suffix" "-cpu" "device" "cpu" "sizes" … "priority" 1. */ -}}
{{- define "kserve-lmcache.runtime" -}}
{{- $multinode := eq .suffix "-multinode" -}}
apiVersion: serving.kserve.io/v1alpha1
kind: {{ eq .root.Values.runtimes.scope "cluster" | ternary "ClusterServingRuntime" "ServingRuntime" }}
metadata:
  name: kserve-lmcache{{ .suffix }}
  labels:
    app.kubernetes.io/name: kserve-lmcache
    app.kubernetes.io/component: serving-runtime
    app.kubernetes.io/part-of: kserve-lmcache
spec:
  annotations:
    prometheus.kserve.io/port: "8080"
    prometheus.kserve.io/path: /metrics
    serving.knative.dev/progress-deadline: 3600s
  labels:
    kserve-lmcache/predictor: "true"
    kserve-lmcache/remote-client: "true"
    {{- if $multinode }}
    kserve-lmcache/multinode: "true"
    {{- end }}
  supportedModelFormats:
    - name: huggingface-lmcache
      version: "1"
      autoSelect: {{ gt (int .priority) 0 }}
      {{- if .priority }}
      priority: {{ .priority }}
      {{- end }}
    - name: huggingface
      version: "1"
      autoSelect: false
  protocolVersions:
    - v2
    - v1
  containers:
    - name: kserve-container
      image: {{ include "kserve-lmcache.image" . | quote }}
      {{- if $multinode }}
      command:
        - /usr/local/bin/multinode.sh
        - head
      {{- end }}
      args:
        - --model_name={{ "{{.Name}}" }}
      env:
        {{- include "kserve-lmcache.environment" . | nindent 8 }}
        - name: KSERVE_LMCACHE_COMPILE_CACHE_DIR
          value: /var/cache/kserve-lmcache
        {{- if $multinode }}
        - name: POD_IP
          valueFrom:
            fieldRef:
              fieldPath: status.podIP
        {{- end }}
      ports:
        - name: http1
          containerPort: 8080
          protocol: TCP
        {{- if $multinode }}
        - name: ray-gcs
          containerPort: 6379
          protocol: TCP
        {{- end }}
      startupProbe:
        httpGet:
          path: /v2/health/ready
          port: http1
        periodSeconds: 10
        timeoutSeconds: 5
        failureThreshold: 360
      readinessProbe:
        httpGet:
          path: /v2/health/ready
          port: http1
        periodSeconds: 10
        timeoutSeconds: 5
        failureThreshold: 3
      livenessProbe:
        httpGet:
          path: /v2/health/live
          port: http1
        periodSeconds: 20
        timeoutSeconds: 10
        failureThreshold: 6
      {{- include "kserve-lmcache.container" . | nindent 6 }}
  {{- include "kserve-lmcache.pod" . | trim | nindent 2 }}
  {{- if $multinode }}
  workerSpec:
    pipelineParallelSize: 2
    tensorParallelSize: 1
    labels:
      kserve-lmcache/multinode: "true"
      kserve-lmcache/remote-client: "true"
    containers:
      - name: worker-container
        image: {{ include "kserve-lmcache.image" . | quote }}
        command:
          - /usr/local/bin/multinode.sh
          - worker
        env:
          {{- include "kserve-lmcache.environment" . | nindent 10 }}
          - name: POD_IP
            valueFrom:
              fieldRef:
                fieldPath: status.podIP
          - name: POD_NAMESPACE
            valueFrom:
              fieldRef:
                fieldPath: metadata.namespace
        ports:
          - name: raylet
            containerPort: 6380
            protocol: TCP
        readinessProbe:
          tcpSocket:
            port: raylet
          periodSeconds: 10
          failureThreshold: 3
        {{- include "kserve-lmcache.container" . | nindent 8 }}
    {{- include "kserve-lmcache.pod" . | trim | nindent 4 }}
  {{- end }}
{{- end -}}
