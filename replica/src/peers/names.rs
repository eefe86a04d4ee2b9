//! Names of the command line, and the addresses behind them. One name may stand for many replicas, which come and go, so each
//! is looked up again and again.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::sleep;

/// Pauses between lookups: while a member is missing, and while all are connected.
const MISSING: Duration = Duration::from_millis(500);
const COMPLETE: Duration = Duration::from_secs(5);

/// The addresses that a name stands for now.
pub(super) type Listed = watch::Receiver<BTreeSet<SocketAddr>>;

/// The pause before the next lookup.
pub(super) fn pause(complete: bool) -> Duration {
    if complete { COMPLETE } else { MISSING }
}

/// What a name resolves to.
pub(super) async fn lookup(name: &str) -> io::Result<BTreeSet<SocketAddr>> {
    Ok(tokio::net::lookup_host(name).await?.collect())
}

/// Looks a name up for ever, and has every address that it stands for dialled; `dial` may be asked for the same one again.
/// While a lookup fails, what was known holds: a name server that is away must not part the replicas.
pub(super) async fn follow(
    name: &str,
    mut lookup: impl AsyncFnMut(&str) -> io::Result<BTreeSet<SocketAddr>>,
    pause: impl Fn() -> Duration,
    dial: impl Fn(SocketAddr, Listed),
) {
    let (known, listed) = watch::channel(BTreeSet::new());
    let mut said = String::new();
    loop {
        match lookup(name).await {
            Ok(found) => {
                said.clear();
                known.send_replace(found);
                for address in listed.borrow().iter() {
                    dial(*address, listed.clone());
                }
            }
            Err(error) => {
                let text = error.to_string();
                if text != said {
                    tracing::info!("{name} of --peers does not resolve now: {text}");
                    said = text;
                }
            }
        }
        sleep(pause()).await;
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::{BTreeMap, VecDeque};

    use super::*;

    fn address(number: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, number], 7401))
    }

    /// Follows a name that resolves to these, one after the other. Gives what was dialled, and which of it still holds.
    async fn followed(answers: &[Option<&[u8]>]) -> BTreeMap<u8, bool> {
        let mut answers: VecDeque<_> = answers.iter().copied().collect();
        let (dialled, over) = (RefCell::new(BTreeMap::new()), tokio::sync::Notify::new());
        let next = async |_: &str| match answers.pop_front() {
            Some(Some(found)) => Ok(found.iter().copied().map(address).collect()),
            Some(None) => Err(io::Error::other("no name server")),
            None => {
                over.notify_one();
                std::future::pending().await
            }
        };
        let dial = |address: SocketAddr, listed: Listed| {
            dialled.borrow_mut().insert(address, listed);
        };
        tokio::select! {
            () = follow("peers:7401", next, || Duration::ZERO, dial) => {}
            () = over.notified() => {}
        }
        let number = |address: &SocketAddr| match address.ip() {
            std::net::IpAddr::V4(ip) => ip.octets()[3],
            std::net::IpAddr::V6(_) => unreachable!("none was answered"),
        };
        let dialled = dialled.into_inner();
        dialled.iter().map(|(address, listed)| (number(address), listed.borrow().contains(address))).collect()
    }

    #[tokio::test]
    async fn name_of_many_addresses_has_each_of_them_dialled() {
        assert_eq!(followed(&[Some(&[1, 2, 3])]).await, BTreeMap::from([(1, true), (2, true), (3, true)]));
    }

    #[tokio::test]
    async fn address_that_a_name_gains_is_dialled_and_one_that_it_loses_holds_no_more() {
        let expected = BTreeMap::from([(1, false), (2, true), (3, true)]);
        assert_eq!(followed(&[Some(&[1, 2]), Some(&[2, 3])]).await, expected);
    }

    #[tokio::test]
    async fn name_that_does_not_resolve_for_a_while_keeps_its_addresses() {
        assert_eq!(followed(&[Some(&[1, 2]), None, None]).await, BTreeMap::from([(1, true), (2, true)]));
    }
}
