//! How connections to replicas are set up: short timeouts, keep-alive that finds a vanished pod, large windows.

use std::time::Duration;

use lockstep_wire::limits;
use tonic::transport::Endpoint;

/// Time for a TCP connection to come up. A pod that vanished without a trace drops the packets.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// HTTP/2 pings on an open connection this often, and how long their answer may take.
pub(crate) const KEEP_ALIVE: Duration = Duration::from_secs(1);

/// The endpoint of `address`, which is `host:port`.
pub(crate) fn endpoint(address: &str) -> Result<Endpoint, String> {
    if address.contains('/') {
        return Err("leave out the scheme and any path".to_owned());
    }
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|error| describe(&error))?;
    if endpoint.uri().port().is_none() {
        return Err(format!("the port is missing; clients use {}", limits::CLIENT_PORT));
    }
    Ok(endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(limits::STREAM_WINDOW_BYTES)
        .initial_connection_window_size(limits::CONNECTION_WINDOW_BYTES)
        .tcp_nodelay(true))
}

/// An error with its causes on one line; the outer layers of the transport alone say nothing.
pub(crate) fn describe(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

/// The innermost cause: what an operator needs to know of a failed connection.
pub(crate) fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}
