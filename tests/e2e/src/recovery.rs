//! The table of recoveries: what was done to whom, and what the client and Kubernetes noticed of it.

use std::fmt;
use std::time::Duration;

use crate::client_pod::Report;

/// What is done to a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Its pod is deleted: SIGTERM, and a new pod.
    Deleted,
    /// Its process gets SIGKILL, and its container starts again.
    Killed,
    /// The power of its node is cut, and comes back.
    PowerCut,
    /// Its claim and its pod are deleted: a new replica comes in its place.
    VolumeDestroyed,
}

impl Fault {
    /// What the table calls it.
    pub fn name(self) -> &'static str {
        match self {
            Fault::Deleted => "deleted",
            Fault::Killed => "killed",
            Fault::PowerCut => "power cut",
            Fault::VolumeDestroyed => "disk lost",
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Whom a row is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whom {
    /// One replica, which led.
    Leader,
    /// One that did not.
    Follower,
    /// All replicas at once.
    All,
    /// The operator.
    Operator,
    /// Nobody: the resource was edited.
    Resource,
}

impl fmt::Display for Whom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Whom::Leader => "leader",
            Whom::Follower => "follower",
            Whom::All => "all",
            Whom::Operator => "operator",
            Whom::Resource => "resource",
        })
    }
}

/// One row.
#[derive(Clone, Debug)]
pub struct Recovery {
    /// What was done.
    pub fault: &'static str,
    /// To whom.
    pub whom: Whom,
    /// To which pod, or in the middle of what.
    pub place: String,
    /// Whether its container was started again before: then Kubernetes lets it wait for 10 s.
    pub delayed: bool,
    /// From the fault, or the return of the power, until the resource and all pods were ready.
    pub recovered: Duration,
    /// What the client says.
    pub report: Report,
}

/// All rows, in the order in which things happened.
#[derive(Debug, Default)]
pub struct Recoveries {
    rows: Vec<Recovery>,
}

impl Recoveries {
    /// Adds a row.
    pub fn add(&mut self, recovery: Recovery) {
        self.rows.push(recovery);
    }

    /// Prints the table, each kind of fault apart, if there is anything to print.
    pub fn print(&self) {
        if self.rows.is_empty() {
            return;
        }
        println!("\nrecoveries, a client writing all the while:");
        println!("fault      where      whom      ready again  longest gap  acknowledged  unknown  errors");
        self.rows.iter().for_each(|row| println!("{row}"));
        println!("ready again: from the fault, or the return of the power, until all pods and the resource are Ready");
        println!("          *: Kubernetes starts a container that died before only after 10 s\n");
    }
}

impl fmt::Display for Recovery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Recovery { fault, whom, place, delayed, recovered, report } = self;
        let Report { acknowledged, unknown, errors, longest_gap_ms, .. } = report;
        let mark = if *delayed { '*' } else { ' ' };
        let seconds = recovered.as_secs_f64();
        write!(
            f,
            "{fault:<9}  {place:<9}  {whom:<8}  {seconds:>9.1} s{mark} {longest_gap_ms:>8} ms  {acknowledged:>12}  {unknown:>7}  \
             {errors:>6}"
        )
    }
}
