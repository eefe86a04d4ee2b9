//! The pod of a replica. Passes Pod Security *restricted*; takes nothing from the resource but the allow-listed knobs.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Capabilities, Container, ContainerPort, EnvVar, EnvVarSource, GRPCAction, ObjectFieldSelector, PodSecurityContext,
    PodSpec, PodTemplateSpec, Probe, ResourceRequirements, SeccompProfile, SecretVolumeSource, SecurityContext,
    TopologySpreadConstraint, Volume, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use lockstep_api::spec::PodOptions;

use super::{label_selector, labels};
use crate::validate::{CLAIM, Service};

/// Where clients, admin calls and probes go.
pub const CLIENT_PORT: i32 = 7400;
/// Where replicas speak to each other.
pub const PEER_PORT: i32 = 7401;
/// Where metrics are read.
pub const METRICS_PORT: i32 = 7402;
/// The key of the admin token in its Secret, and so the name of its file.
pub const TOKEN_KEY: &str = "token";

/// The only container.
const CONTAINER: &str = "replica";
/// The user and group of the image; the volume is theirs by `fsGroup`.
const USER: i64 = 65532;
const DATA: &str = "/data";
const ADMIN: &str = "/etc/lockstep/admin";

/// The template of all replicas. Nothing in it depends on the ordinal, for identity comes with the data directory, nor on the
/// number of replicas, so that no pod is replaced when that changes.
pub fn template(service: &Service) -> PodTemplateSpec {
    let PodOptions {
        resources,
        node_selector,
        tolerations,
        affinity,
        topology_spread_constraints,
        priority_class_name,
        image_pull_secrets,
        labels: own_labels,
        annotations,
    } = service.pod.clone();
    let mut all_labels = own_labels.unwrap_or_default();
    all_labels.extend(labels(service));
    PodTemplateSpec {
        metadata: Some(ObjectMeta { labels: Some(all_labels), annotations, ..Default::default() }),
        spec: Some(PodSpec {
            service_account_name: Some(service.name.clone()),
            automount_service_account_token: Some(false),
            enable_service_links: Some(false),
            termination_grace_period_seconds: Some(30),
            security_context: Some(PodSecurityContext {
                run_as_non_root: Some(true),
                run_as_user: Some(USER),
                run_as_group: Some(USER),
                fs_group: Some(USER),
                fs_group_change_policy: Some("OnRootMismatch".to_owned()),
                seccomp_profile: Some(seccomp()),
                ..Default::default()
            }),
            containers: vec![container(service, resources.map_or_else(default_resources, Into::into))],
            volumes: Some(vec![Volume {
                name: "admin".to_owned(),
                secret: Some(SecretVolumeSource {
                    secret_name: Some(service.token_name()),
                    default_mode: Some(0o440),
                    ..Default::default()
                }),
                ..Default::default()
            }]),
            topology_spread_constraints: Some(spread(service, topology_spread_constraints)),
            node_selector,
            tolerations,
            affinity,
            priority_class_name,
            image_pull_secrets,
            ..Default::default()
        }),
    }
}

