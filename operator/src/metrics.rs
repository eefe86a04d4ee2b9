//! Figures, and the port on which they and the health of this process are read.

use std::sync::Arc;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// One label with its value.
type Label = [(&'static str, String); 1];

/// The figures of the operator.
#[derive(Clone, Default)]
pub struct Metrics {
    passes: Family<Label, Counter>,
    writes: Family<Label, Counter>,
    leader: Gauge,
}

impl Metrics {
    /// A pass that ended in this way.
    pub fn pass(&self, result: &str) {
        self.passes.get_or_create(&[("result", result.to_owned())]).inc();
    }

    /// A write to the API server, of an object of this kind.
    pub fn write(&self, kind: &str) {
        self.writes.get_or_create(&[("kind", kind.to_owned())]).inc();
    }

    /// Whether this process holds the lease.
    pub fn leads(&self, leads: bool) {
        self.leader.set(i64::from(leads));
    }

    fn registry(&self) -> Registry {
        let mut registry = Registry::with_prefix("lockstep_operator");
        registry.register("passes", "Looks at a resource, by how they ended", self.passes.clone());
        registry.register(
            "writes",
            "Writes to the API server, by kind; none while all is as it shall be",
            self.writes.clone(),
        );
        registry.register("leader", "1 if this process holds the lease", self.leader.clone());
        registry
    }
}

/// Serves `/metrics`, `/healthz` and `/readyz` until the process ends.
pub async fn serve(listener: TcpListener, metrics: Metrics) {
    let registry = Arc::new(metrics.registry());
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                tokio::spawn(answer(stream, registry.clone()));
            }
            Err(error) => {
                tracing::warn!(%error, "failed to accept a connection for metrics and health");
                tokio::time::sleep(std::time::Duration::from_secs(1)).await;
            }
        }
    }
}

async fn answer(mut stream: TcpStream, registry: Arc<Registry>) {
    let mut request = vec![0; 1024];
    let read = tokio::time::timeout(std::time::Duration::from_secs(5), stream.read(&mut request)).await;
    let Ok(Ok(length)) = read else { return };
    let response = respond(&String::from_utf8_lossy(&request[..length]), &registry);
    // A caller that went away is its own business.
    let _ = stream.write_all(response.as_bytes()).await;
    let _ = stream.shutdown().await;
}

fn respond(request: &str, registry: &Registry) -> String {
    let path = request.strip_prefix("GET ").and_then(|rest| rest.split([' ', '?']).next());
    let (status, body) = match path {
        Some("/healthz" | "/readyz") => ("200 OK", "ok\n".to_owned()),
        Some("/metrics") => {
            let mut text = String::new();
            match encode(&mut text, registry) {
                Ok(()) => ("200 OK", text),
                Err(error) => ("500 Internal Server Error", format!("{error}\n")),
            }
        }
        Some(_) => ("404 Not Found", "try /metrics, /healthz or /readyz\n".to_owned()),
        None => ("405 Method Not Allowed", "only GET\n".to_owned()),
    };
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_asked_for_health_and_metrics_answers() {
        let metrics = Metrics::default();
        metrics.write("Pod");
        let registry = metrics.registry();
        assert!(respond("GET /healthz HTTP/1.1\r\n", &registry).starts_with("HTTP/1.1 200 OK"));
        let figures = respond("GET /metrics HTTP/1.1\r\n", &registry);
        assert!(figures.contains("lockstep_operator_writes_total{kind=\"Pod\"} 1"), "{figures}");
        assert!(respond("GET /x HTTP/1.1\r\n", &registry).starts_with("HTTP/1.1 404"));
        assert!(respond("POST / HTTP/1.1\r\n", &registry).starts_with("HTTP/1.1 405"));
    }
}
