{{/* The name of all objects: the release's, with the chart's unless it is in there already. */}}
{{- define "lockstep.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- printf "%s-operator" .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s-operator" .Release.Name $name | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Cluster-wide names hold the namespace, so that releases of one name do not meet. */}}
{{- define "lockstep.clustername" -}}
{{- printf "%s:%s" .Release.Namespace (include "lockstep.fullname" .) -}}
{{- end -}}

{{- define "lockstep.selector" -}}
app.kubernetes.io/name: lockstep-operator
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end -}}

{{- define "lockstep.labels" -}}
{{ include "lockstep.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "lockstep.account" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "lockstep.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- required "serviceAccount.name is needed when serviceAccount.create is false" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "lockstep.image" -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) -}}
{{- end -}}
{{- end -}}

{{/* What the operator may do with the resources that it watches. Nothing else, and nothing outside their namespaces. */}}
{{- define "lockstep.rules" -}}
- apiGroups: [lockstep.dev]
  resources: [replicatedservices]
  verbs: [get, list, watch]
- apiGroups: [lockstep.dev]
  resources: [replicatedservices/status]
  verbs: [update, patch]
- apiGroups: [apps]
  resources: [statefulsets]
  verbs: [get, list, watch, create, patch]
- apiGroups: [""]
  resources: [services, serviceaccounts]
  verbs: [get, list, watch, create, patch]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch]
# By name only: the admin token of each service. Never listed or watched.
- apiGroups: [""]
  resources: [secrets]
  verbs: [get, create]
# Sick pods are deleted; pods that are well are evicted, so that disruption budgets are kept.
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch, delete]
{{- if not .Values.watchNamespace }}
# By name only, and only of pods that do not answer. Nodes belong to no namespace: an operator for one namespace goes by what the
# pods themselves say.
- apiGroups: [""]
  resources: [nodes]
  verbs: [get]
{{- end }}
- apiGroups: [""]
  resources: [pods/eviction]
  verbs: [create]
# To see whether they are being deleted, and to grow them. Deleted are those of replicas that were removed from their service,
# and, where spec.storage.replaceAfter is set, those whose node is gone.
- apiGroups: [""]
  resources: [persistentvolumeclaims]
  verbs: [get, list, patch, delete]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
{{- end -}}
