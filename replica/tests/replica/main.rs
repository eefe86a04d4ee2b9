//! Real replicas as processes on the loopback interface: what clients, peers, operators and Kubernetes see of them.
//!
//! | module | what is shown |
//! |---|---|
//! | [`serving`] | requests through any replica, also while replicas die and come back |
//! | [`admin`] | genesis, tokens, health, metrics, reflection |
//! | [`members`] | replicas that are lost, replaced, added and removed while clients write |
//! | [`peers`] | who may join the conversation between replicas |
//! | [`limits`] | frames, connections and bytes that are too many or make no sense |
//! | [`snapshots`] | snapshots that are asked for, and what they are for |
//! | [`divergence`] | a state that is not that of the others |
//! | [`starting`] | why a replica does not start, and what it says then |
//! | [`stopping`] | a leader that is told to stop hands over |

mod admin;
mod divergence;
mod limits;
mod members;
mod peers;
mod service;
mod serving;
mod snapshots;
mod starting;
mod stopping;
