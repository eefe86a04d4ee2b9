//! The process that speaks Kubernetes: watches `ReplicatedService` resources and keeps their replicas as they shall be.
//!
//! One look at one resource is a pipeline (see [`controller`]): observe → validate → decide → build → apply → report. Only
//! [`observe`], [`apply`] and [`report`] hold a client, and they decide nothing; [`validate`], [`decide`], [`build`] and
//! [`conditions`] are functions of their arguments.

mod apply;
mod args;
mod build;
mod conditions;
mod context;
mod controller;
mod decide;
mod drift;
mod lease;
mod metrics;
mod observe;
mod replicas;
mod report;
mod strand;
mod turns;
mod validate;
mod world;

use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use kube::runtime::events::{Recorder, Reporter};
use kube::{Client, Config};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing_subscriber::EnvFilter;

use crate::args::{Args, LogFormat};
use crate::context::Context;
use crate::lease::Lease;
use crate::metrics::Metrics;
use crate::turns::Turns;
use crate::validate::Defaults;

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    let filter = match EnvFilter::try_new(&args.log_level) {
        Ok(filter) => filter,
        Err(error) => {
            eprintln!("lockstep-operator: --log-level {:?} makes no sense: {error}", args.log_level);
            return ExitCode::from(2);
        }
    };
    let log = tracing_subscriber::fmt()
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal())
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match args.log_format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().flatten_event(true).with_current_span(false).with_span_list(false).init(),
    }
    match run(args).await {
        Ok(code) => code,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: Args) -> Result<ExitCode, String> {
    let listener = TcpListener::bind(args.listen)
        .await
        .map_err(|error| format!("failed to listen on {}: {error}; choose another --listen", args.listen))?;
    let stopping = stop_signal().map_err(|error| format!("failed to wait for signals: {error}"))?;
    let mut config = Config::infer().await.map_err(|error| {
        format!("failed to find a cluster: {error}; run inside one, or set KUBECONFIG to one that you can reach")
    })?;
    let client_of = |config: Config| {
        Client::try_from(config).map_err(|error| format!("failed to make a client of the cluster: {error}"))
    };
    let client = client_of(config.clone())?;
    config.default_retry = false;
    let metrics = Metrics::default();
    tokio::spawn(metrics::serve(listener, metrics.clone()));

    let identity = args.identity.clone().unwrap_or_else(|| format!("lockstep-operator-{:08x}", rand::random::<u32>()));
    let reporter = Reporter { controller: build::MANAGER.to_owned(), instance: Some(identity.clone()) };
    let context = Arc::new(Context {
        recorder: Recorder::new(client.clone(), reporter),
        defaults: Defaults { image: args.image.clone() },
        poll: args.poll,
        metrics: metrics.clone(),
        evictions: client_of(config)?,
        turns: Turns::new(usize::from(args.concurrent_rolls)).into(),
        held_back: Default::default(),
        waits: Default::default(),
        settled: Default::default(),
        failures: Default::default(),
        client: client.clone(),
    });
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"), %identity, image = %args.image,
        namespace = args.namespace.as_deref().unwrap_or("all"), "starting"
    );

    tokio::select! {
        () = stopped(stopping.clone()) => return Ok(ExitCode::SUCCESS),
        () = controller::wait_for_crd(&client, args.namespace.as_deref()) => {}
    }
    let work = controller::run(context, args.namespace.as_deref(), args.concurrency, stopped(stopping.clone()));
    if args.no_leader_election {
        metrics.leads(true);
        work.await;
        return Ok(ExitCode::SUCCESS);
    }

    let namespace =
        args.lease_namespace.or(args.namespace.clone()).unwrap_or_else(|| client.default_namespace().to_owned());
    let lease = Lease::new(client.clone(), &namespace, &args.lease_name, &identity);
    tokio::select! {
        () = stopped(stopping.clone()) => return Ok(ExitCode::SUCCESS),
        () = lease.acquire() => tracing::info!(%namespace, name = %args.lease_name, "holding the lease"),
    }
    metrics.leads(true);
    tokio::select! {
        () = work => {
            lease.release().await;
            tracing::info!("stopped");
            Ok(ExitCode::SUCCESS)
        }
        // Work in flight is dropped with the process: another operator may be at it already.
        () = lease.hold() => Err("lost the lease; stopping at once".to_owned()),
    }
}

/// True once SIGTERM or SIGINT came.
fn stop_signal() -> std::io::Result<watch::Receiver<bool>> {
    let (sender, receiver) = watch::channel(false);
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("asked to stop");
        // Nobody listens: then nothing is left to stop.
        let _ = sender.send(true);
        sender.closed().await;
    });
    Ok(receiver)
}

async fn stopped(mut stopping: watch::Receiver<bool>) {
    // An error means that the sender is gone, which happens only after the signal.
    let _ = stopping.wait_for(|stop| *stop).await;
}