fn container(service: &Service, resources: ResourceRequirements) -> Container {
    Container {
        name: CONTAINER.to_owned(),
        image: Some(service.image.clone()),
        image_pull_policy: service.pull_policy.map(|policy| policy.to_string()),
        command: Some(vec!["/bin/lockstep-replica".to_owned()]),
        args: Some(arguments(service)),
        env: Some(vec![EnvVar {
            name: "POD_NAME".to_owned(),
            value_from: Some(EnvVarSource {
                field_ref: Some(ObjectFieldSelector {
                    field_path: "metadata.name".to_owned(),
                    api_version: Some("v1".to_owned()),
                }),
                ..Default::default()
            }),
            value: None,
        }]),
        ports: Some(vec![port("client", CLIENT_PORT), port("peer", PEER_PORT), port("metrics", METRICS_PORT)]),
        resources: Some(resources),
        volume_mounts: Some(vec![
            VolumeMount { name: CLAIM.to_owned(), mount_path: DATA.to_owned(), ..Default::default() },
            VolumeMount {
                name: "admin".to_owned(),
                mount_path: ADMIN.to_owned(),
                read_only: Some(true),
                ..Default::default()
            },
        ]),
        // Recovery reads the whole log before the first answer: five minutes before a start counts as failed.
        startup_probe: Some(probe("lockstep.live", 1, 300)),
        // Never a consensus state: a lost quorum must not restart anyone. Half a minute of a stuck event loop does.
        liveness_probe: Some(probe("lockstep.live", 5, 6)),
        readiness_probe: Some(probe("lockstep.ready", 1, 2)),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            capabilities: Some(Capabilities { drop: Some(vec!["ALL".to_owned()]), add: None }),
            privileged: Some(false),
            read_only_root_filesystem: Some(true),
            run_as_non_root: Some(true),
            seccomp_profile: Some(seccomp()),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn arguments(service: &Service) -> Vec<String> {
    // Without the cluster's domain: the resolver's search list completes it, whatever it is called.
    let domain = format!("{}.{}.svc", service.peers_name(), service.namespace);
    [
        ("--data-dir", DATA.to_owned()),
        ("--client-listen", format!("0.0.0.0:{CLIENT_PORT}")),
        ("--peer-listen", format!("0.0.0.0:{PEER_PORT}")),
        ("--metrics-listen", format!("0.0.0.0:{METRICS_PORT}")),
        ("--advertise-client", format!("$(POD_NAME).{domain}:{CLIENT_PORT}")),
        ("--advertise-peer", format!("$(POD_NAME).{domain}:{PEER_PORT}")),
        // One name for all pods, however many there are.
        ("--peers", format!("{domain}:{PEER_PORT}")),
        ("--admin-token-file", format!("{ADMIN}/{TOKEN_KEY}")),
        ("--retain-bytes", service.retain_bytes.to_string()),
        ("--log-level", service.log_level.clone()),
        ("--log-format", "json".to_owned()),
    ]
    .into_iter()
    .map(|(flag, value)| format!("{flag}={value}"))
    .collect()
}

/// Over nodes where it can: a service that shares a node is better than one that does not start.
fn spread(service: &Service, chosen: Option<Vec<TopologySpreadConstraint>>) -> Vec<TopologySpreadConstraint> {
    let Some(chosen) = chosen else {
        return vec![TopologySpreadConstraint {
            max_skew: 1,
            topology_key: "kubernetes.io/hostname".to_owned(),
            when_unsatisfiable: "ScheduleAnyway".to_owned(),
            node_taints_policy: Some("Honor".to_owned()),
            label_selector: Some(label_selector(service)),
            ..Default::default()
        }];
    };
    chosen
        .into_iter()
        .map(|mut constraint| {
            constraint.label_selector.get_or_insert_with(|| label_selector(service));
            constraint
        })
        .collect()
}

fn default_resources() -> ResourceRequirements {
    let amount = |text: &str| Quantity(text.to_owned());
    ResourceRequirements {
        requests: Some(BTreeMap::from([("cpu".to_owned(), amount("50m")), ("memory".to_owned(), amount("128Mi"))])),
        ..Default::default()
    }
}

fn seccomp() -> SeccompProfile {
    SeccompProfile { type_: "RuntimeDefault".to_owned(), localhost_profile: None }
}

fn port(name: &str, number: i32) -> ContainerPort {
    ContainerPort {
        name: Some(name.to_owned()),
        container_port: number,
        protocol: Some("TCP".to_owned()),
        ..Default::default()
    }
}

fn probe(service: &str, period_seconds: i32, failures: i32) -> Probe {
    Probe {
        grpc: Some(GRPCAction { port: CLIENT_PORT, service: Some(service.to_owned()) }),
        period_seconds: Some(period_seconds),
        timeout_seconds: Some(period_seconds),
        failure_threshold: Some(failures),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validate::tests::{example, service};

    fn spec(service: &Service) -> PodSpec {
        template(service).spec.expect("a spec")
    }

    /// Pod Security Standards, profile restricted, as of v1.34.
    #[test]
    fn pod_of_a_replica_passes_pod_security_restricted() {
        let pod = spec(&example());
        assert_eq!((pod.host_network, pod.host_pid, pod.host_ipc), (None, None, None));
        for volume in pod.volumes.expect("volumes") {
            assert!(volume.secret.is_some() && volume.host_path.is_none());
        }
        let context = pod.security_context.expect("a pod context");
        assert_eq!(context.run_as_non_root, Some(true));
        assert!(context.run_as_user.is_some_and(|user| user != 0));
        assert_eq!(context.seccomp_profile.expect("seccomp").type_, "RuntimeDefault");
        assert_eq!(pod.automount_service_account_token, Some(false));
        assert_eq!(pod.init_containers, None);
        assert_eq!(pod.containers.len(), 1);
        for container in pod.containers {
            let context = container.security_context.expect("a container context");
            assert_eq!(context.allow_privilege_escalation, Some(false));
            assert_eq!(context.privileged, Some(false));
            assert_eq!(context.read_only_root_filesystem, Some(true));
            let capabilities = context.capabilities.expect("capabilities");
            assert_eq!((capabilities.drop, capabilities.add), (Some(vec!["ALL".to_owned()]), None));
            assert!(container.ports.expect("ports").iter().all(|port| port.host_port.is_none()));
        }
    }

    #[test]
    fn replica_is_told_where_all_peers_are() {
        let arguments = arguments(&example());
        let peers = "--peers=kv-peers.apps.svc:7401";
        assert!(arguments.contains(&peers.to_owned()), "{arguments:?}");
        let advertised = "--advertise-client=$(POD_NAME).kv-peers.apps.svc:7400";
        assert!(arguments.contains(&advertised.to_owned()), "{arguments:?}");
        let own = "--advertise-peer=$(POD_NAME).kv-peers.apps.svc:7401";
        assert!(arguments.contains(&own.to_owned()), "{arguments:?}");
        assert!(arguments.contains(&"--admin-token-file=/etc/lockstep/admin/token".to_owned()), "{arguments:?}");
    }

    #[test]
    fn probes_ask_for_live_and_ready_apart() {
        let pod = spec(&example());
        let asked = |probe: &Option<Probe>| {
            let grpc = probe.as_ref().and_then(|probe| probe.grpc.clone()).expect("a gRPC probe");
            (grpc.port, grpc.service.expect("a service"))
        };
        let container = &pod.containers[0];
        assert_eq!(asked(&container.readiness_probe), (7400, "lockstep.ready".to_owned()));
        assert_eq!(asked(&container.liveness_probe), (7400, "lockstep.live".to_owned()));
        assert_eq!(asked(&container.startup_probe), (7400, "lockstep.live".to_owned()));
    }

    #[test]
    fn replicas_by_default_spread_over_nodes() {
        let constraints = spec(&example()).topology_spread_constraints.expect("constraints");
        assert_eq!(constraints.len(), 1);
        assert_eq!(constraints[0].topology_key, "kubernetes.io/hostname");
        assert_eq!(constraints[0].when_unsatisfiable, "ScheduleAnyway");
        assert_eq!(constraints[0].node_taints_policy.as_deref(), Some("Honor"));
    }

    #[test]
    fn knobs_in_the_resource_reach_the_pod() {
        let yaml = format!(
            "{}{}",
            include_str!("../../../examples/kv.yaml"),
            r"
  image: example.com/lockstep:1
  imagePullPolicy: Never
  logLevel: debug
  snapshots: {retainLogBytes: 1Mi}
  pod:
    resources: {requests: {cpu: 1, memory: 1Gi}, limits: {memory: 2Gi}}
    nodeSelector: {disk: ssd}
    tolerations: [{key: dedicated, operator: Exists}]
    affinity: {podAntiAffinity: {}}
    topologySpreadConstraints: [{maxSkew: 2, topologyKey: zone, whenUnsatisfiable: DoNotSchedule}]
    priorityClassName: important
    imagePullSecrets: [{name: registry}]
    labels: {team: blue}
    annotations: {note: hello}
"
        );
        let template = template(&service(&yaml));
        let meta = template.metadata.expect("metadata");
        assert_eq!(meta.labels.as_ref().and_then(|labels| labels.get("team")).map(String::as_str), Some("blue"));
        assert!(meta.labels.expect("labels").contains_key("app.kubernetes.io/instance"));
        assert_eq!(meta.annotations.expect("annotations").get("note").map(String::as_str), Some("hello"));
        let pod = template.spec.expect("a spec");
        let container = &pod.containers[0];
        assert_eq!(container.image.as_deref(), Some("example.com/lockstep:1"));
        assert_eq!(container.image_pull_policy.as_deref(), Some("Never"));
        assert!(container.args.as_ref().is_some_and(|args| args.contains(&"--log-level=debug".to_owned())));
        assert!(container.args.as_ref().is_some_and(|args| args.contains(&"--retain-bytes=1048576".to_owned())));
        let resources = container.resources.clone().expect("resources");
        assert_eq!(resources.requests.expect("requests")["cpu"], Quantity("1".into()));
        assert_eq!(resources.limits.expect("limits")["memory"], Quantity("2Gi".into()));
        assert_eq!(pod.node_selector.expect("a selector")["disk"], "ssd");
        assert_eq!(pod.tolerations.expect("tolerations").len(), 1);
        assert!(pod.affinity.is_some());
        assert_eq!(pod.priority_class_name.as_deref(), Some("important"));
        assert_eq!(pod.image_pull_secrets.expect("secrets")[0].name, "registry");
        let constraints = pod.topology_spread_constraints.expect("constraints");
        assert_eq!((constraints.len(), constraints[0].topology_key.as_str()), (1, "zone"));
        assert!(constraints[0].label_selector.is_some(), "the replicas' own");
    }
}
