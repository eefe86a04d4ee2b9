//! How replicas find each other, and clients the replicas.

use k8s_openapi::api::core::v1::{Service as KubernetesService, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::pod::{CLIENT_PORT, PEER_PORT};
use super::{meta, selector};
use crate::validate::Service;

/// Stable names for the replicas, ready or not: they must find each other before anyone is ready.
pub fn peers(service: &Service) -> KubernetesService {
    KubernetesService {
        metadata: meta(service, service.peers_name()),
        spec: Some(ServiceSpec {
            cluster_ip: Some("None".to_owned()),
            publish_not_ready_addresses: Some(true),
            selector: Some(selector(&service.name)),
            ports: Some(vec![port("peer", PEER_PORT), port("client", CLIENT_PORT)]),
            ..Default::default()
        }),
        status: None,
    }
}

/// One address for clients: any ready replica takes any request.
pub fn clients(service: &Service) -> KubernetesService {
    KubernetesService {
        metadata: meta(service, service.name.clone()),
        spec: Some(ServiceSpec {
            type_: Some("ClusterIP".to_owned()),
            selector: Some(selector(&service.name)),
            ports: Some(vec![port("client", CLIENT_PORT)]),
            ..Default::default()
        }),
        status: None,
    }
}

fn port(name: &str, number: i32) -> ServicePort {
    ServicePort {
        name: Some(name.to_owned()),
        port: number,
        target_port: Some(IntOrString::String(name.to_owned())),
        protocol: Some("TCP".to_owned()),
        app_protocol: Some("kubernetes.io/h2c".to_owned()),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validate::tests::example;

    #[test]
    fn peer_service_is_headless_and_publishes_not_ready_addresses() {
        let spec = peers(&example()).spec.expect("a spec");
        assert_eq!(spec.cluster_ip.as_deref(), Some("None"));
        assert_eq!(spec.publish_not_ready_addresses, Some(true));
    }

    #[test]
    fn client_service_offers_the_client_port_of_ready_pods_alone() {
        let spec = clients(&example()).spec.expect("a spec");
        assert_eq!(spec.publish_not_ready_addresses, None);
        let ports = spec.ports.expect("ports");
        assert_eq!(ports.iter().map(|port| port.port).collect::<Vec<_>>(), [7400]);
    }
}
